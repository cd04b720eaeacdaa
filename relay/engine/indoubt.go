package engine

import (
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// inDoubt is what is in doubt of one slot.
type inDoubt struct {
	since time.Time // the owner before sent nothing of it before then
	of    []*doubt  // by sink; nil for one of which nothing can be known
	known bool      // some sink can be read
}

func newInDoubt(e *Engine, log hclog.Logger, lease relay.Lease) inDoubt {
	before := lease.InDoubt()
	in := inDoubt{since: before.Since, of: make([]*doubt, len(e.sinks))}
	for i, sink := range e.sinks {
		reader, ok := sink.(relay.TailReader)
		if !ok || !reader.ReadsTail() {
			continue
		}
		in.known = true
		if before.Since.IsZero() {
			continue
		}
		in.of[i] = &doubt{
			sink: reader, index: i, sinkObs: e.sinkObs[i], lease: lease, log: log.With("sink", sink.Name()), to: before.To, marked: lease.MarkedLSN(),
			query: relay.TailQuery{Since: before.Since, Most: e.cfg.InflightEvents},
			turn:  relay.NewTurn(), left: readTailFor,
			read: make(map[string]bool), arrived: make(map[relay.UUID][]uint64), ended: make(map[string]bool),
		}
		in.of[i].open.Store(true)
	}
	return in
}

// open reports whether something may still be in doubt.
func (in *inDoubt) open() bool {
	return slices.ContainsFunc(in.of, func(d *doubt) bool { return d != nil && d.open.Load() })
}

// earlier is at, when what is in flight was admitted, or since when something may be in doubt that
// has no mark yet, if that is earlier. Its owner's clock may be behind ours, or before.
func (in *inDoubt) earlier(at time.Time) time.Time {
	unmarked := slices.ContainsFunc(in.of, func(d *doubt) bool { return d != nil && (d.open.Load() || at.UnixMilli() <= d.held.Load()) })
	if unmarked && in.since.Before(at) {
		return in.since
	}
	return at
}

// mind ends the doubt once all that was committed when the lease was taken has its mark.
func (in *inDoubt) mind(watermark relay.LSN) {
	for _, d := range in.of {
		if d != nil && watermark >= d.to && d.open.Load() {
			d.close()
		}
	}
}

// close ends the doubt: what comes from now on is sent.
func (in *inDoubt) close() {
	for _, d := range in.of {
		if d != nil {
			d.close()
		}
	}
}

// since is a time before which nothing was sent of what is in flight, apart from events that are
// about to be marked, n of them.
func (w *window) since(n int) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.tracker.oldest(); f != nil && w.tracker.len() > n {
		return time.UnixMilli(f.admitted)
	}
	return time.Now()
}

// since is a time before which nothing was sent that has no mark once n events, which are about to
// be marked, have theirs. It is zero where no sink could tell what has arrived.
func (p *pipeline) since(n int) time.Time {
	if !p.doubts.known {
		return time.Time{}
	}
	return p.doubts.earlier(p.window.since(n))
}

// clean reports whether all that was sent, by us and by the owner before, is marked or in the
// ledger.
func (p *pipeline) clean() bool {
	p.doubts.mind(p.window.watermark())
	return p.window.busy() == 0 && !p.doubts.open()
}

// visible is how many events of a batch will most likely get their marks.
func visible(batch []*flight) (n int) {
	for _, f := range batch {
		if !f.wasHidden {
			n++
		}
	}
	return n
}
