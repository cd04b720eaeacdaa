package engine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

var errConnection = errors.New("connection reset")

func wantWatermark(t *testing.T, r *rig, want relay.LSN) {
	t.Helper()
	synctest.Wait()
	if got := r.slot().Watermark; got != want.String() {
		t.Errorf("watermark: got %s, want %s", got, want)
	}
}

// inflight is the number of events in flight, once everything has come to rest.
func inflight(r *rig) int {
	synctest.Wait()
	return r.slot().Inflight
}

func TestBudget(t *testing.T) {
	bubble(t, "EventsSpentAndFreed", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.InflightEvents = 1, 4 }, sink)
		for range 10 {
			w.commit("a")
		}
		<-gate.Reached
		if got := inflight(r); got != 4 {
			t.Errorf("%d events in flight, want the budget of 4", got)
		}
		r.wantMetric(0, "outbox_marked_events_total")
		gate.Release()
		w.untilStatus("sent", numbered("a", 1, 10)...)
		wantTaken(t, sink, strings.Join(numbered("a", 1, 10), " "))
	})

	bubble(t, "BytesSpentAndFreed", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.InflightBytes = 1, 64<<10 }, sink)
		w.commitRows(insert("a", payloadOf(30_000)), insert("a", payloadOf(30_000)), insert("a", payloadOf(30_000)), insert("a"))
		<-gate.Reached
		if got := inflight(r); got != 2 {
			t.Errorf("%d events in flight, want 2: the third does not fit", got)
		}
		if got := r.slot().Bytes; got < 60_000 || got > 64<<10 {
			t.Errorf("%d bytes in flight", got)
		}
		gate.Release()
		w.untilStatus("sent", numbered("a", 1, 4)...)
		synctest.Wait()
		if got := r.slot().Bytes; got != 0 {
			t.Errorf("%d bytes in flight after the last mark", got)
		}
	})

	// It waits until everything before it is done, and nothing joins it.
	bubble(t, "LargerThanTheWholeBudget", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		before, itself := sink.OnEvent(id("a1")).Block(), sink.OnEvent(id("b1")).Block()
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.InflightBytes = 1, 64<<10 }, sink)
		w.commitRows(insert("a"), insert("b", payloadOf(200_000)), insert("c"))
		<-before.Reached
		if got := inflight(r); got != 1 {
			t.Errorf("%d events in flight, want 1: the large one waits", got)
		}
		before.Release()
		<-itself.Reached
		if got := inflight(r); got != 1 || r.slot().Bytes < 200_000 {
			t.Errorf("%d events with %d bytes in flight, want the large one alone", got, r.slot().Bytes)
		}
		itself.Release()
		w.untilStatus("sent", "a1", "b1", "c1")
		wantOffers(t, sink, "a1", "b1", "c1")
	})

	// Memory is bounded whatever the size of a transaction, and the slot stays before it until all
	// of it is done.
	bubble(t, "TransactionLargerThanTheBudget", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		var most int
		watch := &watched{Script: sink}
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.InflightEvents, cfg.BatchSize, cfg.MarkBatch = 2, 8, 3, 3 }, watch)
		watch.look = func() { most = max(most, r.slot().Inflight) }
		last := sink.OnEvent(id("a100")).Block()
		keys := make([]string, 100)
		for i := range keys {
			keys[i] = "a"
		}
		at, end := w.commit(keys...)
		<-last.Reached
		w.untilStatus("sent", numbered("a", 1, 92)...)
		if got, err := relay.ParseLSN(r.slot().Watermark); err != nil || got > at {
			t.Errorf("watermark %s (%v) inside the transaction committed at %s", got, err, at)
		}
		last.Release()
		w.untilStatus("sent", numbered("a", 1, 100)...)
		wantWatermark(t, r, end)
		if most != 8 {
			t.Errorf("at most %d events were in flight at once, want the budget of 8", most)
		}
		wantTaken(t, sink, strings.Join(numbered("a", 1, 100), " "))
	})
}

// watched looks at something at each Publish.
type watched struct {
	*sinktest.Script
	look func()
}

func (s *watched) Publish(ctx context.Context, batch []*relay.Record) error {
	s.look()
	return s.Script.Publish(ctx, batch)
}

