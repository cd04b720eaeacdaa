package repair

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
)

// Bounds of one transaction. It has the lock on the slot's row, which the owner's marks and the
// renewal of its lease wait for.
const (
	batchSize   = 1000
	lockTimeout = 500 * time.Millisecond
	// busyTries is how often a batch is tried whose rows another session has locked.
	busyTries = 8
)

// Done counts what a command changed, by sink.
type Done struct {
	Sinks map[string]int `json:"sinks"`
	// Passed are letters that were chosen and left as they are: changed meanwhile, by a relay or
	// otherwise.
	Passed int `json:"passed"`
	// Locked are those whose rows were locked all the time; the command may be run again for them.
	Locked int `json:"locked"`
}

// N is the number of letters that were changed.
func (d *Done) N() int {
	n := 0
	for _, k := range d.Sinks {
		n += k
	}
	return n
}

// ErrHeld is returned when Retry is asked for held letters.
var ErrHeld = errors.New("held events go out by themselves, in order, when the one before them is retried or discarded")

// Retry has letters offered again. A dead one (or one that was discarded and not deleted yet) is to
// be retried now, and its attempts begin at zero. One that has a next attempt is due now. What is
// held behind one of them follows by itself, in order. A row without an entry is pending again, for
// a relay to find. hybrid is engine.Config.Hybrid.
func Retry(ctx context.Context, conn *pgx.Conn, f Filter, hybrid bool) (*Done, error) {
	f, err := ToRetry(f)
	if err != nil {
		return nil, err
	}
	return change(ctx, conn, f, hybrid, retryEntriesSQL, retryRowsSQL)
}

// Discard gives letters up: the slot's owner deletes their entries, and what is held behind them
// goes on. Their rows stay dead letters, and last_error begins with that they were discarded.
func Discard(ctx context.Context, conn *pgx.Conn, f Filter, hybrid bool) (*Done, error) {
	return change(ctx, conn, ToDiscard(f), hybrid, discardEntriesSQL, discardRowsSQL)
}

const (
	// Written like the statements in relay/store/order.go: whatever the planner's statistics say,
	// there is one way to find the entries. The lock of the slot's row keeps them in their places.
	// One that changes all the same, by a person's SQL, is passed.
	chosen = `FROM unnest($1::uuid[], $2::text[]) AS c (event_id, sink)
			CROSS JOIN LATERAL (SELECT e.ctid AS place FROM saga_outbox_delivery e WHERE e.event_id = c.event_id AND e.sink = c.sink OFFSET 0) e WHERE d.ctid = e.place`

	// An entry with a next attempt keeps one, which is due now: of one key, all behind it stay held
	// (relay.Ledger).
	retryEntriesSQL = `UPDATE saga_outbox_delivery d SET
			state = CASE d.state WHEN 'held' THEN 'held' ELSE 'retry' END,
			attempts = CASE WHEN d.state = 'dead' OR d.discarded THEN 0 ELSE d.attempts END,
			next_attempt_at = CASE WHEN d.state = 'retry' AND NOT d.discarded THEN now() END,
			discarded = false
		` + chosen + ` AND (d.discarded OR d.state = 'dead' OR d.state = 'retry' AND d.next_attempt_at > now()) RETURNING d.sink`

	// A held entry stays held: the owner comes to it when what is in front of it has gone. In state
	// retry it would be deleted first, and free those behind it too early.
	discardEntriesSQL = `UPDATE saga_outbox_delivery d SET
			state = CASE d.state WHEN 'held' THEN 'held' ELSE 'retry' END, next_attempt_at = NULL, discarded = true
		` + chosen + ` AND NOT d.discarded RETURNING d.sink`

	// A row with an entry about its mark is left alone: it gets its status when it takes one. The
	// others get the status of their entries, as after relay.Ledger's Resolve. With $2, hybrid
	// mode, no row becomes pending, because another worker would take it. A row whose entries are
	// all discarded is a dead letter. One that was sent and is being delivered once more stays
	// sent.
	rowsSQL = `UPDATE saga_outbox o SET status = e.status, retry_count = e.attempts,
			last_error = CASE WHEN e.discarded THEN '` + givenUp + `' || coalesce(e.error, '') ELSE o.last_error END
		FROM (SELECT event_id, bool_and(discarded) AS discarded, coalesce(max(attempts) FILTER (WHERE NOT discarded), max(attempts)) AS attempts,
				left(string_agg(sink || ': ' || last_error, '; ' ORDER BY sink), 2000) AS error,
				CASE WHEN bool_and(discarded) OR bool_or(state = 'dead' AND NOT discarded) THEN 'dead_letter'
					WHEN bool_or(attempts > 0 AND NOT discarded) OR $2 THEN 'failed' ELSE 'pending' END AS status
			FROM saga_outbox_delivery WHERE event_id = ANY($1::uuid[]) GROUP BY event_id HAVING NOT bool_or(sink = '` + relay.MarkSink + `')) e
		WHERE o.event_id = e.event_id AND o.event_id = ANY($1::uuid[]) AND o.status <> 'sent'`

	bare = `event_id = ANY($1::uuid[]) AND $2::text[] IS NOT NULL AND status || '' IN ('dead_letter', 'failed')
		AND NOT EXISTS (SELECT FROM saga_outbox_delivery d WHERE d.event_id = o.event_id OFFSET 0)`

	retryRowsSQL = `UPDATE saga_outbox o SET status = 'pending', retry_count = 0, claimed_at = NULL, worker_id = NULL,
			last_error = CASE WHEN last_error LIKE '` + givenUp + `%' THEN substr(last_error, length('` + givenUp + `') + 1) ELSE last_error END
		WHERE ` + bare + ` RETURNING '-'`

	discardRowsSQL = `UPDATE saga_outbox o SET status = 'dead_letter', last_error = '` + givenUp + `' || coalesce(last_error, '')
		WHERE ` + bare + ` AND coalesce(last_error, '') NOT LIKE '` + givenUp + `%' RETURNING '-'`
)

