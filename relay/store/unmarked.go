package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// Rows whose marks the database refuses are parked: they get an entry of relay.MarkSink in the
// ledger, and everything that finds events leaves rows with entries alone. Remark tries them again
// at growing pauses. Such an entry needs neither the row nor its lock, so it can be made for a row
// that another session has locked, too.

// lockedFor is how long a row may be locked, or be left unmarked without an error (a trigger that
// returns NULL), until it is parked. An ordinary transaction is over by then.
const lockedFor = 5 * time.Second

// remarkPause is the time until the next try of an entry, in seconds; attempts are its tries so far.
const remarkPause = `least(300, power(2, least(attempts, 10))) * (0.9 + 0.2 * random())`

var (
	unmarkedSQL = `WITH u AS (SELECT parked_at, last_error, reason FROM saga_outbox_delivery
			WHERE slot = $1 AND sink = '` + relay.MarkSink + `' AND state = 'retry' AND next_attempt_at IS NOT NULL ORDER BY next_attempt_at LIMIT $2)
		SELECT count(*), min(parked_at), coalesce((SELECT coalesce(last_error, reason) FROM u ORDER BY parked_at LIMIT 1), '') FROM u`

	// remarkDueSQL returns the entries to try again, with their reason, which has what there is to
	// write.
	remarkDueSQL = `SELECT event_id, coalesce(reason, '') FROM saga_outbox_delivery
		WHERE slot = $1 AND sink = '` + relay.MarkSink + `' AND state = 'retry' AND next_attempt_at <= (SELECT clock_timestamp()) ORDER BY next_attempt_at LIMIT $2`

	lockedSQL = `SELECT event_id FROM saga_outbox WHERE event_id = ANY($1::uuid[]) EXCEPT SELECT event_id FROM
		(SELECT event_id FROM saga_outbox WHERE event_id = ANY($1::uuid[]) FOR UPDATE SKIP LOCKED) free`

	// remarkedSQL deletes the entries of rows that have the right status by now, or are gone.
	remarkedSQL = `DELETE FROM saga_outbox_delivery d WHERE event_id = ANY($1::uuid[]) AND slot = $2 AND sink = '` + relay.MarkSink + `'
		AND (NOT EXISTS (SELECT FROM saga_outbox o WHERE o.event_id = d.event_id AND o.status NOT IN ('sent', 'dead_letter') OFFSET 0)
			OR ` + hasEntries("d.event_id", ofSinks) + `)` + owned + ` RETURNING event_id`

	postponeSQL = `UPDATE saga_outbox_delivery SET attempts = attempts + 1, next_attempt_at = clock_timestamp() + make_interval(secs => ` + remarkPause + `),
			reason = CASE reason WHEN '` + string(relay.ReasonDiscarded) + `' THEN reason ELSE $4 END, last_error = $5
		WHERE event_id = ANY($1::uuid[]) AND slot = $2 AND sink = '` + relay.MarkSink + `'` + owned

	// givenUpSQL notes of parked rows that their events will not be delivered.
	givenUpSQL = `UPDATE saga_outbox_delivery d SET reason = '` + string(relay.ReasonDiscarded) + `' WHERE event_id = ANY($1::uuid[]) AND slot = $2 AND sink = '` + relay.MarkSink + `'
		AND NOT ` + hasEntries("d.event_id", ofSinks) + owned

	// holdersSQL finds who has rows locked by their xmax, without waiting for the lock: a row's
	// locker is the transaction that is written there.
	holdersSQL = `SELECT event_id, coalesce(
		(SELECT format('locked by pid %s, user %s, application %s%s', a.pid, a.usename, coalesce(nullif(a.application_name, ''), '-'),
				coalesce(', for ' || extract(epoch FROM clock_timestamp() - a.xact_start)::int || ' s', ''))
			FROM pg_locks k JOIN pg_stat_activity a ON a.pid = k.pid WHERE k.locktype = 'transactionid' AND k.granted AND k.transactionid = o.xmax LIMIT 1),
		(SELECT format('locked by the prepared transaction %s of user %s, for %s s', p.gid, p.owner, extract(epoch FROM clock_timestamp() - p.prepared)::int)
			FROM pg_prepared_xacts p WHERE p.transaction = o.xmax LIMIT 1), '') FROM saga_outbox o WHERE event_id = ANY($1::uuid[])`
)

