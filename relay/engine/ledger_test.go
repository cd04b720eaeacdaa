package engine_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/relay/ledgertest"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// quick makes retries quick, with one lane.
func quick(cfg *engine.Config) {
	cfg.Lanes = 1
	cfg.RetryMin, cfg.RetryMax, cfg.MaxRetries = time.Second, 8*time.Second, 4
}

var errNoQueue = errors.New("no queue is bound")

func TestLedger(t *testing.T) {
	// The refused event is retried with growing waits; when it is taken, what was held behind it
	// follows in order, and then the stream's own.
	bubble(t, "KeyGoesOnInOrder", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("rabbitmq")
		sink.OnEvent(id("a1")).Times(3).Refuse(relay.ReasonUnroutable, errNoQueue)
		r := start(t, w, quick, sink)
		began := time.Now()
		w.commit("a", "a", "b")
		w.untilStatus("sent", "b1")
		w.commit("a", "b")
		w.untilStatus("sent", "b2")
		wantStatus(t, w, "a1", "failed: rabbitmq: unroutable: no queue is bound")
		w.untilStatus("sent", "a1", "a2", "a3")
		// 1 + 2 + 4 s, each less up to a third.
		if took := time.Since(began); took < 4600*time.Millisecond || took > 7500*time.Millisecond {
			t.Errorf("delivered after %s", took)
		}
		w.commit("a")
		w.untilStatus("sent", "a4")
		wantTaken(t, sink, "b1 b2 a1 a2 a3 a4")
		if got := w.entriesOf("rabbitmq"); got != "" {
			t.Errorf("ledger: %s", got)
		}
		r.wantMetric(3, "outbox_failed_events_total")
		r.wantMetric(0, "outbox_dead_letter_events_total")
	})

	// After MAX_RETRIES refusals the event is a dead letter, and its key goes on without it.
	bubble(t, "DeadLetterContinue", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("rabbitmq")
		sink.OnEvent(id("a1")).Refuse(relay.ReasonUnroutable, errNoQueue)
		r := start(t, w, quick, sink)
		w.commit("a", "a")
		w.untilStatus("sent", "a2")
		wantStatus(t, w, "a1", "dead_letter: rabbitmq: unroutable: no queue is bound")
		w.commit("a")
		w.untilStatus("sent", "a3")
		if n := len(offers(sink)); n != 4+2 {
			t.Errorf("offers %q, want four of a1", offers(sink))
		}
		r.wantMetric(1, "outbox_dead_letter_events_total", "event_type=Happened")
		// A person tries again: it goes out on its own.
		sink.OnEvent(id("a1")).Stop()
		w.change(func() { w.ledger.Retry(w.ledger.Entries[0], time.Now()) })
		w.untilStatus("dead_letter", "a1")
	})

	// With RELAY_DEAD_LETTER=hold the key waits for a person.
	bubble(t, "DeadLetterHold", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("rabbitmq")
		sink.OnEvent(id("a1")).Times(4).Refuse(relay.ReasonUnroutable, errNoQueue)
		r := start(t, w, func(cfg *engine.Config) { quick(cfg); cfg.DeadLetter = relay.DeadLetterHold }, sink)
		w.commit("a", "a")
		w.untilStatus("dead_letter", "a1")
		w.commit("a", "b")
		w.untilStatus("sent", "b1")
		time.Sleep(time.Hour)
		synctest.Wait()
		wantStatus(t, w, "a2", "pending")
		if got := w.entriesOf("rabbitmq"); got != "a1 dead, a2 held, a3 held" {
			t.Errorf("ledger: %s", got)
		}
		r.wantMetric(1, "outbox_dead_letter_events_total")
		r.wantMetric(4, "outbox_failed_events_total")
		r.wantMetric(3, "outbox_retry_attempts_total")
		r.wantMetric(1, "outbox_ledger_events", "state=dead")
		r.wantMetric(2, "outbox_ledger_events", "state=held")
		r.wantMetric(1, "outbox_parked_events_total", "reason=unroutable")
		r.wantMetric(2, "outbox_parked_events_total", "reason=behind")
		r.wantMetric(4, "outbox_publish_errors_total", "reason=unroutable")
		if n := r.log.count("event given up"); n != 1 {
			t.Errorf("%d lines about the dead letter", n)
		}
		w.change(func() { w.ledger.Retry(w.ledger.Entries[0], time.Now()) })
		w.untilStatus("sent", "a1", "a2", "a3")
		wantTaken(t, sink, "b1 a1 a2 a3")
	})

	// A person gives the dead letter up: what was held behind it goes on, and the row keeps saying
	// what it is.
	bubble(t, "Discarded", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("rabbitmq")
		sink.OnEvent(id("a1")).Refuse(relay.ReasonUnroutable, errNoQueue)
		start(t, w, func(cfg *engine.Config) { quick(cfg); cfg.MaxRetries, cfg.DeadLetter = 1, relay.DeadLetterHold }, sink)
		w.commit("a", "a")
		w.untilStatus("dead_letter", "a1")
		w.change(func() { w.ledger.Discard(w.ledger.Entries[0]) })
		w.untilStatus("sent", "a2")
		w.commit("a")
		w.untilStatus("sent", "a3")
		wantTaken(t, sink, "a2 a3")
	})

	// The owner dies with events in the ledger; the next one knows them, and the order holds.
	bubble(t, "NextOwnerGoesOn", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("rabbitmq")
		sink.OnEvent(id("a1")).Times(2).Refuse(relay.ReasonUnroutable, errNoQueue)
		start(t, w, quick, sink)
		w.commit("a", "a", "b")
		w.untilStatus("sent", "b1")
		w.until("parked", func() bool { return len(w.ledger.Entries) == 2 })
		w.lease().lose(errConnection)
		w.commit("a", "b")
		w.untilStatus("sent", "a1", "a2", "a3", "b2")
		if got := labels(sink.Taken()); !inOrder(got, "a1", "a2", "a3") {
			t.Errorf("taken: %s", got)
		}
	})

	// The answer to the write of an outcome is lost, once before and once after it has happened:
	// nothing is forgotten.
	bubble(t, "OutcomeIsWrittenAgain", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("rabbitmq")
		sink.OnEvent(id("a1")).Times(1).Refuse(relay.ReasonUnroutable, errNoQueue)
		failures := 3
		w.onResolve = func() error {
			if failures--; failures >= 0 {
				return errConnection
			}
			return nil
		}
		r := start(t, w, quick, sink)
		w.commit("a", "a")
		w.untilStatus("sent", "a1", "a2")
		wantTaken(t, sink, "a1 a2")
		if n := r.log.count("could not be written"); n != 3 {
			t.Errorf("%d log lines about it, want 3", n)
		}
	})

	// A key with a steady flow comes back from the ledger to the stream: events that arrive while
	// the last entries are being offered wait for the end of the round instead of going to the
	// ledger behind them.
	bubble(t, "BusyKeyReturnsToTheStream", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("rabbitmq")
		sink.OnEvent(id("a1")).Times(1).Refuse(relay.ReasonUnroutable, errNoQueue)
		retry := sink.OnCall(2).Block()
		start(t, w, quick, sink)
		w.commit("a")
		<-retry.Reached
		w.commit("a", "a")
		synctest.Wait()
		retry.Release()
		w.untilStatus("sent", "a1", "a2", "a3")
		w.mu.Lock()
		parked := 0
		for _, c := range w.marks {
			parked += len(c.labels)
		}
		w.mu.Unlock()
		wantOffers(t, sink, "a1!", "a1", "a2 a3")
		if parked != 3 {
			t.Errorf("%d marks, want a1 as refused, a2 and a3 as sent", parked)
		}
	})

	// A replay has a header and does not hold up anything.
	bubble(t, "Replay", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		start(t, w, quick, sink)
		w.commit("a", "a")
		w.untilStatus("sent", "a1", "a2")
		at := time.Date(2026, 11, 23, 7, 0, 0, 0, time.UTC)
		w.change(func() {
			w.ledger.Add(&ledgertest.Entry{ID: id("a1"), Sink: "kafka", Key: "a", Position: 9, Detached: true, Replayed: at})
		})
		if err := sink.WaitTaken(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		headers := sink.Taken()[2].Headers
		if got := headers[len(headers)-1]; got != (relay.Header{Key: "relay-replayed-at", Value: "2026-11-23T07:00:00Z"}) {
			t.Errorf("last header: %v", got)
		}
		w.until("the ledger is empty", func() bool { return len(w.ledger.Entries) == 0 })
		wantStatus(t, w, "a1", "sent")
	})

	// The row of an entry was deleted by somebody: there is nothing to deliver, and what waited
	// behind it goes on.
	bubble(t, "RowIsGone", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.OnEvent(id("a1")).Refuse(relay.ReasonRejected, errors.New("no"))
		start(t, w, quick, sink)
		w.commit("a", "a")
		w.untilStatus("failed", "a1")
		w.change(func() { delete(w.rows, id("a1")) })
		w.untilStatus("sent", "a2")
		wantTaken(t, sink, "a2")
	})
}

