package e2e

import (
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/sagaz-relay/relay/internal/testbed/redistest"
)

// The program with Redis from the outside: the server is killed under load, and verify finds all, and
// finds it when one is gone.
func TestRedis(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rnd := newRand(t)
	server := redistest.Start(t)
	rdb := goredis.NewClient(&goredis.Options{Addr: strings.TrimSuffix(strings.TrimPrefix(server.URL, "redis://"), "/0")})
	defer func() { _ = rdb.Close() }()
	env := settings{"BROKER_TYPE": "redis", "REDIS_URL": server.URL, "RELAY_TOPIC": "outbox.{event_type}", "RELAY_BACKOFF_MAX": "300ms"}
	p := w.relay("redis", env)
	p.waitStreaming()
	w.insert(w.randomKeys(rnd, 300, "order")...)
	server.Kill(t)
	w.insert(w.randomKeys(rnd, 300, "order")...)
	server.Restart(t)
	w.waitNonePending(p)
	w.waitLedger(p, "redis", 0)
	if out, code := w.command(env, "verify", "--since", "1h"); code != 0 || !strings.Contains(out, "600 of them there") || !strings.Contains(out, "0 earlier") {
		t.Errorf("verify: exit code %d, %s", code, out)
	}
	if out, code := w.command(env, "doctor"); !strings.Contains(out, "routes redis") {
		t.Errorf("doctor: exit code %d, %s", code, out)
	}
	entries, err := rdb.XRevRangeN(t.Context(), "outbox.order", "+", "-", 1).Result()
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	if err := rdb.XDel(t.Context(), "outbox.order", entries[0].ID).Err(); err != nil {
		t.Fatal(err)
	}
	if out, code := w.command(env, "verify", "--since", "1h"); code != 1 || !strings.Contains(out, " 1 missing") {
		t.Errorf("verify without an entry: exit code %d, %s", code, out)
	}
	p.stop()
}
