package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// everyClass has a code of each class of SQLSTATE that a trigger may raise, and some that are of a
// kind of their own.
var everyClass = []string{
	"03000", "08006", "09000", "0A000", "0B000", "0F001", "0L000", "0P000", "0Z000", "20000", "21000", "22001", "22P02", "23502", "23503", "23505", "23514", "23P01", "24000",
	"25006", "25P02", "26000", "27000", "28000", "2B000", "2D000", "2F005", "34000", "38000", "39P01", "3B001", "3D000", "3F000", "40001", "40P01", "42501", "42703", "42883", "42P01",
	"44000", "53100", "53200", "54000", "54023", "55000", "55006", "55P03", "57014", "57P01", "57P03", "58030", "72000", "F0000", "HV000", "P0001", "P0004", "T0001", "XX000", "XX001",
}

// A busy machine must not change how far batches are taken apart.
func init() { halvingFor = time.Minute }

// payload is what may be in no log and in no entry.
const payload = "secret-of-a-row"

// refusing has the database raise codes, one for each row, whenever something is done to it.
func refusing(t testing.TB, db *pgtest.DB, table, when string, codes map[int]string) {
	t.Helper()
	record := "NEW"
	if strings.Contains(when, "DELETE") {
		record = "OLD"
	}
	exec(t, db, fmt.Sprintf(`CREATE TABLE IF NOT EXISTS refused (event_id uuid, code text);
		CREATE OR REPLACE FUNCTION refuse_it() RETURNS trigger LANGUAGE plpgsql AS $$
		DECLARE c text;
		BEGIN
			SELECT code INTO c FROM public.refused r WHERE r.event_id = %s.event_id LIMIT 1;
			IF FOUND THEN RAISE EXCEPTION USING ERRCODE = c, MESSAGE = '%s', DETAIL = '%[2]s', HINT = '%[2]s'; END IF;
			RETURN %[1]s;
		END $$;
		CREATE TRIGGER refuse_it BEFORE %[3]s ON %[4]s FOR EACH ROW EXECUTE FUNCTION refuse_it();`, record, payload, when, table))
	for n, code := range codes {
		exec(t, db, `INSERT INTO refused VALUES ($1, $2)`, id(n).String(), code)
	}
}

// markAll marks like the relay's marker: again when it did not work, and what was not marked again.
func markAll(t testing.TB, l *lease, marks []relay.Mark) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for len(marks) > 0 {
		later, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marks})
		if err == nil {
			var again []relay.Mark
			for _, i := range later {
				again = append(again, marks[i])
			}
			marks = again
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d marks are left, %v", len(marks), err)
		}
		if err != nil || len(marks) > 0 {
			time.Sleep(200 * time.Millisecond)
		}
	}
}

// entriesOf are the entries of MarkSink: how many, and of how many codes.
func unmarkedEntries(t testing.TB, db *pgtest.DB) string {
	t.Helper()
	return value[string](t, db.Pool, `SELECT coalesce(string_agg(format('%s %s %s', right(event_id::text, 4), reason, last_error), '; ' ORDER BY event_id), 'none') FROM saga_outbox_delivery WHERE sink = 'saga_outbox'`)
}