func TestWatermark(t *testing.T) {
	// The end of a transaction travels with its last event, or comes by itself.
	for _, passEnds := range []bool{false, true} {
		suffix := map[bool]string{false: "EndsTravel", true: "EndsPass"}[passEnds]
		bubble(t, "FollowsCommitEnds/"+suffix, func(t *testing.T) {
			w, sink := newWorld(t), sinktest.NewScript("kafka")
			w.passEnds = passEnds
			keys := keysOfLanes(2)
			slow, other := keys[0], keys[1]
			second := sink.OnEvent(id(slow + "1")).Block()
			r := start(t, w, func(cfg *engine.Config) { cfg.Lanes = 2 }, sink)
			_, first := w.commit(other)
			w.untilStatus("sent", other+"1")
			wantWatermark(t, r, first)

			at, end := w.commit(slow)
			_, last := w.commit(other)
			<-second.Reached
			w.untilStatus("sent", other+"2")
			wantWatermark(t, r, first) // the later event is done, the earlier is not
			w.quiet()
			wantWatermark(t, r, first) // and no keepalive moves past it
			keepalive := w.quiet()
			synctest.Wait()
			if first > at || end > last {
				t.Fatal("the story's positions are out of order")
			}
			second.Release()
			w.untilStatus("sent", slow+"1")
			wantWatermark(t, r, keepalive) // then it takes all of them at once
		})
	}

	bubble(t, "FollowsKeepalivesWhenIdle", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, oneLane, sink)
		for range 3 {
			wantWatermark(t, r, w.quiet())
		}
		w.until("the position is reported", func() bool { return w.confirmed == w.keepalive })
	})

	// Nothing moves before the mark is committed, though the broker has acknowledged.
	bubble(t, "WaitsForTheMark", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		marking := make(chan struct{})
		w.onMark = func(ctx context.Context, n int, _ []relay.Mark) ([]int, error) {
			<-marking
			if n == 1 {
				return nil, errConnection
			}
			return nil, nil
		}
		r := start(t, w, oneLane, sink)
		_, end := w.commit("a")
		w.until("a mark is tried", func() bool { return len(w.marks) > 0 })
		wantWatermark(t, r, 0)
		marking <- struct{}{} // the first attempt, which fails
		w.until("another mark is tried", func() bool { return len(w.marks) > 1 })
		wantWatermark(t, r, 0)
		marking <- struct{}{}
		w.untilStatus("sent", "a1")
		wantWatermark(t, r, end)
		wantOffers(t, sink, "a1")
	})

	// A row whose mark does not come about holds the watermark, and none of the others, however
	// many they are.
	bubble(t, "StuckRowHoldsNoOther", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		var locked atomic.Bool
		locked.Store(true)
		w.onMark = func(_ context.Context, _ int, marks []relay.Mark) (later []int, err error) {
			for i := range marks {
				if locked.Load() && marks[i].ID == id("stuck1") {
					later = append(later, i)
				}
			}
			return later, nil
		}
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.InflightEvents = 1, 4 }, sink)
		_, first := w.commit("first")
		w.untilStatus("sent", "first1")
		w.commit("stuck")
		var end relay.LSN
		for range 10 {
			_, end = w.commit("a", "a", "a", "a")
		}
		w.untilStatus("sent", numbered("a", 1, 40)...)
		wantWatermark(t, r, first)
		if got := inflight(r); got != 1 {
			t.Errorf("%d events in flight, want the stuck one", got)
		}
		locked.Store(false)
		w.untilStatus("sent", "stuck1")
		wantWatermark(t, r, end)
	})

	// Rows that are not ours to publish carry their transaction's end all the same: behind an event
	// in flight it waits for it.
	bubble(t, "SkippedRowsCarryTheirEnd", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		_, skipped := w.commitRows(insert("a", status("sent")))
		_, mine := w.commit("b")
		_, behind := w.commitRows(insert("c", status("claimed")), insert("c", status("sent")))
		r := start(t, w, oneLane, sink)
		<-gate.Reached
		wantWatermark(t, r, skipped)
		gate.Release()
		w.untilStatus("sent", "b1")
		wantWatermark(t, r, behind)
		if mine >= behind {
			t.Fatal("the story's positions are out of order")
		}
		wantTaken(t, sink, "b1")
	})

	// The last row of a transaction is skipped: its end waits for the row before it in the same
	// transaction.
	bubble(t, "SkippedRowAtTheEnd", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		_, end := w.commitRows(insert("a"), insert("b", status("sent")))
		r := start(t, w, oneLane, sink)
		<-gate.Reached
		wantWatermark(t, r, 0)
		gate.Release()
		w.untilStatus("sent", "a1")
		wantWatermark(t, r, end)
	})
}

