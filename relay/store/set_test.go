package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// quickLease makes a store whose standbys notice soon.
func quickLease(t testing.TB, db *pgtest.DB, owner string, change func(*Config)) *Store {
	return quickLeaseLogs(t, db, owner, nil, change)
}

func quickLeaseLogs(t testing.TB, db *pgtest.DB, owner string, log hclog.Logger, change func(*Config)) *Store {
	cfg := testConfig(db)
	cfg.Owner, cfg.LeaseTTL, cfg.AcquireInterval = owner, testTTL, 50*time.Millisecond
	if change != nil {
		change(&cfg)
	}
	return newStore(t, cfg, log)
}

// The slot was renamed while its sink was down. The new one takes what the old one left, in order,
// in front of its own, and the old slot is dropped. Then back to the first name.
func TestRenamedSlotInherits(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		x, y := db.Name+"_x", db.Name+"_y"
		exec(t, db, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, x)
		t.Cleanup(func() {
			conn, err := pgx.Connect(context.Background(), db.DSN)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close(context.Background()) //nolint:errcheck // nothing depends on it
			_, _ = conn.Exec(context.Background(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = ANY($1) AND NOT active`, []string{x, y})
		})
		// y was in use once, before this version, and has left an event of the key; x has left two,
		// from before.
		old := acquire(t, quickLease(t, db, "relay-y", nil), y)
		marks := ofKey(parking(marksOf(insert(t, db, 1, 4)), held("kafka")), "k")
		mark(t, old, marks[2:3])
		release(t, old)
		exec(t, db, `INSERT INTO saga_outbox_relay (slot, epoch, owner, marked_lsn, sinks, sweep_owed, released_at, renewed_at) VALUES ($1, 7, 'relay-x', 'F/0', 'kafka', false, now(), now() - interval '1 h')`, x)
		exec(t, db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, next_attempt_at)
			SELECT event_id, 'kafka', $1, (payload->>'n')::bigint + 100, 'k', $2, 'Tested', CASE payload->>'n' WHEN '1' THEN 'retry' ELSE 'held' END, CASE payload->>'n' WHEN '1' THEN now() END
			FROM saga_outbox WHERE payload->>'n' IN ('1', '2')`, x, int32(relay.KeyHash("k")))
		zombie := newLease(newStore(t, testConfig(db), nil), relay.Alone(x, ""), newStore(t, testConfig(db), nil).log, nil)
		zombie.epoch = 7

		l := acquire(t, quickLease(t, db, "relay-y", nil), y)
		if l.Epoch() <= 7 || l.LastPosition() <= 1<<40 || l.MarkedLSN().String() != "F/0" || !l.Recovery().Owed {
			t.Errorf("epoch %d, marked up to %s, sweep owed %t; want more than 7, F/0, true", l.Epoch(), l.MarkedLSN(), l.Recovery().Owed)
		}
		if got := value[string](t, db.Pool, `SELECT format('%s %s', generation, sinks) FROM saga_outbox_relay WHERE slot = $1`, y); got != "2 kafka" {
			t.Errorf("generation and sinks: %s, want 2 kafka", got)
		}
		if _, err := zombie.Mark(t.Context(), relay.MarkBatch{Marks: marks[3:]}); !errors.Is(err, relay.ErrLeaseLost) {
			t.Errorf("the old slot's owner marks: %v, want ErrLeaseLost", err)
		}
		mark(t, l, marks[3:])
		var order []string
		for range 4 {
			entries := due(t, l, "kafka", 1)
			if len(entries) == 0 {
				t.Fatalf("nothing is due: %s", ledger(t, db, "kafka"))
			}
			order = append(order, entries[0].Event.Payload)
			resolve(t, l, "kafka", relay.FateDelivered, entries[0])
		}
		if got, want := strings.Join(order, " "), `{"n": 1} {"n": 2} {"n": 3} {"n": 4}`; got != want {
			t.Errorf("delivered %s, want %s", got, want)
		}
		// The old replication slot stays until the new one is of use: without it, with a sweep
		// owed, while it is not read.
		stays := func(when string) {
			t.Helper()
			if left, settled, err := l.dropOnce(t.Context()); err != nil || settled || !slices.Equal(left, []string{x}) {
				t.Errorf("%s: left %v, settled %t, %v; want the old slot to stay", when, left, settled, err)
			}
		}
		stays("without the new slot")
		exec(t, db, `CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox`)
		exec(t, db, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, y)
		stop := stream(t, db, y)
		stays("with a sweep owed")
		stop()
		if _, err := l.EndSweep(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		stays("while the new slot is not read")
		stop = stream(t, db, y)
		db.Until(t, `SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)`, x)
		stop()
		if owners, err := Owners(t.Context(), db.Conn(t), time.Second); err != nil || len(owners) != 1 || owners[0].Slot != y {
			t.Errorf("owners %v, %v; want %s alone", owners, err, y)
		}

		insert(t, db, 5, 5)
		release(t, l)
		back := acquire(t, quickLease(t, db, "relay-x", nil), x)
		if back.Epoch() <= l.Epoch() || !back.Recovery().Owed {
			t.Errorf("back: epoch %d after %d, sweep owed %t", back.Epoch(), l.Epoch(), back.Recovery().Owed)
		}
		checkFenced(t, db, l, marksOf([]relay.Event{{ID: id(5), AggregateID: "a5"}}))
	})
}

// stream reads a slot until the function that it returns is called, or the test ends.
func stream(t testing.TB, db *pgtest.DB, slot string) (stop func()) {
	t.Helper()
	conn, err := pgconn.Connect(t.Context(), db.DSN+"&replication=database")
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			_ = conn.Conn().Close() // as a client that dies
			db.Until(t, `SELECT NOT active FROM pg_replication_slots WHERE slot_name = $1`, slot)
		})
	}
	t.Cleanup(func() { _ = conn.Conn().Close() })
	conn.Frontend().SendQuery(&pgproto3.Query{String: `START_REPLICATION SLOT "` + slot + `" LOGICAL 0/0 (proto_version '1', publication_names 'sagaz_outbox')`})
	if err := conn.Frontend().Flush(); err != nil {
		t.Fatal(err)
	}
	db.Until(t, `SELECT active FROM pg_replication_slots WHERE slot_name = $1`, slot)
	return stop
}

