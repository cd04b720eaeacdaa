package redis

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/internal/testbed/redistest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, serverGoroutines...) }

// serverGoroutines wait for a server's process.
var serverGoroutines = []goleak.Option{goleak.IgnoreAnyFunction("github.com/sagaz-relay/relay/internal/testbed/child.Start.func1")}

// patience bounds everything in these tests that must happen in the end.
const patience = time.Minute

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func config(s *redistest.Server) Config {
	cfg := DefaultConfig()
	cfg.URL = s.URL
	return cfg
}

func newSink(t testing.TB, cfg Config) *Sink {
	t.Helper()
	s, err := New(cfg, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // the suite closes by itself
	return s
}

// ask runs commands as an administrator does, on a connection of its own.
func ask(t testing.TB, url string, f func(ctx context.Context, rdb *goredis.Client) error) {
	t.Helper()
	options, err := goredis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	rdb := goredis.NewClient(options)
	defer func() { _ = rdb.Close() }()
	if err := f(soon(t), rdb); err != nil {
		t.Fatal(err)
	}
}

func newStream() string { return "test-" + strings.ToLower(rand.Text()[:12]) }

// consume reads a stream.
func consume(t testing.TB, url, stream string) (got []sinktest.Delivered) {
	t.Helper()
	ask(t, url, func(ctx context.Context, rdb *goredis.Client) error {
		entries, err := rdb.XRange(ctx, stream, "-", "+").Result()
		for _, e := range entries {
			d := sinktest.Delivered{Topic: stream, Key: e.Values["key"].(string), Value: []byte(e.Values["value"].(string))}
			headers := make(map[string]string)
			if err := json.Unmarshal([]byte(e.Values["headers"].(string)), &headers); err != nil {
				return err
			}
			for name, value := range headers {
				d.Headers = append(d.Headers, relay.Header{Key: name, Value: value})
			}
			got = append(got, d)
		}
		return err
	})
	return got
}

func TestContract(t *testing.T) {
	server := redistest.Start(t)
	sinktest.Run(t, sinktest.Harness{NotOurs: serverGoroutines, New: func(t testing.TB) *sinktest.Target {
		stream, wrong := newStream(), newStream()
		ask(t, server.URL, func(ctx context.Context, rdb *goredis.Client) error { return rdb.Set(ctx, wrong, "x", 0).Err() })
		s := newSink(t, config(server))
		return &sinktest.Target{
			Sink: s, Topic: stream,
			Consume: func(t testing.TB) []sinktest.Delivered { return consume(t, server.URL, stream) },
			Refused: func(key string) (*relay.Record, relay.Reason) {
				return sinktest.NewRecord(wrong, key, 0, 0), relay.ReasonRejected
			},
			Stall: server.Freeze,
			Faults: map[string]func(testing.TB){
				"server killed":       func(t testing.TB) { server.Kill(t); server.Restart(t) },
				"server frozen":       func(t testing.TB) { server.Freeze(t)() },
				"frozen, then killed": func(t testing.TB) { server.Freeze(t); server.Kill(t); server.Restart(t) },
				"clients killed by an operator": func(t testing.TB) {
					ask(t, server.URL, func(ctx context.Context, rdb *goredis.Client) error {
						return rdb.ClientKillByFilter(ctx, "TYPE", "normal", "SKIPME", "yes").Err()
					})
				},
			},
		}
	}})
}
