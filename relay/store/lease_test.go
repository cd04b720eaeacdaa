package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

const (
	// soon is for what happens at once, and not at a renewal or when a lease has lapsed, which are
	// minutes away in the tests that use it. It is longer than a slow disk stands still.
	soon = 20 * time.Second
)

func TestLeaseOneOwnerAtATime(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		const contenders = 6
		var (
			all     sync.WaitGroup
			holding atomic.Int32
			mu      sync.Mutex
			epochs  []int64
			freed   time.Time
			after   []time.Duration // of each release
		)
		for i := range contenders {
			cfg := testConfig(db)
			cfg.Owner = fmt.Sprintf("relay-%d", i)
			s := newStore(t, cfg, nil)
			all.Go(func() {
				l, err := s.Acquire(t.Context(), relay.Alone("outbox", ""))
				if err != nil {
					t.Error(err)
					return
				}
				if n := holding.Add(1); n != 1 {
					t.Errorf("%d owners at once", n)
				}
				if got := value[string](t, db.Pool, `SELECT owner FROM saga_outbox_relay WHERE slot = 'outbox'`); got != cfg.Owner {
					t.Errorf("the table names owner %s, not %s", got, cfg.Owner)
				}
				mu.Lock()
				if !freed.IsZero() {
					took := time.Since(freed)
					if after = append(after, took); took > soon {
						t.Errorf("the next owner came %s after the release", took)
					}
				}
				epochs = append(epochs, l.Epoch())
				mu.Unlock()
				// Long enough for the others to look a few times.
				db.Until(t, `SELECT count(*) = $1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sagaz-relay roster outbox'`, contenders-len(epochs)+1)
				if !l.Valid() || l.Err() != nil {
					t.Errorf("the owner's lease: valid %t, %v", l.Valid(), l.Err())
				}
				holding.Add(-1)
				mu.Lock()
				freed = time.Now()
				mu.Unlock()
				if err := l.Release(t.Context(), true); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		t.Logf("the next owners came %v after the releases", after)
		for i, epoch := range epochs {
			if epoch != int64(i+1) {
				t.Fatalf("epochs %v, want one more each time", epochs)
			}
		}
		if got := value[int](t, db.Pool, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); got != 0 {
			t.Errorf("%d advisory locks are left", got)
		}
		if !value[bool](t, db.Pool, `SELECT released_at IS NOT NULL FROM saga_outbox_relay`) {
			t.Error("the row does not show the clean stop")
		}
	})
}

func TestLeaseAcquireEndsWithContext(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	acquire(t, newStore(t, testConfig(db), nil), "outbox")
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := newStore(t, testConfig(db), nil).Acquire(ctx, relay.Alone("outbox", ""))
		ended <- err
	}()
	db.Until(t, `SELECT count(*) = 2 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sagaz-relay roster outbox'`)
	cause := errors.New("the test wants it so")
	cancel(cause)
	if err := <-ended; !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
}

