package engine_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func polling(cfg *engine.Config) { quick(cfg); cfg.Mode = relay.ModePolling }

// A look at the whole table takes so long that it is made every ten minutes only. The looks at the
// newest rows find every event at once, also shortly before the next look at the whole table, when
// most of their window is older than the last one.
func TestPollingLargeTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		whole := 0
		w.sweepCost = func(q relay.SweepQuery) time.Duration {
			if q.Kind != relay.SweepPending {
				return 0
			}
			if q.Since != 0 {
				return time.Millisecond
			}
			whole++
			return 2 * time.Second
		}
		start(t, w, polling, sink)
		time.Sleep(time.Hour) // nothing is found, so the looks at the whole table become rare
		w.mu.Lock()
		before := whole
		w.mu.Unlock()
		late := time.Duration(0)
		const events = 300
		for i := range events {
			key := fmt.Sprint("k", i%7, "-")
			began := time.Now()
			w.commit(key)
			w.untilStatus("sent", fmt.Sprint(key, i/7+1))
			late = max(late, time.Since(began))
			time.Sleep(10 * time.Second)
		}
		if late > 5*time.Second {
			t.Errorf("an event was found after %s, want 5s at most", late)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if n := whole - before; n > 20 {
			t.Errorf("the whole table was looked at %d times in %s: this test shows nothing", n, events*10*time.Second)
		}
	})
}

// What an owner had claimed when it died was first of its key: it is looked for before what is
// pending.
func TestPollingLooksForClaimsOfTheDeadFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		var kinds []relay.SweepKind
		w.sweepCost = func(q relay.SweepQuery) time.Duration {
			kinds = append(kinds, q.Kind)
			return 0
		}
		w.commit("k")
		start(t, w, polling, sink)
		w.untilStatus("sent", "k1")
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(kinds) < 2 || kinds[0] != relay.SweepClaimed || kinds[1] != relay.SweepPending {
			t.Errorf("looked for %v", kinds)
		}
	})
}

// The position up to which the slot has to be asked is not to be had for a while. The table is
// polled meanwhile, and then the slot is read.
func TestPollingUntilHorizonIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.openErrs = []error{&relay.SetupError{Problem: "wal_level is not logical", Streaming: true}}
		w.horizonErrs = []error{errConnection, errConnection, errConnection}
		r := start(t, w, quick, sink)
		for range 60 {
			w.commit("a")
			time.Sleep(time.Second)
		}
		w.untilStatus("sent", numbered("a", 1, 60)...)
		if got := r.slot(); got.Mode != relay.ModeCDC || !got.Streaming {
			t.Errorf("mode %q, streaming %t: want the stream again", got.Mode, got.Streaming)
		}
		wantEachOnceInOrder(t, sink, "a")
	})
}

// A stop is obeyed while the position is not to be had.
func TestPollingStopsWithoutHorizon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.openErrs = []error{&relay.SetupError{Problem: "wal_level is not logical", Streaming: true}}
		for range 10_000 {
			w.horizonErrs = append(w.horizonErrs, errConnection)
		}
		r := start(t, w, quick, sink)
		time.Sleep(2 * time.Minute)
		began := time.Now()
		if err := r.stop(); err != nil || time.Since(began) > time.Second {
			t.Errorf("stopped after %s with %v", time.Since(began), err)
		}
	})
}
