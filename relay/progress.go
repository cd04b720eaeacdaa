package relay

import "time"

// progress are the positions and counts of a pipeline that rise while it moves.
type progress struct {
	read                             LSN
	admitted, marked, skipped, swept uint64
	told                             uint64 // with nothing in flight: how often the server has said anything
	owner                            *pipeline
}

// Whom an owner with nothing in flight waits for, though there is WAL that the stream has not brought.
const (
	WaitsForServer = "server" // it decodes a large transaction, or waits for a standby
	WaitsForClaims = "claims" // another worker's, on rows that come next
)

// progress returns them, whether there is anything to move (events in flight, or WAL that the stream has not brought), and for whom it waits
// if that is not up to us.
//
// A standstill is ours only where we owe the next step. Two sequences look like one and are none:
//
//   - Somebody commits a transaction of some GB that does not touch the outbox. The walsender comes to its commit and decodes all of it, to send
//     nothing. For minutes its keepalives repeat one position, while WAL grows. With nothing in flight we owe nothing: whoever is told something,
//     again and again, is reading. (A server that says nothing at all ends the stream: RELAY_WAL_SENDER_TIMEOUT.)
//   - In hybrid mode the stream comes to a row that the library's worker has claimed. The reader asks for its fate, and reads nothing meanwhile:
//     at most until the claim is too old.
func (p *pipeline) progress() (now progress, owes bool, waitsFor string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.counts
	now = progress{read: p.read, admitted: c.admitted, marked: c.marked, skipped: c.skipped, swept: c.swept, owner: p}
	if p.tracker.len() > 0 {
		return now, true, ""
	}
	now.told = p.told
	behind := p.seen.Exists && p.seen.WALEnd > p.read+caughtUpBytes
	switch {
	case p.claimed:
		return now, false, WaitsForClaims
	case behind:
		return now, true, WaitsForServer
	default:
		return now, false, ""
	}
}

// noteProgress notes for each slot since when it has been at the same place with work to do, and since when it waits for others.
func (r *Relay) noteProgress(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.slots {
		if s.pipeline == nil {
			s.progress, s.moved, s.waitsFor = progress{}, at, ""
			continue
		}
		now, owes, waitsFor := s.pipeline.progress()
		if waitsFor != s.waitsFor || now.read != s.progress.read {
			s.waitsFor, s.waits = waitsFor, at
		}
		if now != s.progress || !owes {
			s.moved = at
		}
		s.progress = now
	}
}

// noteDead notes dead letters among events whose fate was written.
func (p *pipeline) noteDead(batch []*flight) {
	for _, f := range batch {
		for i := range f.parked {
			if f.parked[i].State == StateDead {
				p.changes.add(deadLetter(p.slot, f.parked[i].Sink, f.parked[i].Reason))
			}
		}
	}
}

// noteDead notes dead letters among ledger entries that were tried again.
func (d *drainer) noteDead(outcomes []Outcome) {
	for i := range outcomes {
		if outcomes[i].Fate == FateDead {
			d.p.changes.add(deadLetter(d.p.slot, d.shelf.sink, outcomes[i].Reason))
		}
	}
}

func deadLetter(slot, sink string, reason Reason) Change {
	return Change{Kind: ChangeDeadLetter, Level: LevelDegraded, Slot: slot, Sink: sink, Text: string(reason)}
}

// saw keeps the newest look at the slot, for the status. hot is the share of the table's updates that were HOT lately; nil when it is not known.
func (p *pipeline) saw(info SlotInfo, hot *float64) {
	p.mu.Lock()
	p.seen, p.hot = info, hot
	p.mu.Unlock()
}

// awaits keeps how many events wait, for the status.
func (p *pipeline) awaits(events float64) {
	p.mu.Lock()
	p.pendingEvents = events
	p.mu.Unlock()
}
