package store

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// Mark and Resolve meet on two connections, as those of an owner and of a person's command do. The
// order of each key stays, and nothing is left held behind nothing. The sequence that this is for:
// Mark sees a head with a next attempt, and makes the next event of its key held. Meanwhile Resolve
// deletes the head and finds nothing to free.
func TestMarkDuringResolve(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		twin := newLease(l.store, l.shard, l.log, nil)
		twin.epoch = l.epoch // the same owner's, with a marking connection of its own
		t.Cleanup(func() { twin.marks.close(context.WithoutCancel(t.Context())) })
		const n, keys = 2000, 5
		marks := marksOf(insert(t, db, 1, n))
		for i := range marks {
			ofKey(marks[i:i+1], string(rune('a'+i%keys)))
			marks[i].Parked = []relay.Parked{held("kafka")}
			if rand.IntN(20) == 0 {
				marks[i].Parked[0] = relay.Parked{Sink: "kafka", State: relay.StateRetry, Reason: relay.ReasonNacked, Error: "no", Attempts: 1, Delay: time.Millisecond}
			}
		}
		var marking sync.WaitGroup
		marking.Go(func() {
			for len(marks) > 0 {
				some := min(len(marks), 1+rand.IntN(20))
				later, err := twin.Mark(t.Context(), relay.MarkBatch{Marks: marks[:some]})
				// A busy machine makes the other wait as long as a lock may; the marker tries
				// again, too.
				if isLocked(err) {
					continue
				}
				if err != nil || len(later) > 0 {
					t.Errorf("mark: %v, %v", later, err)
					return
				}
				marks = marks[some:]
			}
		})
		last := map[string]int64{}
		delivered := 0
		for idle := 0; delivered < n && idle < 20_000; {
			entries, _, err := l.Due(t.Context(), "kafka", 1+rand.IntN(100), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) == 0 {
				idle++
				// For the delay of a refused one; how often it takes is bounded.
				time.Sleep(time.Millisecond)
				continue
			}
			idle = 0
			var outcomes []relay.Outcome
			refused := map[string]bool{}
			for i := range entries {
				e := &entries[i]
				key := e.Event.AggregateID
				switch {
				case refused[key]: // not offered
				case rand.IntN(20) == 0:
					refused[key] = true
					outcomes = append(outcomes, relay.Outcome{Entry: e, Fate: relay.FateRefused, Reason: relay.ReasonNacked, Error: "no", Attempts: e.Attempts + 1, Delay: time.Millisecond})
				default:
					if e.Position <= last[key] {
						t.Fatalf("key %s: position %d after %d", key, e.Position, last[key])
					}
					last[key] = e.Position
					delivered++
					outcomes = append(outcomes, relay.Outcome{Entry: e, Fate: relay.FateDelivered})
				}
			}
			if err := l.Resolve(t.Context(), "kafka", outcomes); err != nil {
				t.Fatal(err)
			}
		}
		marking.Wait()
		if got, want := ledger(t, db, "kafka")+", "+counts(t, db), "empty, 2000 sent"; got != want {
			t.Errorf("%d delivered; left: %.200s, want %s", delivered, got, want)
		}
	})
}

// A person's command has the lock of the slot's row: marks wait for it, and see what it has
// changed.
func TestMarkWaitsForAPerson(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		cfg := testConfig(db)
		cfg.LeaseTTL = 9 * time.Minute // so that the mark waits for as long as this takes
		l := acquire(t, newStore(t, cfg, nil), "outbox")
		marks := ofKey(parking(marksOf(insert(t, db, 1, 2)), held("kafka")), "k")
		marks[0].Parked[0] = relay.Parked{Sink: "kafka", State: relay.StateDead, Reason: relay.ReasonEncode, Error: "no", Attempts: 5}
		mark(t, l, marks[:1])
		person := db.Conn(t)
		marked := make(chan error, 1)
		err := pgx.BeginFunc(t.Context(), person, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), `SELECT FROM saga_outbox_relay WHERE slot = 'outbox' FOR UPDATE`); err != nil {
				return err
			}
			if _, err := tx.Exec(t.Context(), `UPDATE saga_outbox_delivery SET state = 'retry', attempts = 0`); err != nil {
				return err
			}
			pid := backend(t, db, "marks", "outbox")
			go func() {
				_, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marks[1:]})
				marked <- err
			}()
			db.Until(t, `SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1`, pid)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-marked; err != nil {
			t.Fatal(err)
		}
		if got, want := ledger(t, db, "kafka"), "1 ready, 2 ready"; got != want {
			t.Errorf("ledger: %s, want %s: the mark has not seen what the person did", got, want)
		}
	})
}

// A connection that breaks in the middle of a transaction leaves all of it or nothing.
func TestResolveConnectionLost(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		cfg := testConfig(db)
		cfg.LeaseTTL = 9 * time.Minute
		l := acquire(t, newStore(t, cfg, nil), "outbox")
		mark(t, l, parking(marksOf(insert(t, db, 1, 3)), held("kafka")))
		entries := due(t, l, "kafka", 10)
		tx, err := db.Conn(t).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `SELECT FROM saga_outbox WHERE event_id = $1 FOR UPDATE`, id(2).String()); err != nil {
			t.Fatal(err)
		}
		resolved := make(chan error, 1)
		pid := backend(t, db, "marks", "outbox")
		go func() {
			resolved <- l.Resolve(t.Context(), "kafka", []relay.Outcome{{Entry: &entries[0]}, {Entry: &entries[1]}, {Entry: &entries[2]}})
		}()
		db.Until(t, `SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1`, pid)
		kill(t, db, pid)
		if err := <-resolved; err == nil {
			t.Error("no error on a connection that breaks")
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := ledger(t, db, "kafka")+", "+counts(t, db), "1 ready, 2 ready, 3 ready, 3 pending"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		resolve(t, l, "kafka", relay.FateDelivered, entries...)
		resolve(t, l, "kafka", relay.FateDelivered, entries...) // as after an answer that was lost
		if got, want := ledger(t, db, "kafka")+", "+counts(t, db), "empty, 3 sent"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}
