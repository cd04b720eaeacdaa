package engine

import (
	"context"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// window is what is in flight of one pipeline: read, and not yet marked. It bounds it by its share
// of the budget, gives what all sinks are done with to the marker, and knows the watermark, up to
// which the slot may move. Rounds of ledger entries are counted with it, because a drain waits for
// both.
type window struct {
	budget *budget
	marker *marker

	freed   chan struct{} // capacity one: the budget has room again
	drained chan struct{} // capacity one: nothing is in flight, and no round under way

	mu       sync.Mutex // guards what follows
	tracker  *tracker
	sweeping int // swept events in flight
	rounds   int // of ledger entries, under way
	stopping bool
	counts   windowCounts
}

// windowCounts are of events, since the lease was taken.
type windowCounts struct{ admitted, marked, swept uint64 }

// newWindow returns a window that has a share of the budget until it is closed.
func newWindow(b *budget, sinks int) *window {
	w := &window{budget: b, tracker: newTracker(sinks), freed: make(chan struct{}, 1), drained: make(chan struct{}, 1)}
	b.join(w)
	return w
}

// close gives the window's share to others. What is still in flight by then is nobody's any more.
func (w *window) close() { w.budget.leave(w) }

// reserve waits until the budget has room for the first of events and returns how many of them fit.
// One feeder at a time asks.
func (w *window) reserve(ctx context.Context, events []relay.Event) (int, error) {
	for {
		if n := w.fit(events); n > 0 {
			return n, nil
		}
		select {
		case <-w.freed:
		case <-ctx.Done():
			w.budget.giveTurn(w) // nobody asks for the event any more; it may be asked for again
			return 0, context.Cause(ctx)
		}
	}
}

// fit returns how many of events may be taken now. What is larger than a share waits until nothing
// else is in flight, and for its turn, which it keeps until it is marked.
func (w *window) fit(events []relay.Event) (n int) {
	maxEvents, maxBytes := w.budget.share()
	w.mu.Lock()
	inflight, bytes := w.tracker.len(), w.tracker.bytes
	w.mu.Unlock()
	if inflight == 0 && events[0].Size() > maxBytes {
		if w.budget.takeTurn(w) {
			return 1
		}
		return 0
	}
	if inflight == 0 {
		w.budget.giveTurn(w) // it has asked for it, and then its share has grown
	}
	for n < len(events) && inflight+n < maxEvents {
		bytes += events[n].Size()
		if bytes > maxBytes {
			break
		}
		n++
	}
	return n
}

// admit takes events in, in the order in which their keys are to be delivered.
func (w *window) admit(flights []*flight, swept bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now().UnixMilli()
	for _, f := range flights {
		f.admitted = now
		w.tracker.admit(f)
	}
	w.counts.admitted += uint64(len(flights))
	if swept {
		w.sweeping += len(flights)
		w.counts.swept += uint64(len(flights))
	}
}

// settle takes a lane's report: these events are acknowledged, or want an entry in the ledger where
// parks has one. Events of one key come in order from each lane, so they are resolved in order, and
// the marker gets them in order.
func (w *window) settle(sink int, batch []*flight, parks []*relay.Parked) {
	resolved := make([]*flight, 0, len(batch))
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, f := range batch {
		if w.tracker.settle(f, sink, parks[i]) {
			resolved = append(resolved, f)
		}
	}
	// Under the lock: another sink's lane may be about to resolve what is behind them.
	w.marker.push(resolved)
}

// mark lets go of events whose fates are committed, and reports whether the oldest was among them,
// so that the watermark has moved.
func (w *window) mark(batch []*flight) (moved bool) {
	w.mu.Lock()
	for _, f := range batch {
		if w.tracker.mark(f) {
			moved = true
		}
		if f.Swept {
			w.sweeping--
		}
	}
	w.counts.marked += uint64(len(batch))
	empty := w.idle()
	if len(batch) > 0 && w.tracker.len() == 0 {
		w.budget.giveTurn(w) // under the lock: a large event may be about to take it again
	}
	w.mu.Unlock()
	relay.Wake(w.freed)
	if empty {
		relay.Wake(w.drained)
	}
	return moved
}

// idle reports whether nothing is in flight, and no round under way. It is called with mu held.
func (w *window) idle() bool { return w.tracker.len() == 0 && w.rounds == 0 }

// pass notes that everything committed before lsn was admitted, or is not ours.
func (w *window) pass(lsn relay.LSN) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tracker.pass(lsn)
}

// watermark is the position up to which everything is settled, whether the database has a note of
// it or not.
func (w *window) watermark() relay.LSN {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tracker.watermark
}

// restart sets the watermark, of a slot that was made again.
func (w *window) restart(at relay.LSN) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tracker.watermark = at
}

// oldest returns the event that was admitted first of those in flight, or nil, with a bit for each
// sink that it waits for.
func (w *window) oldest() (f *flight, open uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f = w.tracker.oldest(); f != nil {
		open = f.open
	}
	return f, open
}

// waitIdle waits until no event is in flight: whatever was taken is marked, or in the ledger.
func (w *window) waitIdle(ctx context.Context) error {
	return w.waitNone(ctx, func() int { return w.tracker.len() })
}

// waitSwept waits until all swept rows are marked, or in the ledger.
func (w *window) waitSwept(ctx context.Context) error {
	return w.waitNone(ctx, func() int { return w.sweeping })
}

// waitNone waits until a count, which is taken under mu, is 0.
func (w *window) waitNone(ctx context.Context, count func() int) error {
	for {
		w.mu.Lock()
		left := count()
		w.mu.Unlock()
		if left == 0 {
			return nil
		}
		if !relay.Sleep(ctx, 5*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

// beginRound asks whether a round of ledger entries may begin.
func (w *window) beginRound() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopping {
		return false
	}
	w.rounds++
	return true
}

func (w *window) endRound() {
	w.mu.Lock()
	w.rounds--
	empty := w.idle()
	w.mu.Unlock()
	if empty {
		relay.Wake(w.drained)
	}
}

// stop lets no further round begin.
func (w *window) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopping = true
}

// busy is how much there is to wait for: events in flight, and rounds.
func (w *window) busy() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tracker.len() + w.rounds
}

// counted returns the counts.
func (w *window) counted() windowCounts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts
}

// snapshot fills in what the outside may know.
func (w *window) snapshot(out *relay.WorkSnapshot) {
	out.MaxEvents, out.MaxBytes = w.budget.share()
	w.mu.Lock()
	defer w.mu.Unlock()
	out.Inflight, out.Bytes, out.Watermark = w.tracker.len(), w.tracker.bytes, w.tracker.watermark
	out.Admitted, out.Marked, out.Swept = w.counts.admitted, w.counts.marked, w.counts.swept
	if f := w.tracker.oldest(); f != nil {
		out.OldestCommit, out.OldestAt = f.CommittedAt, f.At()
	}
}