func inOrder(text string, labels ...string) bool {
	for _, l := range labels {
		_, rest, found := strings.Cut(text, l)
		if !found {
			return false
		}
		text = rest
	}
	return true
}

func TestIsolation(t *testing.T) {
	two := func(cfg *engine.Config) {
		quick(cfg)
		cfg.SinkIsolation, cfg.InflightEvents = 10*time.Second, 20
	}
	// One of two sinks is down for long: the other goes on at full speed, the slot moves, and when
	// it is back it gets everything in order; the healthy one gets nothing twice.
	bubble(t, "OtherSinkAndSlotGoOn", func(t *testing.T) {
		w := newWorld(t)
		kafka, rabbit := sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq")
		r := start(t, w, two, kafka, rabbit)
		w.commit("a", "b")
		w.untilStatus("sent", "a1", "b1")
		rabbit.Down(errBroker)
		var end relay.LSN
		for range 50 {
			_, end = w.commit("a", "b")
		}
		if err := kafka.WaitTaken(t.Context(), 102); err != nil {
			t.Fatal(err)
		}
		untilReported(w, end)
		wantStatus(t, w, "a51", "pending")
		w.commit("c")
		if err := kafka.WaitTaken(t.Context(), 103); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if strings.Contains(fmt.Sprint(offers(rabbit)), "c1") {
			t.Error("an isolated sink was offered an event of the stream")
		}
		r.wantMetric(0, "outbox_sink_up", "sink=rabbitmq")
		r.wantMetric(1, "outbox_sink_up", "sink=kafka")
		if n := r.log.count("sink isolated"); n != 1 {
			t.Errorf("%d log lines about the isolation", n)
		}
		rabbit.Down(nil)
		all := append(numbered("a", 1, 51), numbered("b", 1, 51)...)
		w.untilStatus("sent", append(all, "c1")...)
		w.commit("a", "b")
		w.untilStatus("sent", "a52", "b52")
		wantEachOnceInOrder(t, kafka, "a", "b", "c")
		wantEachOnceInOrder(t, rabbit, "a", "b", "c")
		r.wantMetric(1, "outbox_sink_up", "sink=rabbitmq")
		if got := w.entriesOf("rabbitmq"); got != "" {
			t.Errorf("ledger: %s", got)
		}
	})

	// It hangs instead of refusing: the offer is given up in time.
	bubble(t, "SilentSink", func(t *testing.T) {
		w := newWorld(t)
		kafka, rabbit := sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq")
		rabbit.OnCall(1).Block()
		start(t, w, two, kafka, rabbit)
		began := time.Now()
		_, end := w.commit("a", "a")
		untilReported(w, end)
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("the slot stood for %s", took)
		}
		w.untilStatus("sent", "a1", "a2")
	})

	// A part of the sink is in trouble (one partition without a leader): its events are parked
	// alone.
	bubble(t, "PartOfASink", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		var bad, good string // of one lane
		other := keysOfLanes(2)[1]
		for c := 'a'; good == ""; c++ {
			switch key := string(c); {
			case int(relay.KeyHash(key)&0x7fffffff)%2 != 0:
			case bad == "":
				bad = key
			default:
				good = key
			}
		}
		trouble := sink.OnKey(bad).Fail(errBroker)
		r := start(t, w, func(cfg *engine.Config) { two(cfg); cfg.Lanes, cfg.InflightEvents = 2, 1000 }, sink)
		for range 60 {
			w.commit(bad, good, other)
			time.Sleep(500 * time.Millisecond)
		}
		_, end := w.commit(good)
		w.untilStatus("sent", append(numbered(good, 1, 61), numbered(other, 1, 60)...)...)
		untilReported(w, end)
		if n := r.log.count("sink isolated"); n != 0 {
			t.Error("the whole sink was isolated")
		}
		trouble.Stop()
		w.untilStatus("sent", numbered(bad, 1, 60)...)
		wantEachOnceInOrder(t, sink, bad, good, other)
	})

	// The first entries of an isolated sink's ledger are all of a part of it that is still in
	// trouble when the rest is back.
	bubble(t, "PartOfASinkComesBack", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.Down(errBroker)
		trouble := sink.OnKey("a").Fail(errBroker)
		start(t, w, func(cfg *engine.Config) { two(cfg); cfg.InflightEvents = 1000 }, sink)
		for range 40 {
			w.commit("a")
		}
		w.commit("b")
		w.until("isolated", func() bool { return len(w.ledger.Entries) == 41 })
		sink.Down(nil)
		w.untilStatus("sent", "b1")
		trouble.Stop()
		w.untilStatus("sent", numbered("a", 1, 40)...)
		wantEachOnceInOrder(t, sink, "a", "b")
	})

	// Of a ledger that is being drained the sink takes some and not others. That is logged, and
	// why.
	bubble(t, "PartOfALedger", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.Down(errBroker)
		r := start(t, w, two, sink)
		w.commit("a", "b", "a", "b")
		w.until("isolated", func() bool { return len(w.ledger.Entries) == 4 })
		trouble := sink.OnKey("a").Fail(errBroker)
		sink.Down(nil)
		w.untilStatus("sent", "b1", "b2")
		time.Sleep(time.Minute)
		if n := r.log.count("the sink did not take a part of its ledger"); n != 1 {
			t.Errorf("the log reports %d times that a part waits, want 1", n)
		}
		trouble.Stop()
		w.untilStatus("sent", "a1", "a2")
		wantEachOnceInOrder(t, sink, "a", "b")
	})

	// A broker dies while it still answers for half of a batch: the sink as a whole is isolated,
	// not each batch on its own.
	bubble(t, "DiesInTheMiddleOfABatch", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.OnCall(1).Delay(2 * time.Second)
		sink.OnKey("a").Fail(errBroker)
		r := start(t, w, two, sink)
		w.commit("a", "b")
		if err := sink.WaitTaken(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		sink.Down(errBroker)
		w.commit("c")
		w.until("parked", func() bool { return len(w.ledger.Entries) == 2 })
		if whole, alone := r.log.count("sink isolated"), r.log.count("events isolated"); whole != 1 || alone != 0 {
			t.Errorf("isolated as a whole %d times, alone %d times; want 1 and 0", whole, alone)
		}
	})

	// The slot holds back more WAL than the budget long before the isolation's time: the sink that
	// is behind is isolated at once.
	bubble(t, "WALBudget", func(t *testing.T) {
		w := newWorld(t)
		kafka, rabbit := sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq")
		rabbit.Down(errBroker)
		r := start(t, w, func(cfg *engine.Config) { two(cfg); cfg.SinkIsolation, cfg.WALBudget = time.Hour, 0x1000 }, kafka, rabbit)
		var end relay.LSN
		for range 30 {
			_, end = w.commit("a")
		}
		untilReported(w, end)
		if n := r.log.count("more WAL than its budget"); n != 1 {
			t.Errorf("%d log lines about it", n)
		}
		rabbit.Down(nil)
		w.untilStatus("sent", numbered("a", 1, 30)...)
		wantEachOnceInOrder(t, kafka, "a")
		wantEachOnceInOrder(t, rabbit, "a")
		time.Sleep(6 * time.Second)
		for _, s := range r.watch.Status().Sinks {
			if s.Isolated || s.Ledger != 0 {
				t.Errorf("sink %s: isolated %t, %d entries", s.Sink, s.Isolated, s.Ledger)
			}
		}
	})

	// A relay that is stopped while its sink is down leaves the events to the ledger: nothing is
	// repeated, and nobody waits.
	bubble(t, "StopWhileDown", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.Down(errBroker)
		r := start(t, w, two, sink)
		w.commit("a", "a")
		if err := sink.WaitOffered(t.Context(), 4); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("stopping took %s", took)
		}
		if got := w.entriesOf("kafka"); got != "a1 ready, a2 ready" {
			t.Errorf("ledger: %s", got)
		}
		sink.Down(nil)
		start(t, w, two, sink)
		w.commit("a")
		w.untilStatus("sent", "a1", "a2", "a3")
		wantTaken(t, sink, "a1 a2 a3")
	})

	// A sink was taken out of the configuration: its events stay, and come when it is back.
	bubble(t, "SinkRemovedAndBack", func(t *testing.T) {
		w := newWorld(t)
		kafka, rabbit := sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq")
		rabbit.Down(errBroker)
		r := start(t, w, two, kafka, rabbit)
		w.commit("a")
		w.until("parked", func() bool { return len(w.ledger.Entries) == 1 })
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		r = start(t, w, two, kafka)
		w.commit("a")
		w.untilStatus("sent", "a2")
		wantStatus(t, w, "a1", "pending")
		if n := r.log.count("not configured"); n != 1 {
			t.Errorf("%d log lines about it", n)
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		rabbit.Down(nil)
		start(t, w, two, kafka, rabbit)
		w.untilStatus("sent", "a1")
		wantTaken(t, rabbit, "a1")
		wantTaken(t, kafka, "a1 a2")
	})
}

