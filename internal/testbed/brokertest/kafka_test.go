package brokertest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

func TestMain(m *testing.M) { Main(m) }

func TestKafkaListeners(t *testing.T) {
	k := Kafka(t)
	if k.SSL == "" {
		t.Skip("SAGAZ_TEST_KAFKA is set without SAGAZ_TEST_KAFKA_STATE: only the plaintext listener is known")
	}
	topic := k.Topic(t, 1)
	scram256, err := scram.Mechanism(scram.SHA256, k.User, k.Password)
	if err != nil {
		t.Fatal(err)
	}
	scram512, err := scram.Mechanism(scram.SHA512, k.User, k.Password)
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := scram.Mechanism(scram.SHA256, k.User, "wrong")
	if err != nil {
		t.Fatal(err)
	}
	ca := tlsConfig(t, k.CAFile, "", "")
	pair := tlsConfig(t, k.CAFile, k.ClientCert, k.ClientKey)
	plainAuth := plain.Mechanism{Username: k.User, Password: k.Password}
	for _, tc := range []struct {
		name string
		addr string
		tls  *tls.Config
		sasl sasl.Mechanism
		ok   bool
	}{
		{"Plaintext", k.Plaintext, nil, nil, true},
		{"SSL", k.SSL, ca, nil, true},
		{"SSLUnknownCA", k.SSL, &tls.Config{}, nil, false},
		{"MTLS", k.MTLS, pair, nil, true},
		{"MTLSNoCertificate", k.MTLS, ca, nil, false},
		{"SASLPlain", k.SASLPlaintext, nil, plainAuth, true},
		{"SASLScram256", k.SASLPlaintext, nil, scram256, true},
		{"SASLScram512", k.SASLPlaintext, nil, scram512, true},
		{"SASLWrongPassword", k.SASLPlaintext, nil, wrong, false},
		{"SASLSSLPlain", k.SASLSSL, ca, plainAuth, true},
		{"SASLSSLScram256", k.SASLSSL, ca, scram256, true},
		{"SASLSSLScram512", k.SASLSSL, ca, scram512, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := produce(t.Context(), tc.addr, topic, &kafka.Transport{TLS: tc.tls, SASL: tc.sasl})
			if tc.ok && err != nil {
				t.Fatal(err)
			}
			if !tc.ok && err == nil {
				t.Fatal("got no error")
			}
		})
	}
}

func TestKafkaRestart(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a broker of its own; run without -short")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	const elsewhere = "127.0.0.1:9"
	k, err := StartKafka(ctx, KafkaOptions{Dir: t.TempDir(), Log: t.Output(), Advertise: elsewhere, Config: []string{"auto.create.topics.enable=false"}})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	through := &kafka.Transport{SASL: plain.Mechanism{Username: k.User, Password: k.Password}}
	defer through.CloseIdleConnections()
	asked := &kafka.MetadataRequest{Topics: []string{"not-there"}}
	answer, err := (&kafka.Client{Addr: kafka.TCP(k.SASLPlaintext), Transport: through}).Metadata(ctx, asked)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%s:%d", answer.Brokers[0].Host, answer.Brokers[0].Port); got != elsewhere {
		t.Errorf("the broker gives its address as %s, want %s", got, elsewhere)
	}
	if err := answer.Topics[0].Error; !errors.Is(err, kafka.UnknownTopicOrPartition) {
		t.Errorf("a topic that is not there: %v", err)
	}
	topic := k.Topic(t, 1)
	send := func() {
		t.Helper()
		for {
			err := produce(ctx, k.Plaintext, topic, &kafka.Transport{})
			if errors.Is(err, kafka.NotLeaderForPartition) { // a moment after its start
				time.Sleep(100 * time.Millisecond)
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	send()
	start := time.Now()
	if err := k.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped in %v", time.Since(start).Round(time.Millisecond))
	for _, end := range []func() error{func() error { return nil }, k.Kill} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := k.Start(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("started again in %v", time.Since(start).Round(time.Millisecond))
		send()
	}
	conn, err := kafka.DialLeader(ctx, "tcp", k.Plaintext, topic, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, last, err := conn.ReadOffsets(); err != nil || last != 3 {
		t.Fatalf("got end offset %d (%v), want 3", last, err)
	}
}

func produce(ctx context.Context, addr, topic string, transport *kafka.Transport) error {
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(addr), Timeout: 30 * time.Second, Transport: transport}
	answer, err := client.Produce(ctx, &kafka.ProduceRequest{
		Topic: topic, Partition: 0, RequiredAcks: kafka.RequireAll,
		Records: kafka.NewRecordReader(kafka.Record{Value: kafka.NewBytes([]byte("hello"))}),
	})
	if err != nil {
		return err
	}
	return answer.Error
}

func tlsConfig(t *testing.T, ca, cert, key string) *tls.Config {
	t.Helper()
	config, err := TLSConfig(ca, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return config
}
