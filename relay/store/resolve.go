package store

import (
	"context"
	"fmt"

	"github.com/sagaz-relay/relay/relay"
)

var (
	takeOutSQL = `DELETE FROM saga_outbox_delivery WHERE event_id = ANY($1::uuid[]) AND slot = $2 AND sink = $4` + owned

	chargeSQL = `UPDATE saga_outbox_delivery d SET state = CASE WHEN r.dead THEN 'dead' ELSE 'retry' END, attempts = r.attempts,
			next_attempt_at = CASE WHEN NOT r.dead THEN clock_timestamp() + make_interval(secs => r.delay) END,
			reason = nullif(r.reason, ''), last_error = nullif(r.error, ''), detached = d.detached OR r.detach
		FROM unnest($1::uuid[], $5::boolean[], $6::int[], $7::float8[], $8::text[], $9::text[], $10::boolean[]) AS r (event_id, dead, attempts, delay, reason, error, detach)
			CROSS JOIN LATERAL (` + entryAt("r.event_id", "$4") + `) e
		WHERE d.ctid = e.place AND e.slot = $2` + owned

	// behindSQL makes the entries held that are to retry now behind entries that were refused: at
	// most $7 behind each, and the rest when Due meets it. One key can have a million entries, and
	// the slot's row is locked meanwhile.
	behindSQL = `UPDATE saga_outbox_delivery d SET state = 'held' WHERE d.event_id = ANY(ARRAY(
			SELECT r.event_id FROM (SELECT *, $2::text AS slot, $4::text AS sink FROM unnest($1::text[], $5::int[], $6::bigint[]) AS u (partition_key, key_hash, position)) k
			CROSS JOIN LATERAL (SELECT event_id FROM saga_outbox_delivery b WHERE ` + behind("b", "k") + ` AND ` + retryNow + byPlace + ` LIMIT $7) r)) AND d.sink = $4` + owned

	// freeSQL frees held entries that have only entries to retry now in front, until $6 of a line
	// are to retry now. Those to retry now behind an entry that blocks do not count: they are held
	// again when Due meets them.
	freeSQL = `UPDATE saga_outbox_delivery d SET state = 'retry', next_attempt_at = NULL WHERE d.event_id = ANY(ARRAY(
			SELECT f.event_id FROM (SELECT *, $2::text AS slot, $4::text AS sink FROM unnest($1::text[], $5::int[]) AS u (partition_key, key_hash)) k
			CROSS JOIN LATERAL (SELECT b.* FROM saga_outbox_delivery b WHERE ` + inLine("b", "k") + ` AND ` + blocking + byPlace + ` LIMIT 1) head
			CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE r.position < head.position) AS n FROM (SELECT position FROM saga_outbox_delivery b WHERE ` + inLine("b", "head") + ` AND ` + retryNow + byPlace + ` LIMIT $6) r) ready
			CROSS JOIN LATERAL (SELECT event_id, bool_and(state = 'held') OVER (ORDER BY key_hash, position) AS first FROM (
				SELECT event_id, state, key_hash, position FROM saga_outbox_delivery b WHERE ` + inLine("b", "k") + ` AND ` + blocking + byPlace + ` LIMIT greatest($6 - ready.n, 0)) b) f
			WHERE f.first)) AND d.sink = $4` + owned

	// setStatusSQL gives rows the status of their entries. One that was sent, and is being
	// delivered once more, stays sent.
	setStatusSQL = `UPDATE saga_outbox o SET (status, retry_count, last_error) = (SELECT l.status, l.attempts, l.error FROM (` + statusOf("o.event_id") + `) l), worker_id = NULL, claimed_at = NULL
		WHERE o.event_id = ANY(ARRAY(SELECT i FROM unnest($1::uuid[]) AS i CROSS JOIN LATERAL (` + statusOf("i") + `) l
				CROSS JOIN LATERAL (SELECT status, retry_count, last_error FROM saga_outbox WHERE event_id = i OFFSET 0) r
			WHERE (l.charged OR r.status IN ('failed', 'dead_letter')) AND (r.status, r.retry_count, r.last_error) IS DISTINCT FROM (l.status, l.attempts, l.error)))
			AND o.status <> 'sent'` + owned

	// giveUpSQL is for rows whose last entry a person has discarded: nothing may find them and
	// deliver them again.
	giveUpSQL = `UPDATE saga_outbox SET status = 'dead_letter', worker_id = NULL, claimed_at = NULL
		WHERE event_id = ANY($1::uuid[]) AND ` + statusIs + ` IN ('pending', 'claimed', 'failed')` + owned
)

// statusOf is what the entries of one event say, if it has any.
func statusOf(id string) string {
	return `SELECT CASE WHEN bool_or(state = 'dead') THEN 'dead_letter' WHEN bool_or(attempts > 0) OR $4::boolean THEN 'failed' ELSE 'pending' END AS status,
			max(attempts) AS attempts, bool_or(attempts > 0 OR state = 'dead') AS charged,
			left(string_agg(sink || ': ' || last_error, '; ' ORDER BY sink) FILTER (WHERE attempts > 0 OR state = 'dead'), 2000) AS error
		FROM saga_outbox_delivery WHERE event_id = ` + id + ` AND NOT discarded AND sink <> '` + relay.MarkSink + `' HAVING count(*) > 0`
}

// heldAtOnce, freedAtOnce and freedOfKey bound what one transaction changes behind the entries that
// it is about.
const (
	heldAtOnce  = 10_000
	freedAtOnce = 10_000
	freedOfKey  = 1_000
)

// bounds are these; a test takes smaller ones.
type bounds struct{ held, freed, ofKey int }