// A relay of another slot does not take anything while the owner is alive, and reports which owner
// it found. It takes over when that one is gone: by a clean stop, by the death of its connections,
// or without a lock behind a pooler, by its silence.
func TestAnotherSlotStandsBy(t *testing.T) {
	for _, c := range []struct {
		name string
		own  func(t *testing.T, db *pgtest.DB) (l *lease, end func())
	}{
		{"Stop", func(t *testing.T, db *pgtest.DB) (*lease, func()) {
			l := acquire(t, quickLease(t, db, "first", nil), "x")
			return l, func() { release(t, l) }
		}},
		{"Death", func(t *testing.T, db *pgtest.DB) (*lease, func()) {
			l := acquire(t, quickLease(t, db, "first", nil), "x")
			return l, func() { kill(t, db, backend(t, db, "lease", "x")) }
		}},
		{"Frozen", func(t *testing.T, db *pgtest.DB) (*lease, func()) {
			proxy := pgtest.NewProxy(t, db.DSN)
			l := acquire(t, quickLease(t, db, "first", func(cfg *Config) { cfg.DatabaseURL = proxy.DSN }), "x")
			return l, proxy.Freeze
		}},
		{"Pooled", func(t *testing.T, db *pgtest.DB) (*lease, func()) {
			l := acquire(t, quickLease(t, db, "first", func(cfg *Config) { cfg.DatabaseURL = db.Pooled(t) }), "x")
			return l, func() { l.stop() } // it renews no more, and has no lock to lose
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			onEach(t, func(t *testing.T, db *pgtest.DB) {
				l, end := c.own(t, db)
				s := quickLease(t, db, "second", nil)
				got, stop := waiting(t, s, "y")
				found := make(chan struct{})
				go func() {
					defer close(found)
					for s.Waiting("y") == nil {
						time.Sleep(10 * time.Millisecond)
					}
				}()
				within(t, 20*time.Second, "the second reports which owner it found", found)
				if err := s.Waiting("y"); err == nil || !strings.Contains(err.Error(), `"x", owned by first since 20`) || !strings.Contains(err.Error(), "RELAY_SLOT=x") {
					t.Errorf("the second waits for %v", err)
				}
				select {
				case <-got:
					t.Fatal("two slots of one table are owned")
				case <-time.After(testTTL + time.Second): // in which the first has renewed
				}
				end()
				select {
				case next := <-got:
					if l.Valid() {
						t.Error("the first trusts its lease when the second has taken over")
					}
					release(t, next)
				case <-time.After(testTTL + soon):
					t.Errorf("the second does not take over; %v", s.Waiting("y"))
				}
				stop()
			})
		})
	}
}

