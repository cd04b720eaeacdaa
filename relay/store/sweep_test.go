package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// swept are the events that a sweep finds, by their number.
func swept(t testing.TB, l relay.Lease, q relay.SweepQuery) string {
	t.Helper()
	var found []string
	err := l.Sweep(t.Context(), q, func(events []relay.Event) error {
		for _, ev := range events {
			found = append(found, strings.TrimLeft(ev.ID.String()[24:], "0"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(found, " ")
}

func TestSweepPending(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		if got := swept(t, l, relay.SweepQuery{}); got != "" {
			t.Errorf("of nothing: %s", got)
		}
		marks := marksOf(insert(t, db, 1, 9))
		mark(t, l, append(parking(marks[2:3], held("kafka")), marks[3]))
		exec(t, db, `UPDATE saga_outbox SET created_at = '2026-01-01 00:00:00+00'::timestamptz + make_interval(secs => (payload->>'n')::int)`)
		exec(t, db, `UPDATE saga_outbox SET created_at = 'infinity' WHERE event_id = $1`, id(1).String())
		exec(t, db, `UPDATE saga_outbox SET created_at = '-infinity', payload = '{"b": 1.10, "a": "ü"}', headers = '{"trace": "x"}', aggregate_type = 'order' WHERE event_id = $1`, id(7).String())
		exec(t, db, `UPDATE saga_outbox SET status = 'claimed' WHERE event_id = $1`, id(9).String())
		if got, want := swept(t, l, relay.SweepQuery{}), "7 2 5 6 8 1"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		since := relay.TimestampOf(time.Date(2026, 1, 1, 0, 0, 6, 0, time.UTC))
		if got, want := swept(t, l, relay.SweepQuery{Since: since}), "6 8 1"; got != want {
			t.Errorf("since the sixth: got %s, want %s", got, want)
		}
		err := l.Sweep(t.Context(), relay.SweepQuery{}, func(events []relay.Event) error {
			want := relay.Event{ID: id(7), SagaID: "s7", AggregateType: "order", AggregateID: "a7", EventType: "Tested", Payload: `{"a": "ü", "b": 1.10}`, Headers: `{"trace": "x"}`, Status: "pending", CreatedAt: relay.NegativeInfinity}
			if events[0] != want {
				t.Errorf("got %+v, want %+v", events[0], want)
			}
			return errStop
		})
		if err != errStop {
			t.Errorf("got %v, want the error of f", err)
		}
	})
}

// A person sets a dead letter back to pending: it is retried, where it was not delivered.
func TestSweepRevivesDeadLetters(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		marks := parking(marksOf(insert(t, db, 1, 3)), relay.Parked{Sink: "kafka", State: relay.StateDead, Detached: true, Reason: relay.ReasonTooLarge, Error: "too large", Attempts: 5})
		mark(t, l, marks)
		exec(t, db, `UPDATE saga_outbox SET status = 'pending' WHERE event_id <> $1`, id(1).String())
		exec(t, db, `UPDATE saga_outbox_delivery SET discarded = true WHERE event_id = $1`, id(3).String())
		if got := swept(t, l, relay.SweepQuery{}); got != "" {
			t.Errorf("swept %s, want none", got)
		}
		if got, want := ledger(t, db, "kafka"), "1 dead, 2 ready, 3 dead"; got != want {
			t.Errorf("ledger: %s, want %s", got, want)
		}
		entries := due(t, l, "kafka", 10)
		if got, want := numbers(entries), "3 discarded, 2"; got != want || entries[1].Attempts != 0 {
			t.Fatalf("due %s, want %s", got, want)
		}
		resolve(t, l, "kafka", relay.FateDelivered, entries[1])
		resolve(t, l, "kafka", relay.FateDropped, entries[0])
		if got, want := counts(t, db), "2 dead_letter, 1 sent"; got != want {
			t.Errorf("rows: %s, want %s", got, want)
		}
	})
}

var errStop = errors.New("enough")

// What was settled while f was busy is not among the next rows; sizes are bounded; no lock is kept
// meanwhile.
func TestSweepInPieces(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		events := insert(t, db, 1, 1200)
		exec(t, db, `UPDATE saga_outbox SET payload = jsonb_build_object('x', repeat('x', 300000)) WHERE event_id BETWEEN $1 AND $2`, id(1101).String(), id(1110).String())
		calls, got := 0, 0
		err := l.Sweep(t.Context(), relay.SweepQuery{}, func(batch []relay.Event) error {
			calls++
			got += len(batch)
			bytes := 0
			for i := range batch {
				bytes += batch[i].Size()
			}
			if bytes > sweepBytes && len(batch) > 1 {
				t.Errorf("%d bytes in %d events", bytes, len(batch))
			}
			if value[bool](t, db.Pool, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'sagaz-relay sweep outbox' AND datname = current_database() AND (state <> 'idle' OR backend_xmin IS NOT NULL))`) {
				t.Error("a snapshot is held while the events are published")
			}
			if calls == 1 { // the others up to the thousandth are settled by another session
				mark(t, l, marksOf(events[:1000]))
			}
			return nil
		})
		if err != nil || got != 700 {
			t.Errorf("%d events, %v; want 500 and then 200", got, err)
		}
		if calls < 5 {
			t.Errorf("%d calls, want large rows apart", calls)
		}
	})
}

func TestSweepClaimedAndFailed(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		s := newStore(t, testConfig(db), nil)
		release(t, acquire(t, s, "outbox"))
		l := acquire(t, s, "outbox")
		insert(t, db, 1, 13)
		exec(t, db, `INSERT INTO saga_outbox_relay SELECT (jsonb_populate_record(r, '{"slot": "renamed", "heir": "outbox"}')).* FROM saga_outbox_relay r`)
		claim := func(n int, status, worker, age string) {
			exec(t, db, `UPDATE saga_outbox SET status = $2, worker_id = nullif($3, ''), claimed_at = now() - nullif($4, '')::interval WHERE event_id = $1`, id(n).String(), status, worker, age)
		}
		claim(1, "claimed", "python-1", "1 minute")
		claim(2, "claimed", "python-1", "6 minutes")
		claim(3, "claimed", "sagaz-relay/outbox/1/a", "1 second") // our predecessor
		claim(4, "claimed", "sagaz-relay/outbox/2/a", "1 second") // we
		claim(5, "claimed", "sagaz-relay/outbox2/1/a", "1 second")
		claim(13, "claimed", "sagaz-relay/renamed/1/a", "1 second") // whose slot we have inherited
		claim(6, "failed", "", "")
		claim(7, "failed", "python-1", "1 second") // it is at it
		claim(8, "failed", "python-1", "10 minutes")
		claim(9, "failed", "", "")
		marks := parking(marksOf([]relay.Event{{ID: id(9)}}), refusal("kafka", "no"))
		mark(t, l, marks)
		if got, want := swept(t, l, relay.SweepQuery{Kind: relay.SweepClaimed}), "2 3 d"; got != want {
			t.Errorf("claimed: got %s, want %s", got, want)
		}
		if got, want := swept(t, l, relay.SweepQuery{Kind: relay.SweepFailed}), "6 8"; got != want {
			t.Errorf("failed: got %s, want %s", got, want)
		}
		if got, want := swept(t, l, relay.SweepQuery{}), "a b c"; got != want {
			t.Errorf("pending: got %s, want %s", got, want)
		}
	})
}

// Two looks: what was visible in the snapshot, and nothing that may not have been. It runs on a
// server of its own, because a snapshot has the transactions of all databases. Any other that runs
// while it is taken and then commits would make the sweep leave the fourth row for later.
func TestSweepSeen(t *testing.T) {
	onEachAlone(t, map[string]string{"autovacuum": "off"}, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		insert(t, db, 1, 1)
		writer := db.Conn(t)
		tx, err := writer.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), insertSQL, 2, 2); err != nil {
			t.Fatal(err)
		}
		err = pgx.BeginFunc(t.Context(), tx, func(savepoint pgx.Tx) error {
			_, err := savepoint.Exec(t.Context(), insertSQL, 3, 3)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		insert(t, db, 4, 4) // committed while the first is running
		h, err := l.Horizon(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if end := value[string](t, db.Pool, `SELECT pg_current_wal_insert_lsn()::text`); h.WAL == 0 || h.WAL.String() > end && len(h.WAL.String()) >= len(end) {
			t.Errorf("the WAL ends at %s, the horizon has %s", end, h.WAL)
		}
		insert(t, db, 5, 5)
		// Another version of the row.
		exec(t, db, `UPDATE saga_outbox SET retry_count = 1 WHERE event_id = $1`, id(1).String())
		insert(t, db, 6, 6)
		if got, want := swept(t, l, relay.SweepQuery{Seen: h.Snapshot}), "4"; got != want {
			t.Errorf("while it runs: got %q, want %q", got, want)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The fourth may be the transaction's savepoint's, as far as the snapshot shows; another
		// sweep will find it.
		if got, want := swept(t, l, relay.SweepQuery{Seen: h.Snapshot}), ""; got != want {
			t.Errorf("after it has committed: got %q, want %q", got, want)
		}
		if got, want := swept(t, l, relay.SweepQuery{}), "1 2 3 4 5 6"; len(got) != len(want) {
			t.Errorf("all: got %q, want %q", got, want)
		}
		again, err := l.Horizon(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, want := swept(t, l, relay.SweepQuery{Seen: again.Snapshot}), "1 2 3 4 5 6"; len(got) != len(want) {
			t.Errorf("in a later snapshot: got %q, want %q", got, want)
		}
	})
}

// The owed sweep is generous: what it may have seen, it takes.
func TestRecovery(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		s := newStore(t, testConfig(db), nil)
		l := acquire(t, s, "outbox")
		if got, want := l.Recovery(), (relay.Recovery{Owed: true, Cause: "first start"}); got != want {
			t.Errorf("first: got %+v, want %+v", got, want)
		}
		tx, err := db.Conn(t).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), insertSQL, 1, 1); err != nil {
			t.Fatal(err)
		}
		insert(t, db, 2, 2)
		h, err := l.SweepFrom(t.Context(), 4711)
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		insert(t, db, 3, 3)
		for range 2 { // the second time with another owner
			if got, want := swept(t, l, relay.SweepQuery{Seen: h.Snapshot}), "2"; got != want {
				t.Errorf("owed: got %q, want %q", got, want)
			}
			release(t, l)
			l = acquire(t, s, "outbox")
			if got, want := l.Recovery(), (relay.Recovery{Owed: true, Cause: "first start", Snapshot: h.Snapshot}); got != want {
				t.Errorf("the next owner: got %+v, want %+v", got, want)
			}
			if again, err := l.SweepFrom(t.Context(), 4711); err != nil || again.Snapshot != h.Snapshot {
				t.Errorf("noted already: %+v, %v; want %s", again, err, h.Snapshot)
			}
		}
		// The slot was made again meanwhile: what was committed before that is to be swept too.
		if again, err := l.SweepFrom(t.Context(), 4712); err != nil || again.Snapshot == h.Snapshot {
			t.Errorf("noted for another slot: %+v, %v; want a new snapshot", again, err)
		} else if got, want := swept(t, l, relay.SweepQuery{Seen: again.Snapshot}), "1 2 3"; got != want {
			t.Errorf("a slot made again: got %q, want %q", got, want)
		}
		// A database restored from a dump of another cluster: its positions mean nothing here.
		exec(t, db, `UPDATE saga_outbox_relay SET marked_lsn = 'FF/0', confirmed_lsn = 'FF/0'`)
		if err := l.Confirm(t.Context(), 5); err != nil {
			t.Fatal(err)
		}
		marked, err := l.EndSweep(t.Context(), 7)
		if err != nil || marked == 0 || marked >= 0xFF<<32 || l.MarkedLSN() != marked {
			t.Errorf("the sweep's end: %s, %v, then %s", marked, err, l.MarkedLSN())
		}
		if got := markedLSN(t, db); got != marked {
			t.Errorf("marked_lsn %s, want %s", got, marked)
		}
		if err := l.Confirm(t.Context(), 9); err != nil {
			t.Fatal(err)
		}
		if err := l.Confirm(t.Context(), 8); err != nil { // late
			t.Fatal(err)
		}
		// A row that no slot has delivered moves marked_lsn to the end of the WAL.
		marks := marksOf(insert(t, db, 4, 4))
		marks[0].CommitLSN = 0
		if _, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marks, Confirm: 11}); err != nil {
			t.Fatal(err)
		}
		if got := markedLSN(t, db); got <= marked {
			t.Errorf("marked_lsn %s, want beyond %s", got, marked)
		}
		release(t, l)
		l = acquire(t, s, "outbox")
		if got, want := l.Recovery(), (relay.Recovery{Confirmed: 11}); got != want {
			t.Errorf("after the sweep: got %+v, want %+v", got, want)
		}
		if err := l.OweSweep(t.Context(), "slot lost"); err != nil {
			t.Fatal(err)
		}
		release(t, l)
		l = acquire(t, s, "outbox")
		if got, want := l.Recovery(), (relay.Recovery{Owed: true, Cause: "slot lost", Confirmed: 11}); got != want {
			t.Errorf("after a gap: got %+v, want %+v", got, want)
		}
	})
}

// With the library's indexes and with those of our own, and moving or deleting.
func TestPrune(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for _, indexed := range []bool{true, false} {
			if !indexed {
				exec(t, db, `DROP INDEX idx_outbox_pending; CREATE INDEX idx_outbox_pending ON saga_outbox (created_at) WHERE status = 'pending'`)
			}
			for _, archive := range []bool{false, true} {
				t.Run(fmt.Sprintf("indexed %t, archive %t", indexed, archive), func(t *testing.T) {
					l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
					insert(t, db, 1, 100)
					exec(t, db, `UPDATE saga_outbox SET status = 'sent', created_at = now() - interval '2 hours', sent_at = now() - interval '2 hours' WHERE (payload->>'n')::int <= 90`)
					exec(t, db, `UPDATE saga_outbox SET status = 'failed' WHERE event_id = $1`, id(1).String())
					exec(t, db, `UPDATE saga_outbox SET sent_at = now() WHERE event_id = $1`, id(2).String())
					exec(t, db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, detached, replayed_at) VALUES ($1, 'kafka', 'outbox', 1, 'k', 1, 'Tested', 'retry', true, now())`, id(3).String())
					tx, err := db.Conn(t).Begin(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if _, err := tx.Exec(t.Context(), `SELECT FROM saga_outbox WHERE event_id = $1 FOR UPDATE`, id(4).String()); err != nil {
						t.Fatal(err)
					}
					var got []int
					for range 4 {
						n, err := l.Prune(t.Context(), time.Hour, archive, 40)
						if err != nil {
							t.Fatal(err)
						}
						got = append(got, n)
					}
					if want := []int{40, 40, 6, 0}; !slices.Equal(got, want) {
						t.Errorf("pruned %v, want %v", got, want)
					}
					if got, want := counts(t, db), "1 failed, 10 pending, 3 sent"; got != want {
						t.Errorf("rows: %s, want %s", got, want)
					}
					if got, want := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_archive WHERE status = 'sent' AND sent_at < now() - interval '1 hour'`), map[bool]int{true: 86}[archive]; got != want {
						t.Errorf("%d archived, want %d", got, want)
					}
					if err := tx.Rollback(t.Context()); err != nil {
						t.Fatal(err)
					}
					exec(t, db, `TRUNCATE saga_outbox, saga_outbox_archive, saga_outbox_delivery`)
					release(t, l)
				})
			}
		}
	})
}
