//go:build !nonats

package main

import (
	"context"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/sinks/nats"
)

// natsKind is the sink for NATS JetStream.
var natsKind = func() []sinkKind {
	k := kind("nats", nats.DefaultConfig, nats.New)
	k.variable = "NATS_URL"
	k.address = func(config any) string {
		cfg := config.(*nats.Config)
		shown := address.Show(strings.Join(cfg.Servers, ","))
		if cfg.Stream != "" {
			shown += " stream " + cfg.Stream
		}
		return shown
	}
	k.readBack = func(ctx context.Context, config any, subjects []string, since time.Time, f func(readMessage) error) error {
		return nats.ReadBack(ctx, *config.(*nats.Config), subjects, since, func(s nats.Stored) error {
			return f(readMessage{s.Headers, s.EventID, s.Value})
		})
	}
	return []sinkKind{k}
}()
