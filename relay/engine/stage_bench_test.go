package engine

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/internal/testbed/captured"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/route"
)

// stages are the parts of a pipeline, without goroutines, sink and database.
type stages struct {
	cfg    *Config
	window *window
	intake *intake
	lanes  []*lane
	marker *marker
	input  []relay.Event // captured, with other positions each time
	lsn    relay.LSN
}

// stageEvents is how many events an op has.
const stageEvents = 1000

func newStages(b *testing.B) *stages {
	b.Helper()
	captured, err := captured.Shapes[0].Events()
	if err != nil {
		b.Fatal(err)
	}
	cfg := DefaultConfig()
	room := newBudget(cfg.InflightEvents, cfg.InflightBytes)
	s := &stages{cfg: &cfg, window: newWindow(room, 1)}
	for len(s.input) < stageEvents {
		s.input = append(s.input, captured...)
	}
	watch := watched()
	sink, shelf := watch.Watch.Sink("stage"), newShelf("stage", shelfMask(1))
	s.marker = &marker{cfg: &cfg, slotObs: watch, wake: make(chan struct{}, 1), confirm: s.window.watermark, done: func(batch []*flight, _ relay.LSN) { s.window.mark(batch) }}
	s.window.marker = s.marker
	for range cfg.Lanes {
		s.lanes = append(s.lanes, &lane{
			cfg: &cfg, budget: room, wake: make(chan struct{}, 1), shelf: shelf, settle: s.window.settle, health: &sinkHealth{sink: "stage", sinkObs: sink, obs: watch.Watch},
			sinkObs: sink, slotObs: watch, log: hclog.NewNullLogger(),
		})
	}
	s.intake = &intake{
		cfg: &cfg, log: hclog.NewNullLogger(), maker: maker{enc: Sagaz}, slotObs: watch, lanes: [][]*lane{s.lanes}, admitting: relay.NewTurn(),
		window: s.window, doing: newDoing("slot", nil, cfg.Mode), scratch: make([][]*flight, cfg.Lanes),
	}
	return s
}

// next are the events of the next op, as one transaction.
func (s *stages) next() []relay.Event {
	s.lsn += 0x1000
	for i := range s.input {
		s.input[i].CommitLSN, s.input[i].Ordinal, s.input[i].CommitEnd = s.lsn, uint32(i), 0
	}
	s.input[len(s.input)-1].CommitEnd = s.lsn + 0x30
	return s.input
}

// admit brings events to the lanes.
func (s *stages) admit(b *testing.B) {
	if err := s.intake.Admit(context.Background(), s.next()); err != nil {
		b.Fatal(err)
	}
}

// offer has the lanes take what they have, and acknowledge it. It returns how many events they had.
func (s *stages) offer(buf []*flight) (events int) {
	for _, l := range s.lanes {
		for {
			batch := l.take(buf[:0])
			if len(batch) == 0 {
				break
			}
			batch = l.triage(batch)
			events += len(batch)
			l.offers = 1
			if rest, trouble := l.outcome(batch, nil, time.Millisecond); len(rest) > 0 || trouble {
				panic("an offer without an error has left something")
			}
		}
	}
	return events
}

// mark marks what the marker has, and returns how many events those were.
func (s *stages) mark(buf []*flight, marks []relay.Mark) (events int, _ []relay.Mark) {
	for {
		batch := s.marker.behind(s.marker.take(buf[:0]))
		if len(batch) == 0 {
			return events, marks
		}
		marks = marksOf(marks[:0], batch)
		events += len(marks)
		s.marker.finish(batch, nil, s.marker.confirm())
	}
}

// perEvent reports the time of an event.
func perEvent(b *testing.B, events int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(events), "ns/event")
}

// BenchmarkStageIntake takes captured events in: what is known, room, number, record, lanes.
func BenchmarkStageIntake(b *testing.B) {
	s := newStages(b)
	var buf []*flight
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		s.admit(b)
		b.StopTimer()
		n += s.offer(buf)
		s.mark(buf, nil)
		b.StartTimer()
	}
	perEvent(b, n)
	s.check(b, n)
}

// tenRules are for the captured events' type: the first asks for a header that they do not have,
// the last one changes their topic.
func tenRules(b *testing.B, eventType string) relay.Router {
	b.Helper()
	rules := `[{name: eu, event_type: "*", headers: {region: "eu-*"}, topic: eu}`
	for i := range 8 {
		rules += fmt.Sprintf(`, {name: r%d, event_type: ["Type%d*", "*Type%d"], topic: t%d}`, i, i, i, i)
	}
	rules += fmt.Sprintf(`, {name: own, event_type: %q, topic: own}]`, eventType)
	table, err := route.New(route.Config{Rules: rules, NoMatch: route.Deliver}, []route.Sink{{Name: "stage"}})
	if err != nil {
		b.Fatal(err)
	}
	return table.Router("stage")
}

