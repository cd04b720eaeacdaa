package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/relay/watch"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// kindsOf renders changes, the oldest first.
func kindsOf(changes []relay.Change) string {
	var words []string
	for i := len(changes) - 1; i >= 0; i-- {
		c := changes[i]
		word := string(c.Kind)
		if c.Sink != "" {
			word += "(" + c.Sink + ")"
		}
		if c.Times > 1 {
			word += fmt.Sprint("×", c.Times)
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

func known(s watch.Series) (n int) {
	for _, v := range s {
		if !math.IsNaN(v) {
			n++
		}
	}
	return n
}

func TestHistory(t *testing.T) {
	// Fifteen minutes at five seconds, whatever the uptime; unknown before the start.
	bubble(t, "KeepsFifteenMinutes", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, oneLane, sink)
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		h := r.watch.History()
		slot := h.Slots["sagaz_outbox"]
		if n := known(slot.LagSeconds); h.EverySeconds != 5 || len(slot.LagSeconds) != 180 || n < 12 || n > 13 {
			t.Errorf("after a minute: %d of %d samples, one in %v s", n, len(slot.LagSeconds), h.EverySeconds)
		}
		if !math.IsNaN(slot.LagSeconds[0]) || math.IsNaN(slot.LagSeconds[179]) {
			t.Errorf("the newest sample is not the last: %v", slot.LagSeconds)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := known(r.watch.History().Slots["sagaz_outbox"].LagSeconds); n != 180 {
			t.Errorf("after an hour: %d samples, want 180", n)
		}
	})

	// A rise of the lag is seen, and a standby's time is a gap.
	bubble(t, "LagRateAndGap", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes = 1; cfg.SinkIsolation, cfg.PublishTimeout = time.Hour, time.Hour }, sink)
		w.commit("a", "b")
		<-gate.Reached
		time.Sleep(31 * time.Second)
		slot := r.watch.History().Slots["sagaz_outbox"]
		if last := slot.LagSeconds[179]; last < 25 || last > 31 {
			t.Errorf("lag %v s after half a minute", last)
		}
		gate.Release()
		w.untilStatus("sent", "a1", "b1")
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if st := r.watch.Status().Sinks[0]; st.Rate <= 0 || st.P99 == nil || *st.P99 < 31 || st.Acked != 2 {
			t.Errorf("sink: %+v, want a rate, and a p99 of half a minute", st)
		}
		first := w.lease()
		w.takenOver()
		first.lose(errConnection)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		slot = r.watch.History().Slots["sagaz_outbox"]
		if last := slot.LagSeconds[179]; !math.IsNaN(last) {
			t.Errorf("lag %v of a slot that another relay owns", last)
		}
		if got := r.watch.Status().Sinks[0]; got.Rate != 0 || got.P99 == nil {
			t.Errorf("half a minute later: %+v, want no rate, and a p99 over the minute", got)
		}
	})
}

func TestSeriesJSON(t *testing.T) {
	text, err := json.Marshal(watch.Series{0, 1.23456, math.NaN(), 12345678901})
	if err != nil || string(text) != `[0,1.235,null,12345678901]` {
		t.Errorf("got %s, %v", text, err)
	}
	var back watch.Series
	if err := json.Unmarshal(text, &back); err != nil || len(back) != 4 || back[1] != 1.235 || !math.IsNaN(back[2]) {
		t.Errorf("read back: %v, %v", back, err)
	}
}

func TestChanges(t *testing.T) {
	bubble(t, "OfALease", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, oneLane, sink)
		w.commit("a")
		w.untilStatus("sent", "a1")
		first := w.lease()
		w.takenOver()
		first.lose(errConnection)
		time.Sleep(time.Minute)
		w.givenBack()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got, want := kindsOf(r.watch.Changes()), "lease_taken streaming lease_lost standby×2 lease_taken streaming"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		for _, c := range r.watch.Changes() {
			if c.Kind == relay.ChangeLeaseLost && !strings.Contains(c.Text, errConnection.Error()) {
				t.Errorf("it does not say why the lease was lost: %+v", c)
			}
		}
	})

	bubble(t, "OfASink", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, oneLane, sink)
		time.Sleep(time.Second)
		sink.Down(errors.New("no leader"))
		w.commit("a")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if v := r.watch.Status().Verdict(); v.Level != relay.LevelDegraded || !strings.Contains(strings.Join(v.Reasons, " "), "kafka is down") || strings.Contains(fmt.Sprint(v), "no leader") {
			t.Errorf("verdict %+v", v)
		}
		time.Sleep(50 * time.Second)
		synctest.Wait()
		if v := r.watch.Status().Verdict(); v.Level != relay.LevelDegraded || !strings.Contains(strings.Join(v.Reasons, " "), "kafka is isolated") {
			t.Errorf("verdict %+v", v)
		}
		sink.Down(nil)
		time.Sleep(time.Minute)
		w.untilStatus("sent", "a1")
		synctest.Wait()
		if got, want := kindsOf(r.watch.Changes()), "standby lease_taken streaming sink_down(kafka) sink_isolated(kafka) sink_up(kafka)"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		st := r.watch.Status().Sinks[0]
		if !st.Up || st.Since == nil || st.LastErrorAt == nil || !strings.Contains(st.LastError, "no leader") {
			t.Errorf("sink %+v, want it up, with its last error", st)
		}
		if v := r.watch.Status().Verdict(); v.Level != relay.LevelOK || v.Summary != "Relaying" {
			t.Errorf("verdict %+v", v)
		}
	})

	// A thousand dead letters are one line.
	bubble(t, "DeadLettersAreCounted", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.OnCall(0).Refuse(relay.ReasonTooLarge, errors.New("limit 10"))
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.MaxRetries = 1, 1 }, sink)
		keys := make([]string, 1000)
		for i := range keys {
			keys[i] = fmt.Sprint("k", i)
		}
		w.commit(keys...)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got, want := kindsOf(r.watch.Changes()), "standby lease_taken streaming dead_letter(kafka)×1000"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// An owner that has work and a connection and does not move is not ready.
