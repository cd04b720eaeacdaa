package engine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

// twin is the tracker in its plainest form: it never forgets, and computes everything again from
// its history.
type twin struct {
	history []twinEntry
}

// twinEntry is an event, or a position that was passed.
type twinEntry struct {
	f       *flight
	confirm relay.LSN
	settled int
	marked  bool
}

// state walks the history: the watermark is what was passed before the first event that is not
// marked.
func (w *twin) state() (watermark relay.LSN, inflight, bytes int) {
	stuck := false
	for _, e := range w.history {
		if e.f != nil && !e.marked {
			stuck = true
		}
		if !stuck {
			watermark = max(watermark, e.confirm)
		} else if e.f != nil && !e.marked {
			inflight++
			bytes += e.f.size
		}
	}
	return watermark, inflight, bytes
}

func (w *twin) find(f *flight) *twinEntry {
	return &w.history[slices.IndexFunc(w.history, func(e twinEntry) bool { return e.f == f })]
}

func TestTrackerAgainstTwin(t *testing.T) {
	for seed := range uint64(25) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			sinks := 1 + r.IntN(3)
			tr, tw := newTracker(sinks), &twin{}
			var (
				lsn      relay.LSN = 1000
				unsettle []*flight // with settles to come
				unmarked []*flight // resolved
			)
			pick := func(from *[]*flight) *flight {
				i := r.IntN(len(*from))
				f := (*from)[i]
				*from = slices.Delete(*from, i, i+1)
				return f
			}
			for step := range 600 {
				switch op := r.IntN(10); {
				case op < 3:
					// A transaction of some events; its end travels with the last one or is passed.
					lsn += relay.LSN(1 + r.IntN(100))
					commit, n := lsn, 1+r.IntN(4)
					lsn += relay.LSN(1 + r.IntN(10))
					travels := r.IntN(2) == 0
					for i := range n {
						f := &flight{Flight: relay.Flight{CommitLSN: commit}, size: 1 + r.IntN(1000)}
						if travels && i == n-1 {
							f.confirm = lsn
						}
						tw.history = append(tw.history, twinEntry{f: f, confirm: f.confirm})
						tr.admit(f)
						unsettle = append(unsettle, f)
					}
					if !travels {
						tr.pass(lsn)
						tw.history = append(tw.history, twinEntry{confirm: lsn})
					}
				case op == 3: // a keepalive, sometimes one of a new connection that has gone back
					at := lsn
					if r.IntN(4) == 0 {
						at -= min(at, relay.LSN(r.IntN(500)))
					}
					tr.pass(at)
					tw.history = append(tw.history, twinEntry{confirm: at})
				case op < 8 && len(unsettle) > 0:
					f := unsettle[r.IntN(len(unsettle))]
					e := tw.find(f)
					var park *relay.Parked
					if r.IntN(5) == 0 {
						park = &relay.Parked{Sink: fmt.Sprint("sink", e.settled), Reason: relay.ReasonTooLarge}
					}
					before := len(f.Parked)
					resolved := tr.settle(f, e.settled, park)
					e.settled++
					if want := e.settled == sinks; resolved != want {
						t.Fatalf("step %d: settle %d of %d: got resolved %t, want %t", step, e.settled, sinks, resolved, want)
					}
					if got := len(f.Parked) - before; got == 1 != (park != nil) {
						t.Fatalf("step %d: %d entries noted for %v", step, got, park)
					}
					if resolved {
						unsettle = slices.DeleteFunc(unsettle, func(g *flight) bool { return g == f })
						unmarked = append(unmarked, f)
					}
				case len(unmarked) > 0:
					oldest, advanced := tr.oldest(), false
					for range 1 + r.IntN(len(unmarked)) {
						f := pick(&unmarked)
						advanced = tr.mark(f) || advanced
						tw.find(f).marked = true
					}
					if moved := tw.find(oldest).marked; advanced != moved {
						t.Fatalf("step %d: marks say that the oldest is done: %t, want %t", step, advanced, moved)
					}
				}

				watermark, inflight, bytes := tw.state()
				if tr.watermark != watermark || tr.len() != inflight || tr.bytes != bytes {
					t.Fatalf("step %d: got watermark %s, %d in flight, %d bytes, want %s, %d, %d", step, tr.watermark, tr.len(), tr.bytes, watermark, inflight, bytes)
				}
				oldest := tr.oldest()
				if (oldest == nil) != (inflight == 0) {
					t.Fatalf("step %d: oldest is %v with %d in flight", step, oldest, inflight)
				}
				for _, e := range tw.history {
					if e.f != nil && !e.marked {
						if oldest != e.f {
							t.Fatalf("step %d: the oldest is not the first unmarked event", step)
						}
						if tr.watermark > e.f.CommitLSN {
							t.Fatalf("step %d: the watermark %s has passed the unmarked event at %s", step, tr.watermark, e.f.CommitLSN)
						}
						break
					}
				}
			}
		})
	}
}

// An event that is stuck holds the watermark, and nothing else: of those behind it that are done,
// nothing is kept.
func TestTrackerDoneEventsAreNotKept(t *testing.T) {
	tr := newTracker(1)
	stuck := &flight{size: 10, confirm: 10}
	tr.admit(stuck)
	for n := range 1_000_000 {
		f := &flight{size: 1000, confirm: relay.LSN(20 + n)}
		tr.admit(f)
		tr.settle(f, 0, nil)
		if tr.mark(f) {
			t.Fatal("an event behind the stuck one is the oldest")
		}
		if tr.len() != 1 || tr.bytes != 10 || tr.watermark != 0 || stuck.behind != nil {
			t.Fatalf("after %d: %d in flight with %d bytes, watermark %s", n, tr.len(), tr.bytes, tr.watermark)
		}
	}
	tr.pass(5_000_000)
	tr.settle(stuck, 0, nil)
	if !tr.mark(stuck) || tr.watermark != 5_000_000 || tr.len() != 0 || tr.bytes != 0 || tr.oldest() != nil {
		t.Errorf("at the end: %d in flight with %d bytes, watermark %s", tr.len(), tr.bytes, tr.watermark)
	}
}

func TestTrackerSettleTwicePanics(t *testing.T) {
	tr := newTracker(1)
	f := &flight{Flight: relay.Flight{Record: relay.Record{EventID: relay.UUID{1, 2, 3}}}}
	tr.admit(f)
	tr.settle(f, 0, nil)
	defer func() {
		text := fmt.Sprint(recover())
		if !strings.Contains(text, "sink 0") || !strings.Contains(text, f.Record.EventID.String()) {
			t.Errorf("panic %q, want sink and event in it", text)
		}
	}()
	tr.settle(f, 0, nil)
}
