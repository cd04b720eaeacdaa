package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// fence is what the first statement of a writing transaction notes in the slot's row.
type fence struct {
	upTo  relay.LSN
	atEnd bool // marked_lsn moves to the end of the WAL
	notes
}

// notes are what a mark notes besides.
type notes struct {
	confirm relay.LSN
	doubt   int64 // doubt_since; 0: it stays, -1: none
}

// fencedTx is a transaction that is sent in one round trip, behind its fence.
type fencedTx struct {
	batch       pgx.Batch
	took        []func(pgx.BatchResults) error // reads the result of each statement after the fence
	lockTimeout time.Duration
}

// Statements about the ledger are written so that these leave one plan for each (order.go): none
// reads a whole table, and none sorts what an index has in order.
const (
	planSettings = `SET jit = off; SET enable_seqscan = off; SET enable_sort = off`

	planSettingsSQL = `SELECT set_config('jit', 'off', true), set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true)`
)

// settingsSQL sets for one transaction what a marking session has, where the session is a pooler's.
const settingsSQL = planSettingsSQL + `, set_config('lock_timeout', $1, true)`

// look calls f for each row of a query about the ledger. Where the session is a pooler's, the
// settings go with it, in one transaction and one round trip.
func look(ctx context.Context, conn *pgx.Conn, dest []any, f func() error, sql string, args ...any) (err error) {
	if !isPooled(conn) {
		return each(ctx, conn, dest, f, sql, args...)
	}
	var both pgx.Batch
	both.Queue(planSettingsSQL)
	both.Queue(sql, args...)
	results := conn.SendBatch(ctx, &both)
	defer func() { err = errors.Join(err, results.Close()) }()
	if _, err := results.Exec(); err != nil {
		return err
	}
	rows, err := results.Query()
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, dest, f)
	return err
}

func (l *lease) fenced(f fence) *fencedTx {
	tx := &fencedTx{lockTimeout: l.store.cfg.LeaseTTL / 9}
	tx.batch.Queue(fenceSQL, l.slot, l.epoch, int64(f.upTo), int64(f.confirm), f.atEnd, f.doubt)
	return tx
}

// queue adds a statement. The number of rows that it changed is added to n once run returns, unless
// n is nil.
func (t *fencedTx) queue(n *int, sql string, args ...any) {
	t.batch.Queue(sql, args...)
	t.took = append(t.took, func(r pgx.BatchResults) error {
		tag, err := r.Exec()
		if n != nil && err == nil {
			*n += int(tag.RowsAffected())
		}
		return err
	})
}

// query adds a statement whose rows are read by f, once for each, after they were scanned into
// dest.
func (t *fencedTx) query(dest []any, f func() error, sql string, args ...any) {
	t.batch.Queue(sql, args...)
	t.took = append(t.took, func(r pgx.BatchResults) error {
		rows, err := r.Query()
		if err != nil {
			return err
		}
		_, err = pgx.ForEachRow(rows, dest, f)
		return err
	})
}

// run sends the transaction. It returns relay.ErrFenced, and nothing is written, when the slot has
// another owner.
func (t *fencedTx) run(ctx context.Context, conn *pgx.Conn) (err error) {
	batch := &t.batch
	if isPooled(conn) {
		batch = &pgx.Batch{}
		batch.Queue(settingsSQL, strconv.FormatInt(t.lockTimeout.Milliseconds(), 10))
		batch.QueuedQueries = append(batch.QueuedQueries, t.batch.QueuedQueries...)
	}
	results := conn.SendBatch(ctx, batch)
	defer func() { err = errors.Join(err, results.Close()) }()
	if isPooled(conn) {
		if _, err := results.Exec(); err != nil {
			return err
		}
	}
	tag, err := results.Exec()
	if err != nil {
		return err
	}
	if tag.RowsAffected() == 0 {
		return relay.ErrFenced
	}
	for _, take := range t.took {
		if err := take(results); err != nil {
			return err
		}
	}
	return nil
}

// Confirm implements relay.Lease.
func (l *lease) Confirm(ctx context.Context, lsn relay.LSN) error {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	err := l.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return l.fenced(fence{notes: notes{confirm: lsn}}).run(ctx, conn)
	})
	if err != nil {
		return fmt.Errorf("note position %s of slot %q: %w", lsn, l.slot, err)
	}
	return nil
}

// isLocked reports whether err is that a lock was not free in time.
func isLocked(err error) bool {
	return sessions.Code(err) == sessions.LockNotAvailable
}
