package orders

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
	"github.com/sagaz-relay/relay/relay/verify"
)

// Shop runs order sagas and keeps the books of what it committed.
//
// Commit order is known like this: every event carries its aggregate's version, which its
// transaction counted up. An order is written by one writer. A stock item is written by all of
// them, and its version is counted up under the row's lock, which is held until the commit. So per
// key, versions are in commit order and have no holes, and the books put events in the order of
// their versions, whichever writer reports its commit first.
type Shop struct {
	// Checker gets what is committed. Whoever reads what arrives gives it that.
	Checker *verify.Checker

	opts ShopOptions
	pace pacer

	mu     sync.Mutex // guards what follows
	counts Counts
	next   map[string]int // by key: the version that the checker is to get next
	// by key and version: committed, but those before are still missing
	waiting map[string]map[int]verify.Event
}

// Counts is what was done.
type Counts struct {
	Orders, Cancelled      int // sagas that came to their end
	Transactions, Events   int // committed
	RolledBack, Savepoints int // undone: whole transactions, and to a savepoint
	Discarded              int // events in those
}

const stockItems = 24 // stock items that all orders share

// ShopOptions are the settings of a Shop.
type ShopOptions struct {
	DSN     string
	Rate    int // events a second, 0 for no limit
	Writers int
	// Committing is called right before each COMMIT, by several writers at once.
	Committing func(ids []relay.UUID)
}

// NewShop makes the shop's tables, on a connection to the database of opts.DSN.
func NewShop(ctx context.Context, conn *pgx.Conn, opts ShopOptions) (*Shop, error) {
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
		_, err = conn.Exec(ctx, `INSERT INTO stock (sku, available) SELECT 'sku-' || n, 1000000 FROM generate_series(1, $1) n`, stockItems)
	}
	if err != nil {
		return nil, fmt.Errorf("create the shop's tables: %w", err)
	}
	return &Shop{
		opts: opts, Checker: verify.New(verify.Options{}, "file"), pace: pacer{rate: opts.Rate},
		next: make(map[string]int), waiting: make(map[string]map[int]verify.Event),
	}, nil
}

// Run writes until ctx ends, and ends between two transactions, because the fate of a commit that
// is cut off would not be known. Only hurry cuts it off.
func (s *Shop) Run(ctx, hurry context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for number := range s.opts.Writers {
		group.Go(func() error {
			conn, err := pgx.Connect(hurry, s.opts.DSN)
			if err != nil {
				return fmt.Errorf("connect: %w", store.ConnectCause(err))
			}
			defer conn.Close(context.WithoutCancel(hurry)) //nolint:errcheck // all is committed
			w := &writer{shop: s, conn: conn, rng: rand.New(rand.NewPCG(uint64(number), rand.Uint64())), number: number}
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
func (s *Shop) committed(events []event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Transactions++
	s.counts.Events += len(events)
	for _, e := range events {
		if s.waiting[e.key] == nil {
			s.waiting[e.key] = make(map[int]verify.Event)
		}
		s.waiting[e.key][e.version] = verify.Event{ID: e.id, Key: e.key}
		for {
			version := s.next[e.key] + 1 // they start at 1
			ev, ok := s.waiting[e.key][version]
			if !ok {
				break
			}
			s.Checker.Commit(ev)
			delete(s.waiting[e.key], version)
			s.next[e.key] = version
		}
		if len(s.waiting[e.key]) == 0 {
			delete(s.waiting, e.key)
		}
	}
}

// undone enters what was rolled back: a transaction, or back to a savepoint.
func (s *Shop) undone(events int, savepoint bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Discarded += events
	if savepoint {
		s.counts.Savepoints++
	} else {
		s.counts.RolledBack++
	}
}

func (s *Shop) finished(cancelled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Orders++
	if cancelled {
		s.counts.Cancelled++
	}
}

// Totals is what was done so far.
func (s *Shop) Totals() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}