// wantEachOnceInOrder wants every event of the keys to have been taken once, in order.
func wantEachOnceInOrder(t *testing.T, sink *sinktest.Script, keys ...string) {
	t.Helper()
	next := make(map[string]int)
	for _, rec := range sink.Taken() {
		next[rec.Key]++
		if want := fmt.Sprint(rec.Key, next[rec.Key]); label(rec.EventID) != want {
			t.Fatalf("%s took %s, want %s; all: %s", sink.Name(), label(rec.EventID), want, labels(sink.Taken()))
		}
	}
	if len(next) != len(keys) {
		t.Errorf("%s took keys %v, want %v", sink.Name(), next, keys)
	}
}

// untilReported waits until a position was reported to the server.
func untilReported(w *world, at relay.LSN) {
	w.t.Helper()
	w.until("the position is reported", func() bool { return w.confirmed >= at })
}

func TestRecovery(t *testing.T) {
	// The slot is dropped while it is read. What it did not deliver is found in the table, in
	// order, before what the new one delivers.
	bubble(t, "SlotGoneWhileStreaming", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, quick, sink)
		w.commit("a")
		w.untilStatus("sent", "a1")
		w.change(func() { w.gone = relay.GoneMissing })
		w.stream().fail(errConnection)
		w.until("the stream has ended", func() bool { return w.reading == nil })
		w.commit("a", "b")
		w.commit("a")
		w.untilStatus("sent", "a2", "a3", "b1")
		w.commit("a")
		w.untilStatus("sent", "a4")
		wantTaken(t, sink, "a1 a2 b1 a3 a4")
		w.stream()
		want := "acquire open close gone owe missing create sweep swept open"
		w.mu.Lock()
		if got := strings.Join(w.trace, " "); got != want {
			t.Errorf("trace:\n got %s\nwant %s", got, want)
		}
		w.mu.Unlock()
		if n := r.log.count("rows=3"); n != 1 {
			t.Errorf("%d log lines about how many rows the gap held", n)
		}
		r.wantMetric(3, "outbox_recovered_events_total", "cause=missing")
	})

	// Events are in flight when the slot goes: their rows are pending, and they are not found a
	// second time.
	bubble(t, "InFlightWhenTheSlotGoes", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		start(t, w, quick, sink)
		w.commit("a", "b")
		<-gate.Reached
		w.change(func() { w.gone = relay.GoneMissing })
		w.stream().fail(errConnection)
		time.Sleep(3 * time.Second)
		gate.Release()
		w.untilStatus("sent", "a1", "b1")
		w.commit("a")
		w.untilStatus("sent", "a2")
		wantTaken(t, sink, "a1 b1 a2")
	})

	// The same when the table is polled from then on.
	bubble(t, "InFlightWhenPollingBegins", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		start(t, w, quick, sink)
		w.commit("a", "b")
		<-gate.Reached
		w.change(func() { w.openErrs = []error{&relay.SetupError{Problem: "no rights", Streaming: true}} })
		w.stream().fail(errConnection)
		time.Sleep(3 * time.Second)
		gate.Release()
		w.untilStatus("sent", "a1", "b1")
		w.commit("a")
		w.untilStatus("sent", "a2")
		wantTaken(t, sink, "a1 b1 a2")
	})

	// The first start on a table that has rows already.
	bubble(t, "FirstStart", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.recovery = relay.Recovery{Owed: true, Cause: "first start"}
		w.gone = relay.GoneMissing
		w.commit("a", "a")
		r := start(t, w, quick, sink)
		w.untilStatus("sent", "a1", "a2")
		w.commit("a")
		w.untilStatus("sent", "a3")
		wantTaken(t, sink, "a1 a2 a3")
		r.wantMetric(2, "outbox_recovered_events_total") // and no gap was
		r.wantMetric(2, "outbox_recovered_events_total", "cause=first_start")
	})

	// The owner dies in the middle of the sweep: the next one knows that it is owed, and does not
	// read the slot before it is done.
	bubble(t, "DiesWhileSweeping", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.recovery, w.gone = relay.Recovery{Owed: true, Cause: "first start"}, relay.GoneMissing
		w.commit(strings.Split(strings.Repeat("a", 15), "")...)
		gate := sink.OnCall(2).Block()
		start(t, w, func(cfg *engine.Config) { quick(cfg); cfg.BatchSize = 5 }, sink)
		<-gate.Reached
		w.until("some are marked", func() bool { return len(w.marks) > 0 })
		w.commit("a")
		w.lease().lose(errConnection)
		gate.Release()
		w.untilStatus("sent", numbered("a", 1, 16)...)
		if got := labels(sink.Taken()); !inOrder(got, numbered("a", 1, 16)...) {
			t.Errorf("taken: %s", got)
		}
		w.mu.Lock()
		if got := strings.Join(w.trace, " "); strings.Index(got, "open") < strings.Index(got, "swept") {
			t.Errorf("the slot was read before the sweep was done: %s", got)
		}
		w.mu.Unlock()
	})

	// The slot is made, then the recovery is interrupted, and the slot dropped before the next
	// owner comes: the next one's sweep finds what was committed in between too.
	bubble(t, "SlotDroppedDuringRecovery", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.recovery, w.gone = relay.Recovery{Owed: true, Cause: "first start"}, relay.GoneMissing
		w.commit("a")
		gate := sink.OnCall(1).Block()
		start(t, w, quick, sink)
		<-gate.Reached
		w.lease().lose(errConnection)
		w.change(func() { w.gone = relay.GoneMissing })
		w.commit("a")
		gate.Release()
		w.untilStatus("sent", "a1", "a2")
		w.commit("a")
		w.untilStatus("sent", "a3")
		if got := labels(sink.Taken()); !inOrder(got, "a1", "a2", "a3") {
			t.Errorf("taken: %s", got)
		}
	})

	// A row is set back to pending by hand during a running stream: it is delivered once more, the
	// stream's own rows are not.
	bubble(t, "SetBackByHand", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, quick, sink)
		w.commit("a", "b")
		w.untilStatus("sent", "a1", "b1")
		w.change(func() { w.rows[id("a1")].status, w.byHand = "pending", map[relay.UUID]bool{id("a1"): true} })
		gate := sink.OnEvent(id("c1")).Block()
		w.commit("c")
		<-gate.Reached
		time.Sleep(3 * time.Second)
		gate.Release()
		w.quiet()
		w.untilStatus("sent", "a1", "c1")
		wantTaken(t, sink, "a1 b1 c1 a1")
		r.wantMetric(1, "outbox_recovered_events_total", "cause=pending")
	})

	// A stop finds a sweep that is just making a record of a row: it waits for that, and for the
	// row's delivery. Nothing is cut, which would be delivered again.
	bubble(t, "StopWhileARowIsEncoded", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		enc := &slowEncoder{Encoder: engine.Sagaz, reached: make(chan struct{}), release: make(chan struct{})}
		w.enc, w.closes = enc, 20*time.Millisecond
		r := start(t, w, quick, sink)
		w.commit("a")
		w.untilStatus("sent", "a1")
		enc.slow.Store(true)
		w.change(func() { w.rows[id("a1")].status, w.byHand = "pending", map[relay.UUID]bool{id("a1"): true} })
		for waits := true; waits; {
			w.quiet()
			select {
			case <-enc.reached:
				waits = false
			case <-time.After(time.Second):
			}
		}
		sink.OnCall(2).Delay(300 * time.Millisecond)
		r.cancel()
		time.Sleep(time.Millisecond)
		close(enc.release)
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		if got := w.status("a1"); got != "sent" {
			t.Errorf("a1 is %s", got)
		}
		wantTaken(t, sink, "a1 a1")
	})
}

