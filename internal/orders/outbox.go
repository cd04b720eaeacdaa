package orders

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/relay"
)

// OutboxOptions are what an Outbox is to write.
type OutboxOptions struct {
	Rate     int           // events a second; 0 for no limit
	Events   int           // stop after so many; 0 for no end
	Duration time.Duration // stop after that; 0 for no end
	Writers  int
}

// Outbox writes sagas into any outbox, into no other table, and without keeping books, so that it
// may run for days. Shop has tables of its own and keeps books.
type Outbox struct {
	Options       OutboxOptions
	Connect       func(context.Context) (*pgx.Conn, error)
	Out, Progress io.Writer // for what was done, and for what is wrong meanwhile

	pace pacer

	mu     sync.Mutex // guards what follows, and keeps lines whole
	taken  int        // of Options.Events: committed or on the way
	events int        // committed
	sagas  int        // ended
}

const reportInterval = 10 * time.Second

// Run writes until the options' end, or that of ctx.
func (l *Outbox) Run(ctx context.Context) error {
	// The first connection fails for a wrong address, password or table, before anything is tried
	// again.
	first, err := l.Connect(ctx)
	if err != nil {
		return err
	}
	var there bool
	err = first.QueryRow(ctx, `SELECT to_regclass('saga_outbox') IS NOT NULL`).Scan(&there)
	_ = first.Close(context.WithoutCancel(ctx)) // nothing is pending
	if err != nil {
		return fmt.Errorf("look for saga_outbox: %w", err)
	}
	if !there {
		return &relay.SetupError{Problem: "the database has no table saga_outbox", Err: errors.New("it is not migrated"), Fix: "sagaz-relay migrate"}
	}
	writing, stop := ctx, context.CancelFunc(func() {})
	if l.Options.Duration > 0 {
		writing, stop = context.WithTimeout(ctx, l.Options.Duration)
	}
	defer stop()
	start := time.Now()
	l.pace.rate = l.Options.Rate
	reported := make(chan struct{})
	reporting, done := context.WithCancel(ctx)
	go func() { // ends with done
		defer close(reported)
		for relay.Sleep(reporting, reportInterval) {
			l.report(start)
		}
	}()
	var group errgroup.Group
	for range l.Options.Writers {
		group.Go(func() error { return l.write(writing) })
	}
	err = group.Wait()
	done()
	<-reported
	l.report(start)
	return err
}

func (l *Outbox) report(start time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	took := time.Since(start)
	fmt.Fprintf(l.Out, "%d events of %d sagas committed in %s, %.1f/s\n", l.events, l.sagas, took.Round(100*time.Millisecond), float64(l.events)/took.Seconds())
}

func (l *Outbox) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.Progress, format+"\n", args...)
}

// take reserves up to n of the events that are still to be written, and returns how many.
func (l *Outbox) take(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Options.Events > 0 {
		n = min(n, l.Options.Events-l.taken)
	}
	l.taken += n
	return n
}

// done notes what became of events that were taken.
func (l *Outbox) done(taken, committed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken -= taken - committed
	l.events += committed
}

// write writes one saga after the other until ctx ends or all is written. It waits for a database
// that is away. What was on the way then may be committed or not, and is written once more under
// another id.
func (l *Outbox) write(ctx context.Context) error {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx)) // all is committed
		}
	}()
	backoff := relay.Backoff{Min: 200 * time.Millisecond, Max: 5 * time.Second}
	for trouble := false; ctx.Err() == nil; {
		var err error
		if conn == nil || conn.IsClosed() {
			conn, err = l.Connect(ctx)
		}
		if err == nil {
			w := &writer{conn: conn, rng: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
			var more bool
			if more, err = l.saga(ctx, w); err == nil {
				if trouble {
					l.printf("the database is back")
					trouble = false
					backoff.Reset()
				}
				if !more {
					return nil
				}
				continue
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if !transient(err) && conn != nil && !conn.IsClosed() {
			return err
		}
		if !trouble {
			l.printf("the database is away, trying again: %v", err)
		}
		trouble = true
		relay.Sleep(ctx, backoff.Next())
	}
	return nil
}

// transient reports whether the server refused for a transient reason: it stops or starts (57), is
// full (53), or two transactions met (40).
func transient(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code[:2] == "57" || pg.Code[:2] == "53" || pg.Code[:2] == "40")
}

// saga writes one saga, step by step; more is whether another one is wanted.
func (l *Outbox) saga(ctx context.Context, w *writer) (more bool, err error) {
	o := w.newOrder()
	// unlike the demo's, not seen before in this database
	o.id = fmt.Sprintf("order-%016x", w.rng.Uint64())
	steps := [][]string{{"order.created"}, {"stock.reserved"}, {"payment.authorized"}, {"order.completed", "shipment.requested"}}
	if w.rng.IntN(8) == 0 {
		steps[3] = []string{"stock.released", "payment.refunded", "order.cancelled"}
	}
	for _, kinds := range steps {
		n := l.take(len(kinds))
		if n == 0 {
			return false, nil
		}
		committed := 0
		if l.pace.wait(ctx, n) {
			committed, err = l.step(context.WithoutCancel(ctx), w, o, kinds[:n])
		}
		l.done(n, committed)
		if err != nil || committed == 0 {
			return true, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sagas++
	return true, nil
}

// stepTimeout bounds one transaction, which no signal cuts off, because it would not be known
// whether its COMMIT counted.
const stepTimeout = 10 * time.Second

// step commits events of one order in one transaction.
func (l *Outbox) step(ctx context.Context, w *writer, o *saga, kinds []string) (committed int, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	tx, err := w.conn.Begin(ctx)
	if err != nil {
		return 0, fmt.Errorf("begin: %w", err)
	}
	t := &transaction{Tx: tx, writer: w, order: o}
	for _, kind := range kinds {
		t.event(o, kind, "written by sagaz-relay load")
	}
	if err := t.flush(ctx); err != nil {
		_ = tx.Rollback(ctx) // the first error is the one to return
		return 0, err
	}
	if err := tx.Commit(ctx); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	o.version = t.written[len(t.written)-1].version
	return len(kinds), nil
}
