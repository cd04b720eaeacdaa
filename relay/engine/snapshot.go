package engine

import (
	"errors"

	"github.com/sagaz-relay/relay/relay"
)

// Snapshot returns what the engine is like now: a look at each slot. It is cheap and may be called
// at any time.
func (e *Engine) Snapshot() relay.Snapshot {
	change := e.store.Changing()
	e.mu.Lock()
	defer e.mu.Unlock()
	all := relay.Snapshot{StartError: e.startError, Fault: e.fault, Set: e.set, Change: change, Unowned: e.waitsUnowned()}
	for _, s := range e.states() {
		out := relay.SlotSnapshot{
			Slot: s.shard.Slot, Role: s.role, GivesBack: s.givesBack, Since: s.since, Away: s.away, AwayError: s.awayError,
			Moved: s.moved, WaitsFor: s.waitsFor, Waits: s.waits,
		}
		if occupied := (*relay.OccupiedError)(nil); s.role == relay.Standby && errors.As(e.store.Waiting(s.shard.Slot), &occupied) {
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
		Epoch: p.lease.Epoch(), Lost: closed(p.lease.Lost()) || !p.lease.Valid(), Skipped: read.skipped, Read: read.at, Inside: read.inside,
		Seen: p.control.slotSeen(), Unmarked: p.unmarked.known(),
	}
	p.window.snapshot(out)
	p.doing.snapshot(out)
	for _, s := range p.shelves {
		out.Sinks = append(out.Sinks, s.snapshot())
	}
	return out
}
