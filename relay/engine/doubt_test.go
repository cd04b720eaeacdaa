package engine_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// tailSink is a script whose broker can be read back.
type tailSink struct {
	*sinktest.Script
	off bool

	mu sync.Mutex
	// Guarded by mu.
	foreign []*relay.Record // of other clients
	fails   error
	unread  []relay.UnreadTail
	slow    time.Duration
	queries []relay.TailQuery
	gone    map[relay.UUID]bool // the broker has lost them
}

func newTailSink(name string) *tailSink {
	return &tailSink{Script: sinktest.NewScript(name), gone: make(map[relay.UUID]bool)}
}

func (s *tailSink) ReadsTail() bool { return !s.off }

func (s *tailSink) ReadTail(ctx context.Context, q relay.TailQuery, f func(*relay.Record)) (relay.TailReport, error) {
	s.mu.Lock()
	slow, fails := s.slow, s.fails
	s.queries = append(s.queries, q)
	report := relay.TailReport{Unread: s.unread}
	all := append(s.Taken(), s.foreign...)
	gone := s.gone
	s.mu.Unlock()
	if !relay.Sleep(ctx, slow) {
		return relay.TailReport{}, context.Cause(ctx)
	}
	if fails != nil {
		return relay.TailReport{}, fails
	}
	for _, rec := range all {
		if slices.Contains(q.Topics, rec.Topic) && !gone[rec.EventID] {
			report.Records++
			own := *rec // the engine may keep nothing of it
			own.Key, own.OwnKey = rec.MessageKey(), nil
			f(&own)
		}
	}
	return report, nil
}

func (s *tailSink) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queries)
}

// dies ends an owner whose marks do not get through any more, and lets the next one begin.
func (w *world) dies(l *lease) {
	w.takenOver()
	l.lose(errConnection)
	w.change(func() { w.onMark = nil })
	w.givenBack()
}

var errMarks = errors.New("the database does not answer")

// sentUnmarked commits and marks a1, and has what follows sent and not marked. It returns the lease
// under which that was.
func sentUnmarked(w *world, sink *sinktest.Script, keys ...string) *lease {
	w.t.Helper()
	w.commit("a")
	w.untilStatus("sent", "a1")
	l := w.lease()
	w.change(func() {
		w.onMark = func(context.Context, int, []relay.Mark) ([]int, error) { return nil, errMarks }
	})
	var rows []relay.Event
	for _, key := range keys {
		rows = append(rows, insert(key, func(ev *relay.Event) { ev.CreatedAt = relay.TimestampOf(time.Now().Add(time.Hour)) }))
	}
	w.commitRows(rows...)
	if err := sink.WaitTaken(w.t.Context(), 1+len(keys)); err != nil {
		w.t.Fatal(err)
	}
	return l
}

// oneKey gives all messages one key, whatever their order goes by.
type oneKey struct{ relay.Encoder }

func (e oneKey) Encode(rec *relay.Record, ev *relay.Event) error {
	err := e.Encoder.Encode(rec, ev)
	key := "all"
	rec.OwnKey = &key
	return err
}

