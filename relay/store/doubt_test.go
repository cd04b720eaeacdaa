package store

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// What a mark notes of the time before which nothing was sent without a mark, the next owner gets,
// as it is after whatever has ended the one before.
func TestInDoubt(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		s := newStore(t, testConfig(db), nil)
		began := time.Now().Truncate(time.Millisecond)
		since := time.UnixMilli(1_795_000_000_123)
		batch := func(l *lease, events []relay.Event, since time.Time) {
			t.Helper()
			if later, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marksOf(events), Since: since}); err != nil || len(later) > 0 {
				t.Fatal(later, err)
			}
		}
		leave := func(l *lease, clean bool) {
			t.Helper()
			if err := l.Release(t.Context(), clean); err != nil {
				t.Fatal(err)
			}
		}
		want := func(what string, want time.Time) *lease {
			t.Helper()
			l := acquire(t, s, "outbox")
			d := l.InDoubt()
			if !d.Since.Equal(want) {
				t.Errorf("%s: in doubt since %v, want %v", what, d.Since, want)
			}
			if end := value[int64](t, db.Pool, `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`); d.To == 0 || int64(d.To) > end {
				t.Errorf("%s: in doubt to %s, and the WAL ends at %s", what, d.To, relay.LSN(end))
			}
			return l
		}
		l := want("nobody was here", time.Time{})
		leave(l, false)
		l = acquire(t, s, "outbox") // it has sent nothing so far, and may before its first mark
		if since := l.InDoubt().Since; since.Before(began) || since.After(time.Now()) {
			t.Errorf("after an owner without a mark: in doubt since %v, and it came between %v and now", since, began)
		}
		batch(l, insert(t, db, 1, 3), since)
		before := value[int64](t, db.Pool, `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`)
		leave(l, false)
		l = want("after a mark", since)
		if int64(l.InDoubt().To) < before {
			t.Errorf("what was committed before the takeover, up to %s, is not in doubt: only to %s", relay.LSN(before), l.InDoubt().To)
		}

		// Other writers of the row leave it.
		if err := l.Confirm(t.Context(), 4711); err != nil {
			t.Fatal(err)
		}
		leave(l, false)
		l = want("after a note of a position", since)

		// Written in halves, none of them can say that nothing else is in doubt.
		exec(t, db, `CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one' USING ERRCODE = 'check_violation'; END $$`)
		exec(t, db, `CREATE TRIGGER no BEFORE UPDATE ON saga_outbox FOR EACH ROW WHEN (OLD.saga_id = 's5') EXECUTE FUNCTION no()`)
		if _, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marksOf(insert(t, db, 4, 7)), Since: since.Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
		leave(l, false)
		l = want("after a batch in halves", since)

		// It goes back as well as forth: clocks do.
		batch(l, insert(t, db, 8, 8), since.Add(-time.Hour))
		leave(l, false)
		l = want("after a mark by another clock", since.Add(-time.Hour))

		leave(l, true)
		l = want("after a clean stop", time.Time{})
		batch(l, insert(t, db, 9, 9), since)
		leave(l, false)
		l = want("after another mark", since)
		batch(l, insert(t, db, 10, 10), time.Time{})
		leave(l, false)
		l = want("after a mark of one that cannot know", time.Time{})

		// A database that was restored elsewhere.
		batch(l, insert(t, db, 11, 11), since)
		leave(l, false)
		exec(t, db, `UPDATE saga_outbox_relay SET system_id = 42`)
		want("in another cluster", time.Time{})
	})
}

// The slot was renamed after a crash.
func TestInDoubtIsInherited(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		exec(t, db, `INSERT INTO saga_outbox_relay (slot, epoch, owner, sinks, sweep_owed, released_at, renewed_at, doubt_since) VALUES ('before', 7, 'relay-x', 'kafka', false, now(), now() - interval '1 h', 1795000000123)`)
		if got := acquire(t, quickLease(t, db, "relay-y", nil), "after").InDoubt().Since; got.UnixMilli() != 1_795_000_000_123 {
			t.Errorf("in doubt since %s", got)
		}
	})
}

// The owner died, and a person set rows back, sent_at too, before the next one came.
func TestSentOnceAndSetBack(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		events := insert(t, db, 1, 5)
		s := newStore(t, testConfig(db), nil)
		mark(t, acquire(t, s, "outbox"), marksOf(events[:3]))
		s.Leave()
		exec(t, db, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'sagaz-relay %'`)
		db.Until(t, `SELECT NOT EXISTS (SELECT FROM pg_locks l WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`)
		exec(t, db, `UPDATE saga_outbox SET status = 'pending', sent_at = NULL WHERE event_id = ANY($1)`, []string{id(1).String(), id(2).String()})
		exec(t, db, `UPDATE saga_outbox SET status = 'claimed', claimed_at = now() WHERE event_id = $1`, id(4).String()) // as a hybrid relay does before it sends
		insert(t, db, 6, 6)
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		for _, of := range []struct{ streamed, swept, want []relay.UUID }{
			{[]relay.UUID{id(1), id(3), id(4), id(5)}, nil, []relay.UUID{id(1), id(3)}},
			{nil, []relay.UUID{id(2), id(3), id(5), id(6)}, []relay.UUID{id(2), id(3)}},
			{[]relay.UUID{id(1)}, []relay.UUID{id(2), id(4)}, []relay.UUID{id(1), id(2)}},
		} {
			got, err := l.SentOnce(t.Context(), of.streamed, of.swept)
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(got, func(a, b relay.UUID) int { return slices.Compare(a[:], b[:]) })
			if !slices.Equal(got, of.want) {
				t.Errorf("streamed %v, swept %v: sent once %v, want %v", of.streamed, of.swept, got, of.want)
			}
		}
	})
}

// Rows that were sent are known, whatever their status is now.
func TestSentOnce(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		events := insert(t, db, 1, 5)
		mark(t, l, marksOf(events[:3]))
		refused := marksOf(events[3:4])
		refuse(&refused[0], "no")
		mark(t, l, refused)
		exec(t, db, `UPDATE saga_outbox SET status = 'pending' WHERE event_id = ANY($1)`, []string{id(2).String(), id(4).String()})
		exec(t, db, `DELETE FROM saga_outbox WHERE event_id = $1`, id(3).String())
		got, err := l.SentOnce(t.Context(), []relay.UUID{id(1), id(2), id(3), id(4), id(5), id(6)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(got, func(a, b relay.UUID) int { return slices.Compare(a[:], b[:]) })
		if want := []relay.UUID{id(1), id(2)}; !slices.Equal(got, want) {
			t.Errorf("sent once: %s, want %s", fmt.Sprint(got), fmt.Sprint(want))
		}
	})
}
