package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

func withMark(db *pgtest.DB, mode string) Config {
	cfg := testConfig(db)
	cfg.Mark = mode
	return cfg
}

func markedLSN(t testing.TB, db *pgtest.DB) relay.LSN {
	t.Helper()
	lsn, err := relay.ParseLSN(value[string](t, db.Pool, `SELECT marked_lsn::text FROM saga_outbox_relay WHERE slot = 'outbox'`))
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

func TestMarkUpdate(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		old, recent := insert(t, db, 1, 3), insert(t, db, 4, 6)
		marks := marksOf(recent)
		refuse(&marks[1], "too_large: 2 MB, and \x00 no\xff text")
		mark(t, l, marks)
		for n, want := range map[int]string{
			3: "pending retries=0 error=- sent=f",
			4: "sent retries=0 error=- sent=t",
			5: "failed retries=1 error=kafka: too_large: 2 MB, and  no\ufffd text sent=f",
			6: "sent retries=0 error=- sent=t",
		} {
			if got := row(t, db, n); got != want {
				t.Errorf("row %d: %s, want %s", n, got, want)
			}
		}
		if got := markedLSN(t, db); got != recent[0].CommitLSN {
			t.Errorf("marked_lsn %s, want %s", got, recent[0].CommitLSN)
		}
		// What comes late does not move it back.
		mark(t, l, marksOf(old))
		if got := markedLSN(t, db); got != recent[0].CommitLSN {
			t.Errorf("marked_lsn %s after an older mark, want %s", got, recent[0].CommitLSN)
		}
		if got, want := settled(t, l, slices.Concat(recent, insert(t, db, 7, 7))), []bool{true, true, true, false}; !slices.Equal(got, want) {
			t.Errorf("settled %v, want %v", got, want)
		}
		// And nothing at all is no trouble.
		mark(t, l, nil)
		if got := settled(t, l, nil); len(got) != 0 {
			t.Errorf("settled %v of nothing", got)
		}
	})
}

// The row has the state and errors of its entries.
func TestMarkRefused(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		marks := marksOf(insert(t, db, 1, 5))
		dead := func(sink string, attempts int) relay.Parked {
			return relay.Parked{Sink: sink, State: relay.StateDead, Detached: true, Reason: relay.ReasonTooLarge, Error: "too large", Attempts: attempts}
		}
		marks[0].Parked = []relay.Parked{refusal("kafka", "no topic"), refusal("rabbitmq", "no queue")}
		marks[1].Parked = []relay.Parked{dead("kafka", 3), {Sink: "rabbitmq", State: relay.StateHeld}}
		marks[2].Parked = []relay.Parked{refusal("kafka", "no topic"), dead("rabbitmq", 7)}
		marks[3].Parked = []relay.Parked{refusal("kafka", strings.Repeat("ä", 2000))}
		marks[4].Parked = []relay.Parked{{Sink: "kafka", State: relay.StateHeld, Reason: relay.ReasonSinkDown}}
		mark(t, l, marks)
		for n, want := range map[int]string{
			1: "failed retries=1 error=kafka: no topic; rabbitmq: no queue sent=f",
			2: "dead_letter retries=3 error=kafka: too large sent=f",
			3: "dead_letter retries=7 error=kafka: no topic; rabbitmq: too large sent=f",
			4: "failed retries=1 error=kafka: " + strings.Repeat("ä", 996) + " … sent=f",
			5: "pending retries=0 error=- sent=f",
		} {
			if got := row(t, db, n); got != want {
				t.Errorf("row %d: %s, want %s", n, got, want)
			}
		}
	})
}

// A row that was deleted counts as marked: nothing is left to do.
func TestMarkRowsGone(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for _, mode := range []string{MarkUpdate, MarkDelete, MarkArchive} {
			l := acquire(t, newStore(t, withMark(db, mode), nil), "outbox")
			events := insert(t, db, 1, 4)
			exec(t, db, `DELETE FROM saga_outbox WHERE event_id IN ($1, $2)`, id(2).String(), id(4).String())
			marks := marksOf(events)
			refuse(&marks[3], "no route")
			mark(t, l, marks)
			if got, want := settled(t, l, events), []bool{true, true, true, true}; !slices.Equal(got, want) {
				t.Errorf("%s: settled %v, want %v", mode, got, want)
			}
			// Again, as after an answer that was lost.
			mark(t, l, marks)
			exec(t, db, `TRUNCATE saga_outbox, saga_outbox_archive, saga_outbox_delivery`)
			release(t, l)
		}
	})
}

