package cdc

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// Several connections insert, set savepoints, roll back and commit as a random script has it. What
// arrives is what was committed, in the order of the commits.
func TestStreamsInCommitOrder(t *testing.T) {
	t.Parallel()
	for _, version := range pgtest.Versions() {
		t.Run("PostgreSQL "+version, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewVersion(t, version, pgtest.Migrated())
			src := newSource(t, config(db.DSN))
			in := newIntake(t)
			start(t, src, db.Name, in)

			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a script, no secret
			type client struct {
				conn  *pgx.Conn
				open  bool
				keys  []string
				saved []int // number of keys at each savepoint
			}
			clients := make([]client, 4)
			for i := range clients {
				clients[i].conn = db.Conn(t)
			}
			var want []string
			n := 0
			end := func(c *client, how string) {
				if _, err := c.conn.Exec(t.Context(), how); err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				if how == "COMMIT" {
					want = append(want, c.keys...)
				}
				c.open, c.keys, c.saved = false, nil, nil
			}
			for range 400 {
				c := &clients[rng.IntN(len(clients))]
				sql, args := "", []any(nil)
				switch roll := rng.IntN(20); {
				case !c.open:
					sql, c.open = "BEGIN", true
				case roll < 10:
					key := strconv.Itoa(n)
					n++
					sql, args, c.keys = insertSQL, []any{key}, append(c.keys, key)
				case roll < 12:
					sql, c.saved = fmt.Sprintf("SAVEPOINT s%d", len(c.saved)), append(c.saved, len(c.keys))
				case roll < 14 && len(c.saved) > 0:
					last := len(c.saved) - 1
					sql = fmt.Sprintf("ROLLBACK TO SAVEPOINT s%d", last)
					c.keys = c.keys[:c.saved[last]]
				case roll < 15 && len(c.saved) > 0:
					last := len(c.saved) - 1
					sql, c.saved = fmt.Sprintf("RELEASE SAVEPOINT s%d", last), c.saved[:last]
				case roll < 17:
					end(c, "ROLLBACK")
					continue
				default:
					end(c, "COMMIT")
					continue
				}
				if _, err := c.conn.Exec(t.Context(), sql, args...); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
			}
			for i := range clients {
				if clients[i].open {
					end(&clients[i], []string{"COMMIT", "ROLLBACK"}[i%2])
				}
			}
			insert(t, db, "last")
			want = append(want, "last")
			in.until("last event", func() bool {
				return len(in.events) > 0 && in.events[len(in.events)-1].AggregateID == "last"
			})
			if got := keys(in.wait(len(want))); got != strings.Join(want, " ") {
				t.Fatalf("got  %s\nwant %s", got, strings.Join(want, " "))
			}
		})
	}
}

