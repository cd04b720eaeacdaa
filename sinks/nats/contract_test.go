package nats

import (
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/natstest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestContract(t *testing.T) {
	server := natstest.Start(t, "")
	sinktest.Run(t, sinktest.Harness{
		NoKey: true, Deduplicates: true, NotOurs: serverGoroutines,
		New: func(t testing.TB) *sinktest.Target { return target(t, server) },
	})
}

func target(t testing.TB, server *natstest.Server) *sinktest.Target {
	subject := newStream(t, server.URL, nil)
	cfg := config(server)
	cfg.Window = 64 // smaller than the suite's batches
	s := newSink(t, cfg)
	return &sinktest.Target{
		Sink:    s,
		Topic:   subject,
		Consume: func(t testing.TB) []sinktest.Delivered { return consume(t, server.URL, subject) },
		Refused: func(key string) (*relay.Record, relay.Reason) {
			return sinktest.NewRecord("nobody.listens", key, 0, 0), relay.ReasonUnroutable
		},
		Stall: server.Freeze,
		Faults: map[string]func(testing.TB){
			"connection cut":             func(testing.TB) { cut(s) },
			"connection cut three times": func(testing.TB) { cut(s); cut(s); cut(s) },
			"server killed":              func(t testing.TB) { server.Kill(t); server.Restart(t) },
			"server stopped":             func(t testing.TB) { server.Stop(t); server.Restart(t) },
			"server frozen":              func(t testing.TB) { server.Freeze(t)() },
			"frozen, then killed": func(t testing.TB) {
				server.Freeze(t)
				server.Kill(t)
				server.Restart(t)
			},
		},
	}
}