func TestMarkDelete(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, withMark(db, MarkDelete), nil), "outbox")
		marks := marksOf(insert(t, db, 1, 5))
		refuse(&marks[2], "no route")
		mark(t, l, marks)
		if got := counts(t, db); got != "1 failed" { // the refused row is kept
			t.Errorf("rows: %s", got)
		}
	})
}

func TestMarkArchive(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, withMark(db, MarkArchive), nil), "outbox")
		marks := marksOf(insert(t, db, 1, 5))
		refuse(&marks[2], "no route")
		whole := value[string](t, db.Pool, `SELECT (to_jsonb(o) - 'status' - 'sent_at')::text FROM saga_outbox o WHERE event_id = $1`, id(1).String())
		mark(t, l, marks)
		if got := counts(t, db); got != "1 failed" {
			t.Errorf("rows: %s", got)
		}
		if got := value[string](t, db.Pool, `SELECT (to_jsonb(o) - 'status' - 'sent_at')::text FROM saga_outbox_archive o WHERE event_id = $1`, id(1).String()); got != whole {
			t.Errorf("archived as %s, want %s", got, whole)
		}
		if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_archive WHERE status = 'sent' AND sent_at > created_at`); got != 4 {
			t.Errorf("%d archived rows say sent, want 4", got)
		}

		// Somebody adds a column to both, while we run: it comes along.
		exec(t, db, `ALTER TABLE saga_outbox ADD COLUMN tenant text DEFAULT 'none'; ALTER TABLE saga_outbox_archive ADD COLUMN tenant text`)
		more := marksOf(insert(t, db, 6, 7))
		exec(t, db, `UPDATE saga_outbox SET tenant = 'acme' WHERE event_id = $1`, id(6).String())
		mark(t, l, more)
		if got := value[string](t, db.Pool, `SELECT string_agg(tenant, ' ' ORDER BY event_id) FROM saga_outbox_archive WHERE event_id >= $1`, id(6).String()); got != "acme none" {
			t.Errorf("tenants %q", got)
		}

		// The same row once more, as after a replay by hand of what is in the archive.
		exec(t, db, `UPDATE saga_outbox_archive SET sent_at = '2020-01-01'`)
		mark(t, l, marksOf(insert(t, db, 1, 1)))
		if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_archive WHERE event_id = $1 AND sent_at > '2020-01-02'`, id(1).String()); got != 1 {
			t.Errorf("the row that came again is there %d times with its new time", got)
		}
		if got := counts(t, db); got != "1 failed" {
			t.Errorf("rows: %s", got)
		}
	})
}

func TestMarkLargeBatch(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		marks := marksOf(insert(t, db, 1, 2500))
		for i := range marks {
			if i%10 == 0 {
				refuse(&marks[i], fmt.Sprintf("refused: %d", i))
			}
		}
		mark(t, l, marks)
		if got := counts(t, db); got != "250 failed, 2250 sent" {
			t.Errorf("rows: %s", got)
		}
		// xmin is the transaction: there was one.
		if got := value[int](t, db.Pool, `SELECT count(DISTINCT xmin::text) FROM saga_outbox`); got != 1 {
			t.Errorf("%d transactions, want 1", got)
		}
		if got := value[string](t, db.Pool, `SELECT last_error FROM saga_outbox WHERE event_id = $1`, id(11).String()); got != "kafka: refused: 10" {
			t.Errorf("row 11: %s", got)
		}
	})
}

