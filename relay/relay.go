package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
)

// Relay carries events from the slots it owns to its sinks. Build it with New, run it once.
type Relay struct {
	cfg     Config
	log     hclog.Logger
	metrics *Metrics
	source  Source
	store   Store
	sinks   []Sink
	health  []*sinkHealth
	enc     *Encoder
	started time.Time

	mu    sync.Mutex // guards slots
	slots map[string]*slotState
}

// New builds a relay. The configuration must be valid, and there must be at least one sink; the caller closes the
// sinks after Run has returned.
func New(cfg Config, log hclog.Logger, metrics *Metrics, source Source, store Store, sinks ...Sink) (*Relay, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if len(sinks) == 0 {
		return nil, errors.New("a relay needs at least one sink")
	}
	topic, err := ParseTemplate(cfg.Topic)
	if err != nil {
		return nil, err
	}
	key, err := ParseTemplate(cfg.RoutingKey)
	if err != nil {
		return nil, err
	}
	r := &Relay{
		cfg: cfg, log: log.Named("relay"), metrics: metrics, source: source, store: store, sinks: sinks,
		enc: NewEncoder(topic, key), slots: make(map[string]*slotState), started: time.Now(),
	}
	metrics.exemplars = cfg.Tracer != nil
	for _, sink := range sinks {
		r.health = append(r.health, &sinkHealth{metrics: metrics.sink(sink.Name())})
	}
	metrics.configure(&cfg)
	for _, slot := range cfg.Slots {
		r.slots[slot] = &slotState{name: slot, role: Starting, since: time.Now()}
	}
	return r, nil
}

// Run works until ctx ends and everything in flight is drained, and then returns nil. It returns an error only for
// what a person has to mend (a *SetupError).
func (r *Relay) Run(ctx context.Context) error {
	if err := r.check(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, slot := range r.cfg.Slots {
		group.Go(func() error {
			err := r.keep(ctx, slot)
			if err != nil {
				return fmt.Errorf("slot %q: %w", slot, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// check asks store and source whether they have what they need, through a database that is down or not migrated yet.
func (r *Relay) check(ctx context.Context) error {
	backoff := Backoff{Min: r.cfg.BackoffMin, Max: r.cfg.BackoffMax}
	for attempt := 1; ; attempt++ {
		err := r.store.Check(ctx)
		if err == nil && r.cfg.Mode != ModePolling {
			err = r.source.Check(ctx)
		}
		if setup := (*SetupError)(nil); r.cfg.Mode == ModeAuto && errors.As(err, &setup) && setup.Streaming {
			return nil // the pipeline says it, and polls
		}
		if err == nil {
			return nil
		}
		var setup *SetupError
		if errors.As(err, &setup) || ctx.Err() != nil {
			return err
		}
		wait := backoff.Next()
		r.log.Warn("waiting for the database", "attempt", attempt, "backoff", wait, "error", err)
		Sleep(ctx, wait)
	}
}

// keep is the keeper of one slot: it waits for the slot's lease, runs a pipeline while it holds it, and starts over
// when it loses it.
//
//	standby ──lease taken──▶ owner ──ctx ends──▶ draining ──▶ released
//	   ▲                       │
//	   └──────lease lost───────┘
func (r *Relay) keep(ctx context.Context, slot string) error {
	backoff := Backoff{Min: r.cfg.BackoffMin, Max: r.cfg.BackoffMax}
	for ctx.Err() == nil {
		r.become(slot, Standby, nil)
		lease, err := r.store.Acquire(ctx, slot)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		p := newPipeline(r, slot, lease)
		p.draining = func() { r.become(slot, Draining, p) }
		r.become(slot, Owner, p)
		r.log.Info("lease taken", "slot", slot, "owner", r.cfg.WorkerID, "epoch", lease.Epoch(), "marked_lsn", lease.MarkedLSN())
		err = p.run(ctx)
		r.become(slot, Draining, nil)

		// The lease goes last, whatever has ended the work, so that a successor finds the slot free. A stop must not
		// cancel this: the others would wait for the connection to die.
		release, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		if rerr := lease.Release(release); rerr != nil {
			r.log.Warn("releasing the lease", "slot", slot, "error", rerr)
		}
		cancel()
		switch {
		case err == nil:
			r.log.Info("slot released", "slot", slot, "epoch", lease.Epoch())
			backoff.Reset()
		case errors.Is(err, ErrLeaseLost):
			r.log.Warn("lease lost, standing by", "slot", slot, "epoch", lease.Epoch(), "error", err)
			Sleep(ctx, backoff.Next())
		default:
			return err
		}
	}
	return nil
}

// become notes a slot's new role, and the pipeline that goes with it.
func (r *Relay) become(slot string, role Role, p *pipeline) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.slots[slot]
	if (role == Owner) != (s.role == Owner) {
		r.metrics.leaseChanges.Inc()
	}
	if role != s.role {
		s.since = time.Now()
	}
	s.role, s.pipeline = role, p
	if p != nil {
		r.metrics.slots.own(slot)
	} else {
		r.metrics.slots.drop(slot)
		r.metrics.sagas.drop(slot)
	}
}
