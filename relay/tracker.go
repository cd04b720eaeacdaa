package relay

import "fmt"

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
}

// created is the row's created_at.
func (f *flight) created() Timestamp { return TimestampOf(f.rec.Timestamp) }

// tracker knows what is in flight and how far the slot may move. It is a plain value without locks, I/O or
// clock: the pipeline wraps it with a mutex. (A goroutine of its own, as the house style draws it, was not taken: each of its
// callers works in batches and holds the lock for microseconds, while a channel costs every batch two wake-ups.)
//
// An event goes through admit → settle (once for each sink: taken, or passed to the ledger) → mark. Positions go through pass: the
// end of a transaction, or the server's keepalive.
//
// Invariant: watermark is a position such that every event committed before it is marked, or in the ledger (or was never
// ours). Flights leave only from the front, so one that is stuck holds the watermark, not the others.
type tracker struct {
	sinks int

	ring  []*flight // power of two long; the live part is [head, tail)
	head  int
	tail  int
	bytes int

	watermark LSN
}

func newTracker(sinks int) *tracker {
	return &tracker{sinks: sinks, ring: make([]*flight, 1024)}
}

// len is the number of events in flight.
func (t *tracker) len() int { return t.tail - t.head }

// admit takes an event behind all those admitted before.
func (t *tracker) admit(f *flight) {
	if t.len() == len(t.ring) {
		grown := make([]*flight, 2*len(t.ring))
		for i := t.head; i < t.tail; i++ {
			grown[i-t.head] = t.ring[i&(len(t.ring)-1)]
		}
		t.tail -= t.head
		t.head = 0
		t.ring = grown
	}
	f.open = 1<<t.sinks - 1
	t.ring[t.tail&(len(t.ring)-1)] = f
	t.tail++
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

// mark notes that the event's row, and the ledger, tell its fate, committed.
func (t *tracker) mark(f *flight) {
	if f.marked {
		panic("tracker: event " + f.rec.EventID.String() + " marked twice")
	}
	f.marked = true
}

// pass notes that the stream has delivered everything committed before lsn: those events were admitted or were not ours.
func (t *tracker) pass(lsn LSN) {
	if t.len() > 0 {
		last := t.ring[(t.tail-1)&(len(t.ring)-1)]
		last.confirm = max(last.confirm, lsn)
		return
	}
	t.watermark = max(t.watermark, lsn)
}

// advance lets go of the events at the front that are done, and reports whether there were any.
func (t *tracker) advance() bool {
	from := t.head
	for t.head < t.tail {
		at := t.head & (len(t.ring) - 1)
		f := t.ring[at]
		if !f.marked {
			break
		}
		t.ring[at] = nil
		t.head++
		t.bytes -= f.size
		t.watermark = max(t.watermark, f.confirm)
	}
	return t.head > from
}

// oldest returns the event at the front, or nil when nothing is in flight.
func (t *tracker) oldest() *flight {
	if t.len() == 0 {
		return nil
	}
	return t.ring[t.head&(len(t.ring)-1)]
}
