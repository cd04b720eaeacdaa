package engine

import (
	"errors"

	"github.com/sagaz-relay/relay/relay"
)

// Snapshot returns what the engine is like now: a look at each slot. It is cheap and may be called
// at any time.
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
	read := p.intake.reading()
	out := &relay.WorkSnapshot{
		Epoch: p.lease.Epoch(), Skipped: read.skipped, Read: read.at, Inside: read.inside,
		Seen: p.control.slotSeen(), Unmarked: p.unmarked.known(),
	}
	p.window.snapshot(out)
	p.doing.snapshot(out)
	for _, s := range p.shelves {
		out.Sinks = append(out.Sinks, s.snapshot())
	}
	return out
}
