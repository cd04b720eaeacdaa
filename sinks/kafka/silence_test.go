package kafka

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol"

	"github.com/sagaz-relay/relay/relay"
)

// A broker that accepts and is silent, from any request on, delays neither Publish, Check nor
// Close, whatever the time limits are.
func TestSilence(t *testing.T) {
	quiet := func(t *testing.T, addr string, change func(*Config)) {
		cfg := DefaultConfig()
		cfg.Brokers = []string{addr}
		if change != nil {
			change(&cfg)
		}
		s, err := New(cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		soonEnough := func(what string, f func()) {
			t.Helper()
			start := time.Now()
			f()
			if took := time.Since(start); took > 6*time.Second {
				t.Errorf("%s took %s", what, took)
			}
		}
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			soonEnough("publish", func() {
				err := s.Publish(ctx, values("t", "a", 3))
				if _, refused := relay.Refused(err); err == nil || refused {
					t.Errorf("publish: %v", err)
				}
			})
			cancel()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		soonEnough("check", func() { _ = s.Check(ctx) })
		publishing := make(chan error, 1)
		go func() { publishing <- s.Publish(testContext(t), values("t", "a", 3)) }()
		soonEnough("close", func() { _ = s.Close() })
		soonEnough("publish whose sink was closed", func() {
			if err := <-publishing; err == nil {
				t.Error("no error")
			}
		})
	}
	for _, from := range []protocol.ApiKey{protocol.ApiVersions, protocol.InitProducerId, protocol.Metadata, protocol.Produce} {
		t.Run(from.String(), func(t *testing.T) {
			t.Parallel()
			f := newFake(t, 1)
			f.set(func() { f.silent = from })
			quiet(t, f.addr(), nil)
		})
	}
	for name, security := range map[string]string{"accept only": "PLAINTEXT", "accept only, TLS": "SSL"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			quiet(t, server(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), func(c *Config) { c.SecurityProtocol = security })
		})
	}
}