// ofSinks leaves out the entries about rows' marks.
const ofSinks = ` AND e.sink <> '` + relay.MarkSink + `'`

// withoutOthers turns a marking statement into one that skips rows with entries of other sinks.
func withoutOthers(sql string) string {
	return withoutEntriesOf(sql, ofSinks)
}

// unmarkedBecause is the entry that parks a row.
func unmarkedBecause(reason relay.Reason, why cause) relay.Parked {
	return relay.Parked{
		Sink: relay.MarkSink, State: relay.StateRetry, Detached: true, Reason: reason, Error: why.text, Delay: leftoverMin,
	}
}

// parkRefused makes entries for rows that refuse their marks, along with the entries of sinks that
// refused the events. What the ledger refuses is kept in memory.
func (l *lease) parkRefused(ctx context.Context, marks []relay.Mark, why error) error {
	return l.parkUnmarked(ctx, marks, relay.ReasonUnmarked, func(int) cause { return causeOf(why) })
}

func (l *lease) parkUnmarked(ctx context.Context, marks []relay.Mark, reason relay.Reason, why func(i int) cause) error {
	with := make([]relay.Mark, len(marks))
	for i := range marks {
		with[i] = marks[i]
		with[i].Parked = append(slices.Clone(marks[i].Parked), unmarkedBecause(reason, why(i)))
	}
	ids := idsOf(marks)
	l.left.expect(true) // before the commit, whose answer may be lost
	err := l.batched(ctx, "park", len(with), func(lo, hi int) error {
		return l.parkOnly(ctx, l.left.behind(part{marks: with[lo:hi]}).marks)
	}, func() error {
		return l.parkOnly(ctx, nil)
	}, func(lo, hi int, refused error) error {
		l.logRefused(ids[lo:hi], refused, "neither the row nor the ledger takes what became of an event: kept in memory, "+
			"and delivered again by the next owner if this one ends before it is written")
		return l.left.keep(marks[lo:hi], causeOf(refused))
	})
	if err != nil {
		return fmt.Errorf("park %d rows that cannot be marked: %w", len(marks), err)
	}
	l.logEach(ids, why, parkedMessage)
	return nil
}

// parkOnly writes entries and leaves the rows alone.
func (l *lease) parkOnly(ctx context.Context, marks []relay.Mark) error {
	w := l.store.writes(marks)
	tx := l.fenced(fence{upTo: w.upTo, atEnd: w.atEnd})
	w.entries.queue(tx, l)
	return l.send(ctx, tx)
}

const parkedMessage = "a row cannot be marked: parked, and tried again"

// refusedLines bounds the lines that one batch writes to the log.
const refusedLines = 20

// logRefused writes to the log what the database refuses to do to rows or entries, each event once.
func (l *lease) logRefused(ids uuids, why error, message string) {
	c := causeOf(why)
	l.logEach(ids, func(int) cause { return c }, message)
}

// logEach is logRefused with a cause for each.
func (l *lease) logEach(ids uuids, why func(i int) cause, message string) {
	lines, more := 0, 0
	for i, id := range ids {
		if !l.left.first(id) {
			continue
		}
		if lines++; lines > refusedLines {
			more++
			continue
		}
		c := why(i)
		l.log.Error(message, "event_id", id.String(), "sqlstate", c.code, "constraint", c.constraint, "cause", c.text)
	}
	if more > 0 {
		l.log.Error(message, "more_events", more)
	}
}

// parkLocked parks rows that have been locked for too long, and returns those that are still to be
// marked later.
func (l *lease) parkLocked(ctx context.Context, marks []relay.Mark, later, locked []int) ([]int, error) {
	overdue := first(marks, later, l.left.lockedSince(marks, locked))
	if len(overdue) == 0 {
		return later, nil
	}
	these := make([]relay.Mark, 0, len(overdue))
	for _, i := range overdue {
		these = append(these, marks[i])
	}
	who := l.holders(ctx, idsOf(these))
	if err := l.parkUnmarked(ctx, these, relay.ReasonLocked, func(i int) cause { return cause{text: who[i]} }); err != nil {
		return nil, err
	}
	l.left.unlocked(these)
	return slices.DeleteFunc(later, func(i int) bool { return slices.Contains(overdue, i) }), nil
}

