package store

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// The slot's row is locked: by a mark whose commit waits for a disk, or by a person. The owner
// cannot write that it is alive, and asks instead. A standby sees that on the owner's session, and
// does not take the slot for several times the lease's time.
func TestLeaseKeptWhileItsRowIsLocked(t *testing.T) {
	// alone: making a slot waits for open transactions of the whole server
	onEachAlone(t, nil, func(t *testing.T, db *pgtest.DB) {
		cfg := testConfig(db)
		cfg.LeaseTTL = testTTL
		l := acquire(t, newStore(t, cfg, nil), "outbox")
		standing, stop := context.WithCancel(t.Context())
		cfg.Owner = "standby"
		standby := newStore(t, cfg, nil)
		var waiting sync.WaitGroup
		defer waiting.Wait()
		defer stop()
		waiting.Go(func() {
			if next, err := standby.Acquire(standing, relay.Alone("outbox", "")); err == nil {
				t.Error("the standby has taken the slot")
				_ = next.Release(context.WithoutCancel(t.Context()), true)
			}
		})
		person, err := db.Conn(t).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := person.Exec(t.Context(), `SELECT FROM saga_outbox_relay FOR UPDATE`); err != nil {
			t.Fatal(err)
		}
		renewed := value[string](t, db.Pool, `SELECT renewed_at::text FROM saga_outbox_relay`)
		for end := time.Now().Add(3 * cfg.LeaseTTL); time.Now().Before(end); {
			if !l.Valid() {
				t.Fatalf("the lease is lost: %v", l.Err())
			}
			relay.Sleep(t.Context(), 20*time.Millisecond)
		}
		if now := value[string](t, db.Pool, `SELECT renewed_at::text FROM saga_outbox_relay`); now != renewed {
			t.Fatal("the row was renewed: this test shows nothing")
		}
		if err := person.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		mark(t, l, marksOf(insert(t, db, 1, 3)))
	})
}

// use is what one of a lease's connections is for, a call that waits for that connection alone, and
// its limit.
type use struct {
	purpose string
	call    func(ctx context.Context, l *lease) error
	limits  func(l *lease) []*patience
}

var uses = []use{
	{
		"marks", func(ctx context.Context, l *lease) error { return l.Confirm(ctx, 1) },
		func(l *lease) []*patience { return []*patience{&l.marks.patience} },
	},
	{
		"facts", func(ctx context.Context, l *lease) error { _, err := l.Slot(ctx); return err },
		func(l *lease) []*patience { return []*patience{&l.facts} },
	},
	{
		"sweep", func(ctx context.Context, l *lease) error {
			return l.Sweep(ctx, relay.SweepQuery{}, func([]relay.Event) error { return nil })
		},
		func(l *lease) []*patience { return []*patience{&l.facts, &l.sweeping.whole} },
	},
	{
		"prune", func(ctx context.Context, l *lease) error { _, err := l.Prune(ctx, time.Hour, false, 10); return err },
		func(l *lease) []*patience { return []*patience{&l.facts, &l.pruning.patience} },
	},
}

// One connection of an owner leads nowhere: nothing is forwarded and nothing closed. The others go
// on meanwhile, and what used it goes on with another within seconds.
func TestOneConnectionCut(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	proxy := pgtest.NewProxy(t, db.DSN)
	cfg := testConfig(db)
	cfg.DatabaseURL = proxy.DSN
	l := acquire(t, newStore(t, cfg, nil), "outbox")
	stuckAlone(t, l, func(t *testing.T, purpose string) (again func()) {
		if n := proxy.StrandNamed("sagaz-relay " + purpose); n != 1 {
			t.Fatalf("%d connections cut, want 1", n)
		}
		return func() {}
	})
}

// The server's process for one connection is stopped. It has no lock that others need.
func TestOneBackendStopped(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
	stuckAlone(t, l, func(t *testing.T, purpose string) (again func()) {
		pid := backend(t, db, purpose, "outbox")
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
				t.Error(err)
			}
		}
	})
}

