package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// Overview is what the database has of the relays and their work.
type Overview struct {
	Set    *SetOverview    `json:"set,omitempty"` // nothing before the first start
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

// SetOverview is how the table is divided.
type SetOverview struct {
	Shards     int   `json:"shards"`     // slots
	Generation int64 `json:"generation"` // counts the changes of their number
	// Target is their number after a change that is under way, 0 without one; State is how far it
	// has come, and Changer who works on it.
	Target  int    `json:"target,omitempty"`
	State   string `json:"state,omitempty"`
	Since   string `json:"since,omitempty"`
	Changer string `json:"changer,omitempty"`
	// WaitsFor is for whom the change waits; SwitchLSN is where the new slots take over, once they
	// are made.
	WaitsFor  string `json:"waits_for,omitempty"`
	SwitchLSN string `json:"switch_lsn,omitempty"`

	of     relay.Set
	change *relay.SetChange
}

// String says it in a line.
func (o *SetOverview) String() string {
	text := relay.DividedText(o.Shards)
	if o.Target != 0 {
		text += fmt.Sprintf("; being changed to %d: %s since %s", o.Target, o.State, o.Since)
		if o.Changer != "" {
			text += ", by " + o.Changer
		}
		if o.WaitsFor != "" {
			text += "\nit waits for: " + o.WaitsFor
		}
	}
	return text
}

// SlotOverview is one slot that relays share. The byte counts are null when the slot does not
// exist.
type SlotOverview struct {
	Slot string `json:"slot"`
	// Shard is which of the table's slots it is, from 0 on, of Shards in its set.
	Shard  int    `json:"shard"`
	Shards int    `json:"shards"`
	Owner  string `json:"owner"` // empty when the lease is free
	Epoch  int64  `json:"epoch"`
	// Taken is when the owner took it: the last handover. It is null when the lease is free.
	Taken         *time.Time `json:"taken_at"`
	MarkedLSN     string     `json:"marked_lsn"`
	Active        bool       `json:"active"`
	BehindBytes   *int64     `json:"behind_bytes"`   // WAL written and not confirmed
	RetainedBytes *int64     `json:"retained_bytes"` // WAL that the slot keeps from being removed
	WALStatus     string     `json:"wal_status"`

	// While the number of slots is changed: what the slot is in that (SlotOld, SlotStopped,
	// SlotNew), and how much WAL an old one has left to the switch, null where that is not known.
	Change    string `json:"change,omitempty" db:"-"`
	LeftBytes *int64 `json:"left_bytes,omitempty" db:"-"`
}

// What a slot is in a change of the number of slots.
const (
	SlotOld     = "old"     // delivers up to the switch
	SlotStopped = "stopped" // has done so
	SlotNew     = "new"     // is read from the switch on
)

// RowCount counts the rows of one status.
type RowCount struct {
	Status string `json:"status"`
	Rows   int64  `json:"rows"`
	Oldest string `json:"oldest"` // created_at
}

// ReadOverview reads it; with rows it scans the whole table.
func ReadOverview(ctx context.Context, conn *pgx.Conn, rows bool) (*Overview, error) {
	o := &Overview{}
	if err := o.readSet(ctx, conn); err != nil {
		return nil, err
	}
	found, err := conn.Query(ctx, `SELECT r.slot, r.shard, r.shards, `+ownerOf("r.slot")+`,
		r.epoch, CASE WHEN `+ownerOf("r.slot")+` <> '' THEN r.taken_at END, r.marked_lsn::text, coalesce(s.active, false), pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn)::bigint,
		pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint, coalesce(s.wal_status, '')
		FROM saga_outbox_relay r LEFT JOIN pg_replication_slots s ON s.slot_name = r.slot AND s.database = current_database() WHERE r.heir IS NULL ORDER BY r.shards, r.shard, r.slot`, int64(lockClass))
	if err != nil {
		return nil, fmt.Errorf("read the slots: %w", setup(err))
	}
	o.Slots, err = pgx.CollectRows(found, pgx.RowToStructByPos[SlotOverview])
	if err != nil {
		return nil, fmt.Errorf("read the slots: %w", setup(err))
	}
	if o.Set != nil && o.Set.Shards > 1 { // nobody has owned them yet
		for _, shard := range o.Set.of.All() {
			if !slices.ContainsFunc(o.Slots, func(s SlotOverview) bool { return s.Slot == shard.Slot }) {
				o.Slots = append(o.Slots, SlotOverview{Slot: shard.Slot, Shard: shard.Index, Shards: shard.Set.Shards, MarkedLSN: relay.LSN(0).String()})
			}
		}
	}
	slices.SortStableFunc(o.Slots, func(a, b SlotOverview) int { return cmp.Or(a.Shards-b.Shards, a.Shard-b.Shard) })
	if o.Set != nil && o.Set.change != nil {
		for i := range o.Slots {
			o.Slots[i].changes(o.Set.change)
		}
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

func (o *Overview) readSet(ctx context.Context, conn *pgx.Conn) error {
	set, err := ReadSet(ctx, conn)
	if err != nil || set == nil {
		return err
	}
	o.Set = &SetOverview{Shards: set.Shards, Generation: set.Generation, Target: set.Target, State: set.State, Changer: set.Changer, of: set.Set}
	if o.Set.change, err = ReadChange(ctx, conn, set); err != nil || o.Set.change == nil {
		return err
	}
	o.Set.Since, o.Set.WaitsFor = set.Since.UTC().Format(time.RFC3339), o.Set.change.Waits()
	if set.Switch > 0 {
		o.Set.SwitchLSN = set.Switch.String()
	}
	return nil
}

// changes notes what the slot is in a change.
func (o *SlotOverview) changes(change *relay.SetChange) {
	for i := range change.Old {
		if old := &change.Old[i]; old.Slot == o.Slot {
			o.Change, o.LeftBytes = SlotOld, old.Left
			if old.Stopped {
				o.Change = SlotStopped
			}
			return
		}
	}
	switch o.Shards {
	case change.Target:
		o.Change = SlotNew
	case change.From: // the new ones are being made
		o.Change = SlotOld
	}
}