func TestReconnect(t *testing.T) {
	// The new connection repeats everything since the watermark. What is in flight is not
	// published twice.
	bubble(t, "RepetitionIsDropped", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		r := start(t, w, oneLane, sink)
		for range 5 {
			w.commit("a", "b")
		}
		<-gate.Reached
		w.stream().fail(errConnection)
		w.commit("a")
		w.until("there is a second connection", func() bool { return len(w.opened) == 2 && w.opened[1].pos == len(w.wal) })
		gate.Release()
		w.untilStatus("sent", append(numbered("a", 1, 6), numbered("b", 1, 5)...)...)
		wantTaken(t, sink, "a1 b1 a2 b2 a3 b3 a4 b4 a5 b5 a6")
		if len(w.lookUps) != 0 {
			t.Errorf("looked up %q, want nothing: it is known by its place", w.lookUps)
		}
		r.wantMetric(1, "outbox_stream_reconnects_total")
		if n := r.log.count("replication resumed"); n != 1 {
			t.Errorf("%d log lines about the new connection", n)
		}
	})

	// What is done is confirmed by the next connection, also when nothing new comes.
	bubble(t, "WatermarkGoesOnWithoutAConnection", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		start(t, w, oneLane, sink)
		_, end := w.commit("a")
		<-gate.Reached
		broken := w.stream()
		w.change(func() { w.openErrs = []error{errConnection, errConnection} })
		broken.fail(errConnection)
		w.until("the connection is gone", func() bool { return w.reading == nil })
		gate.Release()
		w.until("the position is reported", func() bool { return w.confirmed == end })
		wantTaken(t, sink, "a1")
	})

	// The connection breaks while the stream waits for room in the budget: what it was about to
	// hand over has not been taken, and is taken when it comes again.
	bubble(t, "BreaksWhileTheBudgetIsSpent", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.InflightEvents = 1, 4 }, sink)
		w.commit("a", "a", "a")
		_, end := w.commit("a", "a", "a", "a", "a", "a", "a")
		<-gate.Reached
		if got := inflight(r); got != 4 {
			t.Fatalf("%d events in flight, want 4 and the others waiting", got)
		}
		w.stream().fail(errConnection)
		w.until("there is a second connection", func() bool { return len(w.opened) == 2 })
		synctest.Wait()
		gate.Release()
		w.until("the watermark is at the end", func() bool { return w.confirmed == end })
		for _, l := range numbered("a", 1, 10) {
			wantStatus(t, w, l, "sent")
		}
		wantTaken(t, sink, strings.Join(numbered("a", 1, 10), " "))
	})

	// The same in the middle of a look-up.
	bubble(t, "BreaksDuringALookUp", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		_, end := w.commit("a", "a")
		w.marked = end
		asked, broken := make(chan struct{}), make(chan struct{})
		w.onSettled = func(n int) error {
			if n > 1 {
				return nil
			}
			close(asked)
			<-broken
			return errConnection
		}
		start(t, w, oneLane, sink)
		<-asked
		w.stream().fail(errConnection)
		close(broken)
		w.until("the watermark is at the end", func() bool { return w.confirmed == end })
		wantStatus(t, w, "a1", "sent")
		wantStatus(t, w, "a2", "sent")
		wantTaken(t, sink, "a1 a2")
	})

	bubble(t, "SlotInUseIsWaitedFor", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		zombie := &stream{world: w}
		w.reading = zombie
		r := start(t, w, oneLane, sink)
		w.commit("a")
		time.Sleep(time.Minute)
		wantStatus(t, w, "a1", "pending")
		w.change(func() { w.reading = nil })
		freed := time.Now()
		w.untilStatus("sent", "a1")
		if took := time.Since(freed); took > 300*time.Millisecond {
			t.Errorf("delivered %s after the slot was free, want it within 300ms", took)
		}
		if n := r.log.count("replication interrupted"); n != 0 {
			t.Errorf("%d warnings about a slot that is in use", n)
		}
	})

	// A connection that opens and breaks at once, again and again, is tried less and less often.
	bubble(t, "BreaksAtOnceAgainAndAgain", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.poison = errors.New("malformed pgoutput message")
		r := start(t, w, oneLane, sink)
		time.Sleep(100 * time.Second)
		synctest.Wait()
		w.mu.Lock()
		opened := len(w.opened)
		w.mu.Unlock()
		if opened > 40 {
			t.Errorf("%d connections in 100 s, want the backoff to grow to 5 s", opened)
		}
		w.change(func() { w.poison = nil })
		w.commit("a")
		w.untilStatus("sent", "a1")
		if r.slot().Role != relay.Owner {
			t.Errorf("role %s", r.slot().Role)
		}
	})
}

