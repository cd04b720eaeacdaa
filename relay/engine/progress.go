package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// progress are the positions and counts of a pipeline that rise while it moves.
type progress struct {
	read                             relay.LSN
	admitted, marked, skipped, swept uint64
	told                             uint64 // with nothing in flight: how often the server has said anything
	steps                            uint64 // of looks at the table, and of a recovery
	owner                            *pipeline
}

// progress returns them, whether there is anything to move, and for whom it waits if that is not up to us. This is the one definition
// of progress: readiness, the verdict, outbox_ready with its alert, and who gives the lease up all look at it.
//
// There is something to move when events are in flight; while streaming, when there is WAL that the stream has not brought, and
// whenever the connection is away; while polling, as long as a look at the table is under way or the last one failed; while
// recovering, always.
//
// A standstill is ours only where we owe the next step. Three sequences look like one and are none:
//
//   - Somebody commits a transaction of some GB that does not touch the outbox. The walsender comes to its commit and decodes all of it, to send
//     nothing. For minutes its keepalives repeat one position, while WAL grows. With nothing in flight we owe nothing: whoever is told something,
//     again and again, is reading. (A server that says nothing at all ends the stream: RELAY_WAL_SENDER_TIMEOUT.)
//   - In hybrid mode the stream comes to a row that the library's worker has claimed. The reader asks for its fate, and reads nothing meanwhile:
//     at most until the claim is too old.
//   - The oldest event is with a sink that is down. Another relay could not deliver it either. That the oldest waits for its mark,
//     or for a sink that is not known to be down, is no such case, whatever other sinks do.
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

// position is progress as the pipeline's own state tells it; open are the sinks, by their bits, that the oldest event waits for.
func (p *pipeline) position() (now progress, owes bool, waitsFor string, open uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.counts
	now = progress{read: p.read, admitted: c.admitted, marked: c.marked, skipped: c.skipped, swept: c.swept, steps: p.steps, owner: p}
	if f := p.tracker.oldest(); f != nil {
		return now, true, "", f.open
	}
	switch {
	case p.doing.mode == relay.ModePolling:
		return now, p.looking || p.lookError != "", "", 0
	case p.doing.mode == relay.ModeRecovering, !p.doing.streaming:
		return now, true, "", 0
	}
	now.told = p.signs
	behind := p.seen.Exists && p.seen.WALEnd > p.read+relay.CaughtUpBytes
	switch {
	case p.claimed:
		return now, false, relay.WaitsForClaims, 0
	case behind:
		return now, true, relay.WaitsForServer, 0
	default:
		return now, false, "", 0
	}
}

// step notes that something was done which no other count shows.
func (p *pipeline) step() {
	p.mu.Lock()
	p.steps++
	p.mu.Unlock()
}

// lookBegins and lookEnds frame a look at the table.
func (p *pipeline) lookBegins() {
	p.mu.Lock()
	p.looking = true
	p.mu.Unlock()
}

func (p *pipeline) lookEnds(ctx context.Context, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looking = false
	switch {
	case err == nil:
		p.steps++
		p.lookError = ""
	case ctx.Err() == nil:
		p.lookError = err.Error()
	}
}

// noteProgress notes for each slot since when it has been at the same place with work to do, and since when it waits for others.
func (e *Engine) noteProgress(at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.slots {
		s.noteAway(at, e.store.Waiting(s.name))
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
		if limit := s.stallLimit(e.cfg.StallTimeout); limit > 0 && at.Sub(s.moved) >= limit && s.role == relay.Owner {
			s.pipeline.giveUp(at.Sub(s.moved))
		}
	}
}

// noteAway notes since when a standby could not take the slot if it were free.
func (s *slotState) noteAway(at time.Time, err error) {
	if occupied := (*relay.OccupiedError)(nil); errors.As(err, &occupied) {
		err = nil // Status tells of it
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

// errStalled is why an owner gives its lease up that has work and cannot do it.
var errStalled = errors.New("nothing has moved")

// maxStalls bounds how often the time until the next giving up doubles.
const maxStalls = 5

// stallLimit is how long nothing may move. It doubles with each time that a lease was given up without a single mark in between:
// what this relay has published and not marked is published again by the next owner, for nothing if that one cannot either.
func (s *slotState) stallLimit(timeout time.Duration) time.Duration {
	return timeout << min(s.stalls, maxStalls)
}

// giveUp ends the pipeline, so that the lease is released and another relay may try. That helps nobody where the reason is known,
// and is the server's: it makes no slot as long as a transaction is open.
func (p *pipeline) giveUp(after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.holders != "" {
		return
	}
	select {
	case p.stalled <- fmt.Errorf("%w for %s", errStalled, after.Round(time.Second)):
	default: // it was said already
	}
}

// others reports whether other relays stand by for the slot, or may do so: behind a pooler nobody knows.
func (p *pipeline) others() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.Relays != 1
}

// anyMarked reports whether an event was marked under this lease.
func (p *pipeline) anyMarked() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts.marked > 0
}