func TestDoubt(t *testing.T) {
	one := func(cfg *engine.Config) { cfg.Lanes = 1 }

	bubble(t, "WhatArrivedIsNotSentAgain", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		r := start(t, w, one, sink)
		l := sentUnmarked(w, sink.Script, "a", "b")
		w.dies(l)
		w.untilStatus("sent", "a2", "b1")
		w.commit("a", "b")
		w.untilStatus("sent", "a3", "b2")
		wantTaken(t, sink.Script, "a1 a2 b1 a3 b2")
		r.wantMetric(2, "outbox_tail_arrived_events_total")
		r.wantMetric(3, "outbox_tail_records_read_total")
		r.wantMetric(0, "outbox_tail_unread_total")
	})

	bubble(t, "OffBySetting", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		sink.off = true
		start(t, w, one, sink)
		l := sentUnmarked(w, sink.Script, "a", "b")
		if !w.sinceNoted().IsZero() {
			t.Error("something was noted for a sink that is not read")
		}
		w.dies(l)
		w.untilStatus("sent", "a2", "b1")
		wantTaken(t, sink.Script, "a1 a2 b1 a2 b1")
		if n := sink.asked(); n != 0 {
			t.Errorf("it was read back %d times", n)
		}
	})

	// RabbitMQ cannot be read: it gets the events again, and Kafka does not.
	bubble(t, "OneSinkOfTwo", func(t *testing.T) {
		w, kafka, rabbit := newWorld(t), newTailSink("kafka"), sinktest.NewScript("rabbitmq")
		start(t, w, one, kafka, rabbit)
		l := sentUnmarked(w, kafka.Script, "a", "b")
		if err := rabbit.WaitTaken(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		w.dies(l)
		w.untilStatus("sent", "a2", "b1")
		wantTaken(t, kafka.Script, "a1 a2 b1")
		wantTaken(t, rabbit, "a1 a2 b1 a2 b1")
	})

	// What a route has given another key to is known all the same, and the order stays that of Key.
	bubble(t, "AMessageKeyOfItsOwn", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		w.enc = oneKey{engine.Sagaz}
		start(t, w, one, sink)
		l := sentUnmarked(w, sink.Script, "a", "b", "a", "a")
		sink.gone[id("a3")] = true
		w.dies(l)
		w.untilStatus("sent", "a2", "b1", "a3", "a4")
		wantTaken(t, sink.Script, "a1 a2 b1 a3 a4 a3 a4")
	})

	// The first of a key that has not arrived ends it for the key: a suffix is sent again.
	bubble(t, "ASuffix", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		start(t, w, one, sink)
		l := sentUnmarked(w, sink.Script, "a", "b", "a", "a", "b")
		sink.gone[id("a3")] = true // compacted, or truncated by an unclean election
		w.dies(l)
		w.untilStatus("sent", "a2", "a3", "a4", "b1", "b2")
		wantTaken(t, sink.Script, "a1 a2 b1 a3 a4 b2 a3 a4")
	})

	// A record with its id is there, and looks otherwise: of another table's event, from before the
	// envelope was changed, or an echo of somebody who reads the topic. Its own counts, if that is there.
	for name, of := range map[string]struct {
		gone bool
		want string
	}{"AnotherRecordOfThatID": {true, "a1 a2 a2"}, "AnEchoBehindIt": {false, "a1 a2"}} {
		bubble(t, name, func(t *testing.T) {
			w, sink := newWorld(t), newTailSink("kafka")
			start(t, w, one, sink)
			l := sentUnmarked(w, sink.Script, "a")
			own := *sink.Taken()[1]
			own.Value = []byte(`{"other": true}`)
			sink.foreign = append(sink.foreign, &own)
			sink.gone[id("a2")] = of.gone
			w.dies(l)
			w.untilStatus("sent", "a2")
			wantTaken(t, sink.Script, of.want)
		})
	}

	for name, trouble := range map[string]func(*tailSink){
		"NotReadable": func(s *tailSink) { s.fails = errors.New("TOPIC_AUTHORIZATION_FAILED") },
		"TooSlow":     func(s *tailSink) { s.slow = time.Minute },
	} {
		bubble(t, name, func(t *testing.T) {
			w, sink := newWorld(t), newTailSink("kafka")
			r := start(t, w, one, sink)
			l := sentUnmarked(w, sink.Script, "a", "b")
			trouble(sink)
			w.dies(l)
			began := time.Now()
			w.untilStatus("sent", "a2", "b1")
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("the takeover took %s", took)
			}
			wantTaken(t, sink.Script, "a1 a2 b1 a2 b1")
			r.wantMetric(1, "outbox_tail_unread_total")
			if n := r.log.count("cannot be read back"); n != 1 {
				t.Errorf("logged %d times that it cannot be read, want once", n)
			}
		})
	}

	// The time is for all topics together.
	bubble(t, "NoTimeLeft", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		r := start(t, w, func(cfg *engine.Config) { one(cfg); cfg.BatchSize = 1 }, sink)
		l := sentUnmarked(w, sink.Script, "a")
		w.commitRows(insert("b", later, func(ev *relay.Event) { ev.EventType = "Other" }))
		if err := sink.WaitTaken(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		sink.slow = time.Minute
		w.dies(l)
		began := time.Now()
		w.untilStatus("sent", "a2", "b1")
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("the takeover took %s", took)
		}
		wantTaken(t, sink.Script, "a1 a2 b1 a2 b1")
		r.wantMetric(2, "outbox_tail_unread_total")
		if n := sink.asked(); n != 1 {
			t.Errorf("it was asked %d times, want once", n)
		}
	})

	// A part that is unread does not keep the rest from counting.
	bubble(t, "PartlyReadable", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		r := start(t, w, one, sink)
		l := sentUnmarked(w, sink.Script, "a", "b")
		sink.unread = []relay.UnreadTail{{Place: "Happened/3", Err: errBroker}}
		w.dies(l)
		w.untilStatus("sent", "a2", "b1")
		wantTaken(t, sink.Script, "a1 a2 b1")
		r.wantMetric(1, "outbox_tail_unread_total")
	})

	// A second death, before anything was marked: what the first owner had sent is in doubt still.
	bubble(t, "TwoDeaths", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		start(t, w, one, sink)
		l := sentUnmarked(w, sink.Script, "a")
		w.takenOver()
		l.lose(errConnection)
		w.givenBack()
		second := w.leaseAfter(l)
		w.commit("b")
		if err := sink.WaitTaken(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		w.dies(second)
		w.untilStatus("sent", "a2", "b1")
		wantTaken(t, sink.Script, "a1 a2 b1")
	})

	// What a person sets back to pending is sent, though the topic has it.
	bubble(t, "SetBackByHand", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		start(t, w, func(cfg *engine.Config) { one(cfg); cfg.Mode = relay.ModePolling }, sink)
		l := sentUnmarked(w, sink.Script, "b")
		w.change(func() { w.rows[id("a1")].status = "pending" })
		w.dies(l)
		w.untilStatus("sent", "a1", "b1")
		if got := labels(sink.Taken()); got != "a1 b1 a1" {
			t.Errorf("taken: %q, want a1 once more and b1 once", got)
		}
	})

	// Polling finds in the table what is in doubt, with its first look; later ones find what is
	// wanted once more.
	bubble(t, "Polling", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		start(t, w, func(cfg *engine.Config) { one(cfg); cfg.Mode = relay.ModePolling }, sink)
		l := sentUnmarked(w, sink.Script, "a", "b")
		w.dies(l)
		w.untilStatus("sent", "a2", "b1")
		wantTaken(t, sink.Script, "a1 a2 b1")
		w.change(func() { w.rows[id("a2")].status, w.rows[id("a2")].marks = "pending", 0 })
		w.untilStatus("sent", "a2")
		if got := labels(sink.Taken()); got != "a1 a2 b1 a2" {
			t.Errorf("taken: %q, want a2 once more", got)
		}
	})

	// The slot is lost with its owner: the sweep finds what is in doubt.
	bubble(t, "SlotGone", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		start(t, w, one, sink)
		l := sentUnmarked(w, sink.Script, "a", "b")
		w.change(func() { w.place.gone = relay.GoneMissing })
		w.dies(l)
		w.untilStatus("sent", "a2", "b1")
		w.commit("a")
		w.untilStatus("sent", "a3")
		wantTaken(t, sink.Script, "a1 a2 b1 a3")
	})

	// A clean stop leaves nothing in doubt, so nothing is read.
	bubble(t, "CleanStop", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		r := start(t, w, one, sink)
		w.commit("a", "b")
		w.untilStatus("sent", "a1", "b1")
		if w.sinceNoted().IsZero() {
			t.Error("nothing was noted with the marks")
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		if at := w.sinceNoted(); !at.IsZero() {
			t.Errorf("a clean stop leaves %s", at)
		}
		start(t, w, one, sink)
		w.commit("a")
		w.untilStatus("sent", "a2")
		if n := sink.asked(); n != 0 {
			t.Errorf("it was read back %d times", n)
		}
	})

	// An event in flight for long holds back the time that is noted.
	bubble(t, "AnEventThatIsStuck", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		start(t, w, func(cfg *engine.Config) { cfg.Lanes = 2 }, sink)
		keys := keysOfLanes(2)
		gate := sink.OnKey(keys[0]).Block()
		began := time.Now()
		w.commit(keys[0])
		<-gate.Reached
		time.Sleep(5 * time.Second)
		w.commit(keys[1])
		w.untilStatus("sent", keys[1]+"1")
		if at := w.sinceNoted(); at.After(began.Add(time.Second)) {
			t.Errorf("noted %s after the stuck event was taken in", at.Sub(began))
		}
		gate.Release()
		w.untilStatus("sent", keys[0]+"1")
		if at := w.sinceNoted(); at.Before(began.Add(5 * time.Second)) {
			t.Errorf("noted %s after the stuck event was taken in, though it is marked", at.Sub(began))
		}
	})
}

