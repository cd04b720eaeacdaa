package engine_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func oneLane(cfg *engine.Config) { cfg.Lanes = 1 }

// bubble runs a story on a clock of its own.
func bubble(t *testing.T, name string, story func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, story) })
}

func wantOffers(t *testing.T, sink *sinktest.Script, want ...string) {
	t.Helper()
	if got := offers(sink); !slices.Equal(got, want) {
		t.Errorf("offers to %s:\n got %q\nwant %q", sink.Name(), got, want)
	}
}

func wantTaken(t *testing.T, sink *sinktest.Script, want string) {
	t.Helper()
	if got := labels(sink.Taken()); got != want {
		t.Errorf("taken by %s: got %q, want %q", sink.Name(), got, want)
	}
}

func wantStatus(t *testing.T, w *world, label, want string) {
	t.Helper()
	if got := w.status(label); got != want {
		t.Errorf("row %s: got %q, want %q", label, got, want)
	}
}

func TestLane(t *testing.T) {
	// Some records of a batch fail for a transient error. Exactly those are offered again, in
	// order, before what has come meanwhile.
	bubble(t, "RetriesBeforeNewerRecords", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.OnEvent(id("a2")).Times(2).Fail(errBroker)
		first := sink.OnCall(1).Block()
		third := sink.OnCall(3).Block()
		start(t, w, oneLane, sink)
		w.commit("a")
		<-first.Reached
		w.commit("a", "b", "a", "c")
		synctest.Wait() // they wait behind the call
		first.Release()
		<-third.Reached
		w.commit("a", "b")
		synctest.Wait()
		third.Release()
		w.untilStatus("sent", "a1", "a2", "a3", "a4", "b1", "b2", "c1")
		wantOffers(t, sink, "a1", "a2! b1 a3! c1", "a2! a3!", "a2 a3", "a4 b2")
	})

	// A lane whose broker partition is in trouble holds up itself only.
	bubble(t, "OtherLanesGoOn", func(t *testing.T) {
		keys := keysOfLanes(3)
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		trouble := sink.OnKey(keys[1]).Fail(errBroker)
		start(t, w, func(cfg *engine.Config) { cfg.Lanes = 3 }, sink)
		w.commit(keys[0], keys[1], keys[2], keys[1])
		w.commit(keys[2], keys[0])
		w.untilStatus("sent", keys[0]+"1", keys[0]+"2", keys[2]+"1", keys[2]+"2")
		wantStatus(t, w, keys[1]+"1", "pending")
		trouble.Stop()
		w.untilStatus("sent", keys[1]+"1", keys[1]+"2")
		if got := labels(sink.Taken()); !strings.HasSuffix(got, keys[1]+"1 "+keys[1]+"2") {
			t.Errorf("taken: got %q, want the lane's own two in order at the end", got)
		}
	})

	// A record that the broker does not take goes to the ledger with its reason, and what is behind
	// it under its key waits there; the other keys flow, the slot moves.
	bubble(t, "RefusedRecordHoldsUpItsKey", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.OnEvent(id("a2")).Fail(&relay.RefusedError{Reason: relay.ReasonTooLarge, Size: 2000, Limit: 1000, Err: errors.New("by the topic")})
		r := start(t, w, oneLane, sink)
		_, end := w.commit("a", "a", "a", "b")
		w.untilStatus("sent", "a1", "b1")
		w.untilStatus("failed", "a2")
		wantStatus(t, w, "a2", "failed: kafka: too_large: 2000 bytes, limit 1000: by the topic")
		wantStatus(t, w, "a3", "pending")
		if got := w.entriesOf("kafka"); got != "a2 retry, a3 held" {
			t.Errorf("ledger: %s", got)
		}
		wantWatermark(t, r, end)
		wantOffers(t, sink, "a1 a2! a3! b1")
		r.wantMetric(1, "outbox_failed_events_total", "event_type=Happened")
		r.wantMetric(2, "outbox_published_events_total", "event_type=Happened")
		r.wantMetric(0, "outbox_retry_attempts_total")
		if n := r.log.count("event refused"); n != 1 {
			t.Errorf("%d log lines about one refusal", n)
		}
	})

	// A refusal and transient errors in one batch: the refused record is parked, the others are
	// offered again.
	bubble(t, "RefusedAmongTransient", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.OnEvent(id("a1")).Times(1).Fail(errBroker)
		sink.OnEvent(id("b1")).Refuse(relay.ReasonRejected, errors.New("no"))
		start(t, w, oneLane, sink)
		w.commit("a", "b", "a", "b")
		w.untilStatus("sent", "a1", "a2")
		w.untilStatus("failed", "b1")
		w.untilStatus("pending", "b2")
		wantOffers(t, sink, "a1! b1! a2! b2!", "a1 a2")
	})

	// What a slow sink has not begun to send is offered again at once, in its place, and nothing has
	// failed.
	bubble(t, "LaterIsNoFailure", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("webhook")
		sink.OnEvent(id("a2")).Times(5).Fail(relay.ErrLater)
		sink.OnEvent(id("a3")).Times(5).Fail(relay.ErrLater)
		var others []*sinktest.Cue // one record has another outcome each time
		for _, label := range []string{"b1", "b2", "b3", "b4"} {
			others = append(others, sink.OnEvent(id(label)))
		}
		for n, cue := range others[1:] {
			cue.Times(n + 1).Fail(relay.ErrLater)
		}
		first := sink.OnCall(1).Block()
		r := start(t, w, oneLane, sink)
		w.commit("z")
		<-first.Reached
		w.commit("a", "a", "a", "b", "b", "b", "b")
		synctest.Wait()
		released := time.Now()
		first.Release()
		if err := sink.WaitOffered(t.Context(), 1+7+5+4+3); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(released); took > 0 {
			t.Errorf("the offers took %s, want no pause between them", took)
		}
		w.untilStatus("sent", "a1", "a2", "a3", "b1", "b2", "b3", "b4")
		r.wantMetric(2, "outbox_retry_attempts_total") // of the last but one
		r.wantMetric(1, "outbox_sink_up", "sink=webhook")
		wantOffers(t, sink, "z1", "a1 a2! a3! b1 b2! b3! b4!", "a2! a3! b2 b3! b4!", "a2! a3! b3 b4!", "a2! a3! b4", "a2! a3!", "a2 a3")
		// The last but one had no other outcome. That is a failure, or it would go on without pause.
		if n := r.log.count("publish did not succeed"); n != 1 {
			t.Errorf("%d log lines about failures, want 1", n)
		}
	})

	// An error that names no records means all of them.
	bubble(t, "WholeBatchFails", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.OnCall(1).FailBatch(errBroker)
		r := start(t, w, oneLane, sink)
		w.commit("a", "b")
		w.untilStatus("sent", "a1", "b1")
		wantOffers(t, sink, "a1! b1!", "a1 b1")
		r.wantMetric(2, "outbox_retry_attempts_total")
	})

	// The lease is past its time between two offers: nothing more is offered, whatever waits.
	bubble(t, "LostLeaseStopsAtOnce", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		r := start(t, w, oneLane, sink)
		w.commit("a")
		<-gate.Reached
		w.commit("a", "b")
		synctest.Wait()
		w.lease().expire()
		w.change(func() { w.taken = true }) // so that it is not taken again at once
		gate.Release()
		w.until("the lease is released", func() bool { return w.owner == nil })
		synctest.Wait()
		wantOffers(t, sink, "a1")
		if calls, _ := sink.Calls(); calls != 1 {
			t.Errorf("%d calls of Publish, want 1", calls)
		}
		if n := r.log.count("lease lost, standing by"); n != 1 {
			t.Errorf("%d log lines about the lost lease, want 1", n)
		}
	})

	// The broker does not answer: the offer ends at its timeout, and the same records are offered
	// again.
	bubble(t, "PublishTimeout", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.PublishTimeout = 1, 7*time.Second }, sink)
		w.commit("a", "b")
		<-gate.Reached
		offered := time.Now()
		if err := sink.WaitOffered(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(offered); took != 7*time.Second {
			t.Errorf("the offer ended after %s, want 7s", took)
		}
		if got := sink.Offered()[0].Err; got == nil || !strings.Contains(got.Error(), "publish to kafka: no answer within 7s") || !errors.Is(got, context.DeadlineExceeded) {
			t.Errorf("the sink saw %v, want the timeout's cause", got)
		}
		w.untilStatus("sent", "a1", "b1")
		wantOffers(t, sink, "a1! b1!", "a1 b1")
	})

	bubble(t, "BatchLimits", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.BatchSize, cfg.BatchBytes = 1, 3, 10_000 }, sink)
		w.commit("z")
		<-gate.Reached
		w.commit("a", "a", "a", "a") // four small ones: by number
		w.commitRows(insert("b", payloadOf(4000)), insert("b", payloadOf(4000)), insert("b", payloadOf(4000)))
		w.commitRows(insert("c", payloadOf(50_000)), insert("c")) // larger than the limit: alone
		synctest.Wait()
		gate.Release()
		w.untilStatus("sent", "z1", "a4", "b3", "c2")
		wantOffers(t, sink, "z1", "a1 a2 a3", "a4 b1 b2", "b3", "c1", "c2")
	})
}

