package store

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sagaz-relay/relay/relay"
)

const (
	// blockingSQL counts by some bits of the hash, so the answer has an end, whatever the
	// ledger.
	blockingSQL = `SELECT sink, key_hash & $2::int, count(*), count(*) FILTER (WHERE NOT detached) FROM saga_outbox_delivery WHERE slot = $1 GROUP BY 1, 2`
	countsSQL   = `SELECT sink, state, count(*), min(coalesce(event_at, parked_at)) FROM saga_outbox_delivery WHERE slot = $1 GROUP BY 1, 2 ORDER BY 1, 2`
)

// dueSQL returns the entries that may be offered, in three turns: so entries of one kind never wait
// for the end of a long list of another kind. First: entries whose next attempt is due, if nothing
// of their line is in front of them. Second: entries that a person has discarded, wherever they
// are. Third: entries to retry now, by position. An entry of the third turn with something blocking
// in front of it has hold set, and must become held instead of being offered. No line has entries
// in both the first and the third turn. A row that is missing is still to appear (hidden) while
// this statement's snapshot does not see the transaction that inserted it. Otherwise the row is
// gone. The column size is what the row's large columns take on disk.
var dueSQL = `SELECT d.event_id, d.position, d.partition_key, d.key_hash, d.attempts, d.detached, d.replayed_at, d.discarded, d.hold,
		o.event_id IS NULL, coalesce(o.event_id IS NULL AND NOT pg_visible_in_snapshot(d.xid, pg_current_snapshot()), false),
		coalesce(pg_column_size(o.payload) + pg_column_size(o.headers), 0)
	FROM (SELECT *, 3 AS turn, NOT detached AND ` + anyInFront(blocking, "r") + ` AS hold
			FROM (SELECT * FROM saga_outbox_delivery WHERE slot = $1 AND sink = $2 AND state = 'retry' AND next_attempt_at IS NULL AND NOT discarded ORDER BY position LIMIT $3) r
		UNION ALL
		(SELECT *, 1, false FROM saga_outbox_delivery r WHERE slot = $1 AND sink = $2 AND state = 'retry' AND next_attempt_at <= (SELECT clock_timestamp()) AND NOT discarded
			AND (detached OR NOT ` + anyInFront(blocking, "r") + ` AND NOT ` + anyInFront(retryNow, "r") + `) ORDER BY next_attempt_at LIMIT $3)
		UNION ALL
		(SELECT *, 2, false FROM saga_outbox_delivery WHERE slot = $1 AND sink = $2 AND discarded ORDER BY position LIMIT $3)) d
	LEFT JOIN LATERAL (SELECT event_id, payload, headers FROM saga_outbox WHERE event_id = d.event_id OFFSET 0) o ON true
	ORDER BY d.turn, d.position`

// nextSQL is the time until the first next attempt that is not due yet, in seconds; no row when
// there is no such entry.
const nextSQL = `SELECT extract(epoch FROM next_attempt_at - clock_timestamp())::float8 FROM saga_outbox_delivery
	WHERE slot = $1 AND sink = $2 AND state = 'retry' AND next_attempt_at > (SELECT clock_timestamp()) AND NOT discarded ORDER BY next_attempt_at LIMIT 1`

// holdAgainSQL makes those held for which dueSQL has set hold, if that is still so.
var holdAgainSQL = `UPDATE saga_outbox_delivery d SET state = 'held' WHERE d.event_id = ANY(ARRAY(
		SELECT i FROM unnest($1::uuid[]) AS i CROSS JOIN LATERAL (` + entryAt("i", "$4") + `) r
		WHERE r.slot = $2 AND r.state = 'retry' AND r.next_attempt_at IS NULL AND NOT r.detached AND ` + anyInFront(blocking, "r") + `))
	AND d.sink = $4` + owned

// invisibleSoon is when to ask again for entries whose rows are not visible yet.
const invisibleSoon = 50 * time.Millisecond

// LastPosition implements relay.Ledger. Epochs only grow, also over a change of the slot's name, so
// each owner's positions are past those of all before it, without a look at the ledger. Forty bits
// are thirty years at 1,000 events a second.
func (l *lease) LastPosition() int64 { return l.epoch << 40 }