// In a restart, or while the number of slots is being changed, nobody owns a slot for a moment, and
// nobody shows that it lives while connections are made again. A relay of another slot takes nothing
// then; but not for ever, because those whose set it is may be unable to, or gone.
func TestAnotherSlotWaitsForThoseWhoLive(t *testing.T) {
	t.Parallel()
	for name, of := range map[string]struct {
		used   bool          // somebody had the slot once
		lives  time.Duration // for how long one of its relays is seen
		ttl    time.Duration
		atOnce bool
		least  time.Duration // until it is taken over
	}{
		"one lives and takes nothing":    {lives: time.Minute, ttl: 2 * time.Second, least: 3 * 2 * time.Second},
		"one dies":                       {used: true, lives: time.Second, ttl: time.Minute, least: time.Second + desertedFor},
		"nobody is seen in this moment":  {used: true, ttl: time.Minute, least: desertedFor},
		"nobody ever delivered anything": {ttl: time.Minute, atOnce: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t, pgtest.Migrated())
			exec(t, db, `INSERT INTO saga_outbox_set (slot, publication, shards) VALUES ('x', 'p', 1)`)
			if of.used {
				exec(t, db, `INSERT INTO saga_outbox_relay (slot, epoch, owner, released_at) VALUES ('x', 3, 'first', now())`)
			}
			if of.lives > 0 {
				member := db.Conn(t)
				if _, err := member.Exec(t.Context(), `SELECT pg_advisory_lock_shared($1::bigint::int, $2::bigint::int)`, int64(memberClass), int64(int32(familyOf("x")<<16|7))); err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(of.lives, func() { _ = member.PgConn().Conn().Close() }) // as one that dies
			}
			began := time.Now()
			s := quickLease(t, db, "other", func(cfg *Config) { cfg.LeaseTTL = of.ttl })
			got, stop := waiting(t, s, "y")
			defer stop()
			for deadline := time.Now().Add(soon); !of.atOnce && s.Waiting("y") == nil; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the other does not report what it waits for")
				}
			}
			if err := s.Waiting("y"); !of.atOnce && (!strings.Contains(err.Error(), `"x", owned by `) || !strings.Contains(err.Error(), "RELAY_SLOT=x")) {
				t.Errorf("the other waits for %v", err)
			}
			select {
			case l := <-got:
				if took := time.Since(began); took < of.least {
					t.Errorf("the slot is taken over after %s, want %s at least", took, of.least)
				}
				release(t, l)
			case <-time.After(of.least + soon):
				t.Errorf("the other does not take over; %v", s.Waiting("y"))
			}
		})
	}
}

// The server's clock steps, by an hour ahead or back: who owns a slot without a lock keeps it, and
// when it is gone the next comes.
func TestPooledLeaseAndTheServersClock(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for _, step := range []string{"-1 h", "1 h"} {
			own := quickLease(t, db, "first", func(cfg *Config) { cfg.DatabaseURL = db.Pooled(t) })
			l := acquire(t, own, "x")
			// As the clock of the others has it: what was renewed just now is an hour old, or an
			// hour ahead.
			exec(t, db, `UPDATE saga_outbox_relay SET renewed_at = renewed_at + $1::interval`, step)
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			second := quickLease(t, db, "second", nil)
			if _, err := second.Acquire(ctx, alone(second, "x")); err == nil || !l.Valid() {
				t.Errorf("%s: taken from an owner that lives", step)
			}
			cancel()
			l.stop()
			l.renewing.Wait()
			exec(t, db, `UPDATE saga_outbox_relay SET renewed_at = now() + $1::interval`, step)
			began := time.Now()
			next := acquire(t, quickLease(t, db, "second", nil), "x")
			if took := time.Since(began); took > testTTL+soon {
				t.Errorf("%s: taken over after %s", step, took)
			}
			release(t, next)
			exec(t, db, `TRUNCATE saga_outbox_relay`)
		}
	})
}