func TestOddValues(t *testing.T) {
	t.Parallel()
	for _, version := range pgtest.Versions() {
		t.Run("PostgreSQL "+version, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewVersion(t, version, pgtest.Migrated())
			exec(t, db, `ALTER TABLE saga_outbox ALTER headers DROP NOT NULL`)
			in := newIntake(t)
			start(t, newSource(t, config(db.DSN)), db.Name, in)

			type row struct{ key, payload, headers, created string }
			now, empty := "2026-02-03 04:05:06.789012+00", "{}"
			rows := []row{
				{"", empty, empty, now},
				{strings.Repeat("x", 255), empty, empty, now},
				{strings.Repeat("ё", 255), empty, empty, now},
				{"\u00a0日本\t\n'\"\\ 🙂\u0001", empty, empty, now},
				{"headers null", empty, "NULL", now},
				{"headers JSON null", empty, "null", now},
				{"headers array", empty, `["a", 1, null]`, now},
				{"headers nested", empty, `{"a": {"b": [1, {"c": "\\u0041\\n"}]}, "": ""}`, now},
				{"payload string", `"x\ty\u2028"`, empty, now},
				{"payload null", `null`, empty, now},
				{"payload number", strings.Repeat("1234567890", 50) + "." + strings.Repeat("0987654321", 50), empty, now},
				{"payload numbers", `[1.10, 1e400, -0.0, 1E-100, 9007199254740993, 0.1000]`, empty, now},
				{"infinity", empty, empty, "infinity"},
				{"-infinity", empty, empty, "-infinity"},
				{"year 1", empty, empty, "0001-01-01 00:00:00+00"},
				{"year 9999", empty, empty, "9999-12-31 23:59:59.999999+00"},
				{"BC", empty, empty, "4713-01-01 00:00:00+00 BC"},
				{"far", empty, empty, "294000-12-31 23:59:59.999999+00"},
			}
			for i, r := range rows {
				exec(t, db, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, status, created_at)
					VALUES (gen_random_uuid(), $1, 'type', $2, 'Made', $3::text::jsonb, nullif($4, 'NULL')::jsonb, $5, $6::text::timestamptz)`,
					strconv.Itoa(i), r.key, r.payload, r.headers, []string{"pending", "sent"}[i%2], r.created)
			}
			exec(t, db, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
				VALUES (gen_random_uuid(), $1, '20 MB', 'Made', jsonb_build_object('x', repeat('ä🙂z', 3 * 1024 * 1024)))`, strconv.Itoa(len(rows)))

			for i, e := range in.wait(len(rows) + 1) {
				text := func(column string) string {
					return ask(t, db, `SELECT coalesce(`+column+`::text, '') FROM saga_outbox WHERE event_id = $1`, e.ID.String())
				}
				if e.SagaID != strconv.Itoa(i) {
					t.Errorf("row %d: got saga_id %s", i, e.SagaID)
				}
				for _, c := range []struct{ column, got string }{
					{"saga_id", e.SagaID},
					{"aggregate_type", e.AggregateType},
					{"aggregate_id", e.AggregateID},
					{"event_type", e.EventType},
					{"payload", e.Payload},
					{"headers", e.Headers},
					{"status", e.Status},
					{"xmin", fmt.Sprint(e.XID)},
				} {
					if want := text(c.column); c.got != want {
						t.Errorf("%s: got %s %.200q (%d bytes), want %.200q (%d bytes)", e.AggregateID, c.column, c.got, len(c.got), want, len(want))
					}
				}
				created := ask(t, db, `SELECT CASE created_at WHEN 'infinity' THEN 9223372036854775807 WHEN '-infinity' THEN -9223372036854775808
					ELSE (extract(epoch FROM created_at) * 1000000 - 946684800000000)::bigint END FROM saga_outbox WHERE event_id = $1`, e.ID.String())
				if got := fmt.Sprint(int64(e.CreatedAt)); got != created {
					t.Errorf("%s: got created_at %s, want %s", e.AggregateID, got, created)
				}
				if ago := time.Since(e.CommittedAt.Time()); ago < -time.Minute || ago > 10*time.Minute {
					t.Errorf("%s: got a commit %s ago", e.AggregateID, ago)
				}
			}
		})
	}
}