// target names a letter.
type target struct {
	id         relay.UUID
	sink, slot string
}

// targets lists what the filter chooses, slot by slot, in the order of delivery.
func targets(ctx context.Context, conn *pgx.Conn, f Filter) ([]target, error) {
	var args []any
	where := f.where(&args)
	rows, err := conn.Query(ctx, `SELECT event_id, sink, slot FROM (`+letters+`) l WHERE `+where+` ORDER BY slot, position, event_id`, args...)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	var (
		all   []target
		id    [16]byte
		names = make(map[string]string) // a string a name, not one a letter
		sink  string
		slot  string
	)
	once := func(s string) string {
		if _, ok := names[s]; !ok {
			names[s] = s
		}
		return names[s]
	}
	_, err = pgx.ForEachRow(rows, []any{&id, &sink, &slot}, func() error {
		all = append(all, target{id: id, sink: once(sink), slot: once(slot)})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	return all, nil
}

// change runs the statements for entries and for rows without one over all that the filter chooses.
func change(ctx context.Context, conn *pgx.Conn, f Filter, hybrid bool, entriesSQL, bareSQL string) (*Done, error) {
	all, err := targets(ctx, conn, f)
	if err != nil {
		return nil, err
	}
	done := &Done{Sinks: make(map[string]int)}
	for len(all) > 0 {
		n := 0
		for n < len(all) && n < batchSize && all[n].slot == all[0].slot {
			n++
		}
		batch := all[:n]
		all = all[n:]
		err := write(ctx, conn, batch[0].slot, func(tx pgx.Tx) error {
			ids, sinks := make([]string, len(batch)), make([]string, len(batch))
			for i := range batch {
				ids[i], sinks[i] = batch[i].id.String(), batch[i].sink
			}
			sql := entriesSQL
			if batch[0].slot == "" {
				sql = bareSQL
			}
			rows, err := tx.Query(ctx, sql, ids, sinks)
			if err != nil {
				return err
			}
			changed, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				return err
			}
			if batch[0].slot != "" {
				if _, err := tx.Exec(ctx, rowsSQL, ids, hybrid); err != nil {
					return err
				}
			}
			done.add(changed, len(batch))
			return nil
		})
		if locked(err) {
			done.Locked += len(batch)
		} else if err != nil {
			return done, fmt.Errorf("after %d were changed: %w", done.N(), err)
		}
	}
	return done, nil
}

func (d *Done) add(sinks []string, of int) {
	for _, sink := range sinks {
		d.Sinks[sink]++
	}
	d.Passed += of - len(sinks)
}

// write runs f in a transaction that has the lock of the slot's row ("" locks no row). It runs f
// again if what it needs is locked. f counts what it did last of all.
func write(ctx context.Context, conn *pgx.Conn, slot string, f func(pgx.Tx) error) error {
	tries := 0
	return relay.Retry(ctx, relay.Backoff{Min: 50 * time.Millisecond, Max: 500 * time.Millisecond}, func() error {
		tries++
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			// Should we be stopped half-way, the server ends the transaction before the owner's
			// lease suffers.
			limits := fmt.Sprintf(`SET LOCAL lock_timeout = %d; SET LOCAL statement_timeout = %d; SET LOCAL idle_in_transaction_session_timeout = %[2]d; SET LOCAL enable_seqscan = off`,
				lockTimeout.Milliseconds(), (4 * lockTimeout).Milliseconds())
			if _, err := tx.Exec(ctx, limits, pgx.QueryExecModeSimpleProtocol); err != nil {
				return err
			}
			if slot != "" {
				if _, err := tx.Exec(ctx, `SELECT slot FROM saga_outbox_relay WHERE slot = $1 FOR UPDATE`, slot); err != nil {
					return err
				}
			}
			return f(tx)
		})
	}, func(err error, _ time.Duration) bool { return locked(err) && tries < busyTries })
}

// locked reports whether another session had a lock for too long: lock_not_available,
// query_canceled by statement_timeout, deadlock_detected.
func locked(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && slices.Contains([]string{"55P03", "57014", "40P01"}, pg.Code)
}
