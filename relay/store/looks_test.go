package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

func TestTableCounts(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		got, err := l.Table(t.Context())
		if err != nil || got.OldestPending != 0 || fmt.Sprint(got.Rows) != "map[claimed:0 dead_letter:0 failed:0 pending:0 sent:0]" {
			t.Errorf("an empty table: got %+v, %v", got, err)
		}
		marks := marksOf(insert(t, db, 1, 9))
		mark(t, l, marks[:5])
		exec(t, db, `UPDATE saga_outbox SET status = 'failed' WHERE event_id = $1`, id(6).String())
		exec(t, db, `UPDATE saga_outbox SET status = 'dead_letter' WHERE event_id = $1`, id(7).String())
		exec(t, db, `UPDATE saga_outbox SET status = 'claimed' WHERE event_id = $1`, id(8).String())
		exec(t, db, `UPDATE saga_outbox SET created_at = '2026-01-01 00:00:00+00' WHERE event_id = $1`, id(9).String())
		exec(t, db, `ANALYZE saga_outbox`)
		got, err = l.Table(t.Context())
		if err != nil || fmt.Sprint(got.Rows) != "map[claimed:1 dead_letter:1 failed:1 pending:1 sent:5]" {
			t.Errorf("got %v, %v", got.Rows, err)
		}
		if want := relay.TimestampOf(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)); got.OldestPending != want {
			t.Errorf("oldest pending: got %s, want %s", got.OldestPending.Time(), want.Time())
		}
	})
}

// The owner knows how many standbys there are: they wait on connections that are known by their
// name.
func TestSlotCountsRelays(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		s := newStore(t, testConfig(db), nil)
		l := acquire(t, s, "outbox")
		relays := func() int {
			info, err := l.Slot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return info.Relays
		}
		if got := relays(); got != 1 {
			t.Errorf("alone: got %d relays", got)
		}
		waiting := make(chan *lease)
		go func() { waiting <- acquire(t, newStore(t, testConfig(db), nil), "outbox") }()
		db.Until(t, `SELECT count(*) = 2 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sagaz-relay roster outbox'`)
		if got := relays(); got != 2 {
			t.Errorf("with a standby: got %d relays, want 2", got)
		}
		release(t, l)
		l = <-waiting
		db.Until(t, `SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sagaz-relay roster outbox'`)
		if got := relays(); got != 1 {
			t.Errorf("after the first has gone: got %d relays, want 1", got)
		}
	})
}

// What the server has decoded, and for how long the slot has not been read.
func TestSlotStatistics(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), db.Name)
		info, err := l.Slot(t.Context())
		if err != nil || info.Exists || info.Stats != nil || info.InactiveFor != nil {
			t.Fatalf("without a slot: got %+v, %v", info, err)
		}
		exec(t, db, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Name)
		defer exec(t, db, `SELECT pg_drop_replication_slot($1)`, db.Name)
		exec(t, db, `CREATE PUBLICATION looks FOR TABLE saga_outbox`)
		insert(t, db, 1, 20)
		value[int](t, db.Pool, `SELECT count(*)::int FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'looks')`, db.Name)
		db.Until(t, `SELECT total_bytes > 0 FROM pg_stat_replication_slots WHERE slot_name = $1`, db.Name)
		info, err = l.Slot(t.Context())
		if err != nil || !info.Exists || info.Stats == nil || info.Stats.Bytes == 0 || info.Stats.SpillBytes != 0 {
			t.Fatalf("got %+v with %+v, %v", info, info.Stats, err)
		}
		knows := value[bool](t, db.Pool, `SELECT current_setting('server_version_num')::int >= 170000`)
		if got := info.InactiveFor != nil; got != knows {
			t.Errorf("knows for how long the slot has been inactive: got %v, want %v", got, knows)
		} else if knows && (*info.InactiveFor < 0 || *info.InactiveFor > time.Hour) {
			t.Errorf("inactive for %s", *info.InactiveFor)
		}
	})
}

func TestUpdates(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		events := insert(t, db, 1, 50)
		mark(t, l, marksOf(events))
		// Up to PostgreSQL 14 a session reports what it did when it does something again, half a
		// second later.
		for end := time.Now().Add(time.Minute); !value[bool](t, db.Pool, `SELECT n_tup_upd >= 50 FROM pg_stat_all_tables WHERE relid = 'saga_outbox'::regclass`); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the server does not report the updates")
			}
			settled(t, l, events)
		}
		u, err := l.Updates(t.Context())
		if err != nil || u.All != 50 || u.HOT > u.All || u.Inserts != 50 {
			t.Errorf("got %+v, %v, want 50 updates and 50 inserts", u, err)
		}
	})
}
