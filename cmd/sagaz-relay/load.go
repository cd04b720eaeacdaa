package main

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
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/relay"
)

type loadOptions struct {
	rate     int           // events a second; 0 for no limit
	events   int           // stop after so many; 0 for no end
	duration time.Duration // stop after that; 0 for no end
	writers  int
}

func newLoad(load func() (*settings, error)) *cobra.Command {
	var o loadOptions
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Write order sagas into the outbox, to try an installation",
		Long: `load writes the events of made-up order sagas into saga_outbox of DATABASE_URL, as an application would: some in one transaction, some sagas
undone by compensations. It touches no other table. It ends after --events or --for, or with SIGTERM, and prints what is committed.

Every event has a saga_id, the order's number as aggregate_id, the order's version in its payload, and the headers correlation_id, saga_name, step_name and
traceparent. To see events arrive without a broker: BROKER_TYPE=stdout sagaz-relay run.

The relay delivers these to your brokers like all others. Do not run it where consumers mean business.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.rate < 0 || o.events < 0 || o.duration < 0 || o.writers < 1 || o.writers > 100 {
				return usageError{errors.New("want --rate of 0 (no limit) or more, --events and --for of 0 (no end) or more, --writers from 1 to 100")}
			}
			s, err := load()
			if err != nil {
				return err
			}
			if err := s.database(); err != nil {
				return err
			}
			l := &outboxLoad{opts: o, connect: func(ctx context.Context) (*pgx.Conn, error) { return s.connect(ctx, "load") }, out: cmd.OutOrStdout(), progress: cmd.ErrOrStderr()}
			return l.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.rate, "rate", 10, "events a second, 0 for as many as it takes")
	f.IntVar(&o.events, "events", 0, "stop when so many are committed, 0 for no end")
	f.DurationVar(&o.duration, "for", 0, "stop after this time, 0 for no end")
	f.IntVar(&o.writers, "writers", 2, "concurrent writers")
	return cmd
}

// outboxLoad writes sagas into an outbox that may be anybody's: into no other table, and without keeping books, so that it may run for days.
// The demo's load does both.
type outboxLoad struct {
	opts          loadOptions
	connect       func(context.Context) (*pgx.Conn, error)
	out, progress io.Writer
	pace          pacer

	mu     sync.Mutex // guards what follows, and keeps lines whole
	taken  int        // of opts.events: committed or on the way
	events int        // committed
	sagas  int        // ended
}

const loadReportInterval = 10 * time.Second

func (l *outboxLoad) run(ctx context.Context) error {
	// The first connection says what is wrong with address, password or table, before anything is tried again.
	first, err := l.connect(ctx)
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
	if l.opts.duration > 0 {
		writing, stop = context.WithTimeout(ctx, l.opts.duration)
	}
	defer stop()
	start := time.Now()
	l.pace.rate = l.opts.rate
	reported := make(chan struct{})
	reporting, done := context.WithCancel(ctx)
	go func() { // ends with done
		defer close(reported)
		for relay.Sleep(reporting, loadReportInterval) {
			l.report(start)
		}
	}()
	var group errgroup.Group
	for range l.opts.writers {
		group.Go(func() error { return l.write(writing) })
	}
	err = group.Wait()
	done()
	<-reported
	l.report(start)
	return err
}

func (l *outboxLoad) report(start time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	took := time.Since(start)
	fmt.Fprintf(l.out, "%d events of %d sagas committed in %s, %.1f/s\n", l.events, l.sagas, took.Round(100*time.Millisecond), float64(l.events)/took.Seconds())
}

func (l *outboxLoad) say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.progress, format+"\n", args...)
}

// take reserves up to n of the events that are still to be written, and says how many.
func (l *outboxLoad) take(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opts.events > 0 {
		n = min(n, l.opts.events-l.taken)
	}
	l.taken += n
	return n
}

// done tells what became of events that were taken.
func (l *outboxLoad) done(taken, committed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken -= taken - committed
	l.events += committed
}

// write writes one saga after the other until ctx ends or all is written. A database that is away is waited for; what was
// on the way then may be committed or not, and is written once more under another id.
func (l *outboxLoad) write(ctx context.Context) error {
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
			conn, err = l.connect(ctx)
		}
		if err == nil {
			w := &demoWriter{conn: conn, rng: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
			var more bool
			if more, err = l.saga(ctx, w); err == nil {
				if trouble {
					l.say("the database is back")
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
		if !passing(err) && conn != nil && !conn.IsClosed() {
			return err
		}
		if !trouble {
			l.say("the database is away, trying again: %v", err)
		}
		trouble = true
		relay.Sleep(ctx, backoff.Next())
	}
	return nil
}

// passing reports whether the server refused for a reason that passes: it stops or starts (57), is full (53), or two transactions met (40).
func passing(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code[:2] == "57" || pg.Code[:2] == "53" || pg.Code[:2] == "40")
}

// saga writes one saga, step by step; more says whether another one is wanted.
func (l *outboxLoad) saga(ctx context.Context, w *demoWriter) (more bool, err error) {
	o := w.newOrder()
	o.id = fmt.Sprintf("order-%016x", w.rng.Uint64()) // unlike the demo's, not seen before in this database
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

// loadStepTimeout bounds one transaction, which no signal cuts off: whether its COMMIT counted would not be known.
const loadStepTimeout = 10 * time.Second

// step commits events of one order in one transaction.
func (l *outboxLoad) step(ctx context.Context, w *demoWriter, o *orderSaga, kinds []string) (committed int, err error) {
	ctx, cancel := context.WithTimeout(ctx, loadStepTimeout)
	defer cancel()
	tx, err := w.conn.Begin(ctx)
	if err != nil {
		return 0, fmt.Errorf("begin: %w", err)
	}
	t := &demoTx{Tx: tx, writer: w, order: o}
	for _, kind := range kinds {
		t.event(o, kind, "written by sagaz-relay load")
	}
	if err := t.flush(ctx); err != nil {
		_ = tx.Rollback(ctx) // the first error is the one to tell
		return 0, err
	}
	if err := tx.Commit(ctx); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	o.version = t.written[len(t.written)-1].version
	return len(kinds), nil
}