// slowEncoder waits, once slow is set.
type slowEncoder struct {
	relay.Encoder
	slow             atomic.Bool
	reached, release chan struct{}
}

func (e *slowEncoder) Encode(rec *relay.Record, ev *relay.Event) error {
	if e.slow.CompareAndSwap(true, false) {
		close(e.reached)
		<-e.release
	}
	return e.Encoder.Encode(rec, ev)
}

func TestPolling(t *testing.T) {
	poll := func(cfg *engine.Config) { quick(cfg); cfg.Mode = relay.ModePolling }
	bubble(t, "DeliversAndNeedsNoSlot", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.openErrs = []error{errors.New("must not be asked")}
		r := start(t, w, poll, sink)
		for range 30 {
			w.commit("a", "b")
			time.Sleep(300 * time.Millisecond)
		}
		w.untilStatus("sent", append(numbered("a", 1, 30), numbered("b", 1, 30)...)...)
		wantEachOnceInOrder(t, sink, "a", "b")
		// The backlog is in the table, and the autoscaler sees it.
		gate := sink.OnKey("c").Block()
		for range 40 {
			w.commit("c")
		}
		<-gate.Reached
		time.Sleep(12 * time.Second)
		r.wantMetric(40, "outbox_pending_events_total")
		gate.Release()
		w.untilStatus("sent", numbered("c", 1, 40)...)
		if got := r.slot(); got.Mode != "polling" || len(r.watch.Status().Problems()) != 0 {
			t.Errorf("status: mode %q, problems %q", got.Mode, r.watch.Status().Problems())
		}
		r.wantMetric(1, "outbox_wanted_mode", "mode=polling")
		r.wantMetric(1, "outbox_wanted_mode")
	})

	// Streaming is impossible at first: auto logs why, polls, and streams when it is possible.
	// Nothing is repeated.
	bubble(t, "AutoUntilItCanStream", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		no := &relay.SetupError{Problem: "wal_level is not logical", Streaming: true}
		w.openErrs = []error{no, no}
		r := start(t, w, quick, sink)
		go func() {
			for range 200 {
				w.commit("a", "b")
				time.Sleep(500 * time.Millisecond)
			}
		}()
		time.Sleep(10 * time.Second)
		if got := r.slot(); got.Mode != "polling" || !strings.Contains(got.Why, "wal_level") {
			t.Errorf("status: mode %q, why %q", got.Mode, got.Why)
		}
		r.wantMetric(1, "outbox_mode", "mode=polling")
		r.wantMetric(1, "outbox_wanted_mode", "mode=auto")
		r.wantMetric(1, "outbox_wanted_mode")
		time.Sleep(110 * time.Second)
		w.untilStatus("sent", append(numbered("a", 1, 200), numbered("b", 1, 200)...)...)
		if got := r.slot(); got.Mode != "cdc" || !got.Streaming {
			t.Errorf("status: mode %q, streaming %t", got.Mode, got.Streaming)
		}
		wantEachOnceInOrder(t, sink, "a", "b")
		if n := r.log.count("streaming is impossible"); n != 2 {
			t.Errorf("%d log lines about it, want 2", n)
		}
	})

	// cdc insists.
	bubble(t, "CDCRefuses", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.checkErrs = []error{&relay.SetupError{Problem: "wal_level is not logical", Streaming: true}}
		r := start(t, w, func(cfg *engine.Config) { cfg.Mode = relay.ModeCDC }, sink)
		<-r.done
		if setup := (*relay.SetupError)(nil); !errors.As(r.err, &setup) {
			t.Errorf("got %v, want the setup error", r.err)
		}
	})
}
