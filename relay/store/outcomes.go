package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// What Resolve does when the database refuses what became of one entry, step by step, each with
// less of it:
//
//  1. The row does not take its status: the entry is written without it, and the row is parked, as
//     by Mark.
//  2. An entry behind it cannot be made held, or freed: only its own entry is written. What is to
//     be freed behind it is tried again.
//  3. Its entry cannot be changed: it is replaced by another. One that was delivered becomes the
//     row's entry of relay.MarkSink.
//  4. Nothing of that: the outcome is kept in memory and tried again. Due leaves the entry out
//     meanwhile, and of a refused one those of its key behind it. A process that ends before
//     forgets it, and the next owner offers the entry again.

// entryOf names an entry.
type entryOf struct {
	id   relay.UUID
	sink string
}

// unwritten is an outcome that is tried again.
type unwritten struct {
	sink    string
	outcome relay.Outcome
	free    bool // its entry is written; what is held behind it is to be freed
	why     cause
	since   time.Time
}

// convertSQL makes of entries those of relay.MarkSink.
const convertSQL = `UPDATE saga_outbox_delivery SET sink = '` + relay.MarkSink + `', state = 'retry', detached = true, discarded = false, attempts = 0,
	next_attempt_at = clock_timestamp() + interval '1 second', reason = $5, last_error = $6
	WHERE event_id = ANY($1::uuid[]) AND slot = $2 AND sink = $4` + owned

// aloneOutcome writes one outcome whose transaction was refused.
func (l *lease) aloneOutcome(ctx context.Context, sink string, o relay.Outcome, why error) error {
	m := markOf(&o)
	refused := func(err error) bool { why = err; return blames(ctx, err) >= blameTransient }
	about := func() []relay.Mark {
		m.Parked = []relay.Parked{unmarkedBecause(aboutRow(&o), causeOf(why))}
		return []relay.Mark{m}
	}
	logOnce := func() { l.logRefused(uuids{m.ID}, why, parkedMessage) }
	one := []relay.Outcome{o}
	l.left.expect(true)

	// 1
	first := causeOf(why)
	if err := l.writeOutcomes(ctx, sink, one, ledgerOnly, about()); err == nil {
		logOnce()
		return nil
	} else if !refused(err) {
		return err
	}
	// 2
	if err := l.writeOutcomes(ctx, sink, one, entryOnly, about()); err == nil {
		l.log.Error("what is behind an entry could not be held or freed, it is tried again", "event_id", m.ID.String(), "sink", sink, "cause", causeOf(why).text)
		if o.Fate == relay.FateRefused { // Due holds what it meets
			return nil
		}
		return l.left.keepOutcome(unwritten{sink: sink, outcome: o, free: true, why: causeOf(why)})
	} else if !refused(err) {
		return err
	}
	// 3
	if err := l.replaceEntry(ctx, sink, &o, first); err == nil {
		logOnce()
		return nil
	} else if !refused(err) {
		return err
	}
	// 4
	if l.left.first(m.ID) {
		l.log.Error("the ledger does not take what became of an entry: kept in memory and tried again; the next owner offers it again if this one ends before",
			"event_id", m.ID.String(), "sink", sink, "sqlstate", causeOf(why).code, "constraint", causeOf(why).constraint, "cause", causeOf(why).text)
	}
	return l.left.keepOutcome(unwritten{sink: sink, outcome: o, why: causeOf(why)})
}

// aboutRow is the reason of the row's entry.
func aboutRow(o *relay.Outcome) relay.Reason {
	if o.Fate == relay.FateDropped {
		return relay.ReasonDiscarded
	}
	return relay.ReasonUnmarked
}

// markOf is an outcome's event, for entries.
func markOf(o *relay.Outcome) relay.Mark {
	e := o.Entry
	return relay.Mark{ID: e.Event.ID, EventType: e.Event.EventType, Key: e.Event.AggregateID, KeyHash: e.KeyHash, Position: e.Position}
}

