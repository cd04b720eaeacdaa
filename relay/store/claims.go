package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// claimPrefix begins the worker_id of every claim that an owner of this slot makes; the epoch and
// WORKER_ID follow.
func (l *lease) claimPrefix() string { return "sagaz-relay/" + l.slot + "/" }

// ofOwners is true of a row that was claimed by an owner of this slot, or of a slot that this one
// has inherited from. Claims of this slot begin with the parameter.
func ofOwners(prefix string) string {
	return `(starts_with(worker_id, ` + prefix + `) OR EXISTS (SELECT FROM saga_outbox_relay r WHERE r.heir IS NOT NULL AND starts_with(worker_id, 'sagaz-relay/' || r.slot || '/')))`
}

// claimant is the worker_id of this lease's claims.
func (l *lease) claimant() string {
	const longest = 255 // the column's, in characters
	name := []rune(fmt.Sprintf("%s%d/%s", l.claimPrefix(), l.epoch, l.store.storable(l.store.cfg.Owner)))
	return string(name[:min(len(name), longest)])
}

// lookUpSQL reads the status of rows. The library's worker sets "failed" for a moment before
// "pending" or "dead_letter", with its claim still on the row. A refusal of ours is on a row
// without a claim. $2 is the prefix of our own claims.
var lookUpSQL = `SELECT event_id, CASE WHEN status = 'failed' AND worker_id IS NOT NULL THEN 'claimed' ELSE status END, coalesce(worker_id, ''),
	coalesce(` + ofOwners(`$2`) + `, false), coalesce(extract(epoch FROM claimed_at - clock_timestamp())::float8, '-infinity')
	FROM saga_outbox WHERE event_id = ANY($1::uuid[])`

const inLedgerSQL = `SELECT DISTINCT event_id FROM saga_outbox_delivery WHERE event_id = ANY($1::uuid[])`

// claimSQL claims rows that are free: pending, or claimed by a worker that is dead, or by an owner
// of this slot. A failed row is free when the table was searched for such rows ($7), which finds
// only those without an entry. A locked row is about to change, so it is skipped.
var claimSQL = `WITH free AS (SELECT event_id FROM saga_outbox o WHERE event_id = ANY($1::uuid[])
		AND (` + statusIs + ` = 'pending' OR (` + statusIs + ` = 'claimed' OR ` + statusIs + ` = 'failed' AND worker_id IS NOT NULL)
				AND (claimed_at IS NULL OR claimed_at < clock_timestamp() - make_interval(secs => $4) OR ` + ofOwners(`$5`) + `)
			OR ` + statusIs + ` = 'failed' AND worker_id IS NULL AND event_id = ANY($7::uuid[]))
		AND ` + inNoLedger + `
		FOR UPDATE SKIP LOCKED)
	UPDATE saga_outbox o SET status = 'claimed', claimed_at = clock_timestamp(), worker_id = $6 WHERE o.event_id = ANY(ARRAY(SELECT event_id FROM free))` + owned + ` RETURNING o.event_id`

