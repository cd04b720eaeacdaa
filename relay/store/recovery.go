package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

const (
	oweSweepSQL = `UPDATE saga_outbox_relay SET sweep_owed = true, sweep_cause = $3, sweep_snapshot = NULL WHERE slot = $1 AND epoch = $2`

	// A snapshot is taken when the statement begins, the position of the WAL's end when its row is
	// made: later.
	sweepFromSQL = `UPDATE saga_outbox_relay SET sweep_lsn = '0/0'::pg_lsn + $3::numeric,
		sweep_snapshot = coalesce(CASE WHEN sweep_lsn = '0/0'::pg_lsn + $3::numeric THEN sweep_snapshot END, pg_current_snapshot()::text) WHERE slot = $1 AND epoch = $2
		RETURNING sweep_snapshot, (pg_current_wal_insert_lsn() - '0/0')::bigint`

	// The row's positions may be of another cluster, from which the database was restored. So none
	// of them is kept.
	endSweepSQL = `UPDATE saga_outbox_relay SET sweep_owed = false, sweep_cause = '', sweep_snapshot = NULL, swept_until = now(),
		marked_lsn = pg_current_wal_insert_lsn(), confirmed_lsn = '0/0'::pg_lsn + $3::numeric WHERE slot = $1 AND epoch = $2
		RETURNING (marked_lsn - '0/0')::bigint`

	noteSinksSQL = `WITH before AS (SELECT sinks FROM saga_outbox_relay WHERE slot = $1)
		UPDATE saga_outbox_relay SET sinks = $3 WHERE slot = $1 AND epoch = $2 RETURNING (SELECT coalesce(sinks, '') FROM before)`

	horizonSQL = `SELECT pg_current_snapshot()::text, (pg_current_wal_insert_lsn() - '0/0')::bigint`
)

// Recovery implements relay.Sweeper.
func (l *lease) Recovery() relay.Recovery { return l.recovery }

// note runs one statement about the slot's row, which returns a row if it is ours.
func (l *lease) note(ctx context.Context, dest []any, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	return l.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		rows := 0
		err := each(ctx, conn, dest, func() error { rows++; return nil }, sql, append([]any{l.slot, l.epoch}, args...)...)
		if err == nil && rows == 0 {
			return relay.ErrFenced
		}
		return err
	})
}

// NoteSinks implements relay.Lease.
func (l *lease) NoteSinks(ctx context.Context, sinks []string) (before []string, err error) {
	var list string
	if err := l.note(ctx, []any{&list}, noteSinksSQL, strings.Join(sinks, ",")); err != nil {
		return nil, fmt.Errorf("note the sinks of slot %q: %w", l.slot, err)
	}
	if list == "" {
		return nil, nil
	}
	return strings.Split(list, ","), nil
}

// OweSweep implements relay.Sweeper.
func (l *lease) OweSweep(ctx context.Context, cause string) error {
	err := l.note(ctx, []any{nil}, oweSweepSQL+` RETURNING true`, l.store.storable(cause))
	if err != nil {
		return fmt.Errorf("note that slot %q owes a sweep: %w", l.slot, err)
	}
	l.owedSnapshot.Store(nil)
	return nil
}

// SweepFrom implements relay.Sweeper.
func (l *lease) SweepFrom(ctx context.Context, slotAt relay.LSN) (relay.Horizon, error) {
	var (
		h   relay.Horizon
		wal int64
	)
	if err := l.note(ctx, []any{&h.Snapshot, &wal}, sweepFromSQL, int64(slotAt)); err != nil {
		return h, fmt.Errorf("note a snapshot for the sweep of slot %q: %w", l.slot, err)
	}
	h.WAL = relay.LSN(wal)
	l.owedSnapshot.Store(&h.Snapshot)
	return h, nil
}

// EndSweep implements relay.Sweeper.
func (l *lease) EndSweep(ctx context.Context, confirmed relay.LSN) (relay.LSN, error) {
	var marked int64
	if err := l.note(ctx, []any{&marked}, endSweepSQL, int64(confirmed)); err != nil {
		return 0, fmt.Errorf("note the end of the sweep of slot %q: %w", l.slot, err)
	}
	l.owedSnapshot.Store(nil)
	l.markedLSN.Store(uint64(marked))
	return relay.LSN(marked), nil
}

// Horizon implements relay.Sweeper.
func (l *lease) Horizon(ctx context.Context) (relay.Horizon, error) {
	var (
		h   relay.Horizon
		wal int64
	)
	err := l.fact(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, horizonSQL).Scan(&h.Snapshot, &wal)
	})
	if err != nil {
		return h, fmt.Errorf("take a snapshot: %w", err)
	}
	h.WAL = relay.LSN(wal)
	return h, nil
}

// NoteSlot notes which rows a slot will not deliver: those that are visible by now. It is called
// right after the slot was made by a command that does not read it. The slot's first owner sweeps
// these rows and leaves the others to the slot.
func NoteSlot(ctx context.Context, conn *pgx.Conn, shard relay.Shard) error {
	slot := shard.Slot
	_, err := conn.Exec(ctx, `INSERT INTO saga_outbox_relay AS s (slot, shard, shards, epoch, owner, sweep_snapshot, sweep_lsn, released_at)
		VALUES ($1::text, $2::int, $3::int, 0, '', pg_current_snapshot()::text, (SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1::text), now())
		ON CONFLICT (slot) DO UPDATE SET sweep_owed = true, sweep_cause = 'missing', sweep_snapshot = excluded.sweep_snapshot, sweep_lsn = excluded.sweep_lsn`, slot, shard.Index, max(1, shard.Set.Shards))
	if err != nil {
		return fmt.Errorf("note that slot %q was made: %w", slot, setup(err))
	}
	return nil
}
