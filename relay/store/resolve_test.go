package store

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// The whole way of a key with a refused head, on two sinks.
func TestResolve(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		s := newStore(t, testConfig(db), nil)
		l := acquire(t, s, "outbox")
		marks := ofKey(parking(marksOf(insert(t, db, 1, 4)), held("kafka")), "k")
		marks[0].Parked = []relay.Parked{refusal("kafka", "no topic"), held("rabbitmq")}
		mark(t, l, marks)
		if got := numbers(due(t, l, "kafka", 10)); got != "" {
			t.Errorf("due before its time: %s", got)
		}
		_, next, err := l.Due(t.Context(), "kafka", 10, 1<<20)
		if err != nil || next < 59*time.Minute || next > time.Hour {
			t.Errorf("the next is due in %s (%v), want an hour", next, err)
		}
		exec(t, db, `UPDATE saga_outbox_delivery SET next_attempt_at = now() WHERE state = 'retry' AND sink = 'kafka'`)
		head := due(t, l, "kafka", 10)
		if len(head) != 1 || head[0].Position != 1 || head[0].Attempts != 1 || head[0].Event.Payload != `{"n": 1}` || head[0].Event.AggregateID != "k" || head[0].KeyHash != relay.KeyHash("k") {
			t.Fatalf("due %+v, want the first", head)
		}
		// Another owner sees the same.
		release(t, l)
		l = acquire(t, s, "outbox")
		if l.LastPosition() <= 4 {
			t.Errorf("the last position is %d, want one past the 4 in the ledger", l.LastPosition())
		}
		// Refused again, then delivered: those behind it are freed, and the row still has an entry
		// of the other sink.
		resolve(t, l, "kafka", relay.FateRefused, head...)
		if got, want := ledger(t, db, "kafka"), "1 waiting, 2 held, 3 held, 4 held"; got != want {
			t.Errorf("refused again: %s, want %s", got, want)
		}
		if got, want := row(t, db, 1), "failed retries=2 error=kafka: no sent=f"; got != want {
			t.Errorf("refused again: row %s, want %s", got, want)
		}
		resolve(t, l, "kafka", relay.FateDelivered, head...)
		if got, want := ledger(t, db, "kafka"), "2 ready, 3 ready, 4 ready"; got != want {
			t.Errorf("delivered: %s, want %s", got, want)
		}
		if got, want := row(t, db, 1), "pending retries=0 error=- sent=f"; got != want {
			t.Errorf("row %s, want %s", got, want)
		}
		resolve(t, l, "rabbitmq", relay.FateDelivered, due(t, l, "rabbitmq", 10)...)
		if got, want := row(t, db, 1), "pending retries=0 error=- sent=f"; got == want {
			t.Errorf("row %s after the last sink, want sent", got)
		}
		// The second is refused: the freed ones behind it are held again.
		ready := due(t, l, "kafka", 2)
		if got := numbers(ready); got != "2, 3" {
			t.Fatalf("due %s, want two", got)
		}
		resolve(t, l, "kafka", relay.FateRefused, ready[0])
		if got, want := ledger(t, db, "kafka"), "2 waiting, 3 held, 4 held"; got != want {
			t.Errorf("second refused: %s, want %s", got, want)
		}
		// It becomes a dead letter, and blocks its key.
		resolve(t, l, "kafka", relay.FateDead, ready[0])
		if got, want := ledger(t, db, "kafka"), "2 dead, 3 held, 4 held"; got != want {
			t.Errorf("second dead: %s, want %s", got, want)
		}
		if got, want := row(t, db, 2), "dead_letter retries=1 error=kafka: no sent=f"; got != want {
			t.Errorf("row %s, want %s", got, want)
		}
		// A person discards it: the others go on, and nothing finds the row again.
		exec(t, db, `UPDATE saga_outbox_delivery SET discarded = true WHERE position = 2`)
		dropped := due(t, l, "kafka", 10)
		if got := numbers(dropped); got != "2 discarded" {
			t.Fatalf("due %s, want what was discarded", got)
		}
		resolve(t, l, "kafka", relay.FateDropped, dropped...)
		if got, want := ledger(t, db, "kafka"), "3 ready, 4 ready"; got != want {
			t.Errorf("discarded: %s, want %s", got, want)
		}
		if got, want := row(t, db, 2), "dead_letter retries=1 error=kafka: no sent=f"; got != want {
			t.Errorf("row %s, want %s", got, want)
		}
		// One dies and is passed.
		ready = due(t, l, "kafka", 10)
		outcome := relay.Outcome{Entry: &ready[0], Fate: relay.FateDead, Reason: relay.ReasonTooLarge, Error: "too large", Attempts: 5, Detach: true}
		if err := l.Resolve(t.Context(), "kafka", []relay.Outcome{outcome}); err != nil {
			t.Fatal(err)
		}
		if got, want := ledger(t, db, "kafka"), "3 dead, 4 ready"; got != want {
			t.Errorf("passed: %s, want %s", got, want)
		}
		all, err := l.Counts(t.Context())
		for i := range all {
			if age := time.Since(all[i].Oldest); age < -time.Minute || age > time.Hour {
				t.Errorf("the oldest in state %s is %s old", all[i].State, age)
			}
			all[i].Oldest = time.Time{}
		}
		if err != nil || !slices.Equal(all, []relay.LedgerCount{{Sink: "kafka", State: relay.StateDead, N: 1}, {Sink: "kafka", State: relay.StateRetry, N: 1}}) {
			t.Errorf("counts %v, %v", all, err)
		}
		// The last one's row was deleted by hand.
		exec(t, db, `DELETE FROM saga_outbox WHERE event_id = $1`, id(4).String())
		gone := due(t, l, "kafka", 10)
		if got := numbers(gone); got != "4 gone" {
			t.Fatalf("due %s, want one that is gone", got)
		}
		resolve(t, l, "kafka", relay.FateDropped, gone...)
		if got, want := ledger(t, db, "kafka"), "3 dead"; got != want {
			t.Errorf("at the end: %s, want %s", got, want)
		}
		if got, want := counts(t, db), "2 dead_letter, 1 sent"; got != want {
			t.Errorf("rows: %s, want %s", got, want)
		}
	})
}

