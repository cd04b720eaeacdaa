package store

import (
	"context"
	"math"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// An event comes to the ledger after one of its key that was refused, and was before it: it goes
// out first.
func TestParkInFrontOfARefusal(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		marks := ofKey(parking(marksOf(insert(t, db, 1, 4)), held("kafka")), "k")
		refuse(&marks[1], "headers are no object")
		mark(t, l, marks[1:2])
		mark(t, l, []relay.Mark{marks[0], marks[2]})
		mark(t, l, marks[3:])
		if got, want := ledger(t, db, "kafka"), "1 ready, 2 waiting, 3 held, 4 held"; got != want {
			t.Errorf("ledger: %s, want %s", got, want)
		}
		exec(t, db, `UPDATE saga_outbox_delivery SET next_attempt_at = now() WHERE position = 2`)
		for _, want := range []string{"1", "2", "3, 4"} {
			entries := due(t, l, "kafka", 10)
			if got := numbers(entries); got != want {
				t.Fatalf("due %s, want %s", got, want)
			}
			resolve(t, l, "kafka", relay.FateDelivered, entries...)
		}
	})
}

// Some of a line were to retry now behind its refused head, more than are ever freed at once, and
// were not met yet. When the head is delivered, those right behind it are freed all the same.
func TestFreedThoughOthersAreToRetry(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		s := newStore(t, testConfig(db), nil)
		s.bounds = bounds{held: 2, freed: 10, ofKey: 2}
		l := acquire(t, s, "outbox")
		mark(t, l, ofKey(parking(marksOf(insert(t, db, 1, 8)), held("kafka")), "k"))
		head := due(t, l, "kafka", 1)
		resolve(t, l, "kafka", relay.FateRefused, head...)
		if got, want := ledger(t, db, "kafka"), "1 waiting, 2 held, 3 held, 4 ready, 5 ready, 6 ready, 7 ready, 8 ready"; got != want {
			t.Errorf("refused: %s, want %s", got, want)
		}
		resolve(t, l, "kafka", relay.FateDelivered, head...)
		next := int64(2)
		for next < 9 {
			entries := due(t, l, "kafka", 1)
			if len(entries) == 0 {
				t.Fatalf("nothing is due: %s", ledger(t, db, "kafka"))
			}
			if entries[0].Position != next {
				t.Fatalf("due %d, want %d", entries[0].Position, next)
			}
			resolve(t, l, "kafka", relay.FateDelivered, entries...)
			next += int64(len(entries))
		}
	})
}

// A ledger that an earlier version left stuck, in more lines than one look goes through, and
// healthy lines between them.
func TestHeal(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		const lines = healAtOnce + 500
		insert(t, db, 1, 3*lines)
		// Of each line: the first is held, the second has a next attempt, the third is held. Of
		// every tenth the first has a next attempt, as it should.
		exec(t, db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, next_attempt_at)
			SELECT event_id, 'kafka', 'outbox', n, 'k' || n % $1, hashtext('k' || n % $1), 'Tested', CASE WHEN waits THEN 'retry' ELSE 'held' END, CASE WHEN waits THEN now() + interval '1 h' END
			FROM (SELECT *, n / $1 = CASE WHEN n % $1 % 10 = 0 THEN 0 ELSE 1 END AS waits FROM (SELECT event_id, (payload->>'n')::bigint - 1 AS n FROM saga_outbox) o) r`, int64(lines))
		freed, looks := 0, 0
		for from := int32(math.MinInt32); ; looks++ {
			n, next, err := l.Heal(t.Context(), "kafka", from)
			if err != nil {
				t.Fatal(err)
			}
			freed += n
			if next == math.MinInt32 {
				break
			}
			from = next
		}
		if want := lines * 9 / 10; freed != want || looks != 1 {
			t.Errorf("%d entries freed after %d looks and the last, want %d after 1", freed, looks, want)
		}
		entries, _, err := l.Due(t.Context(), "kafka", 3*lines, 1<<30)
		if want := lines * 9 / 10; len(entries) != want || err != nil {
			t.Errorf("%d entries are due (%v), want the first of each line that was stuck: %d", len(entries), err, want)
		}
		if n, _, err := l.Heal(t.Context(), "kafka", math.MinInt32); n != 0 || err != nil {
			t.Errorf("healed %d more, %v; want none", n, err)
		}
	})
}

// The statistics say that one key has the whole ledger. For each other key, what is in its line is
// found by the line's own indexes all the same, and not by a walk through what all keys have to
// retry now.
func TestLinesAreFoundByTheirIndexes(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		exec(t, db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, next_attempt_at)
			SELECT gen_random_uuid(), 'kafka', 'outbox', i, 'k', 1, 'Tested', 'retry', CASE WHEN i % 100 = 0 THEN now() END FROM generate_series(1, 30000) i`)
		exec(t, db, `ANALYZE saga_outbox_delivery`)
		conn := db.Conn(t)
		defer conn.Close(context.Background()) //nolint:errcheck // nothing depends on it
		plan := func(mode, sql string, args ...any) string {
			t.Helper()
			if _, err := conn.Exec(t.Context(), `SET enable_seqscan = off; SET jit = off; SET plan_cache_mode = `+mode); err != nil {
				t.Fatal(err)
			}
			rows, err := conn.Query(t.Context(), `EXPLAIN (COSTS OFF) `+sql, args...)
			if err != nil {
				t.Fatal(err)
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(lines, "\n")
		}
		keys, hashes, positions := []string{"a", "b"}, []int32{1, 2}, []int64{3, 4}
		for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
			for _, c := range []struct {
				name string
				plan string
				// Walks through what all keys have to retry now, by position: what is due is found
				// so.
				walks int
			}{
				{"behind", plan(mode, behindSQL, keys, "outbox", int64(1), "kafka", hashes, positions, 10), 0},
				{"free", plan(mode, freeSQL, keys, "outbox", int64(1), "kafka", hashes, 10), 0},
				{"hold again", plan(mode, holdAgainSQL, uuids{}, "outbox", int64(1), "kafka"), 0},
				{"due", plan(mode, dueSQL, "outbox", "kafka", 2000), 1},
			} {
				if n := strings.Count(c.plan, "saga_outbox_delivery_ready"); n > c.walks {
					t.Errorf("%s, %s: %d walks through what is ready, want %d:\n%s", c.name, mode, n, c.walks, c.plan)
				}
				if strings.Contains(c.plan, "Seq Scan on saga_outbox_delivery") {
					t.Errorf("%s, %s: reads the whole ledger:\n%s", c.name, mode, c.plan)
				}
			}
		}
	})
}
