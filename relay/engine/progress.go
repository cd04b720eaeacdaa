package engine

import (
	"errors"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// progress are the positions and counts of a pipeline that rise while it moves.
type progress struct {
	read                             relay.LSN
	admitted, marked, skipped, swept uint64
	// With nothing in flight: how often the server has sent anything.
	signs uint64
	steps uint64 // of looks at the table, and of a recovery
	owner *pipeline
}

// progress returns them, whether there is anything to move, and what it waits for if the next step
// is not ours. This is the one definition of progress: readiness, the verdict, outbox_ready with
// its alert, and giving the lease up all use it.
//
// There is something to move:
//   - when events are in flight
//   - while streaming, when there is WAL that the stream has not delivered, or no connection
//   - while polling, as long as a look at the table is under way or the last one failed
//   - while recovering, always
//
// A standstill is ours only where the next step is ours. Three sequences look like one and are not:
//
//   - Somebody commits a transaction of some GB that does not touch the outbox. The walsender comes
//     to its commit and decodes all of it, to send nothing. For minutes its keepalives repeat one
//     position, while WAL grows. With nothing in flight, a relay that still gets keepalives is
//     reading, and the next step is the server's. (A server that sends nothing at all ends the
//     stream: RELAY_WAL_SENDER_TIMEOUT.)
//   - In hybrid mode the stream comes to a row that the library's worker has claimed. The reader
//     asks for its fate, and reads nothing meanwhile: at most until the claim is too old.
//   - The oldest event is with a sink that is down. Another relay could not deliver it either. That
//     the oldest waits for its mark, or for a sink that is not known to be down, is no such case,
//     whatever other sinks do.
func (p *pipeline) progress() (now progress, owes bool, waitsFor string) {
	now, owes, waitsFor, open := p.position()
	if open == 0 {
		return now, owes, waitsFor
	}
	for i, h := range p.health {
		if open&(1<<i) != 0 && h.downFor() == 0 {
			return now, true, ""
		}
	}
	return now, false, relay.WaitsForSink
}

// position is progress by the pipeline's own state. open are the sinks, by their bits, that the
// oldest event waits for.
func (p *pipeline) position() (now progress, owes bool, waitsFor string, open uint64) {
	counts, read := p.window.counted(), p.intake.reading()
	steps, owes, streams := p.doing.found()
	now = progress{
		read: read.at, admitted: counts.admitted, marked: counts.marked, skipped: read.skipped, swept: counts.swept, steps: steps, owner: p,
	}
	if f, open := p.window.oldest(); f != nil {
		return now, true, "", open
	}
	if p.window.budget.waitsFor(p.window) != nil {
		return now, true, relay.WaitsForRoom, 0
	}
	if !streams {
		return now, owes, "", 0
	}
	now.signs = read.signs
	seen := p.control.slotSeen()
	switch {
	case read.claimed:
		return now, false, relay.WaitsForClaims, 0
	case seen.Exists && seen.WALEnd > read.at+relay.CaughtUpBytes:
		return now, true, relay.WaitsForServer, 0
	default:
		return now, false, "", 0
	}
}

// noteProgress notes for each slot since when it has been at the same place with work to do, and
// since when it waits for others.
func (e *Engine) noteProgress(at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.slots {
		s.noteAway(at, e.store.Waiting(s.shard.Slot))
		if s.pipeline == nil {
			s.progress, s.moved, s.waitsFor = progress{}, at, ""
			continue
		}
		now, owes, waitsFor := s.pipeline.progress()
		if waitsFor != s.waitsFor || now.read != s.progress.read || now.admitted != s.progress.admitted {
			s.waitsFor, s.waits = waitsFor, at
		}
		if now != s.progress || !owes {
			s.moved = at
		}
		s.progress = now
		e.logWait(s, at)
		if limit := s.stallLimit(e.cfg.StallTimeout); limit > 0 && at.Sub(s.moved) >= limit && s.role == relay.Owner {
			s.pipeline.control.giveUp(at.Sub(s.moved))
		}
	}
}

// logWait logs once that an event waits for one of another slot; Status has it, too.
func (e *Engine) logWait(s *slotState, at time.Time) {
	long := s.waitsFor == relay.WaitsForRoom && at.Sub(s.waits) >= roomSlow
	if other := s.pipeline.window.budget.waitsFor(s.pipeline.window); long && !s.waitLogged && other != nil {
		for _, one := range e.slots {
			if one.pipeline != nil && one.pipeline.window == other {
				e.log.Info("an event larger than the slot's share of the in-flight budget waits for one of another slot", "slot", s.shard.Slot, "waits_for", one.shard.Slot,
					"for", at.Sub(s.waits).Round(time.Second), "fix", "if it lasts: raise RELAY_INFLIGHT_BYTES")
			}
		}
	}
	s.waitLogged = long
}

// roomSlow is how long such a wait may take before it is logged.
const roomSlow = 5 * time.Second

// noteAway notes since when a standby could not take the slot if it were free.
func (s *slotState) noteAway(at time.Time, err error) {
	if occupied := (*relay.OccupiedError)(nil); errors.As(err, &occupied) {
		err = nil // Status reports it
	}
	switch {
	case s.role != relay.Standby || err == nil:
		s.away, s.awayError = time.Time{}, ""
	case s.away.IsZero():
		s.away = at
		fallthrough
	default:
		s.awayError = err.Error()
	}
}
