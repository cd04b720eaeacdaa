package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// sweepKeys is how many rows a sweep notes in one look at the table. A key is 48 bytes here.
const sweepKeys = 100_000

// sweepBytes is about how much one call of a sweep's f gets.
const sweepBytes = 1 << 20

// wanted is what each kind of sweep looks for. $1 is STUCK_CLAIM_TIMEOUT_SECONDS, $2 begins the
// worker_id of the claims of our slot's owners, $3 that of this very owner's.
var wanted = map[relay.SweepKind]string{
	relay.SweepPending: `status = 'pending' AND $1::float8 IS NOT NULL AND $2::text IS NOT NULL AND $3::text IS NOT NULL`,
	relay.SweepClaimed: `status = 'claimed' AND claimed_at IS NOT NULL AND (claimed_at < clock_timestamp() - make_interval(secs => $1)
		OR ` + ofOwners(`$2`) + ` AND NOT starts_with(worker_id, $3))`,
	relay.SweepFailed: `status = 'failed' AND (worker_id IS NULL OR claimed_at IS NULL OR claimed_at < clock_timestamp() - make_interval(secs => $1)) AND $2::text IS NOT NULL AND $3::text IS NOT NULL`,
}

// inNoLedger is true for rows without entries.
var inNoLedger = `NOT ` + hasEntries("o.event_id", ``)

// keysSQL finds the rows of one kind, sorts them, and returns the first after a place. They are
// found first and sorted after (MATERIALIZED). Otherwise the planner would walk the index on
// created_at, through millions of sent rows, in the hope of finding the first few soon.
//
// A row version is seen in the snapshot $4 when the transaction that wrote it, xmin, is visible
// there. The column has the lower half of a transaction id; the upper half is such that the id lies
// before the end of our own snapshot. It may also be the id of a subtransaction (a savepoint),
// which a snapshot does not list. That id is higher than its transaction's. Some transactions that
// the snapshot has as running have committed since. What was written after one of them began may be
// its savepoint's, and does not count as seen, unless $5.
//
// Rows with one created_at are sorted by the command that made them, cmin. That is in the same
// place as xmax's command, so an update that was rolled back leaves its own number there. Where a
// row of a transaction has an xmax, its rows are sorted by their place in the table.
//
// Rows in the ledger are left out, but for pending ones with a dead entry, which are returned as
// such. A dead letter has status dead_letter, so a person has set such a row back to pending.
func keysSQL(shard relay.Shard, kind relay.SweepKind, since bool) string {
	window := `$6::timestamptz IS NULL`
	if since {
		window = `created_at >= $6::timestamptz`
	}
	parked := `l.dead IS NULL`
	if kind == relay.SweepPending {
		parked = `l.dead IS DISTINCT FROM false`
	}
	return `WITH now AS (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1 AS last),
		ended AS (SELECT min(x::text::bigint) AS first FROM pg_snapshot_xip($4::text::pg_snapshot) AS x WHERE NOT $5::boolean AND pg_xact_status(x) IS DISTINCT FROM 'in progress' AND pg_xact_status(x) IS DISTINCT FROM 'aborted'),
		asking AS MATERIALIZED (SELECT coalesce(created_at::timestamptz, '2000-01-01 00:00:00+00') AS created_at, cmin::text::bigint AS command, xmax::text <> '0' AS touched, ctid AS place, event_id,
				coalesce(pg_column_size(payload), 0) + coalesce(pg_column_size(headers), 0) AS size, xmin::text::bigint AS xmin FROM saga_outbox
			WHERE ` + wanted[kind] + ` AND ` + window + andOf(shard) + `),
		ordered AS (SELECT created_at, CASE WHEN bool_or(touched) OVER (PARTITION BY created_at) THEN 0 ELSE command END AS command, place, event_id, size, xmin FROM asking),
		seen AS MATERIALIZED (SELECT a.created_at, a.command, a.place, a.event_id, a.size, now.last - (((now.last - a.xmin) % 4294967296) + 4294967296) % 4294967296 AS xid FROM ordered a, now
			WHERE $7::timestamptz IS NULL OR (a.created_at, a.command, a.place) > ($7, $8::bigint, $9::text::tid))
		SELECT o.created_at, o.command, o.place::text, o.event_id, o.size, l.dead IS NOT NULL FROM seen o LEFT JOIN ended ON true
			LEFT JOIN LATERAL (SELECT bool_or(d.state = 'dead' AND NOT d.discarded) AND NOT bool_or(d.sink = '` + relay.MarkSink + `') AS dead FROM saga_outbox_delivery d WHERE d.event_id = o.event_id) l ON true
			WHERE ` + parked + `
			AND ($4 IS NULL OR o.xid < 3 OR pg_visible_in_snapshot(o.xid::text::xid8, $4::text::pg_snapshot) AND (ended.first IS NULL OR o.xid < ended.first))
		ORDER BY o.created_at, o.command, o.place LIMIT $10`
}

