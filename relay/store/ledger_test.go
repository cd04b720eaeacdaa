package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// held is an entry for an event that was not offered.
func held(sink string) relay.Parked { return relay.Parked{Sink: sink, State: relay.StateHeld} }

// ofKey gives marks one key.
func ofKey(marks []relay.Mark, key string) []relay.Mark {
	for i := range marks {
		marks[i].Key, marks[i].KeyHash = key, relay.KeyHash(key)
	}
	return marks
}

// parking adds to each mark an entry for Kafka.
func parking(marks []relay.Mark, entry relay.Parked) []relay.Mark {
	for i := range marks {
		marks[i].Parked = []relay.Parked{entry}
	}
	return marks
}

// ledger is what the table has: for each entry of a sink, by position, its event's number and
// state.
func ledger(t testing.TB, db *pgtest.DB, sink string) string {
	t.Helper()
	return value[string](t, db.Pool, `SELECT coalesce(string_agg(position || ' ' || CASE WHEN state = 'retry' AND next_attempt_at IS NULL THEN 'ready' WHEN state = 'retry' THEN 'waiting' ELSE state END, ', ' ORDER BY position), 'empty')
		FROM saga_outbox_delivery WHERE sink = $1`, sink)
}

func due(t testing.TB, l relay.Lease, sink string, limit int) []relay.Entry {
	t.Helper()
	entries, _, err := l.Due(t.Context(), sink, limit, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// numbers are the positions of entries.
func numbers(entries []relay.Entry) string {
	var texts []string
	for _, e := range entries {
		text := fmt.Sprint(e.Position)
		if e.Gone {
			text += " gone"
		}
		if e.Discarded {
			text += " discarded"
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ", ")
}

func resolve(t testing.TB, l relay.Lease, sink string, fate relay.Fate, entries ...relay.Entry) {
	t.Helper()
	if err := l.Resolve(t.Context(), sink, outcomes(fate, entries...)); err != nil {
		t.Fatal(err)
	}
}

func outcomes(fate relay.Fate, entries ...relay.Entry) (all []relay.Outcome) {
	for i := range entries {
		o := relay.Outcome{Entry: &entries[i], Fate: fate}
		if fate == relay.FateRefused || fate == relay.FateDead {
			o.Reason, o.Error, o.Attempts, o.Delay = relay.ReasonRejected, "no", entries[i].Attempts+1, time.Hour
		}
		all = append(all, o)
	}
	return all
}

// An event that was refused makes those of its key held, in the batch and in later ones; those of
// other keys and sinks are to retry now.
func TestParkBehindARefusal(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		marks := marksOf(insert(t, db, 1, 9))
		ofKey(parking(marks[1:3], held("kafka")), "k")
		ofKey(marks[:1], "k")
		marks[0].Parked = []relay.Parked{refusal("kafka", "no"), held("rabbitmq")}
		parking(marks[3:5], held("kafka"))
		// In the order of the marks, which is not that of the events.
		mark(t, l, []relay.Mark{marks[4], marks[2], marks[0], marks[1], marks[3]})
		if got, want := ledger(t, db, "kafka"), "1 waiting, 2 held, 3 held, 4 ready, 5 ready"; got != want {
			t.Errorf("kafka: %s, want %s", got, want)
		}
		if got, want := ledger(t, db, "rabbitmq"), "1 ready"; got != want {
			t.Errorf("rabbitmq: %s, want %s", got, want)
		}
		// A later batch. Another key with the same hash is another key.
		later := marks[5:8]
		ofKey(parking(later, held("kafka")), "k")
		later[1].Key = "of the same hash"
		later[2].Parked = []relay.Parked{held("kafka"), held("rabbitmq")}
		mark(t, l, later)
		if got, want := ledger(t, db, "kafka"), "1 waiting, 2 held, 3 held, 4 ready, 5 ready, 6 held, 7 ready, 8 held"; got != want {
			t.Errorf("kafka: %s, want %s", got, want)
		}
		if got, want := ledger(t, db, "rabbitmq"), "1 ready, 8 ready"; got != want {
			t.Errorf("rabbitmq: %s, want %s", got, want)
		}
		if got, want := counts(t, db), "1 failed, 8 pending"; got != want {
			t.Errorf("rows: %s, want %s", got, want)
		}
		// All of it once more, as after an answer that was lost.
		before := ledger(t, db, "kafka")
		mark(t, l, marks[:5])
		if got := ledger(t, db, "kafka"); got != before {
			t.Errorf("after the same marks again: %s, want %s", got, before)
		}
		events := make([]relay.Event, 9)
		for n := range events {
			events[n].ID = id(n + 1)
		}
		if got, want := settled(t, l, events), []bool{true, true, true, true, true, true, true, true, false}; !slices.Equal(got, want) {
			t.Errorf("settled %v, want %v", got, want)
		}
	})
}

// The ledger is counted by the bits of the keys' hashes that are asked for, also of those whose
// highest bit the column has as a sign.
func TestBlockingByBits(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		marks := parking(marksOf(insert(t, db, 1, 500)), held("kafka"))
		for i := range marks {
			marks[i].Key = fmt.Sprint("k", i)
			marks[i].KeyHash = relay.KeyHash(marks[i].Key)
		}
		mark(t, l, marks)
		for _, mask := range []uint32{0, 1, 1<<16 - 1, 1<<22 - 1, 1<<31 - 1, 1<<32 - 1} {
			want, got := make(map[uint32]int), make(map[uint32]int)
			for i := range marks {
				want[marks[i].KeyHash&mask]++
			}
			if err := l.Blocking(t.Context(), mask, func(_ string, bucket uint32, _, n int) { got[bucket] += n }); err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(got, want) {
				t.Errorf("mask %x: %d buckets, want %d: %v, want %v", mask, len(got), len(want), got, want)
			}
		}
	})
}

