package repair

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Closing(m)) }

// table is a test's database, filled by SQL as a relay would leave it.
type table struct {
	*pgtest.DB
	t    *testing.T
	conn *pgx.Conn
}

// onEach runs a test on each version of PostgreSQL.
func onEach(t *testing.T, test func(t *testing.T, db *table)) {
	for _, version := range pgtest.Versions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			test(t, newTable(t, pgtest.NewVersion(t, version, pgtest.Migrated())))
		})
	}
}

func newTable(t *testing.T, db *pgtest.DB) *table {
	cfg, err := pgx.ParseConfig(db.DSN)
	if err != nil {
		t.Fatal("the test database's DSN cannot be read")
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec // as the commands have it
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	tb := &table{DB: db, t: t, conn: conn}
	tb.exec(`INSERT INTO saga_outbox_relay (slot, epoch, owner) VALUES ('sagaz_outbox', 3, 'relay-1')`)
	return tb
}

func (tb *table) exec(sql string, args ...any) {
	tb.t.Helper()
	if _, err := tb.Pool.Exec(tb.t.Context(), sql, args...); err != nil {
		tb.t.Fatalf("%s: %v", sql, err)
	}
}

// id is the event_id of the nth row.
func id(n int) (u relay.UUID) {
	binary.BigEndian.PutUint64(u[8:], uint64(n))
	return u
}

// row makes the nth row.
func (tb *table) row(n int, key, status string, retries int) {
	tb.t.Helper()
	tb.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, headers, status, retry_count, last_error, sent_at, created_at)
		VALUES ($1::text::uuid, $2, $3, 'OrderPlaced', '{"secret": "swordfish"}', '{"traceparent": "00-1"}', $4::text, $5::int, CASE WHEN $5::int > 0 THEN 'kafka: refused' END,
		CASE WHEN $4::text = 'sent' THEN now() END, '2026-11-23 07:00:00Z'::timestamptz + $6::int * interval '1 second')`, id(n).String(), "saga-"+key, key, status, retries, n)
}

// entry is a ledger entry in short: "dead", "retry", "held", "dead detached" … Of those in state
// retry "now" has no next attempt.
func (tb *table) entry(n int, sink, key, state string, attempts int, reason string) {
	tb.t.Helper()
	name, flag, _ := strings.Cut(state, " ")
	next := "NULL"
	if name == "retry" {
		next = "now() + interval '30 seconds'"
	}
	if name == "now" {
		name = "retry"
	}
	tb.exec(`INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, attempts, next_attempt_at, reason, last_error, detached, parked_at)
		VALUES ($1::text::uuid, $2, 'sagaz_outbox', $3, $4, $5, 'OrderPlaced', $6, $7, `+next+`, nullif($8::text, ''), CASE WHEN $8::text <> '' THEN 'no queue' END, $9, now() - $3::bigint * interval '1 hour')`,
		id(n).String(), sink, n, key, int32(relay.KeyHash(key)), name, attempts, reason, flag == "detached")
}

// state renders what the database has of an event: row status and count, then each entry.
func (tb *table) state(n int) string {
	tb.t.Helper()
	var s string
	err := tb.Pool.QueryRow(tb.t.Context(), `SELECT coalesce((SELECT status || ' ' || retry_count FROM saga_outbox WHERE event_id = $1::text::uuid), 'gone') ||
		coalesce((SELECT string_agg(format(' | %s %s %s%s%s%s', sink, state, attempts,
			CASE WHEN state = 'retry' THEN CASE WHEN next_attempt_at IS NULL THEN ' now' WHEN next_attempt_at <= now() THEN ' due' ELSE ' delayed' END ELSE CASE WHEN next_attempt_at IS NOT NULL THEN ' ?' END END,
			CASE WHEN detached THEN ' detached' END, CASE WHEN discarded THEN ' discarded' END), '' ORDER BY sink)
			FROM saga_outbox_delivery WHERE event_id = $1::text::uuid), '')`, id(n).String()).Scan(&s)
	if err != nil {
		tb.t.Fatal(err)
	}
	return s
}

func (tb *table) want(what string, states map[int]string) {
	tb.t.Helper()
	for n, want := range states {
		if got := tb.state(n); got != want {
			tb.t.Errorf("%s: event %d is\n  %s, want\n  %s", what, n, got, want)
		}
	}
}

// fill makes one event of every kind.
func (tb *table) fill() {
	tb.row(1, "a", "dead_letter", 5) // RELAY_DEAD_LETTER=hold: dead, with one held behind it
	tb.entry(1, "rabbitmq", "a", "dead", 5, "unroutable")
	tb.row(2, "a", "pending", 0)
	tb.entry(2, "rabbitmq", "a", "held", 0, "")
	tb.row(3, "b", "dead_letter", 5) // continue: dead and passed
	tb.entry(3, "kafka", "b", "dead detached", 5, "too_large")
	tb.row(4, "c", "failed", 2) // has a next attempt, with one held behind it
	tb.entry(4, "kafka", "c", "retry", 2, "rejected")
	tb.row(5, "c", "pending", 0)
	tb.entry(5, "kafka", "c", "held", 0, "")
	tb.row(6, "d", "dead_letter", 5) // dead for one sink, with a next attempt for the other
	tb.entry(6, "kafka", "d", "retry", 3, "nacked")
	tb.entry(6, "rabbitmq", "d", "dead detached", 5, "unroutable")
	tb.row(7, "e", "dead_letter", 5) // the Python library's worker
	tb.row(8, "e", "failed", 1)
	tb.row(9, "f", "sent", 0)
	tb.row(10, "f", "pending", 0)
	tb.entry(11, "kafka", "g", "dead detached", 5, "encode") // its row is gone
}

func ids(letters []Letter) (s []string) {
	for i := range letters {
		u, err := relay.ParseUUID(letters[i].EventID)
		if err != nil {
			panic(err)
		}
		s = append(s, fmt.Sprintf("%d %s %s", binary.BigEndian.Uint64(u[8:]), letters[i].Sink, letters[i].State))
	}
	return s
}

func TestFind(t *testing.T) {
	onEach(t, func(t *testing.T, db *table) {
		db.fill()
		db.exec(`UPDATE saga_outbox_delivery SET discarded = true WHERE event_id = $1::text::uuid`, id(5).String())
		for _, tt := range []struct {
			name   string
			filter Filter
			want   []string
		}{
			// the oldest first: entry n has been there for n hours, and event 7 since the morning
			// of 2026-11-23
			{"Dead", Filter{State: StateDead}, []string{"11 kafka dead", "6 rabbitmq dead", "3 kafka dead", "1 rabbitmq dead", "7 - dead"}},
			{"Held", Filter{State: StateHeld}, []string{"2 rabbitmq held"}},
			{"Retry", Filter{State: StateRetry}, []string{"6 kafka retry", "4 kafka retry", "8 - retry"}},
			{"Discarded", Filter{State: StateDiscarded}, []string{"5 kafka discarded"}},
			{"Sink", Filter{State: StateDead, Sink: "kafka"}, []string{"11 kafka dead", "3 kafka dead"}},
			{"NoSink", Filter{State: StateAll, Sink: NoSink}, []string{"7 - dead", "8 - retry"}},
			{"Reason", Filter{State: StateAll, Reason: "unroutable"}, []string{"6 rabbitmq dead", "1 rabbitmq dead"}},
			{"Key", Filter{State: StateAll, Key: "c"}, []string{"5 kafka discarded", "4 kafka retry"}},
			{"Event", Filter{State: StateAll, EventIDs: []relay.UUID{id(6), id(9)}}, []string{"6 kafka retry", "6 rabbitmq dead"}},
			{"Saga", Filter{State: StateAll, SagaID: "saga-e"}, []string{"7 - dead", "8 - retry"}},
			{"OlderThan", Filter{State: StateDead, OlderThan: 5*time.Hour + 30*time.Minute, Sink: "rabbitmq"}, []string{"6 rabbitmq dead"}},
			{"EventType", Filter{State: StateAll, EventType: "Nothing"}, nil},
			{"Together", Filter{State: StateDead, Sink: "rabbitmq", Key: "a", EventType: "OrderPlaced"}, []string{"1 rabbitmq dead"}},
		} {
			found, total, err := Find(t.Context(), db.conn, tt.filter, 0)
			if err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			// The age of rows without an entry is by created_at, which the test does not set by the
			// clock.
			got := ids(found)
			if !sameButRows(got, tt.want) || total != len(tt.want) {
				t.Errorf("%s: got %d: %q, want %q", tt.name, total, got, tt.want)
			}
		}
		found, total, err := Find(t.Context(), db.conn, Filter{State: StateDead, Sink: "kafka"}, 1)
		if err != nil || total != 2 || len(found) != 1 {
			t.Errorf("with a limit: %d of %d (%v), want 1 of 2", len(found), total, err)
		}
	})
}

// sameButRows compares two lists, and the places of rows without an entry not.
func sameButRows(a, b []string) bool {
	split := func(all []string) (entries []string, rows map[string]bool) {
		rows = make(map[string]bool)
		for _, s := range all {
			if strings.Contains(s, " - ") {
				rows[s] = true
			} else {
				entries = append(entries, s)
			}
		}
		return entries, rows
	}
	entriesA, rowsA := split(a)
	entriesB, rowsB := split(b)
	return reflect.DeepEqual(entriesA, entriesB) && reflect.DeepEqual(rowsA, rowsB)
}

func TestRetry(t *testing.T) {
	onEach(t, func(t *testing.T, db *table) {
		db.fill()
		done, err := Retry(t.Context(), db.conn, Filter{State: StateDead}, false)
		if err != nil {
			t.Fatal(err)
		}
		if want := map[string]int{"kafka": 2, "rabbitmq": 2, NoSink: 1}; !reflect.DeepEqual(done.Sinks, want) || done.Passed+done.Locked > 0 {
			t.Errorf("got %+v, want %v", done, want)
		}
		db.want("dead ones retried", map[int]string{
			1:  "pending 0 | rabbitmq retry 0 now",
			2:  "pending 0 | rabbitmq held 0",
			3:  "pending 0 | kafka retry 0 now detached",
			4:  "failed 2 | kafka retry 2 delayed",
			5:  "pending 0 | kafka held 0",
			6:  "failed 3 | kafka retry 3 delayed | rabbitmq retry 0 now detached",
			7:  "pending 0",
			8:  "failed 1",
			9:  "sent 0",
			11: "gone | kafka retry 0 now detached",
		})
		if done, err = Retry(t.Context(), db.conn, Filter{State: StateRetry, Sink: "kafka"}, false); err != nil || done.N() != 2 {
			t.Fatalf("%+v, %v; want the two that have a next attempt", done, err)
		}
		db.want("delayed ones retried", map[int]string{
			4: "failed 2 | kafka retry 2 due",
			6: "failed 3 | kafka retry 3 due | rabbitmq retry 0 now detached",
			3: "pending 0 | kafka retry 0 now detached",
			5: "pending 0 | kafka held 0",
		})
		if done, err = Retry(t.Context(), db.conn, Filter{State: StateAll}, false); err != nil || done.N() != 1 {
			t.Fatalf("%+v, %v; want only the failed row without an entry: the others are to retry now, due or held", done, err)
		}
		db.want("the rest retried", map[int]string{8: "pending 0"})
		if _, err = Retry(t.Context(), db.conn, Filter{State: StateHeld}, false); !errors.Is(err, ErrHeld) {
			t.Errorf("retry of held ones: %v, want ErrHeld", err)
		}
	})
}

func TestDiscard(t *testing.T) {
	onEach(t, func(t *testing.T, db *table) {
		db.fill()
		done, err := Discard(t.Context(), db.conn, Filter{State: StateAll}, false)
		if err != nil {
			t.Fatal(err)
		}
		if want := map[string]int{"kafka": 5, "rabbitmq": 3, NoSink: 2}; !reflect.DeepEqual(done.Sinks, want) {
			t.Errorf("got %+v, want %v", done, want)
		}
		db.want("discarded", map[int]string{
			1: "dead_letter 5 | rabbitmq retry 5 now discarded",
			// Not before the one that it is held behind.
			2:  "dead_letter 0 | rabbitmq held 0 discarded",
			3:  "dead_letter 5 | kafka retry 5 now detached discarded",
			4:  "dead_letter 2 | kafka retry 2 now discarded",
			6:  "dead_letter 5 | kafka retry 3 now discarded | rabbitmq retry 5 now detached discarded",
			7:  "dead_letter 5",
			8:  "dead_letter 1",
			9:  "sent 0",
			10: "pending 0",
			11: "gone | kafka retry 5 now detached discarded",
		})
		var lastError string
		for n, want := range map[int]string{1: "discarded: rabbitmq: no queue", 7: "discarded: kafka: refused"} {
			if err := db.Pool.QueryRow(t.Context(), `SELECT last_error FROM saga_outbox WHERE event_id = $1::text::uuid`, id(n).String()).Scan(&lastError); err != nil || lastError != want {
				t.Errorf("last_error of event %d is %q (%v), want %q", n, lastError, err, want)
			}
		}
		if done, err = Discard(t.Context(), db.conn, Filter{State: StateAll}, false); err != nil || done.N() != 0 {
			t.Errorf("discarded once more: %+v, %v; want nothing", done, err)
		}
		// As long as no relay has taken them out, they can be taken back.
		if done, err = Retry(t.Context(), db.conn, Filter{State: StateDiscarded}, false); err != nil || done.N() != 10 {
			t.Fatalf("%+v, %v; want all 10 back", done, err)
		}
		db.want("taken back", map[int]string{
			1: "pending 0 | rabbitmq retry 0 now",
			2: "pending 0 | rabbitmq held 0",
			7: "pending 0",
		})
		if err := db.Pool.QueryRow(t.Context(), `SELECT last_error FROM saga_outbox WHERE event_id = $1::text::uuid`, id(7).String()).Scan(&lastError); err != nil || lastError != "kafka: refused" {
			t.Errorf("last_error of event 7 is %q (%v), want it without the note", lastError, err)
		}
	})
}

// One sink's entry is discarded: the row has the status of the other's.
func TestDiscardForOneSink(t *testing.T) {
	db := newTable(t, pgtest.New(t, pgtest.Migrated()))
	db.fill()
	if done, err := Discard(t.Context(), db.conn, Filter{State: StateDead, Sink: "rabbitmq", Key: "d"}, false); err != nil || done.N() != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	db.want("discarded", map[int]string{6: "failed 3 | kafka retry 3 delayed | rabbitmq retry 5 now detached discarded"})
}

// In hybrid mode a retried row is not pending: the library's worker would take it.
func TestRetryHybrid(t *testing.T) {
	db := newTable(t, pgtest.New(t, pgtest.Migrated()))
	db.fill()
	if _, err := Retry(t.Context(), db.conn, Filter{State: StateDead, Key: "a"}, true); err != nil {
		t.Fatal(err)
	}
	db.want("retried", map[int]string{1: "failed 0 | rabbitmq retry 0 now"})
}

// A person discards an event that is being delivered once more: it was sent, and stays so.
func TestDiscardReplay(t *testing.T) {
	db := newTable(t, pgtest.New(t, pgtest.Migrated()))
	db.row(1, "a", "sent", 0)
	db.entry(1, "kafka", "a", "now detached", 0, "")
	if _, err := Discard(t.Context(), db.conn, Filter{State: StateRetry}, false); err != nil {
		t.Fatal(err)
	}
	db.want("discarded", map[int]string{1: "sent 0 | kafka retry 0 now detached discarded"})
}

// Several batches, and others that have locks. A relay in the middle of a mark is waited for. A row
// that an application keeps locked is reported.
func TestLocks(t *testing.T) {
	t.Parallel()
	db := newTable(t, pgtest.New(t, pgtest.Migrated()))
	const n = 2*batchSize + 7
	db.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, status)
		SELECT lpad(to_hex(i), 32, '0')::uuid, 's', 'a' || i, 'OrderPlaced', '{}', 'dead_letter' FROM generate_series(1, $1) i`, n)
	db.exec(`INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, attempts)
		SELECT event_id, 'kafka', 'sagaz_outbox', row_number() OVER (ORDER BY event_id), aggregate_id, 0, event_type, 'dead', 5 FROM saga_outbox`)

	mark, err := db.Conn(t).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mark.Exec(t.Context(), `UPDATE saga_outbox_relay SET marked_lsn = '0/1'`); err != nil {
		t.Fatal(err)
	}
	type result struct {
		done *Done
		err  error
	}
	results := make(chan result, 1)
	go func() {
		done, err := Retry(t.Context(), db.conn, Filter{State: StateDead}, false)
		results <- result{done, err}
	}()
	db.Until(t, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%saga_outbox_relay%FOR UPDATE')`)
	db.want("while the relay marks", map[int]string{1: "dead_letter 0 | kafka dead 5"})
	if err := mark.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := <-results; r.err != nil || r.done.N() != n || r.done.Locked > 0 {
		t.Fatalf("%+v, %v; want %d", r.done, r.err, n)
	}
	db.want("after it", map[int]string{1: "pending 0 | kafka retry 0 now", n: "pending 0 | kafka retry 0 now"})

	sitter, err := db.Conn(t).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sitter.Exec(t.Context(), `SELECT FROM saga_outbox WHERE event_id = $1::text::uuid FOR UPDATE`, id(5).String()); err != nil {
		t.Fatal(err)
	}
	done, err := Discard(t.Context(), db.conn, Filter{State: StateRetry}, false)
	if err != nil || done.Locked != batchSize || done.N() != n-batchSize {
		t.Errorf("%+v, %v; want one batch locked, the others discarded", done, err)
	}
	db.want("the locked batch", map[int]string{4: "pending 0 | kafka retry 0 now"})
}

