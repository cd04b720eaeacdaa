package engine_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// problem is what keeps the relay from being ready, "" for nothing.
func (r *rig) problem() string { return strings.Join(r.watch.Status().Problems(), "; ") }

var errDisk = errors.New("disk full")

func marksFail(context.Context, int, []relay.Mark) ([]int, error) { return nil, errDisk }

// failing is a list of so many errors.
func failing(n int) (errs []error) {
	for range n {
		errs = append(errs, errDisk)
	}
	return errs
}

// Each way of finding events can stop in its own way. Each is reported, by readiness and verdict,
// and the lease is given up for another relay to try.
func TestStall(t *testing.T) {
	for _, tt := range []struct {
		name, mode string
		stick      func(w *world)
		want       string
	}{
		{"StreamingMarksFail", relay.ModeCDC, func(w *world) { w.onMark = marksFail }, "WAL is written and nothing has moved"},
		{"PollingMarksFail", relay.ModePolling, func(w *world) { w.onMark = marksFail }, "the table is polled and nothing has moved"},
		{"PollingLooksFail", relay.ModePolling, func(w *world) { w.sweepErrs = failing(100_000) }, "the table is polled and nothing has moved for"},
		{"PollingLookHangs", relay.ModePolling, func(w *world) { w.sweepCost = func(relay.SweepQuery) time.Duration { return 24 * time.Hour } }, "the table is polled and nothing has moved"},
		{"RecoveringLooksFail", relay.ModeCDC, func(w *world) {
			w.gone, w.sweepErrs = relay.GoneMissing, failing(100_000)
		}, "nothing has moved"},
		{"RecoveringLookHangs", relay.ModeCDC, func(w *world) {
			w.gone, w.sweepCost = relay.GoneMissing, func(relay.SweepQuery) time.Duration { return 24 * time.Hour }
		}, "it is being recovered and nothing has moved"},
	} {
		bubble(t, tt.name, func(t *testing.T) {
			w, sink := newWorld(t), sinktest.NewScript("kafka")
			tt.stick(w)
			r := start(t, w, func(cfg *engine.Config) { quick(cfg); cfg.Mode, cfg.DrainTimeout = tt.mode, time.Second }, sink)
			w.commit("a")
			time.Sleep(70 * time.Second)
			if p := r.problem(); !strings.Contains(p, tt.want) {
				t.Errorf("after 70 s: %q, want %q", p, tt.want)
			}
			if v := r.watch.Status().Verdict(); v.Level != relay.LevelBroken {
				t.Errorf("verdict %+v", v)
			}
			if got, _ := r.metric("outbox_slot_stalled_seconds"); got < 60 || got > 70 {
				t.Errorf("after 70 s outbox_slot_stalled_seconds is %v", got)
			}
			time.Sleep(4*time.Minute + 5*time.Second)
			if n := r.log.count("the lease is given up"); n != 1 {
				t.Errorf("given up %d times after 5m15s, want once", n)
			}
			w.until("the lease is taken again", func() bool { return w.epoch == 2 })
			time.Sleep(8 * time.Minute) // the next time comes later
			if n := r.log.count("the lease is given up"); n != 1 {
				t.Errorf("given up %d times, want the second one after twice the time", n)
			}
			began := time.Now()
			if err := r.stop(); err != nil || time.Since(began) > 10*time.Second {
				t.Errorf("stopped after %s with %v", time.Since(began), err)
			}
		})
	}

	// With a standby there, the relay that has given the lease up leaves it to that one for a
	// while.
	bubble(t, "LeavesItToTheStandby", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.onMark = marksFail
		r := start(t, w, func(cfg *engine.Config) { quick(cfg); cfg.DrainTimeout = time.Second }, sink)
		w.commit("a")
		w.until("the lease is free", func() bool { return w.epoch == 1 && w.owner == nil })
		w.change(func() { w.taken, w.onMark = true, nil })
		time.Sleep(time.Hour)
		if got := r.slot(); got.Role != relay.Standby {
			t.Errorf("role %s", got.Role)
		}
		w.change(func() { w.taken = false })
		w.untilStatus("sent", "a1")
	})

	// A sink that is down is the reason for nothing of this, as long as its events wait for it
	// alone.
	bubble(t, "NotForASinkThatIsDown", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.Down(errors.New("connection refused"))
		r := start(t, w, func(cfg *engine.Config) { quick(cfg); cfg.SinkIsolation = time.Hour }, sink)
		w.commit("a")
		time.Sleep(30 * time.Minute)
		if p := r.problem(); p != "" || w.lease().Epoch() != 1 {
			t.Errorf("%q, epoch %d", p, w.lease().Epoch())
		}
		if got := r.slot(); got.WaitsFor != relay.WaitsForSink {
			t.Errorf("waits for %q", got.WaitsFor)
		}
		sink.Down(nil)
		w.untilStatus("sent", "a1")
	})

	// A sink that is down hides no standstill of another cause.
	bubble(t, "BesideASinkThatIsDown", func(t *testing.T) {
		w, kafka, rabbit := newWorld(t), sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq")
		rabbit.Down(errors.New("connection refused"))
		w.onMark = marksFail // so the ledger takes nothing either
		r := start(t, w, func(cfg *engine.Config) { quick(cfg); cfg.DrainTimeout = time.Second }, kafka, rabbit)
		w.commit("a")
		time.Sleep(2 * time.Minute)
		if p := r.problem(); !strings.Contains(p, "nothing has moved") {
			t.Errorf("ready, but for %q", p)
		}
	})

	// A sink that never answers, and obeys nobody, keeps neither the lease nor the stop.
	bubble(t, "SinkThatObeysNobody", func(t *testing.T) {
		w, sink := newWorld(t), &deafSink{release: make(chan struct{})}
		r := start(t, w, func(cfg *engine.Config) { quick(cfg); cfg.DrainTimeout = 2 * time.Second }, sink)
		defer close(sink.release)
		w.commit("a")
		time.Sleep(70 * time.Second)
		if p := r.problem(); !strings.Contains(p, "nothing has moved") {
			t.Errorf("ready, but for %q", p)
		}
		w.until("the lease was given up and taken again", func() bool { return w.epoch == 2 })
		began := time.Now()
		if err := r.stop(); err != nil || time.Since(began) > 15*time.Second {
			t.Errorf("stopped after %s with %v", time.Since(began), err)
		}
		if r.log.count("what was under way does not end") == 0 {
			t.Error("the log does not name what was left behind")
		}
	})

	// In mode cdc nothing is delivered while the slot is being made: not ready. Another relay would
	// wait, too.
	bubble(t, "MakingTheSlot", func(t *testing.T) {
		w, sink := making(t), sinktest.NewScript("kafka")
		r := start(t, w, func(cfg *engine.Config) { quick(cfg); cfg.Mode = relay.ModeCDC }, sink)
		w.commit("a")
		time.Sleep(70 * time.Second)
		if p := r.problem(); !strings.Contains(p, "until the slot is made") || !strings.Contains(p, "pid 4711") {
			t.Errorf("ready, but for %q", p)
		}
		time.Sleep(time.Hour)
		if e := w.lease().Epoch(); e != 1 {
			t.Errorf("epoch %d: the lease was given up for nothing", e)
		}
		close(w.creating)
		w.untilStatus("sent", "a1")
		time.Sleep(2 * time.Second)
		if p := r.problem(); p != "" {
			t.Errorf("not ready: %q", p)
		}
	})

	// A standby that could not take over reports that.
	bubble(t, "StandbyWithoutADatabase", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.taken = true
		r := start(t, w, quick, sink)
		time.Sleep(time.Minute)
		if p := r.problem(); p != "" {
			t.Errorf("a standby is not ready: %q", p)
		}
		w.change(func() { w.away = errors.New("connection refused") })
		time.Sleep(20 * time.Second)
		v := r.watch.Status().Verdict()
		if p := r.problem(); !strings.Contains(p, "connection refused") || v.Summary != "Waiting for the database" || v.Level == relay.LevelOK {
			t.Errorf("%q, verdict %+v", p, v)
		}
		w.change(func() { w.away = nil })
		time.Sleep(2 * time.Second)
		if p := r.problem(); p != "" {
			t.Errorf("it is over: %q", p)
		}
	})
}

// Events on their way from a sink that is down into the ledger are counted once, though they are in
// flight and parked.
func TestPendingCountsEventsOnce(t *testing.T) {
	bubble(t, "WhileParked", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.Down(errors.New("connection refused"))
		w.onMark = marksFail
		r := start(t, w, func(cfg *engine.Config) { quick(cfg); cfg.SinkIsolation, cfg.DrainTimeout = time.Second, time.Second }, sink)
		for range 40 {
			w.commit("a")
		}
		time.Sleep(20 * time.Second)
		if entries := r.watch.Status().Sinks[0].Ledger; entries != 40 {
			t.Errorf("%d events are parked: this test shows nothing", entries)
		}
		r.wantMetric(40, "outbox_pending_events_total")
		w.change(func() { w.onMark = nil })
		time.Sleep(20 * time.Second)
		r.wantMetric(40, "outbox_pending_events_total")
	})
}

// deafSink answers nobody.
type deafSink struct{ release chan struct{} }

func (*deafSink) Name() string { return "deaf" }

func (s *deafSink) Publish(context.Context, []*relay.Record) error {
	<-s.release
	return errors.New("released")
}

func (*deafSink) Close() error { return nil }