// Backoff grows between offers and starts over after a success; the log speaks up at first, at
// intervals, and at the end.
func TestLaneHealth(t *testing.T) {
	bubble(t, "DownAndUpAgain", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, oneLane, sink)
		w.commit("a")
		w.untilStatus("sent", "a1")
		r.wantMetric(1, "outbox_sink_up", "sink=kafka")
		sink.Down(errBroker)
		w.commit("a")
		time.Sleep(100 * time.Second) // by the bubble's clock
		synctest.Wait()
		r.wantMetric(0, "outbox_sink_up", "sink=kafka")
		if up, last := sinkStatus(r); up || !strings.Contains(last, errBroker.Error()) {
			t.Errorf("status: up %t, last error %q", up, last)
		}
		if n := r.log.count("publish did not succeed"); n != 3 && n != 4 {
			t.Errorf("%d log lines in 100 s, want 3 or 4: at once and every 30 s", n)
		}
		// 0.1+0.2+0.4+…+3.2 s, then every 5 s, each less up to a third.
		if calls, _ := sink.Calls(); calls < 25 || calls > 37 {
			t.Errorf("%d offers in 100 s", calls)
		}
		sink.Down(nil)
		w.untilStatus("sent", "a2")
		synctest.Wait() // it is reported right after the mark
		r.wantMetric(1, "outbox_sink_up", "sink=kafka")
		if n := r.log.count("sink is back"); n != 1 {
			t.Errorf("%d log lines about the recovery", n)
		}
		if up, _ := sinkStatus(r); !up {
			t.Error("status: still down")
		}
		sink.OnEvent(id("a3")).Times(1).Fail(errBroker)
		w.commit("a")
		committed := time.Now()
		w.untilStatus("sent", "a3")
		if took := time.Since(committed); took > 100*time.Millisecond+20*time.Millisecond {
			t.Errorf("after a success the first retry came after %s, want the shortest wait", took)
		}
	})

	// A lane fails, and its pipeline ends with the lease. The sink must not be reported as down
	// for ever after.
	bubble(t, "LeaseLostWhileDown", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, oneLane, sink)
		sink.Down(errBroker)
		w.commit("a")
		if err := sink.WaitOffered(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		r.wantMetric(0, "outbox_sink_up", "sink=kafka")
		w.lease().lose(errors.New("connection reset"))
		w.until("the lease is released", func() bool { return slices.Contains(w.trace, "release") })
		sink.Down(nil)
		w.untilStatus("sent", "a1")
		synctest.Wait()
		r.wantMetric(1, "outbox_sink_up", "sink=kafka")
	})
}