func TestMarkConnectionLost(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		cfg := testConfig(db)
		cfg.LeaseTTL = 9 * 60e9 // so that the mark waits for the row's lock, long enough to be hit
		l := acquire(t, newStore(t, cfg, nil), "outbox")
		events := insert(t, db, 1, 10)
		person, err := db.Conn(t).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := person.Exec(t.Context(), `SELECT FROM saga_outbox WHERE event_id = $1 FOR UPDATE`, id(3).String()); err != nil {
			t.Fatal(err)
		}
		marking := make(chan error, 1)
		go func() {
			_, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marksOf(events)})
			marking <- err
		}()
		pid := backend(t, db, "marks", "outbox")
		db.Until(t, `SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1`, pid)
		kill(t, db, pid)
		if err := <-marking; err == nil || errors.Is(err, relay.ErrLeaseLost) {
			t.Errorf("mark on a connection that breaks: %v, want a transient error", err)
		}
		if got := counts(t, db); got != "10 pending" {
			t.Errorf("rows: %s", got)
		}
		if err := person.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		mark(t, l, marksOf(events))
		if got := counts(t, db); got != "10 sent" {
			t.Errorf("rows: %s", got)
		}
		// The same between two marks: the first to notice fails, the second works.
		kill(t, db, backend(t, db, "marks", "outbox"))
		if _, err := l.Settled(t.Context(), events); err == nil || errors.Is(err, relay.ErrLeaseLost) {
			t.Errorf("look-up on a connection that is gone: %v, want a transient error", err)
		}
		if got := settled(t, l, events); slices.Contains(got, false) {
			t.Errorf("settled %v", got)
		}
		if !l.Valid() {
			t.Error("the lease went with the marking connection")
		}
	})
}

func TestMarkAfterRelease(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
	events := insert(t, db, 1, 1)
	release(t, l)
	if _, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marksOf(events)}); !errors.Is(err, relay.ErrLeaseLost) {
		t.Errorf("mark after release: %v", err)
	}
	if _, err := l.Settled(t.Context(), events); !errors.Is(err, relay.ErrLeaseLost) {
		t.Errorf("look-up after release: %v", err)
	}
	if got := counts(t, db); got != "1 pending" {
		t.Errorf("rows: %s", got)
	}
}

// With a synchronous standby, a transaction's WAL is flushed, and streamed, before the transaction
// is visible to others. Here the standby never answers.
func TestMarkBeforeRowIsVisible(t *testing.T) {
	for _, version := range pgtest.Versions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			server := pgtest.OwnServer(t, version, nil)
			db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
			exec(t, db, `SELECT pg_create_logical_replication_slot('seen', 'pgoutput')`)
			exec(t, db, `CREATE PUBLICATION outbox FOR TABLE saga_outbox`)
			exec(t, db, `SELECT pg_replication_slot_advance('seen', pg_current_wal_lsn())`)
			exec(t, db, `ALTER DATABASE `+pgx.Identifier{db.Name}.Sanitize()+` SET synchronous_commit = local`)
			early := insert(t, db, 1, 1)
			exec(t, db, `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`)
			exec(t, db, `SELECT pg_reload_conf()`)
			// A connection inherits what the postmaster has read, and has passed on to the
			// checkpointer.
			for seen := ""; seen != "nobody"; {
				conn := db.Conn(t)
				seen = value[string](t, conn, `SHOW synchronous_standby_names`)
				conn.Close(t.Context())
			}
			// Before this the checkpointer makes the commits of others wait.
			exec(t, db, `CHECKPOINT`)
			l := acquire(t, newStore(t, testConfig(db), nil), "outbox")

			writer := db.Conn(t)
			tx, err := writer.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), `SET LOCAL synchronous_commit = on`); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), insertSQL, 2, 3); err != nil {
				t.Fatal(err)
			}
			xid := value[uint32](t, tx, `SELECT (pg_current_xact_id()::text::bigint & 4294967295)::bigint`)
			committed := make(chan error, 1)
			go func() { committed <- tx.Commit(t.Context()) }()
			db.Until(t, `SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1`, writer.PgConn().PID())

			inserts := `SELECT count(*) FROM pg_logical_slot_peek_binary_changes('seen', NULL, NULL, 'proto_version', '1', 'publication_names', 'outbox') WHERE get_byte(data, 0) = ascii('I')`
			if got := value[int](t, db.Pool, inserts); got != 3 {
				t.Fatalf("the stream delivers %d rows, want 3: what this test is for does not happen", got)
			}
			if got := counts(t, db); got != "1 pending" {
				t.Fatalf("visible rows: %s, want only the first", got)
			}
			events := append(early, relay.Event{ID: id(2), AggregateID: "a2", XID: xid}, relay.Event{ID: id(3), AggregateID: "a3", XID: xid})
			marks := marksOf(events)
			refuse(&marks[2], "no route")
			for range 2 {
				later, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marks})
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(later, []int{1, 2}) {
					t.Errorf("marks %v are for later, want 1 and 2", later)
				}
			}
			// The entry for the refused one is in the ledger already, before its row is visible.
			if got, want := settled(t, l, events), []bool{true, false, true}; !slices.Equal(got, want) {
				t.Errorf("settled %v, want %v", got, want)
			}
			// On a new connection, whose commits wait for no standby.
			if _, err := db.Conn(t).Exec(t.Context(), `UPDATE saga_outbox_delivery SET next_attempt_at = NULL`); err != nil {
				t.Fatal(err)
			}
			if due, next, err := l.Due(t.Context(), "kafka", 10, 1<<20); err != nil || len(due) != 0 || next < 0 {
				t.Errorf("due while the row is invisible: %+v, again in %s, %v; want none, and to be asked again", due, next, err)
			}

			exec(t, db, `ALTER SYSTEM RESET synchronous_standby_names`)
			exec(t, db, `SELECT pg_reload_conf()`)
			if err := <-committed; err != nil {
				t.Fatal(err)
			}
			if got, want := settled(t, l, events), []bool{true, false, true}; !slices.Equal(got, want) {
				t.Errorf("settled %v once it is visible, want %v", got, want)
			}
			if due, _, err := l.Due(t.Context(), "kafka", 10, 1<<20); err != nil || len(due) != 1 || due[0].Gone || due[0].Event.Payload != `{"n": 3}` {
				t.Errorf("due once the row is visible: %+v, %v; want the row", due, err)
			}
			mark(t, l, marks)
			if got := counts(t, db); got != "1 failed, 2 sent" {
				t.Errorf("rows: %s", got)
			}
		})
	}
}