// Rows of delivered entries go as RELAY_MARK wants, once the last entry has gone.
func TestResolveMarks(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for mode, want := range map[string]string{MarkUpdate: "2 sent", MarkDelete: "none", MarkArchive: "none"} {
			l := acquire(t, newStore(t, withMark(db, mode), nil), "outbox")
			marks := marksOf(insert(t, db, 1, 2))
			for i := range marks {
				marks[i].Parked = []relay.Parked{held("kafka"), held("rabbitmq")}
			}
			mark(t, l, marks)
			resolve(t, l, "kafka", relay.FateDelivered, due(t, l, "kafka", 10)...)
			if got := counts(t, db); got != "2 pending" {
				t.Errorf("%s: %s after the first sink", mode, got)
			}
			resolve(t, l, "rabbitmq", relay.FateDelivered, due(t, l, "rabbitmq", 10)...)
			if got := counts(t, db); got != want {
				t.Errorf("%s: %s after both, want %s", mode, got, want)
			}
			if got, want := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_archive WHERE status = 'sent'`), map[string]int{MarkArchive: 2}[mode]; got != want {
				t.Errorf("%s: %d archived, want %d", mode, got, want)
			}
			exec(t, db, `TRUNCATE saga_outbox, saga_outbox_archive`)
			release(t, l)
		}
	})
}

// What a person discards out of the middle of a line frees no entry: the head still has a next
// attempt.
func TestDiscardBehindAWaitingHead(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for _, dead := range []bool{false, true} {
			l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
			marks := ofKey(parking(marksOf(insert(t, db, 1, 4)), held("kafka")), "k")
			marks[0].Parked[0] = refusal("kafka", "no")
			want := "1 waiting, 2 held, 4 held"
			if dead {
				marks[0].Parked[0].State, want = relay.StateDead, "1 dead, 2 held, 4 held"
			}
			mark(t, l, marks)
			exec(t, db, `UPDATE saga_outbox_delivery SET discarded = true WHERE position = 3`)
			dropped := due(t, l, "kafka", 10)
			if got := numbers(dropped); got != "3 discarded" {
				t.Fatalf("due %s, want what was discarded", got)
			}
			resolve(t, l, "kafka", relay.FateDropped, dropped...)
			if got := ledger(t, db, "kafka"); got != want {
				t.Errorf("dead %t: %s, want %s", dead, got, want)
			}
			if got := row(t, db, 3); !strings.HasPrefix(got, "dead_letter") {
				t.Errorf("the discarded row: %s", got)
			}
			exec(t, db, `TRUNCATE saga_outbox, saga_outbox_delivery`)
			release(t, l)
		}
	})
}

// A row that is delivered once more stays sent, whatever comes of it.
func TestResolveReplay(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		mark(t, l, marksOf(insert(t, db, 1, 1)))
		exec(t, db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, detached, replayed_at)
			SELECT event_id, 'kafka', 'outbox', 1, 'a1', $1, 'Tested', 'retry', true, '2026-01-01' FROM saga_outbox`, int32(relay.KeyHash("a1")))
		entries := due(t, l, "kafka", 10)
		if len(entries) != 1 || !entries[0].Detached || entries[0].ReplayedAt.UTC().Format("2006-01-02") != "2026-01-01" {
			t.Fatalf("due %+v", entries)
		}
		for _, fate := range []relay.Fate{relay.FateRefused, relay.FateDead, relay.FateDropped} {
			resolve(t, l, "kafka", fate, entries...)
			if got := counts(t, db); got != "1 sent" {
				t.Errorf("fate %d: rows: %s", fate, got)
			}
		}
		if got := ledger(t, db, "kafka"); got != "empty" {
			t.Errorf("ledger: %s", got)
		}
	})
}