// Settled implements relay.Lease. A row that is not there was deleted or archived by its mark, or
// by a person. If its transaction is still invisible, as in Mark, it is not settled. In hybrid mode
// such a row cannot be claimed yet, and is waited for as if another worker had claimed it.
func (l *lease) Settled(ctx context.Context, events []relay.Event) ([]bool, error) {
	claimed, err := l.claim(ctx, events)
	if err != nil {
		return nil, fmt.Errorf("claim %d events: %w", len(events), err)
	}
	var settled []bool
	looking, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	err = l.with(looking, func(ctx context.Context, conn *pgx.Conn) error {
		running, err := takeSnapshot(ctx, conn)
		if err != nil {
			return err
		}
		settled, err = l.lookUp(ctx, conn, events, claimed, running)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look up %d events: %w", len(events), err)
	}
	return settled, nil
}

// claim makes ours, in hybrid mode, what is free of the events' rows. A row that refuses its claim
// counts as ours: another worker cannot claim it either, and it will be parked when it refuses its
// mark.
func (l *lease) claim(ctx context.Context, events []relay.Event) (map[relay.UUID]bool, error) {
	if !l.store.cfg.Hybrid {
		return nil, nil
	}
	claimed := make(map[relay.UUID]bool, len(events))
	err := l.batched(ctx, "claim", len(events), func(lo, hi int) error {
		return l.claimPart(ctx, events[lo:hi], claimed)
	}, func() error {
		return l.claimPart(ctx, nil, claimed)
	}, func(lo, hi int, why error) error {
		ids := make(uuids, 0, hi-lo)
		for i := range events[lo:hi] {
			ids = append(ids, events[lo+i].ID)
			claimed[events[lo+i].ID] = true
		}
		l.logRefused(ids, why, "a row cannot be claimed: delivered without a claim")
		return nil
	})
	return claimed, err
}

func (l *lease) claimPart(ctx context.Context, events []relay.Event, claimed map[relay.UUID]bool) error {
	ids, swept := uuids{}, uuids{}
	for i := range events {
		if l.left.has(events[i].ID) {
			continue
		}
		ids = append(ids, events[i].ID)
		if events[i].CommitLSN == 0 {
			swept = append(swept, events[i].ID)
		}
	}
	var id [16]byte
	tx := l.fenced(fence{})
	tx.query([]any{&id}, func() error { claimed[id] = true; return nil },
		claimSQL, ids, l.slot, l.epoch, l.store.cfg.ClaimTimeout.Seconds(), l.claimPrefix(), l.claimant(), swept)
	return l.send(ctx, tx)
}

// lookUp returns which events are settled. It returns an error while other workers' claims are
// fresh.
func (l *lease) lookUp(ctx context.Context, conn *pgx.Conn, events []relay.Event, claimed map[relay.UUID]bool, running snapshot) ([]bool, error) {
	var (
		ids    = make(uuids, len(events))
		parked = make(map[relay.UUID]bool)
		found  = make(map[relay.UUID]string, len(events))
		others relay.ClaimedError
		id     [16]byte
	)
	for i := range events {
		ids[i] = events[i].ID
		if l.left.has(ids[i]) {
			parked[ids[i]] = true
		}
	}
	rows, err := conn.Query(ctx, inLedgerSQL, ids)
	if err != nil {
		return nil, err
	}
	if _, err := pgx.ForEachRow(rows, []any{&id}, func() error { parked[id] = true; return nil }); err != nil {
		return nil, err
	}
	waitFor := func(worker string, left time.Duration) {
		others.Rows++
		others.Worker = worker
		others.AtMost = max(others.AtMost, left.Round(time.Millisecond))
	}
	var (
		status, worker string
		ours           bool
		age            float64 // of the claim; seconds, negative
	)
	if rows, err = conn.Query(ctx, lookUpSQL, ids, l.claimPrefix()); err != nil {
		return nil, err
	}
	_, err = pgx.ForEachRow(rows, []any{&id, &status, &worker, &ours, &age}, func() error {
		found[id] = status
		left := l.store.cfg.ClaimTimeout.Seconds() + age
		switch {
		case claimed[id] || parked[id]:
		case status == "claimed" && !ours && left > 0:
			waitFor(worker, time.Duration(left*float64(time.Second)))
		case l.store.cfg.Hybrid && (status == "pending" || status == "claimed"): // it was locked
			if l.left.longUnclaimed(id) { // not by a worker that claims: that takes a moment
				claimed[id] = true
				return nil
			}
			waitFor(worker, l.store.cfg.ClaimTimeout)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	settled := make([]bool, len(events))
	for i := range events {
		s, visible := found[events[i].ID]
		switch {
		case claimed[events[i].ID]:
		case parked[events[i].ID]:
			settled[i] = true
		case visible:
			settled[i] = s == "sent" || s == "dead_letter" || s == "failed"
		default:
			settled[i] = !running.hides(events[i].XID)
			if l.store.cfg.Hybrid && !settled[i] {
				waitFor("", l.store.cfg.ClaimTimeout)
			}
		}
	}
	if others.Rows > 0 {
		return nil, &others
	}
	l.left.claimed(events)
	return settled, nil
}