// A batch that waits for a row in vain marks the others, whatever becomes of rows when they are
// marked.
func TestMarkPassesOverLockedRows(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for mode, want := range map[string]string{
			MarkUpdate: "1 failed, 1 pending, 2 sent", MarkDelete: "1 failed, 1 pending", MarkArchive: "1 failed, 1 pending",
		} {
			cfg := withMark(db, mode)
			cfg.LeaseTTL = testTTL
			l := acquire(t, newStore(t, cfg, nil), "outbox")
			marks := marksOf(insert(t, db, 1, 4))
			refuse(&marks[1], "no route")
			person, err := db.Conn(t).Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			// The library's worker is at it: its claim is no mark of ours.
			if _, err := person.Exec(t.Context(), `UPDATE saga_outbox SET status = 'claimed' WHERE event_id = $1`, id(1).String()); err != nil {
				t.Fatal(err)
			}
			later, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marks})
			if err != nil || !slices.Equal(later, []int{0}) {
				t.Errorf("%s: marks %v are for later, %v; want the first", mode, later, err)
			}
			if got := counts(t, db); got != want {
				t.Errorf("%s: rows: %s, want %s", mode, got, want)
			}
			if mark(t, l, marks[2:3]); !l.marks.skip {
				t.Errorf("%s: after a batch without the locked row the next one waits for it again", mode)
			}
			if err := person.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			mark(t, l, []relay.Mark{marks[0]})
			if mark(t, l, marks[2:3]); l.marks.skip {
				t.Errorf("%s: locked rows are looked for when there are none", mode)
			}
			if got := row(t, db, 1); strings.HasPrefix(got, "claimed") || strings.HasPrefix(got, "pending") {
				t.Errorf("%s: the row that was locked: %s", mode, got)
			}
			exec(t, db, `TRUNCATE saga_outbox, saga_outbox_archive, saga_outbox_delivery`)
			release(t, l)
		}
	})
}