func sinkStatus(r *rig) (up bool, last string) {
	s := r.watch.Status().Sinks[0]
	return s.Up, s.LastError
}

// overlap is a sink that notices a key which is offered in two calls at once.
type overlap struct {
	*sinktest.Script
	keys chan map[string]bool // the token of who holds it
	t    testing.TB
}

func (o overlap) Publish(ctx context.Context, batch []*relay.Record) error {
	mine := make(map[string]bool)
	inside := <-o.keys
	for _, rec := range batch {
		if inside[rec.Key] && !mine[rec.Key] {
			o.t.Errorf("key %s is offered twice at once", rec.Key)
		}
		inside[rec.Key], mine[rec.Key] = true, true
	}
	o.keys <- inside
	err := o.Script.Publish(ctx, batch)
	inside = <-o.keys
	for key := range mine {
		delete(inside, key)
	}
	o.keys <- inside
	return err
}

// Many keys on several lanes with trouble now and then: every key's records arrive in commit order,
// one call at a time.
func TestLanesKeepOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, script := newWorld(t), sinktest.NewScript("kafka")
		sink := overlap{script, make(chan map[string]bool, 1), t}
		sink.keys <- make(map[string]bool)
		script.OnCall(0).Delay(3 * time.Millisecond)
		for _, key := range []string{"a", "d", "k"} {
			script.OnKey(key).Times(20).Fail(errBroker)
		}
		script.OnCall(5).FailBatch(errBroker)
		start(t, w, func(cfg *engine.Config) {
			cfg.Lanes, cfg.BatchSize, cfg.BackoffMin, cfg.BackoffMax, cfg.InflightEvents = 4, 7, time.Millisecond, 2*time.Millisecond, 64
		}, sink)
		const keys, each = 13, 20
		for i := range keys * each {
			w.commit(string(rune('a' + i%keys)))
		}
		for key := 'a'; key < 'a'+keys; key++ {
			w.untilStatus("sent", numbered(string(key), 1, each)...)
		}
		acked := make(map[string][]string)
		for _, o := range script.Offered() {
			if o.Err == nil {
				acked[o.Record.Key] = append(acked[o.Record.Key], label(o.Record.EventID))
			}
		}
		for key, got := range acked {
			if want := numbered(key, 1, each); !slices.Equal(got, want) {
				t.Errorf("key %s: acknowledged %q, want %q", key, got, want)
			}
		}
	})
}
