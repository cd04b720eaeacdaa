package store

import (
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// positions is what a slot's row has of the WAL.
func positions(t testing.TB, db *pgtest.DB) string {
	t.Helper()
	return value[string](t, db.Pool, `SELECT concat_ws(' ', CASE WHEN marked_lsn = '0/0' THEN 'no' ELSE 'some' END || ' marks',
		CASE WHEN confirmed_lsn = '0/0' THEN 'no' ELSE 'some' END || ' position', CASE WHEN sweep_owed THEN 'owes ' || sweep_cause ELSE 'owes nothing' END,
		CASE WHEN system_id = (SELECT system_identifier FROM pg_control_system()) AND timeline = '00000001' THEN 'this cluster' ELSE 'another cluster' END)
		FROM saga_outbox_relay WHERE slot = 'outbox'`)
}

// A database that was restored in another cluster brings positions and transactions that mean
// nothing there: the positions are forgotten, and nothing waits for the transactions. Another
// timeline of the same cluster keeps what was marked.
func TestAnotherCluster(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		role, _, dsn := db.Role(t, "")
		exec(t, db, Grants(role))
		cfg := testConfig(db)
		cfg.DatabaseURL = dsn
		s := newStore(t, cfg, nil)
		l := acquire(t, s, "outbox")
		if _, err := l.EndSweep(t.Context(), 4711); err != nil {
			t.Fatal(err)
		}
		marks := marksOf(insert(t, db, 1, 3))
		for i := range marks {
			marks[i].Parked = []relay.Parked{refusal("kafka", "no")}
		}
		mark(t, l, marks)
		release(t, l)
		if got, want := positions(t, db), "some marks some position owes nothing this cluster"; got != want {
			t.Fatalf("at first: %s, want %s", got, want)
		}

		// As a relay from before these columns leaves them.
		exec(t, db, `UPDATE saga_outbox_relay SET system_id = NULL, timeline = NULL`)
		release(t, acquire(t, s, "outbox"))
		if got, want := positions(t, db), "some marks some position owes nothing this cluster"; got != want {
			t.Errorf("after an older relay: %s, want %s", got, want)
		}

		exec(t, db, `UPDATE saga_outbox_relay SET timeline = '00000007'`)
		l = acquire(t, s, "outbox")
		if got, want := positions(t, db), "some marks no position owes nothing this cluster"; got != want {
			t.Errorf("after a promotion: %s, want %s", got, want)
		}
		if r := l.Recovery(); l.MarkedLSN() == 0 || r.Confirmed != 0 || r.Owed {
			t.Errorf("after a promotion the lease has marked %s, %+v", l.MarkedLSN(), r)
		}
		if _, err := l.EndSweep(t.Context(), 4711); err != nil {
			t.Fatal(err)
		}
		release(t, l)

		// As a dump brings it: a WAL and transactions far ahead of ours, and an entry whose row is
		// gone.
		exec(t, db, `UPDATE saga_outbox_relay SET system_id = 42, marked_lsn = 'FFFF/0', confirmed_lsn = 'FFFF/0', sweep_snapshot = '900000000:900000000:', sweep_lsn = 'FFFF/0'`)
		exec(t, db, `UPDATE saga_outbox_delivery SET xid = '900000000', commit_lsn = 'FFFF/0', next_attempt_at = NULL`)
		exec(t, db, `DELETE FROM saga_outbox WHERE event_id = $1`, id(2))
		l = acquire(t, s, "outbox")
		if got, want := positions(t, db), "no marks no position owes restored this cluster"; got != want {
			t.Errorf("in another cluster: %s, want %s", got, want)
		}
		if r := l.Recovery(); l.MarkedLSN() != 0 || r.Confirmed != 0 || !r.Owed || r.Cause != string(relay.GoneRestored) || r.Snapshot != "" {
			t.Errorf("in another cluster the lease has marked %s, %+v", l.MarkedLSN(), r)
		}
		gone := 0
		for _, e := range due(t, l, "kafka", 10) {
			if e.Gone {
				gone++
			}
		}
		if gone != 1 {
			t.Errorf("%d entries are returned as gone, want the one without a row", gone)
		}
	})
}