// BenchmarkStageRoutes takes captured events in, offers them and settles them as acknowledged: without
// rules, and with ten that give the sink a record of its own of every event.
func BenchmarkStageRoutes(b *testing.B) {
	for _, rules := range []int{0, 10} {
		b.Run(fmt.Sprint(rules), func(b *testing.B) {
			s := newStages(b)
			if rules > 0 {
				router := tenRules(b, s.input[0].EventType)
				s.intake.maker.routers = []relay.Router{router}
				for _, l := range s.lanes {
					l.rules = newRuleCounter(router, 0, l.sinkObs)
				}
			}
			buf := make([]*flight, 0, s.cfg.BatchSize)
			records := make([]*relay.Record, 0, s.cfg.BatchSize)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				s.admit(b)
				for _, f := range s.lanes[0].queue[:1] {
					if got := f.record(0).Topic; (got == "own") != (rules > 0) {
						b.Fatalf("topic %s", got)
					}
				}
				n += s.offerRecords(buf, records)
				b.StopTimer()
				s.mark(buf, nil)
				b.StartTimer()
			}
			perEvent(b, n)
			s.check(b, n)
		})
	}
}

// offerRecords is offer that lists the records for the sink, too, as lanes do.
func (s *stages) offerRecords(buf []*flight, records []*relay.Record) (events int) {
	for _, l := range s.lanes {
		l.mu.Lock()
		for _, f := range l.queue {
			if !f.dropped(l.index) {
				records = append(records, f.record(l.index))
			}
		}
		l.mu.Unlock()
		records = records[:0]
	}
	return s.offer(buf)
}

// check reports whether all is done.
func (s *stages) check(b *testing.B, events int) {
	b.Helper()
	counts := s.window.counted()
	if want := b.N * len(s.input); events != want || counts.admitted != uint64(want) || counts.marked != uint64(want) {
		b.Fatalf("%d events, %d admitted, %d marked, want %d", events, counts.admitted, counts.marked, want)
	}
	if want := s.lsn + 0x30; s.window.watermark() != want || s.window.tracker.len() != 0 {
		b.Fatalf("watermark %s with %d in flight, want %s", s.window.watermark(), s.window.tracker.len(), want)
	}
}

// BenchmarkStageLanes takes events off the lanes in batches, and settles them as acknowledged.
func BenchmarkStageLanes(b *testing.B) {
	s := newStages(b)
	buf := make([]*flight, 0, s.cfg.BatchSize)
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		s.admit(b)
		b.StartTimer()
		n += s.offer(buf)
		b.StopTimer()
		s.mark(buf, nil)
		b.StartTimer()
	}
	perEvent(b, n)
	s.check(b, n)
}

// BenchmarkStageMarker makes the marks of what is acknowledged, and lets go of what is marked.
func BenchmarkStageMarker(b *testing.B) {
	s := newStages(b)
	buf, marks := make([]*flight, 0, s.cfg.MarkBatch), make([]relay.Mark, 0, s.cfg.MarkBatch)
	n, some := 0, 0
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		s.admit(b)
		s.offer(buf)
		b.StartTimer()
		some, marks = s.mark(buf, marks)
		n += some
	}
	perEvent(b, n)
	s.check(b, n)
}

// BenchmarkStageWatermark follows events through the tracker, whose four lanes are marked one after
// the other, so that the watermark waits for the last.
func BenchmarkStageWatermark(b *testing.B) {
	const lanes = 4
	t := newTracker(1)
	flights := make([]*flight, stageEvents)
	for i := range flights {
		flights[i] = new(flight)
	}
	at := relay.LSN(0)
	b.ReportAllocs()
	for b.Loop() {
		for _, f := range flights {
			at += 8
			f.marked, f.confirm, f.size = false, at, 700
			t.admit(f)
		}
		for lane := range lanes {
			for i := lane; i < len(flights); i += lanes {
				if !t.settle(flights[i], 0, nil) {
					b.Fatal("not resolved")
				}
			}
		}
		for lane := lanes - 1; lane >= 0; lane-- {
			for i := lane; i < len(flights); i += lanes {
				t.mark(flights[i])
			}
		}
	}
	perEvent(b, b.N*len(flights))
	if t.watermark != at || t.len() != 0 || t.bytes != 0 {
		b.Fatalf("watermark %s with %d in flight, want %s", t.watermark, t.len(), at)
	}
}