func TestShow(t *testing.T) {
	onEach(t, func(t *testing.T, db *table) {
		db.fill()
		e, err := Show(t.Context(), db.conn, id(6), false)
		if err != nil {
			t.Fatal(err)
		}
		if e.Row == nil || e.Row.Status != "dead_letter" || e.Row.Payload != nil || e.Row.PayloadBytes != len(`{"secret": "swordfish"}`) || !reflect.DeepEqual(e.Row.Headers, []string{"traceparent"}) {
			t.Errorf("the row is %+v", e.Row)
		}
		if got, want := ids(e.Entries), []string{"6 kafka retry", "6 rabbitmq dead"}; !reflect.DeepEqual(got, want) {
			t.Errorf("entries %q, want %q", got, want)
		}
		if e, err = Show(t.Context(), db.conn, id(6), true); err != nil || e.Row.Payload == nil || *e.Row.Payload != `{"secret": "swordfish"}` {
			t.Errorf("with the payload: %+v, %v", e.Row, err)
		}
		if e, err = Show(t.Context(), db.conn, id(11), false); err != nil || e.Row != nil || len(e.Entries) != 1 {
			t.Errorf("an event whose row is gone: %+v, %v", e, err)
		}
		if e, err = Show(t.Context(), db.conn, id(99), false); err != nil || e.Row != nil || len(e.Entries) != 0 {
			t.Errorf("an unknown event: %+v, %v", e, err)
		}
		db.exec(`INSERT INTO saga_outbox_archive SELECT * FROM saga_outbox WHERE status = 'sent'`)
		db.exec(`DELETE FROM saga_outbox WHERE status = 'sent'`)
		if e, err = Show(t.Context(), db.conn, id(9), false); err != nil || e.Row == nil || !e.Row.Archived {
			t.Errorf("an archived event: %+v, %v", e, err)
		}
	})
}