// After a slot was taken, nothing is delivered before the ledger is read. That does not wait for the
// counts that other slots of the process make.
func TestBlockingBesideCounts(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
	counting, end := make(chan error), make(chan struct{})
	var counts sync.WaitGroup
	for range atOnce {
		counts.Go(func() {
			_ = l.onConn(t.Context(), "count", func(context.Context, *pgx.Conn) error {
				counting <- nil
				<-end
				return nil
			})
		})
		<-counting
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.Blocking(ctx, 1<<22-1, func(string, uint32, int, int) {}); err != nil {
		t.Error(err)
	}
	close(end)
	counts.Wait()
}

// A dead letter blocks its key or not, as its entry has it.
func TestParkBehindADeadLetter(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for detached, want := range map[bool]string{true: "1 dead, 2 ready, 3 ready", false: "1 dead, 2 held, 3 held"} {
			l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
			marks := ofKey(parking(marksOf(insert(t, db, 1, 3)), held("kafka")), "k")
			marks[0].Parked[0] = relay.Parked{Sink: "kafka", State: relay.StateDead, Detached: detached, Reason: relay.ReasonEncode, Error: "no", Attempts: 5}
			mark(t, l, marks[:2])
			mark(t, l, marks[2:])
			if got := ledger(t, db, "kafka"); got != want {
				t.Errorf("detached %t: %s, want %s", detached, got, want)
			}
			blocking, all := map[string]int{}, 0
			if err := l.Blocking(t.Context(), 1<<22-1, func(sink string, bucket uint32, entries, n int) {
				blocking[fmt.Sprint(sink, bucket == relay.KeyHash("k")%(1<<22))] += n
				all += entries
			}); err != nil {
				t.Fatal(err)
			}
			if all != 3 {
				t.Errorf("detached %t: %d entries, want 3", detached, all)
			}
			if want := 3 - map[bool]int{true: 1}[detached]; len(blocking) != 1 || blocking["kafkatrue"] != want {
				t.Errorf("detached %t: blocking %v, want %d", detached, blocking, want)
			}
			exec(t, db, `TRUNCATE saga_outbox, saga_outbox_delivery`)
			release(t, l)
		}
	})
}

// Of a long line a thousand are freed at once, and more as these go; a newcomer stays behind the
// last.
func TestFreeing(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		marks := ofKey(parking(marksOf(insert(t, db, 1, 2500)), held("kafka")), "k")
		marks[0].Parked[0] = refusal("kafka", "no")
		mark(t, l, marks)
		ready := func() int {
			return value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_delivery WHERE state = 'retry' AND next_attempt_at IS NULL`)
		}
		exec(t, db, `UPDATE saga_outbox_delivery SET next_attempt_at = now() WHERE position = 1`)
		resolve(t, l, "kafka", relay.FateDelivered, due(t, l, "kafka", 10)...)
		if got := ready(); got != 1000 {
			t.Errorf("%d are ready, want 1000", got)
		}
		mark(t, l, ofKey(parking(marksOf(insert(t, db, 2501, 2501)), held("kafka")), "k"))
		next := 2
		for next <= 2501 {
			entries := due(t, l, "kafka", 300)
			if len(entries) == 0 {
				t.Fatalf("nothing is due at %d: %s", next, value[string](t, db.Pool, `SELECT string_agg(n || ' ' || state, ', ') FROM (SELECT state, count(*) n FROM saga_outbox_delivery GROUP BY 1) c`))
			}
			for _, e := range entries {
				if e.Position != int64(next) {
					t.Fatalf("position %d, want %d", e.Position, next)
				}
				next++
			}
			if got := ready(); got > 1000 {
				t.Errorf("%d are ready, want 1000 at most", got)
			}
			resolve(t, l, "kafka", relay.FateDelivered, entries...)
		}
		if got, want := ledger(t, db, "kafka")+", "+counts(t, db), "empty, 2501 sent"; got != want {
			t.Errorf("at the end: %s, want %s", got, want)
		}
	})
}

// A refusal makes so many held at once; the others are met by Due, which does not offer them.
func TestHoldingALongLine(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		const n = heldAtOnce + 2500
		insert(t, db, 1, n+1)
		exec(t, db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state)
			SELECT event_id, 'kafka', 'outbox', (payload->>'n')::int, CASE WHEN payload->>'n' = '`+fmt.Sprint(n+1)+`' THEN 'other' ELSE 'k' END, $1, 'Tested', 'retry' FROM saga_outbox`, int32(relay.KeyHash("k")))
		first := due(t, l, "kafka", 1)
		resolve(t, l, "kafka", relay.FateRefused, first...)
		if got := numbers(due(t, l, "kafka", 1000)); got != fmt.Sprint(n+1) {
			t.Errorf("due %q, want only the other key's", got)
		}
		if got := value[string](t, db.Pool, `SELECT string_agg(n || ' ' || state, ', ' ORDER BY state) FROM (SELECT state, count(*) n FROM saga_outbox_delivery GROUP BY 1) c`); got != fmt.Sprintf("%d held, 2 retry", n-1) {
			t.Errorf("entries: %s", got)
		}
	})
}