func TestLargeTransaction(t *testing.T) {
	t.Parallel()
	const rows = 50_000
	db := pgtest.New(t, pgtest.Migrated())
	in := newIntake(t)
	start(t, newSource(t, config(db.DSN)), db.Name, in)
	exec(t, db, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'saga', i, 'Made', '{}' FROM generate_series(0, $1 - 1) i`, rows)
	end := askLSN(t, db, `SELECT pg_current_wal_insert_lsn()`)
	insert(t, db, "after")
	events := in.wait(rows + 1)
	for i, e := range events[:rows] {
		if e.AggregateID != strconv.Itoa(i) || int(e.Ordinal) != i || e.XID != events[0].XID || e.CommitLSN != events[0].CommitLSN {
			t.Fatalf("event %d: got %s, ordinal %d, transaction %d, commit %s", i, e.AggregateID, e.Ordinal, e.XID, e.CommitLSN)
		}
		if (e.CommitEnd != 0) && i != rows-1 {
			t.Fatalf("event %d: got the end of the transaction at %s", i, e.CommitEnd)
		}
		if e.CommitEnd > end {
			t.Errorf("got CommitEnd %s, the next transaction begins after %s", e.CommitEnd, end)
		}
	}
	if last := events[rows]; last.CommitLSN <= events[0].CommitLSN || last.Ordinal != 0 {
		t.Errorf("got %s/%d after %s", last.CommitLSN, last.Ordinal, events[0].CommitLSN)
	}
}

// The reader waits for many bytes at once while much arrives (SO_RCVLOWAT). When a burst ends in
// silence, its last event must not stay in the socket: nothing else arrives here for a minute.
func TestBurstThenSilence(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	cfg := config(db.DSN)
	cfg.WALSenderTimeout, cfg.StatusInterval = 3*time.Minute, time.Minute
	in := newIntake(t)
	r := start(t, newSource(t, cfg), db.Name, in)
	busy := false
	st := r.stream.(*stream)
	// the reader's own goroutine
	in.admit = func(context.Context, []relay.Event) error { busy = busy || st.in.busy; return nil }
	const burst = 10_000
	total := 0
	for i := range 4 {
		exec(t, db, `DO $$ BEGIN SET synchronous_commit = off; FOR i IN 1..`+strconv.Itoa(burst)+` LOOP
			INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 's', i, 'Made', '{}'); COMMIT; END LOOP; END $$`)
		total += burst
		end := ask(t, db, `SELECT pg_current_wal_insert_lsn()`)
		db.Until(t, `SELECT sent_lsn >= $1::text::pg_lsn FROM pg_stat_replication WHERE application_name = $2`, end, applicationFor(db.Name))
		begin := time.Now()
		in.wait(total)
		if took := time.Since(begin); took > soon {
			t.Errorf("burst %d: the last event came %s after the server had sent it", i, took)
		}
	}
	if err := r.stop(); err != context.Canceled { //nolint:errorlint // as it is
		t.Errorf("Run: got %v, want %v", err, context.Canceled)
	}
	if !busy {
		t.Error("the reader was never busy, so nothing was tested")
	}
}

func TestForeignRowsAndTruncate(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated(), pgtest.SQL(`CREATE TABLE other (LIKE saga_outbox); CREATE PUBLICATION sagaz_outbox FOR ALL TABLES`))
	in := newIntake(t)
	start(t, newSource(t, config(db.DSN)), db.Name, in)
	insert(t, db, "a")
	exec(t, db, `INSERT INTO other SELECT * FROM saga_outbox`)
	exec(t, db, `UPDATE saga_outbox SET status = 'sent'`)
	exec(t, db, `DELETE FROM saga_outbox`)
	insert(t, db, "b")
	exec(t, db, `TRUNCATE other, saga_outbox`)
	exec(t, db, `BEGIN; INSERT INTO other (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, status, created_at, retry_count)
		VALUES (gen_random_uuid(), '', '', 'x', '', '{}', '{}', '', now(), 0);
		INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 's', 'c', 'Made', '{}'); COMMIT`)
	exec(t, db, `INSERT INTO other SELECT * FROM saga_outbox`)
	at := askLSN(t, db, `SELECT pg_current_wal_insert_lsn()`)
	insert(t, db, "d")
	in.waitPassed(at)
	if got, want := keys(in.wait(4)), "a b c d"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Who changes the table while it is read need not stop the relay, unless it takes away what an
// event is made of.
func TestTableChangesWhileStreaming(t *testing.T) {
	t.Parallel()
	const allColumns = `CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox WITH (publish = 'insert')`
	for _, c := range []struct{ name, before, sql, lacks string }{
		{"column added", "", `ALTER TABLE saga_outbox ADD extra int NOT NULL DEFAULT 7`, ""},
		{"unneeded column dropped", "", `ALTER TABLE saga_outbox DROP worker_id`, ""},
		{"unneeded column renamed while published", allColumns, `ALTER TABLE saga_outbox RENAME last_error TO first_error`, ""},
		{"column widened", allColumns, `ALTER TABLE saga_outbox ALTER aggregate_id TYPE text`, ""},
		{"needed column out of the publication", "", `ALTER PUBLICATION sagaz_outbox SET TABLE saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, status, created_at)`, "headers"},
		{"needed column renamed", "", `ALTER TABLE saga_outbox RENAME event_type TO kind`, "event_type"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewVersion(t, pgtest.Newest, pgtest.Migrated(), pgtest.SQL(c.before))
			src := newSource(t, config(db.DSN))
			in := newIntake(t)
			r := start(t, src, db.Name, in)
			insert(t, db, "a")
			in.wait(1)
			exec(t, db, c.sql)
			if c.lacks == "" {
				insert(t, db, "b")
				if got, want := keys(in.wait(2)), "a b"; got != want {
					t.Errorf("got %s, want %s", got, want)
				}
				return
			}
			at := confirmed(t, db)
			exec(t, db, strings.ReplaceAll(insertSQL, "event_type", map[bool]string{true: "kind", false: "event_type"}[c.lacks == "event_type"]), "b")
			wantSetup(t, r.ended(), c.lacks)
			if got, end := confirmed(t, db), in.passed; got < at || got > end {
				t.Errorf("got the slot at %s, want it from %s to %s, before the row that could not be read", got, at, end)
			}
			_, err := src.Open(t.Context(), whole(db.Name), 0)
			wantSetup(t, err, c.lacks)
		})
	}
}
