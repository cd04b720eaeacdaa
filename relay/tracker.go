package relay

import (
	"fmt"
	"iter"
)

// flight is one event on its way: admitted, not yet settled and marked. The tracker owns its
// bookkeeping; the record is read-only, and shared by the lanes.
type flight struct {
	rec       Record
	commitLSN LSN
	xid       uint32
	committed Timestamp
	size      int
	keyHash   uint32
	position  int64         // in the order in which the slot's owners took events
	unfit     *RefusedError // it could not be made into a record, so no sink is offered it
	swept     bool          // found in the table, not told by the slot
	beside    bool          // … while the slot was being read: no first delivery, most likely

	sagaID, aggregateType string

	// Of a flight that comes from the ledger: its round, and its entry there. The tracker does not know it.
	round *round
	entry *Entry

	// owned by the tracker
	open    uint64   // a bit for each sink that has neither taken the record nor passed it to the ledger
	parked  []Parked // the ledger entries of sinks that did not take it, at most one for each
	marked  bool     // its row, and the ledger, say what became of it, committed
	confirm LSN      // when not 0: the position that is safe once this flight and all before it are done

	before, behind *flight // its neighbours in the order of admission
}

// created is the row's created_at.
func (f *flight) created() Timestamp { return TimestampOf(f.rec.Timestamp) }

// at is when the event was committed, or created where that is not known; 0 for a created_at, which the client sets, that no clock shows.
func (f *flight) at() Timestamp {
	if f.committed != 0 {
		return f.committed
	}
	if year := f.rec.Timestamp.Year(); year < 1970 || year > 2200 {
		return 0
	}
	return f.created()
}

// tracker knows what is in flight and how far the slot may move. It is a plain value without locks, I/O or
// clock: the pipeline wraps it with a mutex. (It is no goroutine of its own: each of its
// callers works in batches and holds the lock for microseconds, while a channel costs every batch two wake-ups.)
//
// An event goes through admit → settle (once for each sink: taken, or passed to the ledger) → mark. Positions go through pass: the
// end of a transaction, or the server's keepalive.
//
// Invariant: watermark is a position such that every event committed before it is marked, or in the ledger (or was never
// ours). An event that is stuck holds the watermark and nothing else: those behind it leave when they
// are done, however many they are, and cost neither budget nor memory. What is left of one is the
// position that it carried, which goes to the event before it.
type tracker struct {
	sinks int

	first, last *flight // those in flight, in the order of their admission
	n           int
	bytes       int

	watermark LSN
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

// settle notes that a sink, known by its number, has acknowledged the event (park nil) or wants it in the ledger, and reports whether
// that was the last one: the event is resolved then, and wants its mark.
func (t *tracker) settle(f *flight, sink int, park *Parked) (resolved bool) {
	bit := uint64(1) << sink
	if f.open&bit == 0 {
		panic(fmt.Sprintf("tracker: sink %d settled event %s twice", sink, f.rec.EventID))
	}
	if park != nil {
		f.parked = append(f.parked, *park)
	}
	f.open &^= bit
	return f.open == 0
}

// mark notes that the event's row, and the ledger, tell its fate, committed: it is not in flight any
// more. It reports whether the event was the oldest, which lets the watermark move.
func (t *tracker) mark(f *flight) (oldest bool) {
	if f.marked {
		panic("tracker: event " + f.rec.EventID.String() + " marked twice")
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

// pass notes that the stream has delivered everything committed before lsn: those events were admitted or were not ours.
func (t *tracker) pass(lsn LSN) {
	if t.last != nil {
		t.last.confirm = max(t.last.confirm, lsn)
		return
	}
	t.watermark = max(t.watermark, lsn)
}

// oldest returns the event that was admitted first of those in flight, or nil when there is none.
func (t *tracker) oldest() *flight { return t.first }

// recordsOf lists flights' records.
func recordsOf(batch []*flight) iter.Seq[*Record] {
	return func(yield func(*Record) bool) {
		for _, f := range batch {
			if !yield(&f.rec) {
				return
			}
		}
	}
}