func TestLookUp(t *testing.T) {
	// A new owner starts before what its predecessor marked: settled rows are skipped, the others
	// published, and past that position nothing is looked up.
	bubble(t, "UpToMarkedLSN", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.commit("a", "b")
		w.commit("c")
		marked, _ := w.commit("d")
		w.commit("e")
		w.marked = marked
		for _, l := range []string{"a1", "c1", "d1"} {
			w.rows[id(l)].status = "sent"
		}
		w.batch = 3 // a b c, then d e
		r := start(t, w, oneLane, sink)
		w.untilStatus("sent", "b1", "e1")
		wantTaken(t, sink, "b1 e1")
		if got, want := fmt.Sprint(w.lookUps), "[[a1 b1 c1] [d1 e1]]"; got != want {
			t.Errorf("looked up %s, want %s", got, want)
		}
		_, end := w.commit("f")
		w.untilStatus("sent", "f1")
		if len(w.lookUps) != 2 {
			t.Errorf("looked up %q: past %s nothing is to be asked", w.lookUps[2:], marked)
		}
		if got := r.slot().Skipped; got != 3 {
			t.Errorf("%d skipped, want 3", got)
		}
		wantWatermark(t, r, end)
	})

	// Past the position a row is published whatever the look-up returns for it: nobody can have
	// marked it, and asking was for its neighbours.
	bubble(t, "OthersOfTheBatch", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		marked, _ := w.commit("a")
		w.commit("b")
		w.marked = marked
		w.rows[id("a1")].status = "sent"
		w.rows[id("b1")].status = "claimed"
		start(t, w, oneLane, sink)
		w.untilStatus("sent", "b1")
		wantTaken(t, sink, "b1")
	})

	bubble(t, "AllSettled", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.commit("a", "b")
		marked, end := w.commit("c")
		w.marked = marked
		for _, l := range []string{"a1", "b1", "c1"} {
			w.rows[id(l)].status = "sent"
		}
		r := start(t, w, oneLane, sink)
		w.until("the position is reported", func() bool { return w.confirmed == end })
		wantWatermark(t, r, end)
		if calls, _ := sink.Calls(); calls != 0 {
			t.Errorf("%d calls of Publish", calls)
		}
	})

	bubble(t, "DatabaseInTrouble", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.marked, _ = w.commit("a", "b")
		w.rows[id("a1")].status = "sent"
		w.onSettled = func(n int) error {
			if n < 3 {
				return errConnection
			}
			return nil
		}
		r := start(t, w, oneLane, sink)
		w.untilStatus("sent", "b1")
		wantTaken(t, sink, "b1")
		if n := r.log.count("look-up did not succeed"); n != 2 {
			t.Errorf("%d log lines about two failed look-ups", n)
		}
	})

	// Next to another worker any row may be settled at any time, also past the position.
	bubble(t, "Hybrid", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.commit("a", "b")
		w.rows[id("a1")].status = "sent"
		r := start(t, w, func(c *engine.Config) { oneLane(c); c.Hybrid = true }, sink)
		w.untilStatus("sent", "b1")
		_, end := w.commit("c")
		w.untilStatus("sent", "c1")
		wantTaken(t, sink, "b1 c1")
		if got, want := fmt.Sprint(w.lookUps), "[[a1 b1] [c1]]"; got != want {
			t.Errorf("looked up %s, want %s", got, want)
		}
		wantWatermark(t, r, end)
	})

	// A row that another worker has claimed is not touched until that worker has settled it.
	// Here it sends it.
	bubble(t, "HybridWaitsForClaims", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.commit("a", "b")
		w.onSettled = func(n int) error {
			if n == 9 {
				w.rows[id("a1")].status = "sent"
			}
			if n < 10 {
				return &relay.ClaimedError{Rows: 1, Worker: "python", AtMost: time.Minute}
			}
			return nil
		}
		began := time.Now()
		r := start(t, w, func(c *engine.Config) { oneLane(c); c.Hybrid = true }, sink)
		w.untilStatus("sent", "b1")
		wantTaken(t, sink, "b1")
		if took := time.Since(began); took > 9*500*time.Millisecond {
			t.Errorf("the tenth look came after %s, want every half a second at least", took)
		}
		if n := r.log.count("waiting for rows that another worker has claimed"); n != 1 {
			t.Errorf("%d log lines about a short wait", n)
		}
	})

	bubble(t, "RowsInsertedAsSomethingElse", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		start(t, w, oneLane, sink)
		w.commitRows(insert("a", status("sent")), insert("a"), insert("a", status("dead_letter")), insert("a", status("claimed")))
		w.untilStatus("sent", "a2")
		wantTaken(t, sink, "a2")
		wantStatus(t, w, "a3", "dead_letter")
	})
}