// pieceSQL reads rows that are still of that kind.
func pieceSQL(shard relay.Shard, kind relay.SweepKind) string {
	return strings.Replace(eventSQL("$5::int8"), `FROM saga_outbox o`, `FROM (SELECT * FROM saga_outbox WHERE event_id = ANY($4::uuid[]) OFFSET 0) o`, 1) + ` WHERE ` + wanted[kind] + andOf(shard) + ` AND ` + inNoLedger + ` ORDER BY array_position($4::uuid[], event_id)`
}

// reviveSQL sets dead entries back to retry now, as if they had never been refused.
const reviveSQL = `UPDATE saga_outbox_delivery SET state = 'retry', next_attempt_at = NULL, attempts = 0 WHERE event_id = ANY($1::uuid[]) AND slot = $2 AND state = 'dead' AND NOT discarded` + owned

// sweepKey is a row that a sweep has noted.
type sweepKey struct {
	id   relay.UUID
	at   timestamp
	size int
	// By default a transaction gives one created_at to all its rows. Rows with one created_at are
	// in the order of their insertion: by the number of the command in the transaction, then by
	// place. A row that was updated since has those of the update.
	command int64
	place   string
}

// Sweep implements relay.Sweeper. With the snapshot that SweepFrom has noted, Seen is taken
// generously: rows that may have been visible in it are among those found. The slot is read
// afterwards, and its rows that are settled by then are dropped. With any other snapshot it is
// taken strictly: what may not have been visible is left for a later sweep, because the stream may
// be delivering it.
func (l *lease) Sweep(ctx context.Context, q relay.SweepQuery, f func([]relay.Event) error) error {
	err := l.sweep(ctx, q, f)
	var stop *stopped
	switch {
	case errors.As(err, &stop):
		return stop.err
	case err != nil:
		return fmt.Errorf("sweep the table for slot %q: %w", l.slot, err)
	}
	return nil
}

// backlogSQL counts the rows that a sweep would find, up to $1.
func backlogSQL(shard relay.Shard) string {
	return `SELECT count(*) FROM (SELECT FROM saga_outbox o WHERE status = 'pending'` + andOf(shard) + ` AND ` + inNoLedger + ` LIMIT $1) p`
}

// Backlog implements relay.Sweeper.
func (l *lease) Backlog(ctx context.Context, limit int) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	err = l.onConn(ctx, "count", func(ctx context.Context, conn *pgx.Conn) error {
		return each(ctx, conn, []any{&n}, func() error { return nil }, backlogSQL(l.shard), limit)
	})
	if err != nil {
		return 0, fmt.Errorf("count the rows of slot %q: %w", l.slot, err)
	}
	return n, nil
}

// stopped carries an error of Sweep's f.
type stopped struct{ err error }

func (s *stopped) Error() string { return s.err.Error() }

// sweeps runs a statement of a sweep in its time. The connection is given back after each, because
// f may take as long as the budget in flight is spent, and other slots have to sweep, too.
func (l *lease) sweeps(ctx context.Context, p *patience, f func(context.Context, *pgx.Conn) error) error {
	return l.onConn(ctx, "sweep", func(ctx context.Context, conn *pgx.Conn) error {
		return p.within(ctx, func(ctx context.Context) error { return f(ctx, conn) })
	})
}