// What cannot be marked yet delays the marks of its key and no others. A crash between the two
// would make the next owner deliver the first again and not the second.
func TestMarkKeepsTheOrderOfAKey(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for _, mode := range []string{MarkUpdate, MarkDelete, MarkArchive} {
			for _, c := range []struct {
				name string
				// first makes row 1 one that cannot be marked before the end of tx, and returns its
				// transaction.
				first func(tx pgx.Tx) uint32
			}{
				{"invisible", func(tx pgx.Tx) (xid uint32) {
					if _, err := tx.Exec(t.Context(), insertSQL, 1, 1); err != nil {
						t.Fatal(err)
					}
					return value[uint32](t, tx, `SELECT (pg_current_xact_id()::text::bigint & 4294967295)::bigint`)
				}},
				{"locked", func(tx pgx.Tx) uint32 {
					xid := insert(t, db, 1, 1)[0].XID
					if _, err := tx.Exec(t.Context(), `SELECT FROM saga_outbox WHERE event_id = $1 FOR UPDATE`, id(1).String()); err != nil {
						t.Fatal(err)
					}
					return xid
				}},
			} {
				what := mode + ", " + c.name
				cfg := withMark(db, mode)
				cfg.LeaseTTL = testTTL
				l := acquire(t, newStore(t, cfg, nil), "outbox")
				tx, err := db.Conn(t).Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				marks := marksOf([]relay.Event{{ID: id(1), XID: c.first(tx)}})
				for n := 2; n <= 5; n++ {
					marks = append(marks, marksOf(insert(t, db, n, n))...)
				}
				ofKey(marks[:3], "a") // 1, 2 and 3, and then others
				ofKey(marks[3:4], "b")
				ofKey(marks[4:], "a")
				parking(marks[4:], refusal("kafka", "no"))
				for range 2 {
					later, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marks})
					slices.Sort(later)
					if err != nil || !slices.Equal(later, []int{0, 1, 2, 4}) {
						t.Errorf("%s: %v are for later, %v; want all of the key", what, later, err)
					}
					if got := ledger(t, db, "kafka"); got != "empty" {
						t.Errorf("%s: the ledger has %s", what, got)
					}
					if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox WHERE status = 'pending' AND event_id = ANY($1::uuid[])`, idsOf(marks[1:])); got != 3 {
						t.Errorf("%s: %d of the others are pending, want the 3 of the key", what, got)
					}
				}
				if err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				mark(t, l, marks)
				if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox WHERE status = 'pending'`); got != 0 {
					t.Errorf("%s: %d rows are pending at the end", what, got)
				}
				if got := ledger(t, db, "kafka"); got != "5 waiting" {
					t.Errorf("%s: the ledger has %s at the end", what, got)
				}
				exec(t, db, `TRUNCATE saga_outbox, saga_outbox_archive, saga_outbox_delivery`)
				release(t, l)
			}
		}
	})
}

// Many transactions of one key that are known to be visible cost no look at a snapshot; new ones
// cost one.
func TestMayMix(t *testing.T) {
	of := func(xids ...uint32) (marks []relay.Mark) {
		for i, xid := range xids {
			marks = append(marks, relay.Mark{XID: xid, KeyHash: uint32(i % 2)})
		}
		return marks
	}
	refused := func(marks []relay.Mark, is ...int) []relay.Mark {
		for _, i := range is {
			refuse(&marks[i], "no")
		}
		return marks
	}
	seen := snapshot{xmax: 1<<32 + 100, running: []uint64{1<<32 + 90}}
	for _, c := range []struct {
		marks []relay.Mark
		want  bool
	}{
		{nil, false},
		{of(0, 0, 0, 0), false},
		{of(10, 11, 12, 13), false},
		{of(100, 101), false},
		{of(100, 100, 100, 100), false},
		{of(10, 100, 100, 100), false},
		// The first of its key may be invisible, and what is behind it is not.
		{of(100, 100, 10, 100), true},
		{of(100, 101, 102, 101), true},
		{of(90, 10, 91, 10), true},
		{of(91, 10, 90, 10), false},
		{of(4294967295, 10, 99, 10), false},
		// Its entry could be written while the row in front of it is invisible.
		{refused(of(100, 100, 100, 100), 2), true},
		{refused(of(100, 100, 100, 100), 0, 1), false},
		{refused(of(100, 100, 100, 100), 0, 1, 2, 3), false},
		{refused(of(10, 10, 10, 10), 2, 3), false},
	} {
		if got := seen.mayMix(c.marks); got != c.want {
			t.Errorf("%v: %t", c.marks, got)
		}
		if got := new(snapshot).mayMix(of(1, 1, 2, 2)); !got {
			t.Error("nothing is known yet, and nothing may be mixed")
		}
	}
}

// syncBuffer takes log lines from several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// hasOrigin asks the marking session of a lease.
func hasOrigin(t testing.TB, l *lease) bool {
	t.Helper()
	var is bool
	err := l.with(t.Context(), func(_ context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(t.Context(), `SELECT pg_replication_origin_session_is_setup()`).Scan(&is)
	})
	if err != nil {
		t.Fatal(err)
	}
	return is
}

