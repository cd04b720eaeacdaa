package relay

// flight is one event on its way: admitted, not yet settled and marked. The tracker owns its
// bookkeeping; the record is read-only, and shared by the lanes.
type flight struct {
	rec       Record
	commitLSN LSN
	xid       uint32
	committed Timestamp
	size      int

	// owned by the tracker
	open    int           // sinks that have neither acknowledged nor refused the record
	refused []sinkRefusal // what sinks had against it, at most one for each
	marked  bool          // the row says what became of it, committed
	confirm LSN           // when not 0: the position that is safe once this flight and all before it are done
}

// sinkRefusal is one sink's reason not to take a record.
type sinkRefusal struct {
	sink string
	err  *RefusedError
}

// tracker knows what is in flight and how far the slot may move. It is a plain value without locks, I/O or
// clock: the pipeline wraps it with a mutex. (A goroutine of its own, as the house style draws it, was not taken: each of its
// callers works in batches and holds the lock for microseconds, while a channel costs every batch two wake-ups.)
//
// An event goes through admit → settle (once for each sink) → mark. Positions go through pass: the
// end of a transaction, or the server's keepalive.
//
// Invariant: watermark is a position such that every event committed before it is marked (or was never
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
	f.open = t.sinks
	t.ring[t.tail&(len(t.ring)-1)] = f
	t.tail++
	t.bytes += f.size
}

// settle notes that one sink has acknowledged the event (refusal nil) or refused it, and reports whether
// that was the last one: the event is resolved then, and its row wants its mark.
func (t *tracker) settle(f *flight, sink string, refusal *RefusedError) (resolved bool) {
	if refusal != nil {
		f.refused = append(f.refused, sinkRefusal{sink, refusal})
	}
	f.open--
	if f.open < 0 {
		panic("tracker: " + sink + " settled event " + f.rec.EventID.String() + " twice")
	}
	return f.open == 0
}

// mark notes that the event's row tells its fate, committed.
func (t *tracker) mark(f *flight) { f.marked = true }

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
