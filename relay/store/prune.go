package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
)

// prunable is true for rows that were sent before an age of $2 seconds, and that are not to be
// delivered again.
var prunable = statusIs + ` = 'sent' AND created_at < clock_timestamp() - make_interval(secs => $2) AND (sent_at IS NULL OR sent_at < clock_timestamp() - make_interval(secs => $2)) AND ` + inNoLedger

// spared leaves out the rows that could not be removed.
func spared(n string) string {
	return ` AND NOT EXISTS (SELECT FROM unnest(` + n + `::uuid[]) AS r WHERE r = o.event_id)`
}

// ownedNow is owned without a lock: pruning must not delay marking, and what an owner of yesterday
// prunes is right, too.
const ownedNow = ` AND EXISTS (SELECT FROM saga_outbox_relay WHERE slot = $3 AND epoch = $4)`

var (
	// By the index on created_at, which has the oldest rows first. Those of them that were never
	// sent are passed over each time.
	oldestSQL = `SELECT o.event_id FROM saga_outbox o WHERE ` + prunable + ownedNow + spared(`$5`) + ` ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED`
	// Without such an index, by place: the pages from $5 to before $6.
	placeSQL = `SELECT o.event_id FROM saga_outbox o WHERE o.ctid >= $5::text::tid AND o.ctid < $6::text::tid AND ` + prunable + ownedNow + spared(`$7`) + ` LIMIT $1 FOR UPDATE SKIP LOCKED`
	// Of rows that were found, those that are still so.
	theseSQL = `SELECT o.event_id FROM saga_outbox o WHERE o.event_id = ANY($1::uuid[]) AND ` + prunable + ownedNow + ` FOR UPDATE SKIP LOCKED`
)

const (
	hasAgeIndexSQL = `SELECT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
		WHERE i.indrelid = 'saga_outbox'::regclass AND i.indisvalid AND i.indpred IS NULL AND a.attname = 'created_at' AND m.amname = 'btree')`
	pagesSQL = `SELECT pg_relation_size('saga_outbox') / current_setting('block_size')::bigint`

	// youngSQL is when the oldest sent row on some pages is old enough, in seconds from now.
	youngSQL = `SELECT coalesce(extract(epoch FROM min(greatest(created_at, sent_at)) - clock_timestamp())::float8 + $1::float8, 'infinity') FROM saga_outbox
		WHERE ctid >= $2::text::tid AND ctid < $3::text::tid AND status = 'sent' AND greatest(created_at, sent_at) > clock_timestamp() - make_interval(secs => $1)`
)

func pruneSQL(found string, archive bool) string {
	if archive {
		return `WITH gone AS (DELETE FROM saga_outbox WHERE event_id = ANY(ARRAY(` + found + `)) RETURNING *) INSERT INTO saga_outbox_archive OVERRIDING SYSTEM VALUE SELECT * FROM gone ON CONFLICT (event_id) DO NOTHING`
	}
	return `DELETE FROM saga_outbox WHERE event_id = ANY(ARRAY(` + found + `))`
}

// prunePages is how many pages of the table are read at a time.
const prunePages = 512

// pruning is the state of Prune.
type pruning struct {
	patience patience
	turn     relay.Turn // one walk at a time; whoever has it owns walked
	walked   walk
}

// walk is how far pruning by place has come.
type walk struct {
	page   int64         // where it goes on
	oldest time.Time     // when the first of the rows that were met and too young comes of age
	rest   time.Time     // not to begin again before
	took   time.Duration // for the pages before it
}