// Blocking implements relay.Ledger. It reads the whole ledger once, on a connection of its own.
// Five million entries take some seconds of the server's time. Hundreds of millions take some
// minutes, which is logged while it lasts. f must not call the lease.
func (l *lease) Blocking(ctx context.Context, mask uint32, f func(sink string, bucket uint32, entries, blocking int)) error {
	began := time.Now()
	progress := time.NewTicker(progressEvery)
	done := make(chan struct{})
	var logging sync.WaitGroup
	logging.Go(func() {
		defer progress.Stop()
		for {
			select {
			case <-progress.C:
				l.log.Info("reading the ledger: nothing is delivered before that has ended", "for", time.Since(began).Round(time.Second))
			case <-done:
				return
			}
		}
	})
	defer logging.Wait()
	defer close(done)
	var (
		sink              string
		bucket            int32
		entries, blocking int
	)
	dest := []any{&sink, &bucket, &entries, &blocking}
	err := l.whole(ctx, "ledger read", dest, func() error { f(sink, uint32(bucket), entries, blocking); return nil }, blockingSQL, l.slot, int32(mask))
	if err != nil {
		return fmt.Errorf("read the ledger of slot %q: %w", l.slot, err)
	}
	return nil
}

// Counts implements relay.Ledger.
func (l *lease) Counts(ctx context.Context) ([]relay.LedgerCount, error) {
	var (
		counts []relay.LedgerCount
		c      relay.LedgerCount
	)
	err := l.whole(ctx, "count", []any{&c.Sink, &c.State, &c.N, &c.Oldest}, func() error { counts = append(counts, c); return nil }, countsSQL, l.slot)
	if err != nil {
		return nil, fmt.Errorf("count the ledger of slot %q: %w", l.slot, err)
	}
	return counts, nil
}

// ledgerMost bounds what reads the whole ledger. A server that is gone is noticed much earlier, by
// its silence.
const ledgerMost = 10 * time.Minute

// whole calls f for each row of a query that reads the whole ledger, on a connection for a purpose.
// That may take long: what is due in another slot does not wait for it. Nor does the one look for
// which deliveries wait, after a slot was taken, wait for counts.
func (l *lease) whole(ctx context.Context, purpose string, dest []any, f func() error, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, ledgerMost)
	defer cancel()
	return l.onConn(ctx, purpose, func(ctx context.Context, conn *pgx.Conn) error { return each(ctx, conn, dest, f, sql, args...) })
}

// each calls f for each row of a query, on a connection that marks do not use.
func (l *lease) each(ctx context.Context, dest []any, f func() error, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	return l.onConn(ctx, "ledger", func(ctx context.Context, conn *pgx.Conn) error { return look(ctx, conn, dest, f, sql, args...) })
}

func each(ctx context.Context, conn *pgx.Conn, dest []any, f func() error, sql string, args ...any) error {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, dest, f)
	return err
}

// found is an entry as dueSQL returns it.
type found struct {
	relay.Entry
	key          string
	hold, hidden bool
	size         int
}

// Due implements relay.Ledger.
func (l *lease) Due(ctx context.Context, sink string, limit, maxBytes int) (due []relay.Entry, next time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	err = l.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		// A refusal makes what is behind it held, some thousands at a time. The others are met
		// here, and become held then.
		for range 10 {
			all, held, err := l.due(ctx, conn, sink, limit+l.left.unwrittenOf(sink))
			if err != nil {
				return err
			}
			if err := l.holdAgain(ctx, conn, sink, held); err != nil {
				return err
			}
			all = l.left.offerable(sink, all)
			if len(all) == 0 && len(held) > 0 {
				continue
			}
			due, next, err = l.offer(ctx, conn, sink, all, maxBytes)
			return err
		}
		next = 0
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("read what is due for sink %s: %w", sink, err)
	}
	return due, next, nil
}

