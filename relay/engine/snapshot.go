package engine

import (
	"errors"

	"github.com/sagaz-relay/relay/relay"
)

// Snapshot returns what the engine is like now: a consistent look at each slot. It is cheap and may be called at any time.
func (e *Engine) Snapshot() relay.Snapshot {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := relay.Snapshot{StartError: e.startError, Fault: e.fault}
	for _, name := range e.cfg.Slots {
		s := e.slots[name]
		out := relay.SlotSnapshot{
			Slot: s.name, Role: s.role, Since: s.since, Away: s.away, AwayError: s.awayError,
			Moved: s.moved, WaitsFor: s.waitsFor, Waits: s.waits,
		}
		if occupied := (*relay.OccupiedError)(nil); s.role == relay.Standby && errors.As(e.store.Waiting(name), &occupied) {
			out.Occupied = occupied
		}
		if s.pipeline != nil {
			out.Work = s.pipeline.snapshot()
		}
		all.Slots = append(all.Slots, out)
	}
	return all
}

func (p *pipeline) snapshot() *relay.WorkSnapshot {
	var sinks []relay.ShelfSnapshot
	for _, s := range p.shelves {
		sinks = append(sinks, s.snapshot())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out := &relay.WorkSnapshot{
		Epoch: p.lease.Epoch(),
		Mode:  p.doing.mode, Why: p.doing.why, Streaming: p.doing.streaming, ModeSince: p.doing.since,
		LookError: p.lookError, Holders: p.holders,
		Inflight: p.tracker.len(), Bytes: p.tracker.bytes,
		Admitted: p.counts.admitted, Marked: p.counts.marked, Skipped: p.counts.skipped, Swept: p.counts.swept,
		Watermark: p.tracker.watermark, Read: p.read, Inside: p.inside,
		Seen: p.seen, Unmarked: p.unmarked, Sinks: sinks,
	}
	if f := p.tracker.oldest(); f != nil {
		out.OldestCommit, out.OldestAt = f.CommittedAt, f.At()
	}
	return out
}
