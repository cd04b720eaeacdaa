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
	enc     Encoder
	started time.Time
	changes *changeLog
	history history

	mu    sync.Mutex // guards what follows
	slots map[string]*slotState
	// startError is why the database is of no use, until it is.
	startError string
	// fault is what a start would refuse by now; see recheck.
	fault string
}

// New builds a relay. The configuration must be valid, and there must be at least one sink; the caller closes the
// sinks after Run has returned.
func New(cfg Config, log hclog.Logger, metrics *Metrics, source Source, store Store, enc Encoder, sinks ...Sink) (*Relay, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if len(sinks) == 0 {
		return nil, errors.New("a relay needs at least one sink")
	}
	r := &Relay{
		cfg: cfg, log: log.Named("relay"), metrics: metrics, source: source, store: store, sinks: sinks,
		enc: enc, slots: make(map[string]*slotState), started: time.Now(),
		changes: &changeLog{},
	}
	metrics.exemplars = cfg.Tracer != nil
	for _, sink := range sinks {
		r.health = append(r.health, &sinkHealth{sink: sink.Name(), metrics: metrics.sink(sink.Name()), changes: r.changes})
	}
	metrics.configure(&cfg)
	metrics.readiness(func() bool { return len(r.Status().Problems()) == 0 })
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
	group.Go(func() error { return r.watch(ctx) })
	group.Go(func() error {
		r.recheck(ctx)
		return nil
	})
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

// check asks store and source whether they have what they need, through a database that is down or not migrated yet. The log has the
// first trouble, then a line at intervals, then the end of it; Status has it all the time.
func (r *Relay) check(ctx context.Context) error {
	backoff := Backoff{Min: r.cfg.BackoffMin, Max: r.cfg.BackoffMax}
	start := time.Now()
	var logged time.Time
	for attempt := 1; ; attempt++ {
		err := r.checkDatabase(ctx)
		for i := 0; err == nil && i < len(r.cfg.Slots); i++ {
			err = r.checkSinks(ctx, r.cfg.Slots[i])
		}
		if err == nil {
			if attempt > 1 {
				r.log.Info("the database answers", "attempts", attempt, "after", time.Since(start).Round(time.Millisecond))
			}
			r.noteStartError("")
			return nil
		}
		var setup *SetupError
		if errors.As(err, &setup) || ctx.Err() != nil {
			return err
		}
		r.noteStartError(err.Error())
		wait := backoff.Next()
		if time.Since(logged) >= healthLogInterval {
			logged = time.Now()
			r.log.Warn("waiting for the database", "attempt", attempt, "backoff", wait, "error", err,
				"fix", "check host and port in DATABASE_URL, that the server runs, and that no firewall or network policy is in between")
		}
		Sleep(ctx, wait)
	}
}

// checkDatabase asks store and source once.
func (r *Relay) checkDatabase(ctx context.Context) error {
	err := r.store.Check(ctx)
	if err == nil && r.cfg.Mode != ModePolling {
		err = r.source.Check(ctx)
	}
	if setup := (*SetupError)(nil); r.cfg.Mode == ModeAuto && errors.As(err, &setup) && setup.Streaming {
		return nil // the pipeline says it, and polls
	}
	return err
}

// noteStartError notes why the relay has not begun, for Status.
func (r *Relay) noteStartError(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.startError = why
}

// keep is the keeper of one slot: it waits for the slot's lease, runs a pipeline while it holds it, and starts over
// when it loses it.
//
//	standby ──lease taken──▶ owner ──ctx ends──▶ draining ──▶ released
//	   ▲                       │
//	   └─lease lost, given up──┘
func (r *Relay) keep(ctx context.Context, slot string) error {
	backoff := Backoff{Min: r.cfg.BackoffMin, Max: r.cfg.BackoffMax}
	for ctx.Err() == nil {
		r.become(slot, Standby, nil)
		r.changes.add(Change{Kind: ChangeStandby, Level: LevelInfo, Slot: slot, Text: "waiting for the lease"})
		lease, err := r.store.Acquire(ctx, slot)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		p := newPipeline(r, slot, lease)
		p.draining = func() {
			r.become(slot, Draining, p)
			if ctx.Err() != nil { // and not because the lease is lost
				r.changes.add(Change{Kind: ChangeDraining, Level: LevelInfo, Slot: slot, Text: "finishing what is in flight"})
			}
		}
		r.become(slot, Owner, p)
		r.changes.add(Change{Kind: ChangeLeaseTaken, Level: LevelOK, Slot: slot, Text: fmt.Sprintf("epoch %d", lease.Epoch())})
		r.log.Info("lease taken", "slot", slot, "owner", r.cfg.WorkerID, "epoch", lease.Epoch(), "marked_lsn", lease.MarkedLSN())
		if err = r.mayDeliver(ctx, slot, lease); err == nil {
			err = p.run(ctx)
		}
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
			r.changes.add(Change{Kind: ChangeReleased, Level: LevelInfo, Slot: slot, Text: "on the way out"})
			backoff.Reset()
		case errors.Is(err, ErrLeaseLost):
			r.log.Warn("lease lost, standing by", "slot", slot, "epoch", lease.Epoch(), "error", err)
			r.changes.add(Change{Kind: ChangeLeaseLost, Level: LevelDegraded, Slot: slot, Text: err.Error()})
			Sleep(ctx, backoff.Next())
		case errors.Is(err, errStalled):
			others := p.others()
			r.noteStall(slot, p.anyMarked())
			r.log.Error("the lease is given up, so that another relay may try", "slot", slot, "epoch", lease.Epoch(), "others", others, "error", err)
			r.changes.add(Change{Kind: ChangeLeaseLost, Level: LevelBroken, Slot: slot, Text: "given up, so that another relay may try: " + err.Error()})
			wait := backoff.Next()
			if others {
				wait = giveWay
			}
			Sleep(ctx, wait)
		default:
			return err
		}
	}
	return nil
}

// giveWay is how long a relay that has given up a lease leaves it to those that stand by, which ask for it several times a second.
const giveWay = 15 * time.Second

// noteStall notes that a lease was given up, and whether anything was marked under it.
func (r *Relay) noteStall(slot string, anyMarked bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.slots[slot]
	if anyMarked {
		s.stalls = 0
	}
	s.stalls++
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
