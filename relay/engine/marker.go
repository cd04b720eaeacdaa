package engine

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// marker writes the fates of resolved events to their rows, and to the ledger what sinks do not
// have, one transaction a batch, one at a time, in the order in which they were resolved.
//
// Crashes it survives:
//   - After the acknowledgement and before the commit of the mark: the row is still pending, the
//     slot is before the event, and the next owner delivers it again.
//   - After the commit and before the slot has moved: the stream delivers the event again, and the
//     next owner looks its row up (Lease.MarkedLSN) and skips it.
//   - Between the marks of two events of a key: the first is never the one without a mark, or what
//     is delivered again would not be a suffix of the key (behind, Lease.Mark).
type marker struct {
	slot    string
	lease   relay.Marks
	cfg     *Config
	log     hclog.Logger
	slotObs relay.SlotObserver
	// Reports to the tracker, after the commit, what was marked and what may be confirmed.
	done    func([]*flight, relay.LSN)
	confirm func() relay.LSN      // the watermark
	since   func(n int) time.Time // pipeline.since

	wake  chan struct{}   // capacity one
	hurry <-chan struct{} // closed when the drain begins: from then on nothing waits for company

	// Owned by run.
	// Their rows could not be marked yet, or wait behind one of these in their key.
	hidden []*flight
	hiding map[uint32]bool  // the hashes of their keys
	unhide <-chan time.Time // when to mark them again; nil: nothing is hidden

	mu    sync.Mutex // guards queue
	queue []*flight
}

func (m *marker) push(flights []*flight) {
	if len(flights) == 0 {
		return
	}
	m.mu.Lock()
	before := len(m.queue)
	m.queue = append(m.queue, flights...)
	after := len(m.queue)
	m.mu.Unlock()
	// Two moments matter to the marker: there is something, and there is a full batch.
	if before == 0 || before < m.cfg.MarkBatch && after >= m.cfg.MarkBatch {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

func (m *marker) queued() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.queue)
}

func (m *marker) take(buf []*flight) []*flight {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := min(len(m.queue), m.cfg.MarkBatch)
	buf = append(buf, m.queue[:n]...)
	rest := copy(m.queue, m.queue[n:])
	clear(m.queue[rest:])
	m.queue = m.queue[:rest]
	return buf
}

// run marks until ctx ends. It returns an error only when the lease is gone.
func (m *marker) run(ctx context.Context) error {
	var (
		batch   []*flight
		marks   []relay.Mark
		backoff = relay.Backoff{Min: m.cfg.BackoffMin, Max: m.cfg.BackoffMax}
		failed  int
	)
	for {
		if len(batch) == 0 {
			if !m.gather(ctx) {
				return nil
			}
			if batch = m.behind(m.take(batch)); len(batch) == 0 {
				continue
			}
		}
		marks = marksOf(marks[:0], batch)
		confirm := m.confirm()
		began := time.Now()
		later, err := m.lease.Mark(ctx, relay.MarkBatch{Marks: marks, Confirm: confirm, Since: m.since(visible(batch))})
		took := time.Since(began)
		if m.cfg.Tracer != nil {
			m.cfg.Tracer.Marked(relay.Marking{Slot: m.slot, Events: len(batch), Records: recordsOf(batch), Started: began, Took: took, Err: err})
		}
		switch {
		case errors.Is(err, relay.ErrLeaseLost):
			return err
		case err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			// Marks are kept and tried again; nothing has moved meanwhile.
			failed++
			m.slotObs.MarkTried(took, err)
			wait := backoff.Next()
			m.log.Warn("mark did not succeed, trying again", "events", len(batch), "attempt", failed, "backoff", wait, "error", err)
			relay.Sleep(ctx, wait)
			continue
		}
		m.slotObs.MarkTried(took, nil)
		if failed > 0 {
			m.log.Info("marking recovered", "attempts", failed)
			failed = 0
			backoff.Reset()
		}
		batch = m.finish(batch, later, confirm)
	}
}

// marksOf appends the marks of a batch.
func marksOf(marks []relay.Mark, batch []*flight) []relay.Mark {
	for _, f := range batch {
		marks = append(marks, relay.Mark{
			ID: f.Record.EventID, XID: f.xid, CommitLSN: f.CommitLSN, EventType: f.Record.EventType,
			Key: f.Record.Key, KeyHash: f.keyHash, Position: f.position, At: f.At(), Parked: f.Parked,
		})
	}
	return marks
}

// finish reports a committed batch, and hides what has to be marked again because its rows could
// not be marked yet.
func (m *marker) finish(batch []*flight, later []int, confirm relay.LSN) []*flight {
	if len(later) == 0 {
		m.done(batch, confirm)
		clear(batch)
		return batch[:0]
	}
	wait := make(map[int]bool, len(later))
	for _, i := range later {
		wait[i] = true
	}
	marked := make([]*flight, 0, len(batch))
	for i, f := range batch {
		if wait[i] {
			m.hide(f)
		} else {
			marked = append(marked, f)
		}
	}
	m.done(marked, confirm)
	clear(batch)
	return batch[:0]
}

// hide defers an event for a moment, while others are marked.
func (m *marker) hide(f *flight) {
	if m.unhide == nil {
		m.unhide, m.hiding = time.After(invisiblePause), make(map[uint32]bool)
	}
	f.wasHidden = true
	m.hidden = append(m.hidden, f)
	m.hiding[f.keyHash] = true
}

// behind hides what is behind hidden events of its key, and returns the others. A key's rows are
// marked in order: what a crash leaves without a mark is delivered again, and that has to be a
// suffix.
func (m *marker) behind(batch []*flight) []*flight {
	if len(m.hidden) == 0 {
		return batch
	}
	rest := batch[:0]
	for _, f := range batch {
		if m.hiding[f.keyHash] {
			m.hide(f)
		} else {
			rest = append(rest, f)
		}
	}
	clear(batch[len(rest):])
	return rest
}

// queueHidden takes the hidden events back into the queue, in front of what came behind them.
func (m *marker) queueHidden() {
	m.mu.Lock()
	m.queue = append(m.hidden, m.queue...)
	m.mu.Unlock()
	m.hidden, m.hiding, m.unhide = nil, nil, nil
}

// invisiblePause is the wait before hidden events are marked again.
const invisiblePause = 20 * time.Millisecond

// gather waits for a batch: for anything at all, then for a full one or the linger's end. It
// returns false when ctx has ended.
func (m *marker) gather(ctx context.Context) bool {
	select {
	case <-m.unhide: // also when the queue is never empty
		m.queueHidden()
	default:
	}
	for m.queued() == 0 {
		select {
		case <-m.wake:
		case <-m.unhide:
			m.queueHidden()
		case <-ctx.Done():
			return false
		}
	}
	if m.cfg.MarkLinger == 0 {
		return true
	}
	linger := time.NewTimer(m.cfg.MarkLinger)
	defer linger.Stop()
	for m.queued() < m.cfg.MarkBatch {
		select {
		case <-m.wake:
		case <-m.unhide:
			m.queueHidden()
		case <-linger.C:
			return true
		case <-m.hurry:
			return true
		case <-ctx.Done():
			return false
		}
	}
	return true
}
