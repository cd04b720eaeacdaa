package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// What the library's worker runs (sagaz 1.5.0, PostgreSQLOutboxStorage.claim_batch and
// release_stuck_events).
const (
	libraryClaim = `WITH claimed AS (
		SELECT event_id FROM saga_outbox WHERE status = 'pending' AND created_at <= now() + interval '1 minute' ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED)
		UPDATE saga_outbox SET status = 'claimed', worker_id = $2, claimed_at = NOW() WHERE event_id IN (SELECT event_id FROM claimed) RETURNING event_id::text`
	libraryRelease = `UPDATE saga_outbox SET status = 'pending', worker_id = NULL, claimed_at = NULL WHERE status = 'claimed' AND claimed_at < now() - interval '5 minutes'`
)

func hybrid(db *pgtest.DB) Config {
	cfg := testConfig(db)
	cfg.Hybrid = true
	return cfg
}

// Each event goes to the relay or to the library's worker, never to both.
func TestHybridNextToTheLibrary(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, hybrid(db), nil), "outbox")
		const n = 2000
		events := insert(t, db, 1, n)
		var theirs, ours []string
		var worker sync.WaitGroup
		worker.Go(func() {
			for {
				rows, err := db.Pool.Query(t.Context(), libraryClaim, 50, "python-1")
				if err != nil {
					t.Error(err)
					return
				}
				var id string
				var batch []string
				for rows.Next() {
					if err := rows.Scan(&id); err != nil {
						t.Error(err)
					}
					batch = append(batch, id)
				}
				if len(batch) == 0 {
					return
				}
				theirs = append(theirs, batch...)
				if _, err := db.Pool.Exec(t.Context(), `UPDATE saga_outbox SET status = 'sent', sent_at = NOW() WHERE event_id = ANY($1::text[]::uuid[])`, batch); err != nil {
					t.Error(err)
					return
				}
			}
		})
		for batch := range slices.Chunk(events, 100) {
			for {
				is, err := l.Settled(t.Context(), batch)
				var claimed *relay.ClaimedError
				if errors.As(err, &claimed) {
					continue // soon it is sent
				}
				if err != nil {
					t.Fatal(err)
				}
				var marks []relay.Mark
				for i := range batch {
					if !is[i] {
						ours = append(ours, batch[i].ID.String())
						marks = append(marks, marksOf(batch[i:i+1])...)
					}
				}
				mark(t, l, marks)
				break
			}
		}
		worker.Wait()
		all := slices.Concat(theirs, ours)
		slices.Sort(all)
		if unique := len(slices.Compact(slices.Clone(all))); len(all) != n || unique != n {
			t.Errorf("%d sent by the worker and %d by the relay, %d of them different, want %d", len(theirs), len(ours), unique, n)
		}
		if got, want := counts(t, db), fmt.Sprintf("%d sent", n); got != want {
			t.Errorf("rows: %s, want %s", got, want)
		}
	})
}

// The states in which a look-up in hybrid mode can meet a row.
func TestHybridClaims(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		cfg := hybrid(db)
		cfg.Owner = strings.Repeat("ö", 300)
		s := newStore(t, cfg, nil)
		l := acquire(t, s, "outbox")
		events := insert(t, db, 1, 6)
		if got := settled(t, l, events[:1]); got[0] {
			t.Error("a pending row is settled")
		}
		if got := value[string](t, db.Pool, `SELECT worker_id FROM saga_outbox WHERE status = 'claimed'`); got != "sagaz-relay/outbox/1/"+strings.Repeat("ö", 234) {
			t.Errorf("claimed by %s", got)
		}
		// The worker takes no row that is claimed. A second look finds the claim ours, with another
		// owner, too.
		release(t, l)
		l = acquire(t, s, "outbox")
		if got := settled(t, l, events[:1]); got[0] || !strings.HasPrefix(value[string](t, db.Pool, `SELECT worker_id FROM saga_outbox WHERE status = 'claimed'`), "sagaz-relay/outbox/2/") {
			t.Errorf("the claim of the owner before us: settled %v", got)
		}
		set := func(n int, status, worker, age string) {
			exec(t, db, `UPDATE saga_outbox SET status = $2, worker_id = $3, claimed_at = now() - $4::interval WHERE event_id = $1`, id(n).String(), status, worker, age)
		}
		// Another worker is at it, one has died, one is between two statuses.
		set(2, "claimed", "python-1", "1 second")
		var claimed *relay.ClaimedError
		if _, err := l.Settled(t.Context(), events[:3]); !errors.As(err, &claimed) || claimed.Rows != 1 || claimed.Worker != "python-1" || claimed.AtMost > 5*time.Minute {
			t.Errorf("a fresh claim: %v", err)
		}
		set(2, "claimed", "python-1", "6 minutes")
		set(3, "failed", "python-1", "1 second")
		if _, err := l.Settled(t.Context(), events[:3]); !errors.As(err, &claimed) || claimed.Rows != 1 {
			t.Errorf("a row that fails right now: %v", err)
		}
		set(3, "sent", "python-1", "1 second")
		if got := settled(t, l, events[:3]); !slices.Equal(got, []bool{false, false, true}) {
			t.Errorf("settled %v, want the third", got)
		}
		// A row is locked: the other session may be claiming it.
		tx, err := db.Conn(t).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `SELECT FROM saga_outbox WHERE event_id = $1 FOR UPDATE`, id(4).String()); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Settled(t.Context(), events[3:4]); !errors.As(err, &claimed) {
			t.Errorf("a locked row: %v", err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := settled(t, l, events[3:4]); got[0] {
			t.Error("the row that was locked is settled")
		}
		// A row whose entry is only held is not for the other worker, and the library's own sweep
		// of stuck claims leaves it alone.
		mark(t, l, parking(marksOf(events[3:4]), held("kafka")))
		exec(t, db, `UPDATE saga_outbox SET claimed_at = now() - interval '1 hour' WHERE claimed_at IS NOT NULL`)
		exec(t, db, libraryRelease)
		if got, want := row(t, db, 4), "failed retries=0 error=kafka: waits in saga_outbox_delivery sent=f"; got != want {
			t.Errorf("row 4: %s, want %s", got, want)
		}
		if got := settled(t, l, events[3:4]); !got[0] {
			t.Error("a row in the ledger is not settled")
		}
		resolve(t, l, "kafka", relay.FateDelivered, due(t, l, "kafka", 10)...)
		if got := row(t, db, 4); !strings.HasPrefix(got, "sent") {
			t.Errorf("row 4: %s, want it sent", got)
		}
		// A sweep for failed rows finds one; when it was found there, it is claimed.
		set(5, "failed", "python-1", "1 hour")
		exec(t, db, `UPDATE saga_outbox SET worker_id = NULL WHERE event_id = $1`, id(5).String())
		found := relay.Event{ID: id(5), Status: "failed"}
		if got := settled(t, l, []relay.Event{found}); got[0] {
			t.Error("a failed row that a sweep has found is settled")
		}
	})
}