// A row that cannot be made into a record is marked with the reason and reaches no sink; those
// behind it flow.
func TestEncoderRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		kafka, rabbit := sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq")
		r := start(t, w, oneLane, kafka, rabbit)
		w.commitRows(insert("b"), insert("a", func(ev *relay.Event) { ev.Headers = "[1]" }), insert("a"))
		_, end := w.commit("b")
		w.untilStatus("failed", "a1")
		w.untilStatus("sent", "b1", "b2")
		w.untilStatus("pending", "a2")
		const why = "encode: column headers: want a JSON object, got a JSON array"
		wantStatus(t, w, "a1", "failed: kafka: "+why+"; rabbitmq: "+why)
		wantTaken(t, kafka, "b1 b2")
		wantTaken(t, rabbit, "b1 b2")
		wantWatermark(t, r, end)
		r.wantMetric(2, "outbox_failed_events_total")
		// Somebody fixes the row.
		w.change(func() {
			ev := w.content[id("a1")]
			ev.Headers = "{}"
			w.content[id("a1")] = ev
		})
		w.untilStatus("sent", "a1", "a2")
		wantTaken(t, kafka, "b1 b2 a1 a2")
		wantTaken(t, rabbit, "b1 b2 a1 a2")
	})
}

func TestTwoSinks(t *testing.T) {
	// A row is marked when all sinks have it, and a slow sink holds up only its own lanes.
	bubble(t, "MarkedWhenBothHaveIt", func(t *testing.T) {
		w := newWorld(t)
		kafka, rabbit := sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq")
		gate := rabbit.OnCall(1).Block()
		r := start(t, w, oneLane, kafka, rabbit)
		_, _ = w.commit("a")
		_, end := w.commit("a")
		<-gate.Reached
		if err := kafka.WaitTaken(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		wantTaken(t, kafka, "a1 a2")
		w.mu.Lock()
		if len(w.marks) != 0 {
			t.Errorf("marked %v before rabbitmq had it", w.marks)
		}
		w.mu.Unlock()
		wantWatermark(t, r, 0)
		gate.Release()
		w.untilStatus("sent", "a1", "a2")
		wantTaken(t, rabbit, "a1 a2")
		wantWatermark(t, r, end)
		r.wantMetric(4, "outbox_published_events_total")
		r.wantMetric(2, "outbox_marked_events_total")
		r.wantMetric(2, "outbox_commit_to_ack_seconds", "sink=kafka")
		r.wantMetric(2, "outbox_commit_to_ack_seconds", "sink=rabbitmq")
	})

	bubble(t, "OneRefuses", func(t *testing.T) {
		w := newWorld(t)
		kafka, rabbit := sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq")
		rabbit.OnEvent(id("a1")).Refuse(relay.ReasonUnroutable, errors.New("no queue is bound"))
		start(t, w, oneLane, kafka, rabbit)
		w.commit("a", "a", "b")
		w.untilStatus("sent", "b1")
		w.untilStatus("failed", "a1")
		w.untilStatus("pending", "a2")
		wantStatus(t, w, "a1", "failed: rabbitmq: unroutable: no queue is bound")
		wantTaken(t, kafka, "a1 a2 b1")
		wantTaken(t, rabbit, "b1")
	})

	bubble(t, "OneDown", func(t *testing.T) {
		w := newWorld(t)
		kafka, rabbit := sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq")
		rabbit.Down(errBroker)
		r := start(t, w, oneLane, kafka, rabbit)
		w.commit("a")
		if err := rabbit.WaitOffered(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		r.wantMetric(1, "outbox_sink_up", "sink=kafka")
		r.wantMetric(0, "outbox_sink_up", "sink=rabbitmq")
		rabbit.Down(nil)
		w.untilStatus("sent", "a1")
		wantOffers(t, kafka, "a1") // not again because of the other
	})
}

func TestShutdown(t *testing.T) {
	// What is in flight is acknowledged and marked, the position is reported to the server, the
	// connection closed, and the lease goes last.
	bubble(t, "Drains", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.BatchSize = 1, 2 }, sink)
		_, end := w.commit("a", "a", "a", "a", "a")
		<-gate.Reached
		synctest.Wait()
		r.cancel()
		synctest.Wait()
		w.commit("b") // nobody reads any more
		synctest.Wait()
		select {
		case <-r.done:
			t.Fatal("it has not waited for what is in flight")
		default:
		}
		gate.Release()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		for _, l := range numbered("a", 1, 5) {
			wantStatus(t, w, l, "sent")
		}
		wantStatus(t, w, "b1", "pending")
		if w.confirmed != end {
			t.Errorf("the server got %s, want %s", w.confirmed, end)
		}
		if got, want := fmt.Sprint(w.trace), "[acquire open close release]"; got != want {
			t.Errorf("trace: got %s, want %s", got, want)
		}
		if took := time.Since(r.started); took > time.Second {
			t.Errorf("it took %s", took)
		}
	})

	// While it drains, the status shows that: a pod that drains is not ready.
	bubble(t, "TellsThatItDrains", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		r := start(t, w, oneLane, sink)
		w.commit("a")
		<-gate.Reached
		r.cancel()
		synctest.Wait()
		if slot := r.slot(); slot.Role != relay.Draining || slot.Inflight != 1 {
			t.Errorf("role %s with %d in flight, want draining with 1", slot.Role, slot.Inflight)
		}
		if problems := r.watch.Status().Problems(); len(problems) != 1 || !strings.Contains(problems[0], "stopping") {
			t.Errorf("problems %q, want one: stopping", problems)
		}
		r.wantMetric(1, "outbox_shards_owned") // the lease is still ours
		gate.Release()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		r.wantMetric(0, "outbox_shards_owned")
		r.wantMetric(2, "outbox_lease_changes_total")
	})

	bubble(t, "DrainTimeout", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		one, gate := sink.OnCall(1).Block(), sink.OnCall(2).Block()
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.BatchSize, cfg.DrainTimeout = 1, 1, 13*time.Second }, sink)
		_, first := w.commit("a")
		w.commit("a", "a")
		<-one.Reached
		synctest.Wait()
		stopped := time.Now()
		r.cancel()
		synctest.Wait()
		one.Release() // of three in flight one gets through while it drains
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(stopped); took != 13*time.Second {
			t.Errorf("it took %s, want 13s", took)
		}
		if n := r.log.count("drain timed out, the next owner delivers these events again: epoch=1 slot=sagaz_outbox events=2"); n != 1 {
			t.Errorf("it was logged %d times, want once:\n%s", n, r.log)
		}
		if w.confirmed != first || w.owner != nil {
			t.Errorf("confirmed %s, owner %v; want %s and none", w.confirmed, w.owner, first)
		}
		<-gate.Reached
		// The next owner delivers them, and what was settled is not published again.
		gate.Release()
		start(t, w, oneLane, sink)
		w.untilStatus("sent", "a2", "a3")
		wantTaken(t, sink, "a1 a2 a3")
	})

	bubble(t, "NoConnectionJustThen", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		r := start(t, w, oneLane, sink)
		w.commit("a")
		<-gate.Reached
		broken := w.stream()
		w.change(func() { w.openErrs = slices.Repeat([]error{errConnection}, 100) })
		broken.fail(errConnection)
		w.until("a connection has failed", func() bool { return slices.Contains(w.trace, "open failed") })
		r.cancel()
		synctest.Wait()
		gate.Release()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		wantStatus(t, w, "a1", "sent")
	})
}