func TestMarkOrigin(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		exec(t, db, `CREATE PUBLICATION everything FOR TABLE saga_outbox`)
		slot := db.Name // slots are the whole server's
		exec(t, db, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
		decoded := func(extra string) (updates int) {
			return value[int](t, db.Pool, `SELECT count(*) FROM pg_logical_slot_get_binary_changes('`+slot+`', NULL, NULL,
				'proto_version', '1', 'publication_names', 'everything'`+extra+`) WHERE get_byte(data, 0) = ascii('U')`)
		}
		filter := ", 'origin', 'none'"
		if db.Version < "16" {
			filter = ""
		}

		// Origins are the whole cluster's, so no other test may use the name.
		const leased = "with_origin"
		l := acquire(t, newStore(t, testConfig(db), nil), leased)
		if !hasOrigin(t, l) {
			t.Error("the superuser's marking session has no origin")
		}
		mark(t, l, marksOf(insert(t, db, 1, 10)))
		want := 0
		if db.Version < "16" {
			want = 10
		}
		if got := decoded(filter); got != want {
			t.Errorf("the server decodes %d of our 10 marks, want %d", got, want)
		}
		release(t, l)

		// Without the right it works the same, but for that.
		role, _, dsn := db.Role(t, "")
		exec(t, db, Grants(role))
		// The test looks with it.
		exec(t, db, `GRANT EXECUTE ON FUNCTION pg_replication_origin_session_is_setup() TO `+role)
		log := &syncBuffer{}
		cfg := testConfig(db)
		cfg.DatabaseURL = dsn
		s := newStore(t, cfg, hclog.New(&hclog.LoggerOptions{Output: log}))
		l = acquire(t, s, leased)
		if hasOrigin(t, l) {
			t.Error("a role without the right has an origin")
		}
		mark(t, l, marksOf(insert(t, db, 11, 20)))
		if got := decoded(filter); got != 10 {
			t.Errorf("the server decodes %d marks of a session without origin, want 10", got)
		}
		release(t, l)
		if got := log.String(); !strings.Contains(got, "without a replication origin") || !strings.Contains(got, "GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text)") {
			t.Errorf("the log does not say how to fix it: %s", got)
		}

		// The line in the log is enough.
		exec(t, db, `GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_session_setup(text) TO `+role+`; GRANT SELECT ON pg_replication_origin TO `+role)
		l = acquire(t, s, leased)
		if !hasOrigin(t, l) {
			t.Errorf("no origin with the rights that the log asks for: %s", log)
		}
		mark(t, l, marksOf(insert(t, db, 21, 30)))
		if got := decoded(filter); got != want {
			t.Errorf("the server decodes %d of our 10 marks, want %d", got, want)
		}
		release(t, l)

		origin := value[string](t, db.Pool, `SELECT 'sagaz_relay_' || oid || '_`+leased+`' FROM pg_database WHERE datname = current_database()`)
		s = newStore(t, testConfig(db), nil)
		gone := `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'sagaz-relay marks ` + leased + `' AND datname = current_database())`
		db.Until(t, gone) // the released lease's session

		// What an older relay has made for the slot goes.
		for _, suffix := range []string{"_a", "_b"} {
			exec(t, db, `SELECT pg_replication_origin_create($1)`, "sagaz_relay_"+leased+suffix)
		}
		release(t, acquire(t, s, leased))
		if n := value[int](t, db.Pool, `SELECT count(*) FROM pg_replication_origin WHERE roname IN ($1 || '_a', $1 || '_b')`, "sagaz_relay_"+leased); n != 0 {
			t.Errorf("%d origins of an older relay are left", n)
		}
		db.Until(t, gone)

		// A predecessor's session that lingers has the origin.
		first := db.Conn(t)
		if _, err := first.Exec(t.Context(), `SELECT pg_replication_origin_session_setup($1)`, origin); err != nil {
			t.Fatal(err)
		}
		l = acquire(t, s, leased)
		if hasOrigin(t, l) {
			t.Error("an origin while it is in use")
		}
		mark(t, l, marksOf(insert(t, db, 31, 31)))
		release(t, l)
		first.Close(context.Background())
		exec(t, db, `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, slot)
		db.Until(t, `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = ANY($1::int[]))`, []int{int(first.PgConn().PID())})
		exec(t, db, `SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = '`+origin+`'`)
	})
}
