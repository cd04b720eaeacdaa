package pgtest

import "testing"

// What was committed on the primary is on the standby; after the failover the same DSN leads there.
func TestPair(t *testing.T) {
	t.Parallel()
	pair := NewPair(t, nil)
	db := pair.New(t, SQL(`CREATE TABLE here (n int)`))
	for _, sql := range []string{`INSERT INTO here VALUES (1)`, `SELECT pg_create_logical_replication_slot('synced', 'pgoutput', false, false, true)`, `SELECT pg_create_logical_replication_slot('not_synced', 'pgoutput')`} {
		if _, err := db.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	// as a reader would: the first snapshot in the WAL is noted, the next confirmation takes it
	for range 3 {
		if _, err := db.Pool.Exec(t.Context(), `SELECT pg_log_standby_snapshot(); SELECT pg_replication_slot_advance('synced', pg_current_wal_lsn())`); err != nil {
			t.Fatal(err)
		}
	}
	pair.WaitSynced(t, "synced")
	pair.WaitReplayed(t)
	pair.Failover(t)
	db.Until(t, `SELECT NOT pg_is_in_recovery() AND count(*) = 1 FROM here`)
	if _, err := db.Pool.Exec(t.Context(), `INSERT INTO here VALUES (2)`); err != nil {
		t.Fatal(err)
	}
	var slots string
	if err := db.Pool.QueryRow(t.Context(), `SELECT string_agg(slot_name, ' ') FROM pg_replication_slots`).Scan(&slots); err != nil || slots != "synced" {
		t.Errorf("got slots %s (%v), want only the one that was synced", slots, err)
	}
}