// Limits, by number and by bytes; an entry whose next attempt is due has its turn however many are
// to retry now.
func TestDueLimits(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		marks := parking(marksOf(insert(t, db, 1, 20)), held("kafka"))
		marks[19].Parked[0] = refusal("kafka", "no")
		mark(t, l, marks)
		exec(t, db, `UPDATE saga_outbox SET payload = jsonb_build_object('x', repeat('x', 100000))`)
		exec(t, db, `UPDATE saga_outbox_delivery SET next_attempt_at = now() WHERE position = 20`)
		if got, want := numbers(due(t, l, "kafka", 3)), "20, 1, 2, 3"; got != want {
			t.Errorf("due %s, want %s", got, want)
		}
		entries, _, err := l.Due(t.Context(), "kafka", 100, 250_000)
		if err != nil || len(entries) != 2 {
			t.Errorf("%d entries of 100 kB for 250 kB, %v; want 2", len(entries), err)
		}
		if entries, _, err = l.Due(t.Context(), "kafka", 100, 10); err != nil || len(entries) != 1 {
			t.Errorf("%d entries for 10 bytes, %v; want 1", len(entries), err)
		}
		slices.SortFunc(entries, func(a, b relay.Entry) int { return cmp.Compare(a.Position, b.Position) })
	})
}

// Whoever had the slot before changes nothing any more.
func TestZombieLedger(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		cfg := testConfig(db)
		cfg.Hybrid = true
		l := acquire(t, newStore(t, cfg, nil), "outbox")
		events := insert(t, db, 1, 3)
		marks := parking(marksOf(events), held("kafka"))
		mark(t, l, marks[:2])
		entries := due(t, l, "kafka", 10)
		exec(t, db, `UPDATE saga_outbox_relay SET epoch = epoch + 1`)
		before := value[string](t, db.Pool, `SELECT (SELECT string_agg(d::text, ';' ORDER BY event_id) FROM saga_outbox_delivery d) || (SELECT string_agg(o::text, ';' ORDER BY event_id) FROM saga_outbox o) || (SELECT string_agg((to_jsonb(r) - 'renewed_at')::text, ';') FROM saga_outbox_relay r)`)
		for what, f := range map[string]func() error{
			"Mark": func() error {
				_, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marks[2:], Confirm: 1 << 60})
				return err
			},
			"Resolve": func() error {
				return l.Resolve(t.Context(), "kafka", []relay.Outcome{{Entry: &entries[0]}, {Entry: &entries[1], Fate: relay.FateRefused, Error: "no", Attempts: 1}})
			},
			"Settled":   func() error { _, err := l.Settled(t.Context(), events); return err },
			"Confirm":   func() error { return l.Confirm(t.Context(), 1<<60) },
			"OweSweep":  func() error { return l.OweSweep(t.Context(), "test") },
			"SweepFrom": func() error { _, err := l.SweepFrom(t.Context(), 4711); return err },
			"EndSweep":  func() error { _, err := l.EndSweep(t.Context(), 1); return err },
			"Prune":     func() error { _, err := l.Prune(t.Context(), 0, false, 10); return err },
		} {
			if err := f(); !errors.Is(err, relay.ErrFenced) {
				t.Errorf("%s: %v, want ErrFenced", what, err)
			}
		}
		if got := value[string](t, db.Pool, `SELECT (SELECT string_agg(d::text, ';' ORDER BY event_id) FROM saga_outbox_delivery d) || (SELECT string_agg(o::text, ';' ORDER BY event_id) FROM saga_outbox o) || (SELECT string_agg((to_jsonb(r) - 'renewed_at')::text, ';') FROM saga_outbox_relay r)`); got != before {
			t.Errorf("a zombie has changed\n%s\nto\n%s", before, got)
		}
	})
}