func TestLeaseOwnerKilled(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		cfg := testConfig(db)
		cfg.LeaseTTL = 5 * time.Minute
		old := acquire(t, newStore(t, cfg, nil), "outbox")
		events := insert(t, db, 1, 5)
		next := make(chan *lease)
		go func() {
			l, err := newStore(t, cfg, nil).Acquire(t.Context(), relay.Alone("outbox", ""))
			if err != nil {
				t.Error(err)
				close(next)
				return
			}
			next <- l.(*lease)
		}()
		db.Until(t, `SELECT count(*) = 2 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sagaz-relay roster outbox'`)
		kill(t, db, value[int](t, db.Pool, `SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = $1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, lockClass))
		killed := time.Now()

		// The owner hears of it at once, not at its next renewal: meanwhile there would be two.
		if took := within(t, soon, "the owner's loss", old.Lost()); took > 0 {
			t.Logf("lost after %s", took)
		}
		if old.Valid() || old.Err() == nil {
			t.Errorf("the lost lease: valid %t, %v", old.Valid(), old.Err())
		}
		l := <-next
		if l == nil {
			return
		}
		defer release(t, l)
		if took := time.Since(killed); took > soon {
			t.Errorf("the next owner came after %s", took)
		}
		if l.Epoch() != 2 {
			t.Errorf("epoch %d, want 2", l.Epoch())
		}
		checkFenced(t, db, old, marksOf(events))
		if err := old.Release(t.Context(), true); err != nil {
			t.Errorf("release what is lost: %v", err)
		}
		if !l.Valid() {
			t.Error("the former owner's release has cost the new one its lease")
		}
	})
}

// checkFenced has a former owner mark, as its marker would, and makes sure that nothing comes of
// it.
func checkFenced(t testing.TB, db *pgtest.DB, old *lease, marks []relay.Mark) {
	t.Helper()
	before := counts(t, db)
	var err error
	// Its connection may be gone as well: that is a transient error, and the marker tries again.
	for range 3 {
		if _, err = old.Mark(t.Context(), relay.MarkBatch{Marks: marks}); errors.Is(err, relay.ErrLeaseLost) {
			break
		}
	}
	if !errors.Is(err, relay.ErrLeaseLost) {
		t.Errorf("a former owner's mark: %v, want ErrLeaseLost", err)
	}
	if got := counts(t, db); got != before {
		t.Errorf("a former owner's mark has changed rows: %s, before %s", got, before)
	}
}

// frozen makes an owner behind a proxy that has gone silent, and a standby's lease that followed.
func frozen(t *testing.T, db *pgtest.DB, freeze func(*pgtest.Proxy, *lease)) (old, next *lease, proxy *pgtest.Proxy) {
	proxy = pgtest.NewProxy(t, db.DSN)
	cfg := testConfig(db)
	cfg.LeaseTTL, cfg.AcquireInterval = testTTL, 50*time.Millisecond
	standby := newStore(t, cfg, nil)
	cfg.DatabaseURL, cfg.Owner = proxy.DSN, "frozen"
	old = acquire(t, newStore(t, cfg, nil), "outbox")

	freeze(proxy, old)
	start := time.Now()
	next = acquire(t, standby, "outbox")
	// The order of the two matters more than the time: the old lease is not valid any more when the
	// new one is there.
	if old.Valid() {
		t.Error("the frozen owner still trusts its lease when the next has taken it")
	}
	if took := time.Since(start); took > 5*cfg.LeaseTTL {
		t.Errorf("the standby took over after %s, with a lease of %s", took, cfg.LeaseTTL)
	}
	if next.Epoch() != old.Epoch()+1 {
		t.Errorf("epoch %d after %d", next.Epoch(), old.Epoch())
	}
	return old, next, proxy
}

func TestLeaseOwnerFrozen(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		events := insert(t, db, 1, 100)
		old, next, proxy := frozen(t, db, func(p *pgtest.Proxy, _ *lease) { p.Freeze() })
		within(t, 5*time.Second, "the frozen owner's loss", old.Lost()) // by its own clock, while the next took over
		if old.Err() == nil {
			t.Error("no reason for the loss")
		}
		mark(t, next, marksOf(events[:50]))
		proxy.Thaw()
		checkFenced(t, db, old, marksOf(events))
		if got := counts(t, db); got != "50 pending, 50 sent" {
			t.Errorf("rows: %s", got)
		}
		if !next.Valid() {
			t.Error("the new owner's lease is lost")
		}
	})
}

// A is frozen with half of a mark batch on its way. The server has executed the fence, keeps the
// lock of the slot's row for A, and waits for the rest, to which
// idle_in_transaction_session_timeout does not apply. B must be able to take over all the same.
func TestLeaseOwnerFrozenInMark(t *testing.T) {
	// alone: making a slot waits for open transactions of the whole server
	onEachAlone(t, nil, func(t *testing.T, db *pgtest.DB) {
		events := insert(t, db, 1, 2500)
		marking := make(chan error, 1)
		old, next, _ := frozen(t, db, func(p *pgtest.Proxy, l *lease) {
			mark(t, l, marksOf(events[:1])) // its statements are prepared
			p.FreezeAfter(20_000)           // of 50,000
			go func() {
				_, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marksOf(events)})
				marking <- err
			}()
			db.Until(t, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'sagaz-relay marks outbox' AND datname = current_database() AND backend_xid IS NOT NULL)`)
		})
		mark(t, next, marksOf(events[:2000]))
		release(t, old)
		if err := <-marking; err == nil {
			t.Error("the frozen mark has succeeded")
		}
		if got := counts(t, db); got != "500 pending, 2000 sent" {
			t.Errorf("rows: %s", got)
		}
	})
}