// stuckAlone breaks the connection for each use in turn and looks at all of them.
func stuckAlone(t *testing.T, l *lease, stick func(t *testing.T, purpose string) (again func())) {
	for _, broken := range uses {
		t.Run(broken.purpose, func(t *testing.T) {
			for _, use := range uses {
				if err := use.call(t.Context(), l); err != nil {
					t.Fatalf("%s, before: %v", use.purpose, err)
				}
			}
			again := stick(t, broken.purpose)
			defer again()
			was := make(map[*patience]time.Duration)
			for _, p := range broken.limits(l) {
				was[p], p.least, p.now = p.least, time.Second, 0
			}
			hung := make(chan error, 1)
			began := time.Now()
			go func() { hung <- broken.call(t.Context(), l) }()
			for _, use := range uses {
				if use.purpose == broken.purpose {
					continue
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				if err := use.call(ctx, l); err != nil {
					t.Errorf("%s while that for %s is stuck: %v", use.purpose, broken.purpose, err)
				}
				cancel()
			}
			select {
			case err := <-hung:
				if slow := (slowError{}); err == nil || !errors.As(err, &slow) {
					t.Errorf("after %s: %v, want that there was no answer", time.Since(began), err)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("it is stuck for 30 s")
			}
			for p, least := range was {
				p.least = least
			}
			if err := broken.call(t.Context(), l); err != nil {
				t.Errorf("not on another connection either: %v", err)
			}
			if !l.Valid() {
				t.Errorf("the lease is lost: %v", l.Err())
			}
		})
	}
}

// A call that waits for its turn behind one that is stuck ends with its context; so does the
// release of the lease.
func TestNothingWaitsWithoutEnd(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	proxy := pgtest.NewProxy(t, db.DSN)
	cfg := testConfig(db)
	cfg.DatabaseURL = proxy.DSN
	l := acquire(t, newStore(t, cfg, nil), "outbox")
	l.marks.patience.least = time.Minute
	proxy.StrandNamed("sagaz-relay marks")
	stuck, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = l.Confirm(stuck, 1)
	}()
	for len(l.marks.turn) == 0 {
		relay.Sleep(t.Context(), time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := l.Confirm(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want that its time is over", err)
	}
	releasing, cancelRelease := context.WithTimeout(t.Context(), time.Second)
	defer cancelRelease()
	released := make(chan struct{})
	go func() {
		defer close(released)
		_ = l.Release(releasing, true)
	}()
	within(t, 20*time.Second, "the release", released)
	stop()
	within(t, 20*time.Second, "the end of the stuck one", ended)
}

// A limit that was not enough is doubled, and one that was is set by what it took.
func TestPatience(t *testing.T) { synctest.Test(t, testPatience) }

func testPatience(t *testing.T) {
	p := patience{least: 10 * time.Millisecond, most: 50 * time.Millisecond}
	limit := func() (limit time.Duration) {
		_ = p.within(t.Context(), func(ctx context.Context) error {
			at, _ := ctx.Deadline()
			limit = time.Until(at)
			<-ctx.Done()
			return ctx.Err()
		})
		return limit
	}
	for _, want := range []time.Duration{10, 20, 40, 50, 50} {
		if got := limit(); got > want*time.Millisecond || got < want*time.Millisecond/2 {
			t.Errorf("a limit of %s, want %d ms", got, want)
		}
	}
	if err := p.within(t.Context(), func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if got := limit(); got > 10*time.Millisecond {
		t.Errorf("a limit of %s after a quick one, want 10 ms", got)
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	_ = p.within(stopped, func(ctx context.Context) error { return ctx.Err() })
	if p.now != 20*time.Millisecond {
		t.Errorf("a stop has changed the limit to %s", p.now)
	}
}