// holdAgain makes entries held. One that the database does not let us change is met again; it is
// not offered either way.
func (l *lease) holdAgain(ctx context.Context, conn *pgx.Conn, sink string, held uuids) error {
	h := halving{
		left: remarkWrites, until: time.Now().Add(halvingFor), fault: func(err error) bool { return blames(ctx, err) == blameRow },
		write: func(lo, hi int) error {
			tx := l.fenced(fence{})
			tx.queue(nil, holdAgainSQL, held[lo:hi], l.slot, l.epoch, sink)
			return tx.run(ctx, conn)
		},
		refused: func(int, int, error) error { return nil },
	}
	return h.run(0, len(held))
}

// due reads the entries that may be offered, and apart from them those that have to be held.
func (l *lease) due(ctx context.Context, conn *pgx.Conn, sink string, limit int) (all []found, held uuids, err error) {
	var (
		f    found
		id   [16]byte
		hash int32
		at   pgtype.Timestamptz
	)
	dest := []any{&id, &f.Position, &f.key, &hash, &f.Attempts, &f.Detached, &at, &f.Discarded, &f.hold, &f.Gone, &f.hidden, &f.size}
	err = look(ctx, conn, dest, func() error {
		f.Event.ID, f.KeyHash, f.ReplayedAt = id, uint32(hash), at.Time
		if f.hold {
			held = append(held, f.Event.ID)
		} else {
			all = append(all, f)
		}
		return nil
	}, dueSQL, l.slot, sink, limit)
	return all, held, err
}

// offer makes entries of what may be offered: it reads their rows, as many as fit.
func (l *lease) offer(ctx context.Context, conn *pgx.Conn, sink string, all []found, maxBytes int) (due []relay.Entry, next time.Duration, err error) {
	next = -1
	var until float64
	err = look(ctx, conn, []any{&until}, func() error { next = max(0, time.Duration(until*float64(time.Second))); return nil }, nextSQL, l.slot, sink)
	if err != nil {
		return nil, 0, err
	}
	invisible := make(map[string]bool) // keys of which one has to be waited for
	all = slices.DeleteFunc(all, func(f found) bool {
		if f.hidden {
			invisible[f.key] = true
			if next < 0 || next > invisibleSoon {
				next = invisibleSoon
			}
		}
		return f.hidden || !f.Detached && invisible[f.key]
	})
	for bytes := 0; len(all) > 0 && (bytes < maxBytes || len(due) == 0); {
		n, stored := 0, 0
		for n < len(all) && n < pieceRows && (n == 0 || stored+all[n].size <= pieceBytes) {
			stored += all[n].size
			n++
		}
		rows, unread, err := l.rowsOf(ctx, conn, all[:n], maxBytes)
		if err != nil {
			return nil, 0, err
		}
		for i := range all[:n] {
			e := &all[i].Entry
			if unread[e.Event.ID] {
				return due, next, nil
			}
			e.Event.AggregateID = all[i].key
			if ev, is := rows[e.Event.ID]; is {
				if bytes += ev.Size(); bytes > maxBytes && len(due) > 0 {
					return due, next, nil
				}
				e.Event = ev
				// Whatever the row has by now: this is the line in which others are held behind it.
				e.Event.AggregateID = all[i].key
			} else if !e.Discarded {
				e.Gone = true
			}
			due = append(due, *e)
		}
		all = all[n:]
	}
	return due, next, nil
}

// rowsOf reads the rows of entries that will be offered, in order and as many as fit; unread are
// the others.
func (l *lease) rowsOf(ctx context.Context, conn *pgx.Conn, all []found, maxBytes int) (rows map[relay.UUID]relay.Event, unread map[relay.UUID]bool, err error) {
	ids := make(uuids, 0, len(all))
	for i := range all {
		if !all[i].Gone && !all[i].Discarded {
			ids = append(ids, all[i].Event.ID)
		}
	}
	rows = make(map[relay.UUID]relay.Event, len(ids))
	if len(ids) == 0 {
		return rows, nil, nil
	}
	events, n, err := l.readRows(ctx, conn, ids, maxBytes, func(ids uuids) (string, []any) { return rowsSQL, []any{ids, l.store.cfg.MaxEventBytes} })
	for i := range events {
		rows[events[i].ID] = events[i]
	}
	for _, id := range ids[n:] {
		if unread == nil {
			unread = make(map[relay.UUID]bool)
		}
		unread[id] = true
	}
	return rows, unread, err
}
