package engine

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// markLog is a lease of which only Mark is asked.
type markLog struct {
	relay.Marks
	started time.Time

	mu       sync.Mutex // guards what follows: a timer that fires in a bubble orders nothing
	made     []markedBatch
	reported []markedBatch
	log      strings.Builder

	// on decides about the n-th call, from 1.
	on func(n int, marks []relay.Mark) (later []int, err error)
}

// markedBatch is one call of Mark, or one report to the tracker: how long after the start, and
// which flights.
type markedBatch struct {
	after time.Duration
	names string
}

func (l *markLog) Mark(_ context.Context, batch relay.MarkBatch) ([]int, error) {
	marks := batch.Marks
	var names []string
	for _, m := range marks {
		names = append(names, fmt.Sprint(m.ID[0]))
	}
	l.mu.Lock()
	l.made = append(l.made, markedBatch{time.Since(l.started), strings.Join(names, " ")})
	n := len(l.made)
	l.mu.Unlock()
	if l.on == nil {
		return nil, nil
	}
	return l.on(n, marks)
}

// Write takes the marker's log.
func (l *markLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(p)
}

// calls are those of Mark, reports those to the tracker.
func (l *markLog) calls() []markedBatch {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.made)
}

func (l *markLog) reports() []markedBatch {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.reported)
}

// markerRig runs one marker. Flights are known by the first byte of their event_id.
type markerRig struct {
	*marker
	lease  *markLog
	err    chan error
	ending chan struct{} // the marker's hurry
}

func startMarker(t *testing.T, tune func(*Config), on func(n int, marks []relay.Mark) ([]int, error)) *markerRig {
	cfg := validConfig()
	cfg.MarkBatch, cfg.MarkLinger = 3, 20*time.Millisecond
	cfg.BackoffMin, cfg.BackoffMax = time.Second, 8*time.Second
	if tune != nil {
		tune(&cfg)
	}
	r := &markerRig{lease: &markLog{started: time.Now(), on: on}, err: make(chan error, 1), ending: make(chan struct{})}
	r.marker = &marker{lease: r.lease, cfg: &cfg, hurry: r.ending, log: hclog.New(&hclog.LoggerOptions{Output: r.lease}), slotObs: watched().SlotObserver, wake: make(chan struct{}, 1)}
	r.confirm, r.since = func() relay.LSN { return 4711 }, func(int) time.Time { return time.Time{} }
	r.done = func(batch []*flight, confirmed relay.LSN) {
		if confirmed != 4711 {
			t.Errorf("reported that %s may be confirmed, want what the mark has noted", confirmed)
		}
		var names []string
		for _, f := range batch {
			names = append(names, fmt.Sprint(f.Record.EventID[0]))
		}
		r.lease.mu.Lock()
		defer r.lease.mu.Unlock()
		r.lease.reported = append(r.lease.reported, markedBatch{time.Since(r.lease.started), strings.Join(names, " ")})
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { r.err <- r.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		synctest.Wait()
	})
	return r
}

func flightsOf(from, to byte) (flights []*flight) {
	for n := from; n <= to; n++ {
		flights = append(flights, &flight{Flight: relay.Flight{Record: relay.Record{EventID: relay.UUID{n}}}})
	}
	return flights
}

// keyed gives each of flights a key of its own.
func keyed(flights []*flight) []*flight {
	for _, f := range flights {
		f.keyHash = uint32(f.Record.EventID[0])
	}
	return flights
}

func wantBatches(t *testing.T, what string, got []markedBatch, want ...markedBatch) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

const ms = time.Millisecond

