package relay

import "time"

// progress are the positions and counts of a pipeline that rise while it moves.
type progress struct {
	read                             LSN
	admitted, marked, skipped, swept uint64
	owner                            *pipeline
}

// progress returns them, and whether there is anything to move: events in flight, or WAL that the stream has not brought.
func (p *pipeline) progress() (now progress, owes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.counts
	now = progress{read: p.read, admitted: c.admitted, marked: c.marked, skipped: c.skipped, swept: c.swept, owner: p}
	return now, p.tracker.len() > 0 || p.seen.Exists && p.seen.WALEnd > p.read+caughtUpBytes
}

// noteProgress notes for each slot since when it has been at the same place with work to do.
func (r *Relay) noteProgress(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.slots {
		if s.pipeline == nil {
			s.progress, s.moved = progress{}, at
			continue
		}
		now, owes := s.pipeline.progress()
		if now != s.progress || !owes {
			s.progress, s.moved = now, at
		}
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