// heldOf and freedOf are how many entries of a line are made held, and how many are to retry now,
// when so many lines are changed at once.
func (s *Store) heldOf(lines int) int  { return max(1, s.bounds.held/lines) }
func (s *Store) freedOf(lines int) int { return min(s.bounds.ofKey, max(10, s.bounds.freed/lines)) }

// lines are lines of the ledger, a column each.
type lines struct {
	seen      map[lineOf]int
	keys      []string
	hashes    []int32
	positions []int64 // of the first entry
}

func (l *lines) add(e *relay.Entry) {
	if l.seen == nil {
		l.seen = make(map[lineOf]int)
	}
	line := lineOf{key: e.Event.AggregateID}
	at, is := l.seen[line]
	if !is {
		l.seen[line] = len(l.keys)
		l.keys, l.hashes, l.positions = append(l.keys, line.key), append(l.hashes, int32(e.KeyHash)), append(l.positions, e.Position)
		return
	}
	l.positions[at] = min(l.positions[at], e.Position)
}

// Resolve implements relay.Ledger. Outcomes that fail for what may be the fault of one of them are
// written in halves; outcomes.go has what becomes of that one.
func (l *lease) Resolve(ctx context.Context, sink string, outcomes []relay.Outcome) error {
	if len(outcomes) == 0 {
		return nil
	}
	err := l.batched(ctx, "resolve "+sink, len(outcomes), func(lo, hi int) error {
		return l.writeOutcomes(ctx, sink, outcomes[lo:hi], whole, nil)
	}, func() error {
		return l.writeOutcomes(ctx, sink, outcomes, hollow, nil)
	}, func(lo, hi int, why error) error {
		for _, o := range outcomes[lo:hi] {
			if err := l.aloneOutcome(ctx, sink, o, why); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("resolve %d entries of sink %s: %w", len(outcomes), sink, err)
	}
	return nil
}

// parts is how much of outcomes is written.
type parts int

const (
	whole      parts = iota
	ledgerOnly       // not the rows
	entryOnly        // nor what is behind
	freeOnly         // only what is behind
	hollow           // all statements, and nothing for them to do
)

// writeOutcomes is one transaction of Resolve, with further entries.
func (l *lease) writeOutcomes(ctx context.Context, sink string, outcomes []relay.Outcome, what parts, more []relay.Mark) error {
	tx := l.resolution(sink, outcomes, what)
	if len(more) > 0 {
		var e entries
		e.gather(more)
		e.queue(tx, l)
	}
	return l.send(ctx, tx)
}

// resolution is the transaction that writes outcomes.
func (l *lease) resolution(sink string, outcomes []relay.Outcome, what parts) *fencedTx {
	var (
		out, delivered, dropped, charged, all uuids
		dead, detach                          []bool
		attempts                              []int32
		delays                                []float64
		reasons, errors                       []string
		refused, freed                        lines
	)
	for i := range outcomes {
		o := &outcomes[i]
		id := o.Entry.Event.ID
		all = append(all, id)
		switch o.Fate {
		case relay.FateDelivered:
			out, delivered = append(out, id), append(delivered, id)
		case relay.FateDropped:
			out, dropped = append(out, id), append(dropped, id)
		case relay.FateRefused, relay.FateDead:
			charged = append(charged, id)
			dead, detach = append(dead, o.Fate == relay.FateDead), append(detach, o.Fate == relay.FateDead && o.Detach)
			attempts, delays = append(attempts, int32(o.Attempts)), append(delays, o.Delay.Seconds())
			reasons, errors = append(reasons, string(o.Reason)), append(errors, l.store.storable(o.Error))
		}
		switch {
		case o.Entry.Detached: // nothing is held behind it
		case o.Fate == relay.FateRefused, o.Fate == relay.FateDead && !o.Detach:
			refused.add(o.Entry)
		default:
			freed.add(o.Entry)
		}
	}
	tx := l.fenced(fence{})
	if what == hollow {
		out, delivered, dropped, charged, all = uuids{}, uuids{}, uuids{}, uuids{}, uuids{}
		refused, freed, dead, attempts, delays, reasons, errors, detach = lines{}, lines{}, nil, nil, nil, nil, nil, nil
	}
	some := func(ids uuids) bool { return len(ids) > 0 || ids != nil && what == hollow }
	entry, behind, rows := what != freeOnly, what != entryOnly, what == whole || what == hollow
	if entry && some(out) {
		tx.queue(nil, takeOutSQL, out, l.slot, l.epoch, sink)
	}
	if entry && some(charged) {
		tx.queue(nil, chargeSQL, charged, l.slot, l.epoch, sink, dead, attempts, delays, reasons, errors, detach)
	}
	if behind && len(refused.keys) > 0 {
		tx.queue(nil, behindSQL, refused.keys, l.slot, l.epoch, sink, refused.hashes, refused.positions, l.store.heldOf(len(refused.keys)))
	}
	if behind && len(freed.keys) > 0 {
		tx.queue(nil, freeSQL, freed.keys, l.slot, l.epoch, sink, freed.hashes, l.store.freedOf(len(freed.keys)))
	}
	if rows && some(delivered) {
		tx.queue(nil, withoutEntries(l.store.deliveredSQL()), delivered, l.slot, l.epoch)
	}
	if rows && some(dropped) {
		tx.queue(nil, withoutEntries(giveUpSQL), dropped, l.slot, l.epoch)
		tx.queue(nil, givenUpSQL, dropped, l.slot, l.epoch)
	}
	if rows {
		tx.queue(nil, setStatusSQL, all, l.slot, l.epoch, l.store.cfg.Hybrid)
	}
	return tx
}