// Prune implements relay.Lease. Without an index on created_at it reads through the table's pages,
// and remembers its place from call to call. After the last page it waits until a row that it has
// met on the way is old enough, and for long enough that reading takes a hundredth of the time.
func (l *lease) Prune(ctx context.Context, age time.Duration, archive bool, limit int) (int, error) {
	var pruned int
	err := l.onConn(ctx, "prune", func(ctx context.Context, conn *pgx.Conn) error {
		var ours, indexed bool
		err := l.facts.within(ctx, func(ctx context.Context) error {
			return conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM saga_outbox_relay WHERE slot = $1 AND epoch = $2)`, l.slot, l.epoch).Scan(&ours)
		})
		if err != nil {
			return setup(err)
		}
		if !ours {
			return relay.ErrFenced
		}
		err = l.facts.within(ctx, func(ctx context.Context) error { return conn.QueryRow(ctx, hasAgeIndexSQL).Scan(&indexed) })
		if err != nil {
			return err
		}
		if indexed {
			pruned, err = l.prune(ctx, conn, oldestSQL, archive, limit, age.Seconds(), l.slot, l.epoch, l.left.notPrunable())
			return setup(err)
		}
		pruned, err = l.pruneByPlace(ctx, conn, age, archive, limit)
		return setup(err)
	})
	if err != nil {
		return pruned, fmt.Errorf("prune the table: %w", err)
	}
	return pruned, nil
}

// prune removes the rows that a query finds, by one statement. When that fails for what may be the
// fault of a row (another table refers to it, a trigger keeps it), it is tried in halves. The rows
// at fault are left out for an hour.
func (l *lease) prune(ctx context.Context, conn *pgx.Conn, found string, archive bool, args ...any) (pruned int, err error) {
	remove := func(found string, args ...any) error {
		n, err := l.remove(ctx, conn, pruneSQL(found, archive), args...)
		pruned += n
		return err
	}
	err = remove(found, args...)
	if err == nil || blames(ctx, err) != blameRow {
		return pruned, err
	}
	var (
		id  [16]byte
		ids uuids
	)
	looked := l.pruning.patience.within(ctx, func(ctx context.Context) error {
		return each(ctx, conn, []any{&id}, func() error { ids = append(ids, id); return nil }, found, args...)
	})
	if looked != nil {
		return pruned, looked
	}
	these := func(lo, hi int) error { return remove(theseSQL, append([]any{ids[lo:hi]}, args[1:4]...)...) }
	if probed := these(0, 0); probed != nil || len(ids) == 0 {
		return pruned, err
	}
	h := halving{
		write: these, left: halvingWrites, until: time.Now().Add(halvingFor), fault: func(err error) bool { return blames(ctx, err) == blameRow },
		refused: func(lo, hi int, why error) error {
			for _, id := range ids[lo:hi] {
				if err := l.left.refusesPrune(id); err != nil {
					return fmt.Errorf("%w: %w", err, why)
				}
			}
			l.logRefused(ids[lo:hi], why, "retention cannot remove a row: left out for an hour")
			return nil
		},
	}
	return pruned, h.run(0, len(ids))
}

// remove removes rows by one statement, whose snapshot is taken once no replay is half-way; see
// relay.ReplayLock.
func (l *lease) remove(ctx context.Context, conn *pgx.Conn, sql string, args ...any) (removed int, err error) {
	err = l.pruning.patience.within(ctx, func(ctx context.Context) error {
		var both pgx.Batch // one transaction, one round trip
		both.Queue(`SELECT pg_catalog.pg_advisory_xact_lock_shared($1::bigint)`, relay.ReplayLock)
		both.Queue(sql, args...)
		results := conn.SendBatch(ctx, &both)
		_, err := results.Exec()
		if err == nil {
			var tag pgconn.CommandTag
			tag, err = results.Exec()
			removed = int(tag.RowsAffected())
		}
		return errors.Join(err, results.Close())
	})
	return removed, err
}

func (l *lease) pruneByPlace(ctx context.Context, conn *pgx.Conn, age time.Duration, archive bool, limit int) (pruned int, err error) {
	if err := l.pruning.turn.Take(ctx); err != nil {
		return 0, err
	}
	defer l.pruning.turn.Give()
	w, began := &l.pruning.walked, time.Now()
	if w.page == 0 {
		if began.Before(w.rest) {
			return 0, nil
		}
		*w = walk{oldest: began.Add(age)}
	}
	var pages int64
	err = l.facts.within(ctx, func(ctx context.Context) error { return conn.QueryRow(ctx, pagesSQL).Scan(&pages) })
	if err != nil {
		return 0, err
	}
	for w.page < pages {
		from, to := fmt.Sprintf("(%d,0)", w.page), fmt.Sprintf("(%d,0)", w.page+prunePages)
		n, err := l.prune(ctx, conn, placeSQL, archive, limit-pruned, age.Seconds(), l.slot, l.epoch, from, to, l.left.notPrunable())
		if err != nil {
			return pruned, err
		}
		pruned += n
		if pruned >= limit {
			w.took += time.Since(began)
			return pruned, nil
		}
		var young float64
		err = l.pruning.patience.within(ctx, func(ctx context.Context) error {
			return conn.QueryRow(ctx, youngSQL, age.Seconds(), from, to).Scan(&young)
		})
		if err != nil {
			return pruned, err
		}
		if at := time.Now().Add(time.Duration(min(young, age.Seconds()) * float64(time.Second))); at.Before(w.oldest) {
			w.oldest = at
		}
		w.page += prunePages
	}
	w.took += time.Since(began)
	w.rest = w.oldest
	if least := time.Now().Add(100 * w.took); w.rest.Before(least) {
		w.rest = least
	}
	w.page = 0
	return pruned, nil
}