func (l *lease) sweep(ctx context.Context, q relay.SweepQuery, f func([]relay.Event) error) error {
	var (
		cfg      = &l.store.cfg
		kind     = []any{cfg.ClaimTimeout.Seconds(), l.claimPrefix(), fmt.Sprintf("%s%d/", l.claimPrefix(), l.epoch)}
		seen     = null(q.Seen)
		since    = (*timestamp)(null(q.Since))
		noted    = l.owedSnapshot.Load()
		generous = noted != nil && *noted == q.Seen
		after    sweepKey // where the last look ended
		looked   bool
	)
	var before string // a snapshot from before the first look
	looking := &l.sweeping.whole
	if q.Since != 0 {
		looking = &l.sweeping.window
	}
	if q.Seen == "" {
		err := l.sweeps(ctx, &l.facts, func(ctx context.Context, conn *pgx.Conn) error {
			return conn.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&before)
		})
		if err != nil {
			return err
		}
	}
	for {
		var (
			keys []sweepKey
			dead uuids
			k    sweepKey
			id   [16]byte
			back bool
			n    int
		)
		err := l.sweeps(ctx, looking, func(ctx context.Context, conn *pgx.Conn) error {
			return each(ctx, conn, []any{&k.at, &k.command, &k.place, &id, &k.size, &back}, func() error {
				n++
				k.id = id
				switch {
				case l.left.has(id): // done, and neither its row nor the ledger shows it
				case back:
					dead = append(dead, id)
				default:
					keys = append(keys, k)
				}
				return nil
			}, keysSQL(l.shard, q.Kind, since != nil), append(kind[:3:3], seen, generous, since, only(looked, after.at), after.command, only(looked, after.place), sweepKeys)...)
		})
		if err != nil {
			return err
		}
		if len(dead) > 0 {
			if err := l.revive(ctx, dead); err != nil {
				return err
			}
		}
		if n == 0 {
			return nil
		}
		full := n == sweepKeys
		after, looked = k, true
		// So that it ends, however fast rows arrive, and finds of each key what is first.
		if q.Seen == "" {
			seen, generous = &before, true
		}
		for limit := pieceRows; len(keys) > 0; {
			if keys, err = l.piece(ctx, q.Kind, kind, keys, &limit, f); err != nil {
				return err
			}
		}
		if !full {
			return nil
		}
	}
}

// revive gives dead letters, whose rows a person has set back to pending, to the ledger's retries.
// An entry that does not let itself be changed stays dead.
func (l *lease) revive(ctx context.Context, ids uuids) error {
	return l.batched(ctx, "revive", len(ids), func(lo, hi int) error {
		tx := l.fenced(fence{})
		tx.queue(nil, reviveSQL, ids[lo:hi], l.slot, l.epoch)
		return l.send(ctx, tx)
	}, func() error {
		tx := l.fenced(fence{})
		tx.queue(nil, reviveSQL, uuids{}, l.slot, l.epoch)
		return l.send(ctx, tx)
	}, func(lo, hi int, why error) error {
		l.logRefused(ids[lo:hi], why, "a dead letter cannot be set back to retry")
		return nil
	})
}

// piece reads the rows of the first keys and gives to f what fits. It returns the keys that are
// left. At most limit are taken, which it adapts to how large rows are. What does not fit is read
// again, so that it is fresh when its turn comes.
func (l *lease) piece(ctx context.Context, kind relay.SweepKind, args []any, keys []sweepKey, limit *int, f func([]relay.Event) error) ([]sweepKey, error) {
	stored := 0
	ids := make(uuids, 0, min(len(keys), *limit))
	for n := 0; n < len(keys) && n < *limit && (n == 0 || stored+keys[n].size <= pieceBytes); n++ {
		ids = append(ids, keys[n].id)
		stored += keys[n].size
	}
	var (
		events []relay.Event
		n      int
	)
	err := l.sweeps(ctx, &l.sweeping.piece, func(ctx context.Context, conn *pgx.Conn) (err error) {
		events, n, err = l.readRows(ctx, conn, ids, sweepBytes, func(ids uuids) (string, []any) {
			return pieceSQL(l.shard, kind), append(args[:3:3], ids, l.store.cfg.MaxEventBytes)
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	*limit = min(2**limit, pieceRows)
	if n < len(ids) {
		*limit = n
	}
	if len(events) > 0 {
		if err := f(events); err != nil {
			return nil, &stopped{err}
		}
	}
	return keys[n:], nil
}

// only is a parameter that is NULL unless it counts.
func only[T any](counts bool, v T) *T {
	if !counts {
		return nil
	}
	return &v
}

// null is a parameter that is NULL for the zero value.
func null[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