// A row that is to be marked is locked: psql left open, a long transaction of the application. The
// mark waits, and the lease must not: its renewal updates the same row as the mark's fence.
func TestLeaseRenewedWhileMarkWaits(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for try := 1; !renewedWhileMarkWaits(t, db); try++ {
			if try == 10 {
				t.Fatalf("in %d tries the lease was not renewed before the row had been locked for %s", try, lockedFor)
			}
		}
	})
}

// renewedWhileMarkWaits reports false, for another try, when the machine has stood still, so that
// the row was parked before a renewal.
func renewedWhileMarkWaits(t *testing.T, db *pgtest.DB) bool {
	exec(t, db, `DELETE FROM saga_outbox`)
	exec(t, db, `DELETE FROM saga_outbox_delivery`)
	cfg := testConfig(db)
	cfg.LeaseTTL = testTTL
	l := acquire(t, newStore(t, cfg, nil), "outbox")
	defer release(t, l)
	events := insert(t, db, 1, 10)
	person, err := db.Conn(t).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer person.Rollback(context.Background()) //nolint:errcheck // it is committed, or of no use
	if _, err := person.Exec(t.Context(), `SELECT FROM saga_outbox WHERE event_id = $1 FOR UPDATE`, id(3).String()); err != nil {
		t.Fatal(err)
	}
	// The others are marked, and this one is returned as not marked, for as long as that lasts:
	// until the lease has been renewed, which is long before a row's lock is held for too long.
	renewed := value[string](t, db.Pool, `SELECT renewed_at::text FROM saga_outbox_relay`)
	start := time.Now()
	for again := false; !again; {
		later, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marksOf(events)})
		if err != nil {
			t.Fatalf("after %s: %v", time.Since(start), err)
		}
		if len(later) == 0 && time.Since(start) > lockedFor {
			return false
		}
		if len(later) != 1 || later[0] != 2 {
			t.Fatalf("marks %v are for later, want that of row 3", later)
		}
		if !l.Valid() {
			t.Fatalf("after %s the lease is lost: %v", time.Since(start), l.Err())
		}
		relay.Sleep(t.Context(), 20*time.Millisecond)
		again = value[bool](t, db.Pool, `SELECT renewed_at <> $1::timestamptz FROM saga_outbox_relay`, renewed)
	}
	if got := counts(t, db); got != "1 pending, 9 sent" {
		t.Errorf("rows: %s", got)
	}
	if err := person.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	mark(t, l, marksOf(events))
	if got := counts(t, db); got != "10 sent" {
		t.Errorf("rows: %s", got)
	}
	return true
}

// A restart of PostgreSQL takes the lease away, and Acquire waits through it.
func TestLeaseServerRestart(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Version(), nil)
	db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
	cfg := testConfig(db)
	cfg.LeaseTTL = 5 * time.Minute
	s := newStore(t, cfg, nil)
	l := acquire(t, s, "outbox")
	events := insert(t, db, 1, 3)
	mark(t, l, marksOf(events))
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	within(t, soon, "the loss", l.Lost())
	next := make(chan relay.Lease, 1)
	go func() {
		l, err := s.Acquire(t.Context(), relay.Alone("outbox", ""))
		if err != nil {
			t.Error(err)
		}
		next <- l
	}()
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := <-next
	if second == nil {
		return
	}
	if second.Epoch() != 2 || second.MarkedLSN() != events[0].CommitLSN {
		t.Errorf("epoch %d, marked %s; want 2, %s", second.Epoch(), second.MarkedLSN(), events[0].CommitLSN)
	}
	if err := second.Release(t.Context(), true); err != nil {
		t.Error(err)
	}
}