// remarkNow makes parked rows be tried at once.
func remarkNow(t testing.TB, db *pgtest.DB, l *lease) (u relay.Unmarked) {
	t.Helper()
	exec(t, db, `UPDATE saga_outbox_delivery SET next_attempt_at = now() - interval '1 s' WHERE sink = 'saga_outbox'`)
	for deadline := time.Now().Add(time.Minute); ; { // one look ends after its time
		l.left.mu.Lock()
		l.left.stale = time.Time{} // a count that took long is kept for some time
		l.left.mu.Unlock()
		var err error
		if u, err = l.Remark(t.Context()); err != nil {
			t.Fatal(err)
		}
		var due int
		err = db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM saga_outbox_delivery
			WHERE sink = 'saga_outbox' AND next_attempt_at < now()`).Scan(&due)
		if err != nil {
			t.Fatal(err)
		}
		if due == 0 {
			return u
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d rows are due after a minute", due)
		}
	}
}

func sweepAll(t testing.TB, l *lease) (found []relay.UUID) {
	t.Helper()
	for _, kind := range []relay.SweepKind{relay.SweepPending, relay.SweepFailed} {
		err := l.Sweep(t.Context(), relay.SweepQuery{Kind: kind}, func(events []relay.Event) error {
			for _, ev := range events {
				found = append(found, ev.ID)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// A batch in which the database refuses some rows, each with another SQLSTATE. The others are
// marked. These are parked so that nothing delivers them again, and they get their marks once the
// database takes them.
func TestMarkParksWhatIsRefused(t *testing.T) {
	for _, c := range []struct{ mode, table, when string }{
		{MarkUpdate, "saga_outbox", "UPDATE"},
		{MarkDelete, "saga_outbox", "DELETE"},
		{MarkArchive, "saga_outbox", "DELETE"},
		{MarkArchive, "saga_outbox_archive", "INSERT"},
	} {
		t.Run(c.mode+" "+c.when+" "+c.table, func(t *testing.T) {
			onEach(t, func(t *testing.T, db *pgtest.DB) {
				log := &bytes.Buffer{}
				l := acquire(t, newStore(t, withMark(db, c.mode), hclog.New(&hclog.LoggerOptions{Output: log})), "outbox")
				const n = 2500
				events := insert(t, db, 1, n)
				codes := make(map[int]string)
				for i, code := range everyClass {
					codes[1+i*(n/len(everyClass))] = code // the first row of the batch among them
				}
				codes[n] = "P0001" // and the last
				refusing(t, db, c.table, c.when, codes)
				marks := marksOf(events)
				markAll(t, l, marks)

				left := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox WHERE status = 'pending'`)
				entries := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_delivery WHERE sink = 'saga_outbox' AND state = 'retry' AND detached AND reason = 'unmarked'`)
				alone := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_delivery d JOIN refused r USING (event_id) WHERE sink = 'saga_outbox' AND last_error LIKE '%' || r.code || '%'`)
				if left != len(codes) || entries != len(codes) || alone != len(codes) {
					t.Errorf("%d rows are pending, %d have entries, %d with their own code; want %d", left, entries, alone, len(codes))
				}
				if got := value[int](t, db.Pool, `SELECT (SELECT count(*) FROM saga_outbox WHERE status = 'sent') + (SELECT count(*) FROM saga_outbox_archive WHERE status = 'sent')`); c.mode != MarkDelete && got != n-len(codes) {
					t.Errorf("%d rows are marked, want %d", got, n-len(codes))
				}
				if got := strings.Count(log.String(), "a row cannot be marked"); got < len(codes)/3 || got > len(codes) {
					t.Errorf("%d lines in the log, want about one for each row", got)
				}
				whole := value[string](t, db.Pool, `SELECT coalesce(string_agg(d::text, ' '), '') FROM saga_outbox_delivery d`)
				if strings.Contains(log.String(), payload) || strings.Contains(whole, payload) {
					t.Error("what the trigger raised about the row is in the log, or in an entry")
				}
				for i, is := range settled(t, l, events) {
					if !is {
						t.Fatalf("event %d is not settled", i+1)
					}
				}
				if found := sweepAll(t, l); len(found) != 0 {
					t.Errorf("the sweep finds %d rows", len(found))
				}
				if got := markedLSN(t, db); got < events[0].CommitLSN {
					t.Errorf("marked_lsn %s: the next owner would not look these up, and deliver them again", got)
				}

				// The next owner knows of them, and they stay until the database takes them.
				release(t, l)
				l = acquire(t, newStore(t, withMark(db, c.mode), nil), "outbox")
				if u := remarkNow(t, db, l); u.Events != len(codes) || u.Memory != 0 || u.Oldest.IsZero() || !strings.Contains(u.Cause, "SQLSTATE") {
					t.Errorf("still refused: %+v", u)
				}
				exec(t, db, `DELETE FROM refused WHERE code <> '23514'`)
				if u := remarkNow(t, db, l); u.Events != 1 {
					t.Errorf("one is still refused: %+v", u)
				}
				exec(t, db, `DELETE FROM refused`)
				if u := remarkNow(t, db, l); u.Events != 0 {
					t.Errorf("all are taken: %+v", u)
				}
				want := "2500 sent"
				if c.mode != MarkUpdate {
					want = "none"
				}
				if got := counts(t, db); got != want {
					t.Errorf("rows: %s, want %s", got, want)
				}
				if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_archive WHERE status = 'sent'`); c.mode == MarkArchive && got != n {
					t.Errorf("%d rows in the archive, want %d", got, n)
				}
			})
		})
	}
}

// What fails without any row is no row's fault: nothing is parked, and the error is of the whole statement.
func TestMarkFindsTheTablesFault(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for name, change := range map[string][2]string{
			"a trigger for each statement": {
				`CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$; CREATE TRIGGER no BEFORE UPDATE ON saga_outbox EXECUTE FUNCTION no()`,
				`DROP TRIGGER no ON saga_outbox; DROP FUNCTION no`,
			},
			"a column is gone": {`ALTER TABLE saga_outbox RENAME sent_at TO sent`, `ALTER TABLE saga_outbox RENAME sent TO sent_at`},
		} {
			t.Run(name, func(t *testing.T) {
				l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
				marks := marksOf(insert(t, db, 1, 20))
				exec(t, db, change[0])
				for range 3 {
					if _, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marks}); err == nil || !strings.Contains(err.Error(), "no row's fault") {
						t.Errorf("mark: %v", err)
					}
				}
				if got := unmarkedEntries(t, db); got != "none" {
					t.Errorf("parked: %s", got)
				}
				exec(t, db, change[1])
				mark(t, l, marks)
				if got := counts(t, db); got != "20 sent" {
					t.Errorf("rows: %s", got)
				}
				exec(t, db, `TRUNCATE saga_outbox`)
				release(t, l)
			})
		}
	})
}

// A table that refuses every row stops no event: all are parked, in a bounded number of
// transactions. They are counted by the server's ids, so nobody else may use the server.
func TestMarkAllRowsRefused(t *testing.T) {
	onEach(t, func(t *testing.T, shared *pgtest.DB) {
		server := pgtest.OwnServer(t, shared.Version, nil)
		db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		events := insert(t, db, 1, 2500)
		exec(t, db, `ALTER TABLE saga_outbox ADD COLUMN tenant text, ADD CONSTRAINT t CHECK (tenant IS NOT NULL) NOT VALID`)
		before := value[int64](t, db.Pool, `SELECT pg_current_xact_id()::text::bigint`)
		mark(t, l, marksOf(events))
		if used := value[int64](t, db.Pool, `SELECT pg_current_xact_id()::text::bigint`) - before; used > 400 {
			t.Errorf("%d transactions", used)
		}
		if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_delivery WHERE sink = 'saga_outbox'`); got != 2500 {
			t.Errorf("%d entries", got)
		}
		if got := markedLSN(t, db); got < events[0].CommitLSN {
			t.Errorf("marked_lsn %s: the next owner would not look these up, and deliver them again", got)
		}
		u, err := l.Remark(t.Context())
		if err != nil || u.Events != 2500 || u.Cause != "SQLSTATE 23514: constraint t, table saga_outbox" {
			t.Errorf("%+v, %v", u, err)
		}
		exec(t, db, `ALTER TABLE saga_outbox DROP CONSTRAINT t`)
		if u := remarkNow(t, db, l); u.Events != 0 || counts(t, db) != "2500 sent" {
			t.Errorf("%+v, rows: %s", u, counts(t, db))
		}
	})
}

