package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// behindPooler is a store that reaches the database through a PgBouncer in transaction mode.
func behindPooler(t testing.TB, db *pgtest.DB, change func(*Config)) *Store {
	t.Helper()
	cfg := testConfig(db)
	cfg.DatabaseURL, cfg.Owner, cfg.LeaseTTL = db.Pooled(t), "relay-pooled", testTTL
	if change != nil {
		change(&cfg)
	}
	return newStore(t, cfg, nil)
}

// Everything that a lease does works while its transactions run in other clients' sessions.
func TestPooler(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for _, mode := range []string{MarkUpdate, MarkArchive} {
			s := behindPooler(t, db, func(cfg *Config) { cfg.Mark, cfg.Hybrid = mode, true })
			if err := s.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !s.Pooled() {
				t.Fatal("the pooler was not noticed")
			}
			l := acquire(t, s, "outbox")
			events := insert(t, db, 1, 8)
			if got, want := swept(t, l, relay.SweepQuery{Since: relay.TimestampOf(time.Now().Add(-time.Hour))}), "1 2 3 4 5 6 7 8"; got != want {
				t.Errorf("swept %s, want %s", got, want)
			}
			if got := settled(t, l, events); slices.Contains(got, true) {
				t.Errorf("settled %v, want none", got)
			}
			marks := ofKey(marksOf(events), "k")
			marks[0].Parked = []relay.Parked{refusal("kafka", "no")}
			parking(marks[1:3], held("kafka"))
			mark(t, l, marks)
			if got, want := ledger(t, db, "kafka"), "1 waiting, 2 held, 3 held"; got != want {
				t.Errorf("ledger: %s, want %s", got, want)
			}
			exec(t, db, `UPDATE saga_outbox_delivery SET next_attempt_at = now() WHERE position = 1`)
			for range 2 {
				resolve(t, l, "kafka", relay.FateDelivered, due(t, l, "kafka", 10)...)
			}
			if got, want := counts(t, db), map[string]string{MarkUpdate: "8 sent", MarkArchive: "none"}[mode]; got != want {
				t.Errorf("rows: %s, want %s", got, want)
			}
			h, err := l.SweepFrom(t.Context(), 4711)
			if err != nil {
				t.Fatal(err)
			}
			if got := swept(t, l, relay.SweepQuery{Seen: h.Snapshot}); got != "" {
				t.Errorf("swept %s, want none", got)
			}
			for _, kind := range []relay.SweepKind{relay.SweepClaimed, relay.SweepFailed} {
				if got := swept(t, l, relay.SweepQuery{Kind: kind}); got != "" {
					t.Errorf("swept %s, want none", got)
				}
			}
			if _, err := l.EndSweep(t.Context(), 1); err != nil {
				t.Error(err)
			}
			if err := l.Confirm(t.Context(), 2); err != nil {
				t.Error(err)
			}
			if _, err := l.Slot(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := l.Counts(t.Context()); err != nil {
				t.Error(err)
			}
			if err := l.Blocking(t.Context(), 1<<22-1, func(string, uint32, int, int) {}); err != nil {
				t.Error(err)
			}
			if n, err := l.Prune(t.Context(), 0, true, 100); err != nil || n != map[string]int{MarkUpdate: 8}[mode] {
				t.Errorf("pruned %d, %v", n, err)
			}
			release(t, l)
			exec(t, db, `TRUNCATE saga_outbox, saga_outbox_archive, saga_outbox_delivery`)
		}
	})
}

// A pooler that swallows parameters which it does not know, as some are set to and others always
// do, is noticed all the same.
func TestPoolerThatIgnoresSettings(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	cfg := testConfig(db)
	cfg.DatabaseURL = db.Pooled(t, "ignore_startup_parameters = tcp_keepalives_idle, tcp_keepalives_interval, tcp_keepalives_count, tcp_user_timeout, "+strings.Join(sessions.StartParameters(), ", "))
	s := newStore(t, cfg, nil)
	mark(t, acquire(t, s, "outbox"), marksOf(insert(t, db, 1, 3)))
	if got := counts(t, db); got != "3 sent" || !s.Pooled() {
		t.Errorf("%s; noticed: %t", got, s.Pooled())
	}
	if direct := newStore(t, testConfig(db), nil); direct.Check(t.Context()) != nil || direct.Pooled() {
		t.Error("a pooler without one")
	}
}

// waiting contends for a slot until the test calls stop, and reports when it has it.
func waiting(t testing.TB, s *Store, slot string) (got chan *lease, stop context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	got = make(chan *lease, 1)
	ended := make(chan struct{})
	shard := alone(s, slot)
	go func() {
		defer close(ended)
		if l, err := s.Acquire(ctx, shard); err == nil {
			got <- l.(*lease)
		}
	}()
	return got, func() { cancel(); <-ended }
}

// A lease without a lock and one with a lock exclude each other, and each other's kind; a release
// frees at once, a death after the TTL.
func TestPoolerLease(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		cfg := testConfig(db)
		cfg.LeaseTTL = testTTL
		direct, pooled := newStore(t, cfg, nil), behindPooler(t, db, nil)
		for name, stores := range map[string][2]*Store{"pooled, direct": {pooled, direct}, "direct, pooled": {direct, pooled}, "pooled, pooled": {pooled, behindPooler(t, db, nil)}} {
			first := acquire(t, stores[0], "outbox")
			if direct := stores[0] == direct; stores[0].Pooled() == direct {
				t.Errorf("%s: pooled %t", name, stores[0].Pooled())
			}
			got, stop := waiting(t, stores[1], "outbox")
			// It has looked and looked again by the time that the first has renewed its lease three
			// times.
			for range 3 {
				renewed := value[string](t, db.Pool, `SELECT renewed_at::text FROM saga_outbox_relay`)
				db.Until(t, `SELECT renewed_at > $1::timestamptz FROM saga_outbox_relay`, renewed)
			}
			select {
			case <-got:
				t.Fatalf("%s: two owners", name)
			default:
			}
			if !first.Valid() {
				t.Errorf("%s: the first owner has lost its lease: %v", name, first.Err())
			}
			release(t, first)
			second := <-got
			stop()
			if second.Epoch() != first.Epoch()+1 {
				t.Errorf("%s: epoch %d after %d", name, second.Epoch(), first.Epoch())
			}
			if _, err := first.Mark(t.Context(), relay.MarkBatch{}); !errors.Is(err, relay.ErrLeaseLost) {
				t.Errorf("%s: mark after the release: %v", name, err)
			}
			// It dies without a sign: it renews no more, and releases nothing.
			second.stop()
			second.renewing.Wait()
			second.marks.close(t.Context())
			closeConn(second.conn)
			third := acquire(t, stores[0], "outbox")
			if third.Epoch() != second.Epoch()+1 {
				t.Errorf("%s: epoch %d after %d", name, third.Epoch(), second.Epoch())
			}
			if err := second.Release(t.Context(), true); err != nil { // late, and of no effect
				t.Errorf("%s: %v", name, err)
			}
			if got := value[bool](t, db.Pool, `SELECT released_at IS NULL FROM saga_outbox_relay`); !got {
				t.Errorf("%s: a zombie has released the lease", name)
			}
			release(t, third)
		}
	})
}