// after lets a time pass on the bubble's clock, and everything that is due in it happen.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestMarker(t *testing.T) {
	run := func(name string, story func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, story) })
	}

	run("FullBatchGoesAtOnce", func(t *testing.T) {
		r := startMarker(t, nil, nil)
		r.push(flightsOf(1, 3))
		synctest.Wait()
		wantBatches(t, "marks", r.lease.calls(), markedBatch{0, "1 2 3"})
		wantBatches(t, "reported", r.lease.reports(), markedBatch{0, "1 2 3"})
	})

	run("LoneEventLingers", func(t *testing.T) {
		r := startMarker(t, nil, nil)
		after(5 * ms)
		r.push(flightsOf(1, 1))
		after(15 * ms)
		r.push(flightsOf(2, 2)) // company in time
		after(10 * ms)
		r.push(flightsOf(3, 3)) // too late
		after(time.Second)
		wantBatches(t, "marks", r.lease.calls(), markedBatch{25 * ms, "1 2"}, markedBatch{50 * ms, "3"})
	})

	run("BatchFillsWhileLingering", func(t *testing.T) {
		r := startMarker(t, nil, nil)
		r.push(flightsOf(1, 2))
		after(10 * ms)
		r.push(flightsOf(3, 8))
		synctest.Wait()
		wantBatches(t, "marks", r.lease.calls(), markedBatch{10 * ms, "1 2 3"}, markedBatch{10 * ms, "4 5 6"})
		after(time.Second)
		wantBatches(t, "marks", r.lease.calls()[2:], markedBatch{30 * ms, "7 8"})
	})

	run("WithoutLinger", func(t *testing.T) {
		r := startMarker(t, func(cfg *Config) { cfg.MarkLinger = 0 }, nil)
		r.push(flightsOf(1, 1))
		synctest.Wait()
		wantBatches(t, "marks", r.lease.calls(), markedBatch{0, "1"})
	})

	// A failed batch is kept, as it is, and nothing is reported to the tracker before it is
	// through.
	run("FailedBatchIsKept", func(t *testing.T) {
		r := startMarker(t, nil, func(n int, _ []relay.Mark) ([]int, error) {
			if n <= 2 {
				return nil, errors.New("connection reset")
			}
			return nil, nil
		})
		r.push(flightsOf(1, 2))
		after(21 * ms)
		r.push(flightsOf(3, 5))
		after(time.Minute)
		var names []string
		for _, c := range r.lease.calls() {
			names = append(names, c.names)
		}
		if want := []string{"1 2", "1 2", "1 2", "3 4 5"}; !slices.Equal(names, want) {
			t.Errorf("marks: got %q, want %q", names, want)
		}
		if len(r.lease.reports()) != 2 || r.lease.reports()[0].names != "1 2" || r.lease.reports()[0].after != r.lease.calls()[2].after {
			t.Errorf("reported %v, want 1 2 at the third mark", r.lease.reports())
		}
		first, second := r.lease.calls()[1].after-r.lease.calls()[0].after, r.lease.calls()[2].after-r.lease.calls()[1].after
		if first < 600*ms || first > time.Second || second < 1300*ms || second > 2*time.Second {
			t.Errorf("waits between attempts: %s and %s, want 1 s and 2 s less up to a third", first, second)
		}
		r.lease.mu.Lock()
		defer r.lease.mu.Unlock()
		if log := r.lease.log.String(); !strings.Contains(log, "marking recovered: attempts=2") {
			t.Errorf("the log does not report the recovery:\n%s", log)
		}
	})

	// Rows that are not visible yet are marked again soon, and they are reported to the tracker
	// only then.
	run("InvisibleRowsAreMarkedAgain", func(t *testing.T) {
		r := startMarker(t, nil, func(n int, marks []relay.Mark) ([]int, error) {
			if n == 1 {
				return []int{0, 2}, nil
			}
			return nil, nil
		})
		r.push(flightsOf(1, 3))
		after(time.Second)
		wantBatches(t, "marks", r.lease.calls(), markedBatch{0, "1 2 3"}, markedBatch{40 * ms, "1 3"})
		wantBatches(t, "reported", r.lease.reports(), markedBatch{0, "2"}, markedBatch{40 * ms, "1 3"})
	})

	// … and hold up nobody: other rows are marked meanwhile as if they were not there.
	run("InvisibleRowsDoNotHoldUpOthers", func(t *testing.T) {
		started := time.Now()
		r := startMarker(t, nil, func(_ int, marks []relay.Mark) (later []int, _ error) {
			for i, m := range marks {
				if m.ID[0] == 1 && time.Since(started) < 50*ms {
					later = append(later, i)
				}
			}
			return later, nil
		})
		r.push(keyed(flightsOf(1, 3)))
		synctest.Wait()
		r.push(keyed(flightsOf(4, 6)))
		synctest.Wait()
		after(time.Second)
		if len(r.lease.reports()) < 2 || r.lease.reports()[1] != (markedBatch{0, "4 5 6"}) {
			t.Errorf("reported: %v, want 4 5 6 at once", r.lease.reports())
		}
		if last := r.lease.reports()[len(r.lease.reports())-1]; last.names != "1" || last.after < 50*ms || last.after > 100*ms {
			t.Errorf("reported: %v, want 1 at last, soon after it is visible", r.lease.reports())
		}
	})

	// … but later events of their keys: what a crash leaves without a mark is delivered again, and
	// has to be a suffix. 9 is invisible; 11, 13 and every third later one are of its key. There is
	// always something else to mark.
	run("InvisibleRowsHoldUpTheirKey", func(t *testing.T) {
		started := time.Now()
		r := startMarker(t, func(cfg *Config) { cfg.MarkBatch = 2 }, func(_ int, marks []relay.Mark) (later []int, _ error) {
			for i, m := range marks {
				// See Lease.Mark.
				if m.ID[0] == 9 && time.Since(started) < 50*ms || len(later) > 0 && m.KeyHash == 9 {
					later = append(later, i)
				}
			}
			return later, nil
		})
		flights := keyed(flightsOf(9, 14))
		flights[2].keyHash, flights[4].keyHash = 9, 9
		r.push(flights)
		for n := byte(20); time.Since(started) < 100*ms; n++ {
			time.Sleep(7 * ms)
			more := keyed(flightsOf(n, n))
			if n%3 == 0 {
				more[0].keyHash = 9
			}
			r.push(more)
		}
		after(time.Second)
		var reported []string
		for _, batch := range r.lease.reports() {
			reported = append(reported, strings.Fields(batch.names)...)
		}
		last := -1
		for _, name := range []string{"9", "11", "13", "21", "24", "27", "30", "33"} {
			at := slices.Index(reported, name)
			if at < last || at < slices.Index(reported, "25") {
				t.Errorf("reported: %v, want 9, 11, 13, 21, 24 and so on in order, once 9 is visible", reported)
			}
			last = at
		}
		if slices.Index(reported, "14") > slices.Index(reported, "20") || len(reported) != 6+15 {
			t.Errorf("reported: %v, want the others as if there were no 9", reported)
		}
	})

	// Another relay has taken the slot: the marker ends at once with the reason, and reports
	// nothing to the tracker.
	run("FencedMarkEndsIt", func(t *testing.T) {
		r := startMarker(t, nil, func(int, []relay.Mark) ([]int, error) { return nil, relay.ErrFenced })
		r.push(flightsOf(1, 6))
		if err := <-r.err; !errors.Is(err, relay.ErrLeaseLost) {
			t.Errorf("got %v, want ErrLeaseLost", err)
		}
		if len(r.lease.calls()) != 1 || len(r.lease.reports()) != 0 {
			t.Errorf("%d marks, reported %v, want one mark and nothing reported", len(r.lease.calls()), r.lease.reports())
		}
	})

	// A drain waits for no company: what is not marked when it ends is delivered again.
	run("DrainHurries", func(t *testing.T) {
		r := startMarker(t, func(cfg *Config) { cfg.MarkLinger = time.Hour }, nil)
		r.push(flightsOf(1, 1))
		after(time.Second)
		wantBatches(t, "marks while it lingers", r.lease.calls())
		close(r.ending)
		synctest.Wait()
		r.push(flightsOf(2, 2))
		synctest.Wait()
		wantBatches(t, "marks", r.lease.calls(), markedBatch{time.Second, "1"}, markedBatch{time.Second, "2"})
	})

	run("EndsWithItsContext", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cfg := validConfig()
		m := &marker{lease: &markLog{}, cfg: &cfg, confirm: func() relay.LSN { return 0 }, since: func(int) time.Time { return time.Time{} }, log: hclog.NewNullLogger(), slotObs: watched().SlotObserver, wake: make(chan struct{}, 1)}
		m.push(flightsOf(1, 1))
		ended := make(chan error)
		go func() { ended <- m.run(ctx) }()
		synctest.Wait() // it lingers
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("got %v, want nil", err)
		}
	})
}

