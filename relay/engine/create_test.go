package engine_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// making is a world in which a slot has to be made, while somebody's transaction is open elsewhere
// in the server.
func making(t *testing.T) *world {
	w := newWorld(t)
	w.gone, w.creating = relay.GoneMissing, make(chan struct{})
	w.holders = []relay.Holder{{PID: 4711, User: "dba", Database: "other", Application: "psql", Age: time.Hour}}
	return w
}

// Events are delivered from the table while the slot is being made, each once and in order. It is
// reported what making it waits for.
func TestDeliversWhileSlotIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, sink := making(t), sinktest.NewScript("kafka")
		r := start(t, w, quick, sink)
		const n = 120
		for range n / 2 {
			w.commit("a", "b")
			time.Sleep(time.Second)
		}
		w.untilStatus("sent", append(numbered("a", 1, n/2), numbered("b", 1, n/2)...)...)
		got := r.slot()
		if want := `pid 4711 (user "dba", database "other", application "psql"), open for 1h0m0s`; got.SlotWaitsFor != want {
			t.Errorf("it waits for %q, want %q", got.SlotWaitsFor, want)
		}
		st := r.watch.Status()
		if v := st.Verdict(); v.Level != relay.LevelDegraded || !strings.Contains(strings.Join(v.Reasons, " "), "pid 4711") {
			t.Errorf("verdict %+v", v)
		}
		if p := st.Problems(); len(p) > 0 {
			t.Errorf("not ready though it delivers: %q", p)
		}
		if n := r.log.count("making the slot waits for the end of transactions"); n < 1 || n > 2 {
			t.Errorf("%d log lines in a minute, want one or two", n)
		}
		close(w.creating)
		for range n / 2 {
			w.commit("a", "b")
			time.Sleep(time.Second)
		}
		w.untilStatus("sent", append(numbered("a", 1, n), numbered("b", 1, n)...)...)
		wantEachOnceInOrder(t, sink, "a", "b")
		if got := r.slot(); got.Mode != relay.ModeCDC || !got.Streaming || got.SlotWaitsFor != "" {
			t.Errorf("mode %q, streaming %t, waits for %q: want the stream", got.Mode, got.Streaming, got.SlotWaitsFor)
		}
	})
}

// A stop is obeyed at once, in each mode.
func TestStopsWhileSlotIsMade(t *testing.T) {
	for _, mode := range []string{relay.ModeAuto, relay.ModeCDC} {
		bubble(t, mode, func(t *testing.T) {
			w, sink := making(t), sinktest.NewScript("kafka")
			r := start(t, w, func(cfg *engine.Config) { quick(cfg); cfg.Mode = mode }, sink)
			w.commit("a")
			time.Sleep(time.Minute)
			if got := r.slot(); !strings.Contains(got.SlotWaitsFor, "4711") {
				t.Errorf("it waits for %q", got.SlotWaitsFor)
			}
			began := time.Now()
			if err := r.stop(); err != nil || time.Since(began) > time.Second {
				t.Errorf("stopped after %s with %v", time.Since(began), err)
			}
		})
	}
}
