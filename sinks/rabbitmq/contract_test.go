package rabbitmq

import (
	"context"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func target(t testing.TB, brokerURL string, queueArgs amqp.Table) *sinktest.Target {
	r := newRoom(t, brokerURL, queueArgs)
	p, url := newProxy(t, brokerURL)
	cfg := r.config()
	cfg.URL = url
	cfg.Window = 64 // smaller than the suite's batches
	return &sinktest.Target{
		Sink:    newSink(t, cfg),
		Topic:   bound,
		Consume: r.consume,
		Refused: func(key string) (*relay.Record, relay.Reason) {
			rec := sinktest.NewRecord(unbound, key, 0, 0)
			return rec, relay.ReasonUnroutable
		},
		Stall: func(testing.TB) func() {
			p.stall(toBroker, toSink)
			return p.resume
		},
		Faults: map[string]func(testing.TB){
			"connection cut":             func(testing.TB) { p.cut() },
			"connection cut three times": func(testing.TB) { p.cut(); p.cut(); p.cut() },
			"stalled, then cut": func(testing.TB) {
				p.stall(toSink)
				p.cut()
				p.resume()
			},
		},
	}
}

func TestContractClassicQueue(t *testing.T) {
	url := brokertest.RabbitMQ(t).URL
	sinktest.Run(t, sinktest.Harness{NoKey: true, New: func(t testing.TB) *sinktest.Target { return target(t, url, nil) }})
}

// The faults of a whole broker need one of our own.
func TestContractQuorumQueue(t *testing.T) {
	broker := ownBroker(t)
	sinktest.Run(t, sinktest.Harness{NoKey: true, Patience: 3 * time.Minute, NotOurs: brokerGoroutines, New: func(t testing.TB) *sinktest.Target {
		target := target(t, broker.URL, amqp.Table{"x-queue-type": "quorum"})
		addBrokerFaults(target, broker)
		return target
	}})
}

// Durable classic queues with persistent messages must survive a kill, too: what was confirmed was
// synced.
func TestBrokerFaultsClassicQueue(t *testing.T) {
	broker := ownBroker(t)
	sinktest.RunFaults(t, sinktest.Harness{NoKey: true, Patience: 3 * time.Minute, NotOurs: brokerGoroutines, New: func(t testing.TB) *sinktest.Target {
		target := target(t, broker.URL, nil)
		target.Faults = map[string]func(testing.TB){}
		addBrokerFaults(target, broker)
		return target
	}})
}

// brokerGoroutines wait for the broker's process.
var brokerGoroutines = []goleak.Option{goleak.IgnoreAnyFunction("github.com/sagaz-relay/relay/internal/testbed/child.Start.func1")}

func addBrokerFaults(target *sinktest.Target, broker *brokertest.RabbitMQServer) {
	start := func(t testing.TB, ctx context.Context) {
		if err := broker.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	target.Faults["broker killed"] = func(t testing.TB) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		// RabbitMQ 3.10 writes its registry of quorum queues late: one that was declared within the
		// last half second does not survive a kill, whatever was confirmed. The queue of a test is
		// that young.
		if _, err := broker.Ctl(ctx, "eval", "[ok = dets:sync(T) || T <- dets:all()]."); err != nil {
			t.Fatal(err)
		}
		if err := broker.Kill(); err != nil {
			t.Fatal(err)
		}
		start(t, ctx)
	}
	target.Faults["broker restarted"] = func(t testing.TB) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := broker.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		start(t, ctx)
	}
	target.Faults["connections closed by an operator"] = func(t testing.TB) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := broker.Ctl(ctx, "close_all_connections", "test"); err != nil {
			t.Fatal(err)
		}
	}
}