// first are those of a batch's overdue events with no event in front of them in their key that is
// still to be marked. With an entry they would be past it.
func first(marks []relay.Mark, later, overdue []int) (these []int) {
	if len(overdue) == 0 {
		return nil
	}
	blocked := make(map[string]bool)
	for _, i := range slices.Sorted(slices.Values(later)) {
		if key := marks[i].Key; slices.Contains(overdue, i) && !blocked[key] {
			these = append(these, i)
		} else {
			blocked[key] = true
		}
	}
	return these
}

// holders returns for each row which session has it locked, as far as that can be found out.
func (l *lease) holders(ctx context.Context, ids uuids) []string {
	if len(ids) == 0 {
		return nil
	}
	var (
		id     [16]byte
		holder string
		known  = make(map[relay.UUID]string, len(ids))
	)
	err := l.each(ctx, []any{&id, &holder}, func() error { known[id] = holder; return nil }, holdersSQL, ids)
	if err != nil {
		l.log.Debug("who has rows locked could not be found out", "error", err)
	}
	who := make([]string, len(ids))
	for i, id := range ids {
		who[i] = cmp.Or(known[id], "locked for more than "+lockedFor.String()+", or a trigger or rule skips the mark without an error")
	}
	return who
}

const (
	remarkAtOnce = 1000
	unmarkedMost = 100_000 // counting ends there
	// remarkFor bounds one look; the rest comes with the next one.
	remarkFor = 2 * time.Second
	// remarkWrites bounds the transactions by which one batch of a look is taken apart.
	remarkWrites = 64
	// remarkGiveUp is after how many rows that are refused alone, without one that is taken, the
	// rest waits for the next time.
	remarkGiveUp = 8
)

// Remark implements relay.Lease.
func (l *lease) Remark(ctx context.Context) (u relay.Unmarked, err error) {
	until := time.Now().Add(remarkFor)
	if err = l.rewrite(ctx, until); err == nil && l.left.expects() {
		for more := true; more && err == nil && time.Now().Before(until); {
			more, err = l.remark(ctx)
		}
		if err == nil {
			u, err = l.unmarked(ctx)
		}
	}
	if err != nil {
		return u, fmt.Errorf("mark parked rows: %w", err)
	}
	l.left.count(&u)
	return u, nil
}

// unmarked counts the entries, as often as that costs little.
func (l *lease) unmarked(ctx context.Context) (u relay.Unmarked, err error) {
	if known, is := l.left.counted(); is {
		return known, nil
	}
	began := time.Now()
	var oldest *time.Time
	if err = l.each(ctx, []any{&u.Events, &oldest, &u.Cause}, func() error { return nil }, unmarkedSQL, l.slot, unmarkedMost); err != nil {
		return u, err
	}
	if oldest != nil {
		u.Oldest = *oldest
	}
	if u.Events == 0 {
		l.left.expect(false)
	}
	l.left.keepCount(u, time.Since(began))
	return u, nil
}

// remark tries a batch of entries that are due, and reports whether there are likely more that
// work.
func (l *lease) remark(ctx context.Context) (more bool, err error) {
	var (
		id     [16]byte
		reason string
		ids    uuids
		given  = make(map[relay.UUID]bool)
	)
	err = l.each(ctx, []any{&id, &reason}, func() error {
		ids = append(ids, id)
		given[id] = reason == string(relay.ReasonDiscarded)
		return nil
	}, remarkDueSQL, l.slot, remarkAtOnce)
	if err != nil || len(ids) == 0 {
		return false, err
	}
	due := len(ids)
	locked := make(map[relay.UUID]bool)
	if err := l.each(ctx, []any{&id}, func() error { locked[id] = true; return nil }, lockedSQL, ids); err != nil {
		return false, err
	}
	var held uuids
	ids = slices.DeleteFunc(ids, func(id relay.UUID) bool {
		if locked[id] {
			held = append(held, id)
		}
		return locked[id]
	})
	h := halving{
		left: remarkWrites, giveUp: remarkGiveUp, until: time.Now().Add(halvingFor), fault: func(err error) bool { return blames(ctx, err) >= blameTransient },
		write: func(lo, hi int) error {
			done, err := l.remarked(ctx, ids[lo:hi], given)
			if err != nil {
				return err
			}
			var skipped []relay.UUID
			for _, id := range ids[lo:hi] {
				if !done[id] {
					skipped = append(skipped, id)
				}
			}
			return l.postpone(ctx, skipped, relay.ReasonUnmarked, cause{text: "a trigger or rule skips the mark without an error"})
		},
		refused: func(lo, hi int, why error) error {
			return l.postpone(ctx, ids[lo:hi], relay.ReasonUnmarked, causeOf(why))
		},
	}
	if err := h.run(0, len(ids)); err != nil {
		return false, err
	}
	by := make(map[string]uuids)
	for i, who := range l.holders(ctx, held) {
		by[who] = append(by[who], held[i])
	}
	for who, theirs := range by {
		if err := l.postpone(ctx, theirs, relay.ReasonLocked, cause{text: who}); err != nil {
			return false, err
		}
	}
	return due == remarkAtOnce, nil
}

