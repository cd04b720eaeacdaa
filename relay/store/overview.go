package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// Overview is what the database has of the relays and their work.
type Overview struct {
	Slots  []SlotOverview  `json:"slots"`
	Ledger []LedgerSummary `json:"ledger"`
	Rows   []RowCount      `json:"rows,omitempty"`
	// Updates are those of the outbox table since its statistics were reset, HOTUpdates those that
	// touched no index.
	Updates    int64 `json:"updates"`
	HOTUpdates int64 `json:"hot_updates"`
}

// LedgerSummary counts the entries of the ledger that have the same sink, state and reason.
type LedgerSummary struct {
	Slot string `json:"slot"`
	Sink string `json:"sink"`
	// State is retry, held or dead, or unmarked: delivered, and the row does not take its mark.
	State   string `json:"state"`
	Reason  string `json:"reason"` // empty for those that are only held behind another
	Entries int64  `json:"entries"`
	Oldest  string `json:"oldest"` // when it was written

	OldestTime time.Time `json:"-"` // the same
	// Next is when the first of them is to be offered again, now or in the past for at once. It is
	// empty for those that are not in state retry.
	Next string `json:"next_attempt"`
}

// SlotOverview is one slot that relays share. The byte counts are null when the slot does not
// exist.
type SlotOverview struct {
	Slot          string `json:"slot"`
	Owner         string `json:"owner"` // empty when the lease is free
	Epoch         int64  `json:"epoch"`
	MarkedLSN     string `json:"marked_lsn"`
	Active        bool   `json:"active"`
	BehindBytes   *int64 `json:"behind_bytes"`   // WAL written and not confirmed
	RetainedBytes *int64 `json:"retained_bytes"` // WAL that the slot keeps from being removed
	WALStatus     string `json:"wal_status"`
}

// RowCount counts the rows of one status.
type RowCount struct {
	Status string `json:"status"`
	Rows   int64  `json:"rows"`
	Oldest string `json:"oldest"` // created_at
}

// ReadOverview reads it; with rows it scans the whole table.
func ReadOverview(ctx context.Context, conn *pgx.Conn, rows bool) (*Overview, error) {
	o := &Overview{}
	found, err := conn.Query(ctx, `SELECT r.slot, CASE WHEN `+lockHeld("r.slot")+`
			OR r.pooled AND r.released_at IS NULL AND r.renewed_at > now() - interval '1 minute' THEN r.owner ELSE '' END,
		r.epoch, r.marked_lsn::text, coalesce(s.active, false), pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn)::bigint,
		pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint, coalesce(s.wal_status, '')
		FROM saga_outbox_relay r LEFT JOIN pg_replication_slots s ON s.slot_name = r.slot AND s.database = current_database() WHERE r.heir IS NULL ORDER BY r.slot`, int64(lockClass))
	if err != nil {
		return nil, fmt.Errorf("read the slots: %w", setup(err))
	}
	o.Slots, err = pgx.CollectRows(found, pgx.RowToStructByPos[SlotOverview])
	if err != nil {
		return nil, fmt.Errorf("read the slots: %w", setup(err))
	}
	err = conn.QueryRow(ctx, `SELECT coalesce(max(n_tup_upd), 0), coalesce(max(n_tup_hot_upd), 0) FROM pg_stat_user_tables WHERE relid = to_regclass('saga_outbox')`).Scan(&o.Updates, &o.HOTUpdates)
	if err != nil {
		return nil, fmt.Errorf("read the table's statistics: %w", setup(err))
	}
	found, err = conn.Query(ctx, `SELECT slot, sink, CASE sink WHEN '`+relay.MarkSink+`' THEN 'unmarked' ELSE state END, coalesce(reason, ''), count(*), min(parked_at)::text, min(parked_at),
			coalesce(CASE WHEN state = 'retry' THEN CASE WHEN bool_or(next_attempt_at IS NULL) THEN now()::timestamptz(0) ELSE min(next_attempt_at)::timestamptz(0) END END::text, '')
		FROM saga_outbox_delivery GROUP BY slot, sink, state, 4 ORDER BY 1, 2, 3, 4`)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", setup(err))
	}
	o.Ledger, err = pgx.CollectRows(found, pgx.RowToStructByPos[LedgerSummary])
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", setup(err))
	}
	if !rows {
		return o, nil
	}
	found, err = conn.Query(ctx, `SELECT status, count(*), min(created_at)::text FROM saga_outbox GROUP BY status ORDER BY status`)
	if err != nil {
		return nil, fmt.Errorf("count the rows: %w", setup(err))
	}
	o.Rows, err = pgx.CollectRows(found, pgx.RowToStructByPos[RowCount])
	if err != nil {
		return nil, fmt.Errorf("count the rows: %w", setup(err))
	}
	return o, nil
}
