package cdc

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

func TestSilenceOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, config("postgres://127.0.0.1:1/none"))
		want := func(slot string, want time.Duration) {
			t.Helper()
			if got := src.silenceOf(slot); got != want {
				t.Errorf("slot %s: got %s, want %s", slot, got, want)
			}
		}
		want("a", 10*time.Second)
		src.wasSilent("a")
		want("a", 20*time.Second)
		src.wasSilent("a")
		want("a", 40*time.Second)
		want("b", 10*time.Second)
		for range 100 {
			src.wasSilent("a")
		}
		want("a", 10*time.Minute)
		time.Sleep(time.Hour + time.Second)
		want("a", 10*time.Second)
		src.wasSilent("a")
		want("a", 20*time.Second)
	})
}

// What the server needs longer for than RELAY_WAL_SENDER_TIMEOUT ends one stream, or some, and not
// each that follows.
func TestSilenceIsWaitedOut(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	proxy := pgtest.NewProxy(t, db.DSN)
	cfg := quick(proxy.DSN)
	src := newSource(t, cfg)
	// a walsender that is busy does not look at the clock either
	src.walsender["wal_sender_timeout"] = "0"
	src.unfiltered[db.Name] = true // no other connection that the proxy could make silent
	r := start(t, src, db.Name, newIntake(t))
	proxy.Freeze()
	if err := r.returned(); err == nil || !strings.Contains(err.Error(), "silent for 8s") {
		t.Fatalf("silence did not end the stream: %v", err)
	}
	proxy.Cut() // before Close, which would wait for an answer
	proxy.Thaw()
	_ = r.ended()
	in := newIntake(t)
	r = start(t, src, db.Name, in)
	proxy.Freeze()
	time.Sleep(cfg.WALSenderTimeout * 5 / 4) // the length of the silence is the case
	proxy.Thaw()
	insert(t, db, "a")
	in.wait(1)
	r.alive()
}
