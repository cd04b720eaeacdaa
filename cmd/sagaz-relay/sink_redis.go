//go:build !noredis

package main

import (
	"context"
	"time"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/sinks/redis"
)

// redisKind is the sink for Redis Streams.
var redisKind = func() []sinkKind {
	k := kind("redis", redis.DefaultConfig, redis.New)
	k.variable = "REDIS_URL"
	k.address = func(config any) string { return address.Show(config.(*redis.Config).URL) }
	k.readBack = func(ctx context.Context, config any, streams []string, since time.Time, f func(readMessage) error) error {
		return redis.ReadBack(ctx, *config.(*redis.Config), streams, since, func(s redis.Stored) error {
			return f(readMessage{s.Headers, s.EventID, s.Value})
		})
	}
	return []sinkKind{k}
}()
