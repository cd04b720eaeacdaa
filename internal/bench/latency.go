package bench

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
	"github.com/sagaz-relay/relay/relay/watch"
)

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close() //nolint:errcheck // only its number is wanted
	return l.Addr().(*net.TCPAddr).Port, nil
}

// large measures one transaction that is far larger than the in-flight budget.
func (b *database) large(ctx context.Context, target *target, o Options, printf func(string, ...any)) (*Large, error) {
	slots, err := b.makeSlots(ctx, 1, func() error { return b.fill(ctx, target.eventType, o.Big, o.Big, o.RowBytes) })
	if err != nil {
		return nil, err
	}
	run, err := b.relayRun(ctx, slots[0], o.Big, relay.ModeCDC)
	if err != nil {
		return nil, err
	}
	printf("  relay: %.0f events/s, peak %d MB", run.PerSecond, run.PeakRSS/1e6)
	return &Large{Rows: o.Big, Run: run}, b.clear(ctx)
}

// ackClock is a sink that notes when each event was acknowledged, and hands everything on.
type ackClock struct {
	relay.Sink
	mu    sync.Mutex // guards acked
	acked map[relay.UUID]time.Time
}

func (c *ackClock) Publish(ctx context.Context, batch []*relay.Record) error {
	err := c.Sink.Publish(ctx, batch)
	now := time.Now()
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, rec := range batch {
			c.acked[rec.EventID] = now
		}
	}
	return err
}

func (c *ackClock) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.acked)
}

// latency commits single-row transactions at a steady rate and takes, for each, the time from the
// moment its COMMIT was sent to the moment the last sink's acknowledgement was in the relay's
// hands. Both are read off one clock, and the wait for the database's disk is in it.
func (b *database) latency(ctx context.Context, target *target, o Options) (*Latency, error) {
	slot := b.name + "_latency"
	b.slots = []string{slot}
	var clocks []*ackClock
	wrap := func(sink relay.Sink) relay.Sink {
		c := &ackClock{Sink: sink, acked: make(map[relay.UUID]time.Time)}
		clocks = append(clocks, c)
		return c
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	relayEnded := make(chan error, 1)
	ready := make(chan *watch.Watch, 1)
	go func() {
		relayEnded <- b.relay.Run(run, slot, wrap, func(r *watch.Watch) { ready <- r })
	}()
	r := <-ready
	for st := r.Status(); !st.Streams(); st = r.Status() {
		select {
		case err := <-relayEnded:
			return nil, fmt.Errorf("the relay ended early: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}

	committed, err := b.commitSteadily(ctx, target.eventType, o)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(30 * time.Second)
	for _, c := range clocks {
		for c.count() < len(committed) {
			if time.Now().After(deadline) {
				return nil, fmt.Errorf("latency: %d of %d events acknowledged by %s after 30 s", c.count(), len(committed), c.Name())
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	stop()
	if err := <-relayEnded; err != nil {
		return nil, err
	}

	// The first seconds set up connections, topics and the heap.
	warm := len(committed) / 10
	var took []time.Duration
	for _, c := range committed[warm:] {
		slowest := time.Duration(0)
		for _, clock := range clocks {
			slowest = max(slowest, clock.acked[c.id].Sub(c.at))
		}
		took = append(took, slowest)
	}
	slices.Sort(took)
	at := func(q float64) time.Duration { return took[min(len(took)-1, int(q*float64(len(took))))] }
	return &Latency{Rate: o.Rate, Events: len(took), P50: at(0.50), P95: at(0.95), P99: at(0.99), Maximum: took[len(took)-1]}, b.clear(ctx)
}

type commitTime struct {
	id relay.UUID
	at time.Time
}

// commitSteadily inserts one row a transaction on a fixed schedule, from a few connections, and
// waits for each commit.
func (b *database) commitSteadily(ctx context.Context, eventType string, o Options) ([]commitTime, error) {
	const connections = 8
	total := int(float64(o.Rate) * o.RateFor.Seconds())
	committed := make([]commitTime, total)
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for worker := range connections {
		group.Go(func() error {
			conn, err := pgx.Connect(ctx, b.dsn)
			if err != nil {
				return fmt.Errorf("connect: %w", store.ConnectCause(err))
			}
			defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // all is committed
			for i := worker; i < total; i += connections {
				if !relay.Sleep(ctx, time.Until(start.Add(time.Duration(i)*time.Second/time.Duration(o.Rate)))) {
					return ctx.Err()
				}
				tx, err := conn.Begin(ctx)
				if err != nil {
					return fmt.Errorf("begin: %w", err)
				}
				var id [16]byte
				err = tx.QueryRow(ctx, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
					VALUES (gen_random_uuid(), 'saga', 'order-' || $1::int, $2, jsonb_build_object('filler', repeat('x', $3))) RETURNING event_id`,
					i%1000, eventType, o.RowBytes-16).Scan(&id)
				if err != nil {
					return fmt.Errorf("insert: %w", err)
				}
				committed[i] = commitTime{id, time.Now()}
				if err := tx.Commit(ctx); err != nil {
					return fmt.Errorf("commit: %w", err)
				}
			}
			return nil
		})
	}
	return committed, group.Wait()
}
