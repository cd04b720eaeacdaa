package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Closing(m)) }

// testTTL is the lease of tests in which one has to lapse: longer than a slow disk stands still.
const testTTL = 8 * time.Second

// onEach runs a test on each version of PostgreSQL, with a migrated database, beside other tests.
func onEach(t *testing.T, test func(t *testing.T, db *pgtest.DB)) {
	t.Parallel()
	for _, version := range pgtest.Versions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			test(t, pgtest.NewVersion(t, version, pgtest.Migrated()))
		})
	}
}

// onEachAlone is onEach with a server that no other test uses.
func onEachAlone(t *testing.T, settings map[string]string, test func(t *testing.T, db *pgtest.DB)) {
	t.Parallel()
	for _, version := range pgtest.Versions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			test(t, pgtest.NewAt(t, pgtest.OwnServer(t, version, settings).DSN("postgres"), pgtest.Migrated()))
		})
	}
}

// testConfig is a relay's, with the database's superuser.
func testConfig(db *pgtest.DB) Config {
	cfg := DefaultConfig()
	cfg.DatabaseURL, cfg.Owner, cfg.Slot = db.DSN, "relay-1", "outbox"
	return cfg
}

func newStore(t testing.TB, cfg Config, log hclog.Logger) *Store {
	t.Helper()
	if log == nil {
		log = hclog.NewNullLogger()
	}
	s, err := New(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// alone is the shard of a table that is not divided, for a store that has worked with no other slot.
func alone(s *Store, slot string) relay.Shard {
	if s.cfg.Slot != slot {
		s.cfg.Slot = slot
	}
	return relay.Alone(slot, "")
}

func acquire(t testing.TB, s *Store, slot string) *lease {
	t.Helper()
	l, err := s.Acquire(t.Context(), alone(s, slot))
	if err != nil {
		t.Fatal(err)
	}
	held := l.(*lease)
	// A busy disk is not what most tests are about. Those that cut a connection set their own limits.
	for _, p := range []*patience{
		&held.marks.patience, &held.facts, &held.sweeping.whole, &held.sweeping.window, &held.sweeping.piece, &held.pruning.patience,
	} {
		p.least, p.most = time.Minute, time.Hour
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = held.Release(ctx, true) // the test has released it, or does not need it to be
	})
	return held
}

func release(t testing.TB, l *lease) {
	t.Helper()
	if err := l.Release(t.Context(), true); err != nil {
		t.Fatal(err)
	}
}

// querier is a connection or a pool.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func value[T any](t testing.TB, q querier, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := q.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func exec(t testing.TB, db *pgtest.DB, sql string, args ...any) {
	t.Helper()
	if _, err := db.Pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// id is the event_id of the nth row.
func id(n int) (u relay.UUID) {
	binary.BigEndian.PutUint64(u[8:], uint64(n))
	return u
}

const insertSQL = `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
	SELECT ('00000000-0000-0000-' || lpad(to_hex(i >> 48), 4, '0') || '-' || lpad(to_hex(i), 12, '0'))::uuid, 's' || i, 'a' || i, 'Tested', jsonb_build_object('n', i)
	FROM generate_series($1::bigint, $2) i`

// insert makes the rows from..to in one transaction, and returns what the stream would deliver of
// them.
func insert(t testing.TB, db *pgtest.DB, from, to int) []relay.Event {
	t.Helper()
	conn := db.Conn(t)
	defer conn.Close(t.Context())
	var xid uint32
	err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), insertSQL, from, to); err != nil {
			return err
		}
		return tx.QueryRow(t.Context(), `SELECT (pg_current_xact_id()::text::bigint & 4294967295)::bigint`).Scan(&xid)
	})
	if err != nil {
		t.Fatal(err)
	}
	commit, err := relay.ParseLSN(value[string](t, conn, `SELECT pg_current_wal_insert_lsn()::text`))
	if err != nil {
		t.Fatal(err)
	}
	var events []relay.Event
	for n := from; n <= to; n++ {
		events = append(events, relay.Event{ID: id(n), AggregateID: fmt.Sprintf("a%d", n), EventType: "Tested", XID: xid, CommitLSN: commit, Ordinal: uint32(n - from)})
	}
	return events
}

func marksOf(events []relay.Event) []relay.Mark {
	marks := make([]relay.Mark, len(events))
	for i, ev := range events {
		n := binary.BigEndian.Uint64(ev.ID[8:])
		marks[i] = relay.Mark{ID: ev.ID, XID: ev.XID, CommitLSN: ev.CommitLSN, EventType: ev.EventType, Key: ev.AggregateID, KeyHash: relay.KeyHash(ev.AggregateID), Position: int64(n)}
	}
	return marks
}

// refusal is an entry for an event that a sink has refused once, to be offered again in an hour.
func refusal(sink, text string) relay.Parked {
	return relay.Parked{Sink: sink, State: relay.StateRetry, Reason: relay.ReasonRejected, Error: text, Attempts: 1, Delay: time.Hour}
}

// refuse makes of a mark that of an event that Kafka refuses.
func refuse(m *relay.Mark, text string) { m.Parked = []relay.Parked{refusal("kafka", text)} }

func mark(t testing.TB, l relay.Lease, marks []relay.Mark) {
	t.Helper()
	later, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marks})
	if err != nil {
		t.Fatal(err)
	}
	if len(later) > 0 {
		t.Fatalf("marks %v are for later, want none", later)
	}
}

func settled(t testing.TB, l relay.Lease, events []relay.Event) []bool {
	t.Helper()
	is, err := l.Settled(t.Context(), events)
	if err != nil {
		t.Fatal(err)
	}
	return is
}

// row is what the table has of the nth row, "" when it is not there.
func row(t testing.TB, db *pgtest.DB, n int) string {
	t.Helper()
	return value[string](t, db.Pool, `SELECT coalesce((SELECT format('%s retries=%s error=%s sent=%s', status, retry_count, coalesce(last_error, '-'), sent_at IS NOT NULL)
		FROM saga_outbox WHERE event_id = $1), '')`, id(n).String())
}

func counts(t testing.TB, db *pgtest.DB) string {
	t.Helper()
	return value[string](t, db.Pool, `SELECT coalesce(string_agg(format('%s %s', n, status), ', ' ORDER BY status), 'none') FROM (SELECT status, count(*) n FROM saga_outbox GROUP BY status) c`)
}

// backend is the pid of a lease's connection for a purpose ("lease" or "marks").
func backend(t testing.TB, db *pgtest.DB, purpose, slot string) int {
	t.Helper()
	return value[int](t, db.Pool, `SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()`,
		fmt.Sprintf("sagaz-relay %s %s", purpose, slot))
}

func kill(t testing.TB, db *pgtest.DB, pid int) {
	t.Helper()
	if !value[bool](t, db.Pool, `SELECT pg_terminate_backend($1)`, pid) {
		t.Fatalf("backend %d could not be ended", pid)
	}
}

// within fails when c is not closed soon enough; it returns how long that took.
func within(t testing.TB, limit time.Duration, what string, c <-chan struct{}) time.Duration {
	t.Helper()
	start := time.Now()
	select {
	case <-c:
		return time.Since(start)
	case <-time.After(limit):
		t.Fatalf("%s: not within %s", what, limit)
		return 0
	}
}