func TestStandstill(t *testing.T) {
	bubble(t, "MarksThatNeverSucceed", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.onMark = func(context.Context, int, []relay.Mark) ([]int, error) { return nil, errors.New("disk full") }
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.DrainTimeout = 1, time.Second }, sink)
		time.Sleep(10 * time.Second)
		w.commit("a")
		time.Sleep(55 * time.Second)
		if p := r.watch.Status().Problems(); len(p) > 0 {
			t.Errorf("after 55 s: %q", p)
		}
		time.Sleep(10 * time.Second)
		p := r.watch.Status().Problems()
		if len(p) != 1 || !strings.Contains(p[0], "nothing has moved") {
			t.Errorf("after 65 s: %q, want a standstill", p)
		}
		if v := r.watch.Status().Verdict(); v.Level != relay.LevelBroken {
			t.Errorf("verdict %+v", v)
		}
	})

	bubble(t, "WALThatTheStreamDoesNotBring", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, oneLane, sink)
		time.Sleep(10 * time.Second)
		w.change(func() { w.next += 2 << 20 })
		time.Sleep(80 * time.Second)
		if p := r.watch.Status().Problems(); len(p) != 1 || !strings.Contains(p[0], "nothing has moved") {
			t.Errorf("got %q, want a standstill", p)
		}
		w.commit("a")
		w.untilStatus("sent", "a1")
		time.Sleep(10 * time.Second)
		if p := r.watch.Status().Problems(); len(p) > 0 {
			t.Errorf("it moves again, and yet: %q", p)
		}
	})

	// The server decodes a large transaction that has nothing for us: its keepalives repeat one
	// position.
	bubble(t, "NotWhileTheServerDecodes", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, oneLane, sink)
		time.Sleep(10 * time.Second)
		var at relay.LSN
		w.change(func() { at = w.next; w.next += 2 << 30 })
		for range 120 {
			time.Sleep(5 * time.Second)
			w.stream().in.Pass(at)
		}
		st := r.watch.Status()
		if p := st.Problems(); len(p) > 0 {
			t.Errorf("after ten minutes: %q", p)
		}
		if s := st.Slots[0]; s.WaitsFor != relay.WaitsForServer || s.Waits < 590 || s.Stalled > 6 {
			t.Errorf("waits for %q for %.0f s, stalled for %.0f s", s.WaitsFor, s.Waits, s.Stalled)
		}
		if v := st.Verdict(); v.Level != relay.LevelDegraded || !strings.Contains(strings.Join(v.Reasons, " "), "decodes a large transaction") {
			t.Errorf("verdict %+v", v)
		}
		// An event that was in flight before it is as much ours as ever.
		w.change(func() {
			w.onMark = func(context.Context, int, []relay.Mark) ([]int, error) { return nil, errors.New("disk full") }
		})
		w.commit("a")
		for range 15 {
			time.Sleep(5 * time.Second)
			w.stream().in.Pass(at)
		}
		if p := r.watch.Status().Problems(); len(p) != 1 || !strings.Contains(p[0], "nothing has moved") {
			t.Errorf("with an event in flight that is not marked: %q, want a standstill", p)
		}
		w.change(func() { w.onMark = nil })
		w.untilStatus("sent", "a1")
		time.Sleep(10 * time.Second)
		if st := r.watch.Status(); st.Slots[0].WaitsFor != "" || st.Verdict().Level != relay.LevelOK {
			t.Errorf("it is over, and yet: %+v", st)
		}
	})

	// In hybrid mode the next row is claimed by the library's worker, which takes its time.
	bubble(t, "NotWhileAnotherWorkerHasTheRow", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.onSettled = func(n int) error {
			if n < 400 {
				return &relay.ClaimedError{Rows: 1, Worker: "python", AtMost: 5 * time.Minute}
			}
			return nil
		}
		r := start(t, w, func(c *engine.Config) { oneLane(c); c.Hybrid = true }, sink)
		w.commit("a")
		w.change(func() { w.next += 2 << 20 })
		time.Sleep(150 * time.Second)
		st := r.watch.Status()
		if p := st.Problems(); len(p) > 0 {
			t.Errorf("got %q, want none", p)
		}
		if v := st.Verdict(); st.Slots[0].WaitsFor != relay.WaitsForClaims || v.Level != relay.LevelDegraded || !strings.Contains(strings.Join(v.Reasons, " "), "claimed by another worker") {
			t.Errorf("%+v, verdict %+v", st.Slots[0], v)
		}
		w.untilStatus("sent", "a1")
		time.Sleep(10 * time.Second)
		if s := r.slot(); s.WaitsFor == relay.WaitsForClaims {
			t.Errorf("it is over, and yet: %+v", s)
		}
	})

	bubble(t, "NotWithoutWork", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, oneLane, sink)
		time.Sleep(time.Hour)
		if p := r.watch.Status().Problems(); len(p) > 0 {
			t.Errorf("idle for an hour: %q", p)
		}
	})

	// It moves as far as it can, and a restart would not fix the broker.
	bubble(t, "NotWhileASinkIsDown", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.Down(errors.New("no leader"))
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.SinkIsolation = 1, time.Hour }, sink)
		w.commit("a")
		time.Sleep(10 * time.Minute)
		if p := r.watch.Status().Problems(); len(p) > 0 {
			t.Errorf("got %q, want none", p)
		}
		sink.Down(nil)
		w.untilStatus("sent", "a1")
	})
}