// remarked writes the rows' marks, and takes out the entries of those that have them then.
func (l *lease) remarked(ctx context.Context, ids uuids, given map[relay.UUID]bool) (done map[relay.UUID]bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	var (
		id                 [16]byte
		delivered, givenUp uuids
	)
	for _, id := range ids {
		if given[id] {
			givenUp = append(givenUp, id)
		} else {
			delivered = append(delivered, id)
		}
	}
	done = make(map[relay.UUID]bool, len(ids))
	tx := l.fenced(fence{})
	if len(delivered) > 0 {
		tx.queue(nil, withoutOthers(l.store.deliveredSQL()), delivered, l.slot, l.epoch)
	}
	if len(givenUp) > 0 {
		tx.queue(nil, withoutOthers(giveUpSQL), givenUp, l.slot, l.epoch)
	}
	tx.queue(nil, setStatusSQL, ids, l.slot, l.epoch, l.store.cfg.Hybrid)
	tx.query([]any{&id}, func() error { done[id] = true; return nil }, remarkedSQL, ids, l.slot, l.epoch)
	return done, l.send(ctx, tx)
}

// postpone sets the time of the next try.
func (l *lease) postpone(ctx context.Context, ids uuids, reason relay.Reason, why cause) error {
	if len(ids) == 0 {
		return nil
	}
	tx := l.fenced(fence{})
	tx.queue(nil, postponeSQL, ids, l.slot, l.epoch, string(reason), l.store.storable(why.text))
	return l.send(ctx, tx)
}

// rewrite tries leftovers again, in their order, one by one: no event of a key may pass the one
// before it.
func (l *lease) rewrite(ctx context.Context, until time.Time) error {
	marks, outcomes := l.left.due()
	if err := l.rewriteOutcomes(ctx, outcomes, until); err != nil {
		return err
	}
	blocked := make(map[lineOf]bool)
	for i := range marks {
		m := &marks[i]
		if time.Now().After(until) {
			return nil
		}
		waits := false
		for j := range m.Parked {
			waits = waits || blocked[lineOf{m.Parked[j].Sink, m.Key}]
		}
		written := false
		if !waits {
			var err error
			if written, err = l.rewriteOne(ctx, *m); err != nil {
				return err
			}
		}
		if written {
			l.left.drop(m)
			continue
		}
		for j := range m.Parked {
			blocked[lineOf{m.Parked[j].Sink, m.Key}] = true
		}
	}
	return nil
}

// rewriteOne writes one leftover to the table or to the ledger, if that is possible by now.
func (l *lease) rewriteOne(ctx context.Context, m relay.Mark) (written bool, err error) {
	later, _, err := l.markNow(ctx, part{marks: []relay.Mark{m}}, notes{}, map[string]bool{})
	if err == nil && len(later) == 0 {
		return true, nil
	}
	if err != nil && blames(ctx, err) < blameTransient {
		return false, err
	}
	why := cause{text: "locked"}
	if err != nil {
		why = causeOf(err)
	}
	m.Parked = append(slices.Clone(m.Parked), unmarkedBecause(relay.ReasonUnmarked, why))
	l.left.expect(true)
	err = l.parkOnly(ctx, []relay.Mark{m})
	if err != nil && blames(ctx, err) >= blameTransient {
		return false, nil
	}
	return err == nil, err
}