// replaceEntry takes the place of an entry that cannot be updated, or not be deleted.
func (l *lease) replaceEntry(ctx context.Context, sink string, o *relay.Outcome, why cause) error {
	ids := uuids{o.Entry.Event.ID}
	tx := l.fenced(fence{})
	switch o.Fate {
	case relay.FateDelivered, relay.FateDropped:
		tx.queue(nil, convertSQL, ids, l.slot, l.epoch, sink, string(aboutRow(o)), l.store.storable(why.text))
		if !o.Entry.Detached {
			tx.queue(nil, freeSQL, []string{o.Entry.Event.AggregateID}, l.slot, l.epoch, sink, []int32{int32(o.Entry.KeyHash)}, l.store.freedOf(1))
		}
	default:
		m := markOf(o)
		p := relay.Parked{Sink: sink, State: relay.StateRetry, Reason: o.Reason, Error: o.Error, Attempts: o.Attempts, Delay: o.Delay, Detached: o.Entry.Detached}
		if o.Fate == relay.FateDead {
			p.State, p.Detached = relay.StateDead, p.Detached || o.Detach
		}
		m.Parked = []relay.Parked{p}
		var e entries
		e.gather([]relay.Mark{m})
		tx.queue(nil, takeOutSQL, ids, l.slot, l.epoch, sink)
		e.queue(tx, l)
		tx.queue(nil, setStatusSQL, ids, l.slot, l.epoch, l.store.cfg.Hybrid)
	}
	return l.send(ctx, tx)
}

// send runs a fenced transaction on the marking connection.
func (l *lease) send(ctx context.Context, tx *fencedTx) error {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	return l.with(ctx, func(ctx context.Context, conn *pgx.Conn) error { return tx.run(ctx, conn) })
}

// keepOutcome keeps an outcome that was not written.
func (l *leftovers) keepOutcome(u unwritten) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := entryOf{u.outcome.Entry.Event.ID, u.sink}
	if l.outcomes[at] == nil && len(l.outcomes) >= mostLeftovers {
		return errNoRoom
	}
	if l.outcomes == nil {
		l.outcomes = make(map[entryOf]*unwritten)
	}
	u.since = time.Now()
	if old := l.outcomes[at]; old != nil {
		u.since = old.since
	}
	l.outcomes[at] = &u
	l.retry()
	return nil
}

// dropOutcome forgets one.
func (l *leftovers) dropOutcome(u *unwritten) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.outcomes, entryOf{u.outcome.Entry.Event.ID, u.sink})
}

// offerable leaves out of a sink's entries those whose outcomes are not written yet, and those
// behind them.
func (l *leftovers) offerable(sink string, all []found) []found {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.outcomes) == 0 {
		return all
	}
	kept := all[:0]
	for i := range all {
		if !l.withheld(sink, &all[i]) {
			kept = append(kept, all[i])
		}
	}
	return kept
}

// withheld reports whether an entry may not be offered. It is called with mu held.
func (l *leftovers) withheld(sink string, f *found) bool {
	if u := l.outcomes[entryOf{f.Event.ID, sink}]; u != nil && !u.free {
		return true
	}
	if f.Detached {
		return false
	}
	for _, u := range l.outcomes {
		e := u.outcome.Entry
		holds := u.outcome.Fate == relay.FateRefused || u.outcome.Fate == relay.FateDead && !u.outcome.Detach
		if holds && u.sink == sink && !u.free && !e.Detached && e.Event.AggregateID == f.key && e.Position < f.Position {
			return true
		}
	}
	return false
}

// unwrittenOf is how many entries of a sink are not to be offered.
func (l *leftovers) unwrittenOf(sink string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for at, u := range l.outcomes {
		if at.sink == sink && !u.free {
			n++
		}
	}
	return n
}

// rewriteOutcomes tries outcomes again.
func (l *lease) rewriteOutcomes(ctx context.Context, all []*unwritten, until time.Time) error {
	for _, u := range all {
		if time.Now().After(until) {
			return nil
		}
		what := whole
		if u.free {
			what = freeOnly
		}
		err := l.writeOutcomes(ctx, u.sink, []relay.Outcome{u.outcome}, what, nil)
		switch {
		case err == nil:
			l.left.dropOutcome(u)
		case blames(ctx, err) < blameTransient:
			return err
		}
	}
	return nil
}
