package store

import (
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// A replay is half-way: its entry is written and not committed. Retention waits for it, and leaves
// that row alone. Otherwise the replay would be accepted and its event gone.
func TestPruneWaitsForReplay(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		insert(t, db, 1, 3)
		exec(t, db, `UPDATE saga_outbox SET status = 'sent', created_at = now() - interval '1 day', sent_at = now() - interval '1 day'`)
		replay, err := db.Conn(t).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer replay.Rollback(t.Context()) //nolint:errcheck // for the case of an error
		if _, err := replay.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1::bigint)`, relay.ReplayLock); err != nil {
			t.Fatal(err)
		}
		if _, err := replay.Exec(t.Context(), `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, detached, replayed_at)
			VALUES ($1, 'kafka', 'outbox', 1, 'k', 1, 't', 'retry', true, now())`, id(2).String()); err != nil {
			t.Fatal(err)
		}
		pruned := make(chan error, 1)
		var n int
		go func() {
			var err error
			n, err = l.Prune(t.Context(), 0, false, 100)
			pruned <- err
		}()
		db.Until(t, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`)
		if err := replay.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-pruned; err != nil || n != 2 {
			t.Errorf("pruned %d, %v, want 2", n, err)
		}
		if got := value[string](t, db.Pool, `SELECT string_agg(event_id::text, ',') FROM saga_outbox`); got != id(2).String() {
			t.Errorf("left are %s, want the one that is to be delivered again", got)
		}
	})
}