func (w *world) sinceNoted() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.place.since
}

// leaseAfter returns the lease that follows on another one.
func (w *world) leaseAfter(before *lease) (l *lease) {
	w.t.Helper()
	w.until("another lease is held", func() bool { l = w.owner; return l != nil && l != before })
	return l
}

// More comes than an owner may have in flight: the rest is not looked for, and the time that was
// noted stays until what had arrived has its mark.
func TestDoubtEndsWithTheBudget(t *testing.T) {
	bubble(t, "Budget", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.InflightEvents = 1, 3 }, sink)
		l := sentUnmarked(w, sink.Script, "a", "b")
		since := w.sinceNoted()
		time.Sleep(time.Second)
		gate := make(chan struct{})
		w.takenOver()
		l.lose(errConnection)
		w.commit("c", "d", "e", "f")
		w.change(func() {
			w.onMark = func(_ context.Context, n int, marks []relay.Mark) ([]int, error) {
				for i := range marks {
					if label(marks[i].ID) == "a2" {
						select {
						case <-gate:
						default:
							return []int{i}, nil // it has no mark yet
						}
					}
				}
				return nil, nil
			}
		})
		w.givenBack()
		w.untilStatus("sent", "b1", "c1", "d1", "e1", "f1")
		if at := w.sinceNoted(); at.After(since) {
			t.Errorf("noted %s later, though an event that had arrived has no mark yet", at.Sub(since))
		}
		close(gate)
		w.untilStatus("sent", "a2")
		w.commit("a")
		w.untilStatus("sent", "a3")
		if at := w.sinceNoted(); !at.After(since) {
			t.Error("what was noted stays, though all is marked")
		}
		if got := labels(sink.Taken()); got != "a1 a2 b1 c1 d1 e1 f1 a3" {
			t.Errorf("taken: %q", got)
		}
	})

	// Each slot of a process has its own doubt about the sink that they share.
	bubble(t, "TwoSlots", func(t *testing.T) {
		w, sink := newWorld(t), newTailSink("kafka")
		w.divide(2)
		start(t, w, func(cfg *engine.Config) { cfg.Lanes = 1 }, sink)
		w.untilOwned()
		a, b := keysOf(0, 2, 1)[0], keysOf(1, 2, 1)[0]
		w.commit(a, b)
		w.untilStatus("sent", a+"1", b+"1")
		lost := w.leaseOf(w.at(0))
		w.change(func() {
			w.onMark = func(_ context.Context, _ int, marks []relay.Mark) ([]int, error) {
				if marks[0].Key == a {
					return nil, errMarks
				}
				return nil, nil
			}
		})
		w.commitRows(insert(a, later), insert(b, later))
		w.untilStatus("sent", b+"2")
		if err := sink.WaitTaken(t.Context(), 4); err != nil {
			t.Fatal(err)
		}
		first := w.at(0)
		w.change(func() { first.epoch++; first.owner, first.taken = nil, true })
		lost.lose(errConnection)
		w.change(func() { w.onMark, first.taken = nil, false })
		w.untilStatus("sent", a+"2")
		w.commit(a, b)
		w.untilStatus("sent", a+"3", b+"3")
		wantEachOnceInOrder(t, sink.Script, a, b)
	})
}

// later gives a row a created_at that does not depend on how it is found.
func later(ev *relay.Event) { ev.CreatedAt = relay.TimestampOf(time.Now().Add(time.Hour)) }