// Rows that do not take their marks are listed by a name of their own. A person may have them tried
// at once, and cannot give them up: their events would be delivered again.
func TestUnmarkedRows(t *testing.T) {
	onEach(t, func(t *testing.T, db *table) {
		db.row(1, "a", "pending", 0)
		db.row(2, "a", "dead_letter", 5)
		db.entry(1, relay.MarkSink, "a", "retry detached", 0, "unmarked")
		db.entry(2, "kafka", "a", "dead detached", 5, "rejected")
		db.entry(2, relay.MarkSink, "a", "retry detached", 0, "locked")
		db.exec(`CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$; CREATE TRIGGER no BEFORE UPDATE ON saga_outbox FOR EACH ROW EXECUTE FUNCTION no()`)
		for state, want := range map[State]int{StateUnmarked: 2, StateRetry: 0, StateDead: 1, StateAll: 3} {
			if found, _, err := Find(t.Context(), db.conn, Filter{State: state}, 0); err != nil || len(found) != want {
				t.Errorf("%s: %d letters, %v; want %d", state, len(found), err, want)
			}
		}
		if done, err := Discard(t.Context(), db.conn, Filter{State: StateUnmarked}, false); err != nil || done.N() != 0 {
			t.Errorf("discard: %+v, %v", done, err)
		}
		done, err := Retry(t.Context(), db.conn, Filter{State: StateAll}, false)
		if err != nil || done.Sinks[relay.MarkSink] != 2 || done.Sinks["kafka"] != 1 {
			t.Errorf("retry: %+v, %v", done, err)
		}
		var due int
		if err := db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM saga_outbox_delivery WHERE sink = $1 AND state = 'retry' AND next_attempt_at <= now()`, relay.MarkSink).Scan(&due); err != nil || due != 2 {
			t.Errorf("%d are due, %v", due, err)
		}
	})
}

// The table's columns may have other types than the library's.
func TestColumnsOfOtherTypes(t *testing.T) {
	for _, of := range []string{"bigint", "integer", "uuid", "varchar(60)", "char(40)"} {
		t.Run(of, func(t *testing.T) {
			db := newTable(t, pgtest.New(t, pgtest.Migrated()))
			key := map[bool]string{true: "00000000-0000-0000-0000-00000000002a", false: "42"}[of == "uuid"]
			for _, table := range []string{"saga_outbox", "saga_outbox_archive"} {
				db.exec(`ALTER TABLE IF EXISTS ` + table + ` ALTER COLUMN aggregate_id TYPE ` + of + ` USING aggregate_id::` + of + `, ALTER COLUMN event_type TYPE varchar(80)`)
			}
			db.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, status) SELECT ('00000000-0000-0000-0000-00000000000' || n)::uuid, 's', '` + key + `', 'T', '{}', s FROM (VALUES (1, 'dead_letter'), (2, 'sent')) v (n, s)`)
			if found, total, err := Find(t.Context(), db.conn, Filter{State: StateAll}, 0); err != nil || total != 1 || strings.TrimRight(found[0].Key, " ") != key {
				t.Errorf("found %+v, %d, %v", found, total, err)
			}
			if e, err := Show(t.Context(), db.conn, id(1), true); err != nil || strings.TrimRight(e.Row.AggregateID, " ") != key {
				t.Errorf("shown %+v, %v", e, err)
			}
			for _, set := range []relay.Set{{Slot: "o", Shards: 1}, {Slot: "o", Shards: 3}} {
				if plan, err := PlanReplay(t.Context(), db.conn, Replay{Since: time.Unix(0, 0), Set: set, Sinks: []string{"kafka"}}); err != nil || plan.Events == 0 {
					t.Errorf("the plan is %+v, %v", plan, err)
				}
			}
			if done, err := Retry(t.Context(), db.conn, Filter{State: StateAll}, false); err != nil || done.N() != 1 {
				t.Errorf("retried %+v, %v", done, err)
			}
		})
	}
}
