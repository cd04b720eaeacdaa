package brokertest

import (
	"context"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func TestRabbitMQListeners(t *testing.T) {
	r := RabbitMQ(t)
	t.Run("Plain", func(t *testing.T) { publish(t, r.URL, amqp.Config{}, amqp.Table{}) })
	t.Run("QuorumQueue", func(t *testing.T) { publish(t, r.URL, amqp.Config{}, amqp.Table{"x-queue-type": "quorum"}) })
	if r.TLSURL == "" {
		t.Skip("SAGAZ_TEST_RABBITMQ is set without SAGAZ_TEST_RABBITMQ_STATE: no TLS listener is known")
	}
	t.Run("TLS", func(t *testing.T) {
		publish(t, r.TLSURL, amqp.Config{TLSClientConfig: tlsConfig(t, r.CAFile, "", "")}, nil)
	})
	t.Run("ClientCertificate", func(t *testing.T) {
		publish(t, r.TLSURL, amqp.Config{TLSClientConfig: tlsConfig(t, r.CAFile, r.ClientCert, r.ClientKey)}, nil)
	})
	t.Run("UnknownCA", func(t *testing.T) {
		if conn, err := amqp.Dial(r.TLSURL); err == nil {
			conn.Close()
			t.Fatal("got no error")
		}
	})
}

func TestRabbitMQRestart(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a broker of its own; run without -short")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	r, err := StartRabbitMQ(ctx, RabbitMQOptions{Dir: t.TempDir(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	publish(t, r.URL, amqp.Config{}, nil)
	start := time.Now()
	if err := r.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped in %v", time.Since(start).Round(time.Millisecond))
	for _, end := range []func() error{func() error { return nil }, r.Kill} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := r.Start(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("started again in %v", time.Since(start).Round(time.Millisecond))
		publish(t, r.URL, amqp.Config{}, nil)
	}

	// A publishing connection has to wait while the alarm is on.
	conn, err := amqp.Dial(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 2))
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.SetMemoryAlarm(ctx, true); err != nil {
		t.Fatal(err)
	}
	if err := ch.PublishWithContext(ctx, "", "nowhere", false, false, amqp.Publishing{}); err != nil {
		t.Fatal(err)
	}
	if got := <-blocked; !got.Active {
		t.Fatalf("got %+v, want blocked", got)
	}
	if err := r.SetMemoryAlarm(ctx, false); err != nil {
		t.Fatal(err)
	}
	if got := <-blocked; got.Active {
		t.Fatalf("got %+v, want unblocked", got)
	}
}

func publish(t *testing.T, url string, config amqp.Config, queueArgs amqp.Table) {
	t.Helper()
	conn, err := amqp.DialConfig(url, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	queue := "test-" + t.Name()
	if _, err := ch.QueueDeclare(queue, true, false, false, false, queueArgs); err != nil {
		t.Fatal(err)
	}
	defer ch.QueueDelete(queue, false, false, false)
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	confirm, err := ch.PublishWithDeferredConfirmWithContext(t.Context(), "", queue, true, false,
		amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("hello")})
	if err != nil {
		t.Fatal(err)
	}
	if acked, err := confirm.WaitContext(t.Context()); err != nil || !acked {
		t.Fatalf("got acked %v, %v", acked, err)
	}
}
