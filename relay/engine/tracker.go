package engine

import (
	"fmt"
	"iter"

	"github.com/sagaz-relay/relay/relay"
)

// flight is one event on its way: admitted, not yet settled and marked. The tracker owns its
// bookkeeping; the record is read-only, and shared by the lanes.
type flight struct {
	relay.Flight // its Parked is the tracker's
	xid          uint32
	size         int
	keyHash      uint32
	position     int64 // in the order in which the slot's owners took events
	admitted     int64 // Unix milliseconds, by our clock

	routed *routed // what the sinks' rules have made of it; nil: there are none

	wasHidden bool // its row could not be marked at once; the marker's

	round *round // of a flight that comes from the ledger; the tracker does not know it

	// owned by the tracker
	// A bit for each sink that has neither taken the record nor passed it to the ledger.
	open   uint64
	marked bool // what became of it is committed, in its row and in the ledger
	// When not 0: the position that is safe once this flight and all before it are done.
	confirm relay.LSN

	before, behind *flight // its neighbours in the order of admission
}

// tracker knows what is in flight and how far the slot may move. It is a plain value without locks,
// I/O or clock: the window guards it with a mutex. (It is no goroutine of its own. Each of its
// callers works in batches and holds the lock for microseconds, while a channel costs every batch
// two wake-ups.)
//
// An event goes through admit → settle (once for each sink: taken, or passed to the ledger) → mark.
// Positions go through pass: the end of a transaction, or the server's keepalive.
//
// Invariant: watermark is a position such that every event committed before it is marked, or in the
// ledger (or was never ours). An event that is stuck holds the watermark and nothing else. Those
// behind it leave when they are done, however many they are, and cost neither budget nor memory.
// What is left of each is the position that it carried, which goes to the event before it.
type tracker struct {
	sinks int

	first, last *flight // those in flight, in the order of their admission
	n           int
	bytes       int

	watermark relay.LSN
}

func newTracker(sinks int) *tracker { return &tracker{sinks: sinks} }

// len is the number of events in flight.
func (t *tracker) len() int { return t.n }

// admit takes an event behind all those admitted before.
func (t *tracker) admit(f *flight) {
	f.open = 1<<t.sinks - 1
	f.before = t.last
	if t.last == nil {
		t.first = f
	} else {
		t.last.behind = f
	}
	t.last = f
	t.n++
	t.bytes += f.size
}

// settle notes that a sink, known by its number, has acknowledged the event (park nil) or wants it
// in the ledger. It reports whether that was the last one: the event is resolved then, and wants
// its mark.
func (t *tracker) settle(f *flight, sink int, park *relay.Parked) (resolved bool) {
	bit := uint64(1) << sink
	if f.open&bit == 0 {
		panic(fmt.Sprintf("tracker: sink %d settled event %s twice", sink, f.Record.EventID))
	}
	if park != nil {
		f.Parked = append(f.Parked, *park)
	}
	f.open &^= bit
	return f.open == 0
}

// mark notes that the event's fate is committed, in its row and in the ledger: it is not in flight
// any more. It reports whether the event was the oldest, which lets the watermark move.
func (t *tracker) mark(f *flight) (oldest bool) {
	if f.marked {
		panic("tracker: event " + f.Record.EventID.String() + " marked twice")
	}
	f.marked = true
	if oldest = f.before == nil; oldest {
		t.first = f.behind
		t.watermark = max(t.watermark, f.confirm)
	} else {
		// What f carries is safe once all before it are done, too.
		f.before.behind = f.behind
		f.before.confirm = max(f.before.confirm, f.confirm)
	}
	if f.behind == nil {
		t.last = f.before
	} else {
		f.behind.before = f.before
	}
	f.before, f.behind = nil, nil
	t.n--
	t.bytes -= f.size
	return oldest
}

// pass notes that the stream has delivered everything committed before lsn: those events were
// admitted or were not ours.
func (t *tracker) pass(lsn relay.LSN) {
	if t.last != nil {
		t.last.confirm = max(t.last.confirm, lsn)
		return
	}
	t.watermark = max(t.watermark, lsn)
}

// oldest returns the event that was admitted first of those in flight, or nil.
func (t *tracker) oldest() *flight { return t.first }

// recordsOf lists flights' records.
func recordsOf(batch []*flight) iter.Seq[*relay.Record] {
	return func(yield func(*relay.Record) bool) {
		for _, f := range batch {
			if !yield(&f.Record) {
				return
			}
		}
	}
}