// A row that is locked is parked after a while, with the session that has the lock; it gets its
// mark when the lock is gone.
func TestMarkParksWhatIsLocked(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		events := insert(t, db, 1, 100)
		var want []string
		conn := db.Conn(t)
		defer conn.Close(t.Context())
		if _, err := conn.Exec(t.Context(), `SET application_name = 'billing'`); err != nil {
			t.Fatal(err)
		}
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for n := 1; n <= 100; n += 2 {
			want = append(want, id(n).String())
		}
		if _, err := tx.Exec(t.Context(), `SELECT FROM saga_outbox WHERE event_id = ANY($1) FOR UPDATE`, want); err != nil {
			t.Fatal(err)
		}
		markAll(t, l, marksOf(events))
		if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_delivery WHERE sink = 'saga_outbox' AND reason = 'locked'`); got != len(want) {
			t.Fatalf("%d rows are parked, want %d", got, len(want))
		}
		u := remarkNow(t, db, l)
		const writersSQL = `SELECT count(DISTINCT xmin::text) FROM saga_outbox_delivery WHERE sink = 'saga_outbox'`
		// How long it has been locked may be noted in two ways.
		if n := value[int](t, db.Pool, writersSQL); n > 2 {
			t.Errorf("%d transactions have put off the rows of one session", n)
		}
		if sign := fmt.Sprintf("locked by pid %d, user", conn.PgConn().PID()); u.Events != len(want) || !strings.Contains(u.Cause, sign) || !strings.Contains(u.Cause, "application billing") {
			t.Errorf("%+v, want %s", u, sign)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if u := remarkNow(t, db, l); u.Events != 0 || counts(t, db) != "100 sent" {
			t.Errorf("%+v, rows: %s", u, counts(t, db))
		}
	})
}

// A trigger that returns NULL skips the mark without an error.
func TestMarkParksWhatIsSkipped(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		events := insert(t, db, 1, 3)
		exec(t, db, `CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
			CREATE TRIGGER skip BEFORE UPDATE ON saga_outbox FOR EACH ROW WHEN (OLD.saga_id = 's2') EXECUTE FUNCTION skip()`)
		markAll(t, l, marksOf(events))
		if u := remarkNow(t, db, l); u.Events != 1 || !strings.Contains(u.Cause, "skips the mark") || len(sweepAll(t, l)) != 0 {
			t.Errorf("%+v", u)
		}
		exec(t, db, `DROP TRIGGER skip ON saga_outbox`)
		if u := remarkNow(t, db, l); u.Events != 0 || counts(t, db) != "3 sent" {
			t.Errorf("%+v, rows: %s", u, counts(t, db))
		}
	})
}

// The ledger does not take the entry either. The event is kept in memory, in the order of its key,
// until it is taken; the next owner finds its row.
func TestMarkKeepsInMemoryWhatTheLedgerRefuses(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		events := insert(t, db, 1, 100)
		marks := marksOf(events)
		refusing(t, db, "saga_outbox", "UPDATE", map[int]string{10: "P0001"})
		exec(t, db, `CREATE TRIGGER refuse_it BEFORE INSERT ON saga_outbox_delivery FOR EACH ROW EXECUTE FUNCTION refuse_it()`)
		exec(t, db, `INSERT INTO refused VALUES ($1, '23514')`, id(20).String())
		refuse(&marks[19], "no")
		ofKey(marks[19:22], "one") // refused, and two behind it
		for i := 20; i < 22; i++ {
			marks[i].Parked = []relay.Parked{held("kafka")}
		}
		mark(t, l, marks)
		if got := counts(t, db); got != "4 pending, 96 sent" {
			t.Errorf("rows: %s", got)
		}
		if u, err := l.Remark(t.Context()); err != nil || u.Events != 4 || u.Memory != 4 {
			t.Errorf("%+v, %v", u, err)
		}
		if found := sweepAll(t, l); len(found) != 0 || slices.Contains(settled(t, l, events), false) {
			t.Errorf("%d rows would be delivered again", len(found))
		}
		// The next owner would: they are pending.
		other := newLease(l.store, l.shard, l.log, nil)
		other.epoch = l.epoch
		t.Cleanup(func() { other.marks.close(context.Background()) })
		if found := sweepAll(t, other); !slices.Equal(found, []relay.UUID{id(10), id(20), id(21), id(22)}) {
			t.Errorf("the next owner finds %d rows", len(found))
		}
		exec(t, db, `DELETE FROM refused WHERE event_id = $1`, id(20).String())
		l.left.next = time.Now()
		if u, err := l.Remark(t.Context()); err != nil || u.Memory != 1 {
			t.Errorf("%+v, %v", u, err)
		}
		if got := value[string](t, db.Pool, `SELECT string_agg(right(event_id::text, 2) || ' ' || state, ', ' ORDER BY position) FROM saga_outbox_delivery WHERE sink = 'kafka'`); got != "14 retry, 15 held, 16 held" {
			t.Errorf("entries: %s", got)
		}
		exec(t, db, `DELETE FROM refused`)
		l.left.next = time.Now()
		if u, err := l.Remark(t.Context()); err != nil || u.Events != 0 {
			t.Errorf("%+v, %v", u, err)
		}
		if got := row(t, db, 10); got != "sent retries=0 error=- sent=t" {
			t.Errorf("row 10: %s", got)
		}
	})
}

// A trigger that is made while the relay runs finds what it names by the search_path, though our
// sessions have pinned theirs.
func TestMarkWithANewTrigger(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		events := insert(t, db, 1, 100)
		mark(t, l, marksOf(events[:10]))
		exec(t, db, `CREATE TABLE audit (event_id uuid); CREATE FUNCTION audits() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit VALUES (NEW.event_id); RETURN NEW; END $$;
			CREATE TRIGGER audits BEFORE UPDATE ON saga_outbox FOR EACH ROW EXECUTE FUNCTION audits()`)
		mark(t, l, marksOf(events))
		if got := counts(t, db); got != "100 sent" || unmarkedEntries(t, db) != "none" {
			t.Errorf("rows: %s, parked: %s", got, unmarkedEntries(t, db))
		}
	})
}

// A row that does not take its status failed or dead_letter. Its entries stay as they are, and the
// sweep does not take the dead letter for one that a person has set back. When it is delivered in
// the end, the row gets that status once it can.
func TestMarkOfRefusedEventsIsRefused(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		events := insert(t, db, 1, 10)
		marks := marksOf(events)
		marks[3].Parked = []relay.Parked{{Sink: "kafka", State: relay.StateDead, Detached: true, Reason: relay.ReasonRejected, Error: "no", Attempts: 5}}
		refuse(&marks[6], "no")
		refusing(t, db, "saga_outbox", "UPDATE", map[int]string{4: "23514", 7: "P0001"})
		mark(t, l, marks)
		if got := counts(t, db); got != "2 pending, 8 sent" {
			t.Errorf("rows: %s", got)
		}
		if found := sweepAll(t, l); len(found) != 0 || slices.Contains(settled(t, l, events), false) {
			t.Errorf("the sweep finds %d rows", len(found))
		}
		const entriesSQL = `SELECT string_agg(format('%s %s %s', right(event_id::text, 1), sink, state), ', ' ORDER BY event_id, sink) FROM saga_outbox_delivery`
		if got := value[string](t, db.Pool, entriesSQL); got != "4 kafka dead, 4 saga_outbox retry, 7 kafka retry, 7 saga_outbox retry" {
			t.Errorf("entries: %s", got)
		}
		exec(t, db, `UPDATE saga_outbox_delivery SET next_attempt_at = NULL WHERE event_id = $1 AND sink = 'kafka'`, id(7).String())
		drain(t, l, func(int) relay.Outcome { return relay.Outcome{Fate: relay.FateDelivered} }, 5)
		exec(t, db, `DELETE FROM refused`)
		if u := remarkNow(t, db, l); u.Events != 0 {
			t.Errorf("%+v", u)
		}
		if got := counts(t, db); got != "1 dead_letter, 9 sent" {
			t.Errorf("rows: %s", got)
		}
	})
}
