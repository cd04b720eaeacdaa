package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
	"github.com/sagaz-relay/relay/relay/verify"
)

// demoLoad runs order sagas and keeps the books of what it committed.
//
// Commit order is known like this: every event carries its aggregate's version, which its transaction counted up. An
// order is written by one writer. A stock item is written by all of them, and its version is counted up under the
// row's lock, which is held until the commit. So per key, versions are in commit order and have no holes, and the books
// put events in the order of their versions, whichever writer tells of its commit first.
type demoLoad struct {
	dsn     string
	opts    demoOptions
	watch   *stopwatch
	checker *verify.Checker
	took    time.Duration

	pace pacer

	mu      sync.Mutex // guards what follows
	counts  loadCounts
	next    map[string]int                  // by key: the version that the checker is to be told next
	waiting map[string]map[int]verify.Event // by key and version: committed, but those before are still to be told of
}

// loadCounts is what was done.
type loadCounts struct {
	orders, cancelled      int // sagas that came to their end
	transactions, events   int // committed
	rolledBack, savepoints int // undone: whole transactions, and to a savepoint
	discarded              int // events in those
}

const demoStock = 24 // stock items that all orders share

func newDemoLoad(ctx context.Context, conn *pgx.Conn, dsn string, opts demoOptions, watch *stopwatch) (*demoLoad, error) {
	_, err := conn.Exec(ctx, `
		CREATE TABLE orders (
			order_id   text PRIMARY KEY,
			customer   text NOT NULL,
			status     text NOT NULL,
			total      numeric(10,2) NOT NULL,
			updated_at timestamptz NOT NULL DEFAULT now()
		);
		CREATE TABLE stock (
			sku       text PRIMARY KEY,
			available int NOT NULL,
			reserved  int NOT NULL DEFAULT 0,
			version   int NOT NULL DEFAULT 0
		);`)
	if err == nil {
		_, err = conn.Exec(ctx, `INSERT INTO stock (sku, available) SELECT 'sku-' || n, 1000000 FROM generate_series(1, $1) n`, demoStock)
	}
	if err != nil {
		return nil, fmt.Errorf("create the shop's tables: %w", err)
	}
	return &demoLoad{
		dsn: dsn, opts: opts, watch: watch, checker: verify.New(verify.Options{}, "file"), pace: pacer{rate: opts.rate},
		next: make(map[string]int), waiting: make(map[string]map[int]verify.Event),
	}, nil
}

// run writes until ctx ends, and ends between two transactions: a commit that is cut off would leave its fate open. Only
// hurry cuts it off.
func (l *demoLoad) run(ctx, hurry context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for number := range l.opts.writers {
		group.Go(func() error {
			conn, err := pgx.Connect(hurry, l.dsn)
			if err != nil {
				return fmt.Errorf("connect: %w", store.ConnectCause(err))
			}
			defer conn.Close(context.WithoutCancel(hurry)) //nolint:errcheck // all is committed
			w := &demoWriter{load: l, conn: conn, rng: rand.New(rand.NewPCG(uint64(number), rand.Uint64())), number: number}
			for ctx.Err() == nil {
				if err := w.order(ctx, hurry); err != nil {
					if hurry.Err() != nil {
						return nil
					}
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// committed enters a transaction's events into the books.
func (l *demoLoad) committed(events []demoEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.transactions++
	l.counts.events += len(events)
	for _, e := range events {
		if l.waiting[e.key] == nil {
			l.waiting[e.key] = make(map[int]verify.Event)
		}
		l.waiting[e.key][e.version] = verify.Event{ID: e.id, Key: e.key}
		for {
			version := l.next[e.key] + 1 // they start at 1
			told, ok := l.waiting[e.key][version]
			if !ok {
				break
			}
			l.checker.Commit(told)
			delete(l.waiting[e.key], version)
			l.next[e.key] = version
		}
		if len(l.waiting[e.key]) == 0 {
			delete(l.waiting, e.key)
		}
	}
}

// undone enters what was rolled back: a transaction, or back to a savepoint.
func (l *demoLoad) undone(events int, savepoint bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.discarded += events
	if savepoint {
		l.counts.savepoints++
	} else {
		l.counts.rolledBack++
	}
}

func (l *demoLoad) finished(cancelled bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.orders++
	if cancelled {
		l.counts.cancelled++
	}
}

func (l *demoLoad) totals() loadCounts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

func (l *demoLoad) committedEvents() int { return l.totals().events }

// pacer spreads events evenly over time.
type pacer struct {
	rate int // events a second; 0 for no limit

	mu   sync.Mutex // guards next
	next time.Time
}

// wait takes a place in time for n events and waits for it. It returns false when ctx ends before.
func (p *pacer) wait(ctx context.Context, n int) bool {
	if p.rate == 0 {
		return ctx.Err() == nil
	}
	p.mu.Lock()
	// What was missed is not made up for beyond a moment: no burst after the database has stalled.
	if earliest := time.Now().Add(-50 * time.Millisecond); p.next.Before(earliest) {
		p.next = earliest
	}
	at := p.next
	p.next = at.Add(p.span(n))
	p.mu.Unlock()
	return relay.Sleep(ctx, time.Until(at)) && ctx.Err() == nil
}

// giveBack returns the place of events that were not committed after all; a negative number takes more.
func (p *pacer) giveBack(n int) {
	if p.rate == 0 {
		return
	}
	p.mu.Lock()
	p.next = p.next.Add(-p.span(n))
	p.mu.Unlock()
}

func (p *pacer) span(events int) time.Duration {
	return time.Duration(events) * time.Second / time.Duration(p.rate)
}