func TestMarkTellsWhy(t *testing.T) {
	var got []relay.Mark
	synctest.Test(t, func(t *testing.T) {
		r := startMarker(t, nil, func(_ int, marks []relay.Mark) ([]int, error) {
			got = slices.Clone(marks)
			return nil, nil
		})
		flights := flightsOf(1, 3)
		flights[0].CommitLSN, flights[0].xid = 77, 7
		flights[1].Parked = []relay.Parked{{Sink: "kafka", State: relay.StateRetry, Reason: relay.ReasonRejected, Error: "no", Attempts: 1}}
		flights[1].Record.Key, flights[1].keyHash, flights[1].position = "order-1", 11, 5
		flights[2].Parked = []relay.Parked{{Sink: "kafka", State: relay.StateHeld}}
		r.push(flights)
		synctest.Wait()
	})
	want := []relay.Mark{
		{ID: relay.UUID{1}, CommitLSN: 77, XID: 7},
		{ID: relay.UUID{2}, Key: "order-1", KeyHash: 11, Position: 5, Parked: []relay.Parked{{Sink: "kafka", State: relay.StateRetry, Reason: relay.ReasonRejected, Error: "no", Attempts: 1}}},
		{ID: relay.UUID{3}, Parked: []relay.Parked{{Sink: "kafka", State: relay.StateHeld}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("marks:\n got %+v\nwant %+v", got, want)
	}
}