// Relays of three slots contend for one table, again and again: there is never more than one owner.
func TestOneSetOfSlots(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		var (
			holding atomic.Int32
			turns   atomic.Int32
			all     sync.WaitGroup
		)
		for i := range 6 {
			s := quickLease(t, db, fmt.Sprint("relay-", i), func(cfg *Config) { cfg.AcquireInterval = 20 * time.Millisecond })
			shard := alone(s, fmt.Sprint("slot_", i%3))
			all.Go(func() {
				for turns.Load() < 12 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					l, err := s.Acquire(ctx, shard)
					cancel()
					if err != nil {
						continue
					}
					if n := holding.Add(1); n != 1 {
						t.Errorf("%d owners at once", n)
					}
					turns.Add(1)
					time.Sleep(20 * time.Millisecond)
					holding.Add(-1)
					if err := l.Release(t.Context(), true); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_relay WHERE heir IS NULL`); got != 1 {
			t.Errorf("%d slots are in the set, want 1", got)
		}
	})
}

// What a relay before this version asks for a lease: it must not get a slot whose work went to
// another.
const oldTrySQL = `SELECT coalesce(s.pooled AND s.released_at IS NULL AND s.renewed_at >= clock_timestamp() - make_interval(secs => 15), false) FROM saga_outbox_relay s WHERE s.slot = $1`

func TestOldRelayAndTheSet(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		// One that owns its slot is not doubled.
		old := db.Conn(t)
		defer old.Close(context.Background())
		exec(t, db, `INSERT INTO saga_outbox_relay (slot, epoch, owner) VALUES ('x', 3, 'old')`)
		if !value[bool](t, old, `SELECT pg_try_advisory_lock($1, hashtext('x'))`, lockClass) {
			t.Fatal("the lock is taken")
		}
		renew := func() { exec(t, db, `UPDATE saga_outbox_relay SET renewed_at = clock_timestamp() WHERE slot = 'x'`) }
		ctx, cancel := context.WithCancel(t.Context())
		s := quickLease(t, db, "new", nil)
		done := make(chan relay.Lease, 1)
		shard := alone(s, "y")
		go func() {
			l, _ := s.Acquire(ctx, shard)
			done <- l
		}()
		for range 10 {
			renew()
			select {
			case l := <-done:
				t.Fatalf("%v was taken next to an old relay", l)
			case <-time.After(300 * time.Millisecond):
			}
		}
		if value[bool](t, old, `SELECT pg_advisory_unlock($1, hashtext('x'))`, lockClass) {
			l := <-done
			defer func() { _ = l.Release(context.Background(), true) }()
		}
		cancel()
		// Another old one, which was started later, takes the slot for owned.
		if !value[bool](t, old, oldTrySQL, "x") {
			t.Error("an old relay would take the slot whose work went to another")
		}
	})
}

// A large ledger is moved in pieces, every entry once and in order.
func TestInheritALargeLedger(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	const n = 2*moveAtOnce + 5
	exec(t, db, `INSERT INTO saga_outbox_relay (slot, epoch, owner, released_at) VALUES ('x', 1, 'x', now()), ('z', 1, 'z', now())`)
	exec(t, db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state)
		SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(i % 1000), 12, '0'))::uuid, 's' || i / 1000, CASE WHEN i % 7 = 0 THEN 'z' ELSE 'x' END, i, 'k', 1, 'Tested', 'retry' FROM generate_series(1, $1::int) i`, n)
	exec(t, db, `UPDATE saga_outbox_relay SET renewed_at = now() - interval '1 day' WHERE slot = 'z'`)
	acquire(t, quickLease(t, db, "y", nil), "y")
	rows, err := db.Pool.Query(t.Context(), `SELECT (substr(sink, 2)::bigint * 1000 + ('x' || right(event_id::text, 12))::bit(48)::bigint) FROM saga_outbox_delivery WHERE slot = 'y' ORDER BY position`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		t.Fatal(err)
	}
	var want []int64
	for i := int64(7); i <= n; i += 7 {
		want = append(want, i)
	}
	for i := int64(1); i <= n; i++ {
		if i%7 != 0 {
			want = append(want, i)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d entries, want the %d of z by position and then those of x", len(got), len(want))
	}
}

// An entry that a person's SQL changes while its slot is taken over goes to the new slot like the
// others. Nothing comes back for one that is left.
func TestInheritWhatIsBeingChanged(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		exec(t, db, `INSERT INTO saga_outbox_relay (slot, epoch, owner, released_at) VALUES ('x', 1, 'x', now())`)
		exec(t, db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state)
			SELECT $1, 's' || i, 'x', i, 'k', 1, 'Tested', 'retry' FROM generate_series(1, 3) i`, id(1).String())
		person, err := db.Conn(t).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer person.Rollback(context.Background()) //nolint:errcheck // it is committed, or the test has failed
		if _, err := person.Exec(t.Context(), `UPDATE saga_outbox_delivery SET attempts = 7 WHERE sink = 's2'`); err != nil {
			t.Fatal(err)
		}
		got, stop := waiting(t, quickLease(t, db, "y", nil), "y")
		defer stop()
		db.Until(t, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`)
		if err := person.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		release(t, <-got)
		if got := value[string](t, db.Pool, `SELECT string_agg(format('%s %s %s', slot, sink, attempts), ', ' ORDER BY position) FROM saga_outbox_delivery`); got != "y s1 0, y s2 7, y s3 0" {
			t.Errorf("the ledger has %s", got)
		}
	})
}
