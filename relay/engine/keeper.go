package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/relay"
)

// Engine carries events from the slots it owns to its sinks. Build it with New, run it once.
type Engine struct {
	cfg     Config
	log     hclog.Logger
	obs     relay.Observer
	source  relay.Source
	store   relay.Store
	sinks   []relay.Sink
	sinkObs []relay.SinkObserver // by sink
	health  []*sinkHealth        // by sink
	enc     relay.Encoder
	started time.Time

	budget *budget     // of all pipelines together
	worked atomic.Bool // a slot could be read at least once

	mu    sync.Mutex // guards what follows
	set   relay.Set  // how the table is divided; no shards: not known yet
	slots map[string]*slotState
	// startError is why the database is of no use, until it is.
	startError string
	// fault is what a start would refuse by now; see recheck.
	fault string
	// unowned is what was counted of slots without an owner, by slot.
	unowned map[string]int
}

// slotState is what the keeper knows of its slot. Owned by Engine.mu.
type slotState struct {
	shard     relay.Shard
	role      relay.Role
	givesBack bool // draining, for another relay to take the slot
	since     time.Time
	pipeline  *pipeline // while owner, and while draining
	progress  progress  // at the last look
	moved     time.Time // when it was last seen to move, or to have nothing to do
	away      time.Time // since when a standby could not take the lease if it were free
	awayError string    // … and why
	stalls    int       // times in a row that the lease was given up without a mark
	waitsFor  string    // what it waits for, at one place
	waits     time.Time // since when
	// It was logged that an event waits for room.
	waitLogged bool
}

// New builds an engine, and reports it to the observer. The configuration must be valid, and there
// must be at least one sink. The caller closes the sinks after Run has returned.
func New(cfg Config, log hclog.Logger, obs relay.Observer, source relay.Source, store relay.Store, enc relay.Encoder, sinks ...relay.Sink) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if len(sinks) == 0 {
		return nil, errors.New("a relay needs at least one sink")
	}
	e := &Engine{
		cfg: cfg, log: log.Named("relay"), obs: obs, source: source, store: store, sinks: sinks,
		enc: enc, budget: newBudget(cfg.InflightEvents, cfg.InflightBytes), slots: make(map[string]*slotState), unowned: make(map[string]int), started: time.Now(),
	}
	obs.Begin(relay.About{
		WorkerID: cfg.WorkerID, Started: e.started, Mode: cfg.Mode, Hybrid: cfg.Hybrid, Sinks: sinkNames(sinks),
		InflightEvents: cfg.InflightEvents, InflightBytes: cfg.InflightBytes, WALBudget: int64(cfg.WALBudget), Traced: cfg.Tracer != nil,
		Encoder: enc, Snapshot: e.Snapshot,
	})
	for _, sink := range sinks {
		sinkObs := obs.Sink(sink.Name())
		e.sinkObs = append(e.sinkObs, sinkObs)
		e.health = append(e.health, &sinkHealth{sink: sink.Name(), sinkObs: sinkObs, obs: obs})
	}
	return e, nil
}

// Run works until ctx ends and everything in flight is drained, and then returns nil. It returns an
// error only for what a person has to fix (a *SetupError).
func (e *Engine) Run(ctx context.Context) error {
	if err := e.check(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return e.look(ctx) })
	group.Go(func() error {
		e.recheck(ctx)
		return nil
	})
	group.Go(func() error {
		e.countUnowned(ctx)
		return nil
	})
	group.Go(func() error { return e.keepSet(ctx) })
	return group.Wait()
}

// check asks store and source whether they have what they need, through a database that is down or
// not migrated yet. The log has the first trouble, then a line at intervals, then the end of it;
// Status has it all the time.
func (e *Engine) check(ctx context.Context) error {
	backoff := relay.Backoff{Min: e.cfg.BackoffMin, Max: e.cfg.BackoffMax}
	start := time.Now()
	var logged time.Time
	for attempt := 1; ; attempt++ {
		err := e.checkDatabase(ctx)
		if err == nil {
			err = e.checkSet(ctx)
		}
		if err == nil {
			if attempt > 1 {
				e.log.Info("the database answers", "attempts", attempt, "after", time.Since(start).Round(time.Millisecond))
			}
			e.noteStartError("")
			return nil
		}
		var setup *relay.SetupError
		if errors.As(err, &setup) || ctx.Err() != nil {
			return err
		}
		e.noteStartError(err.Error())
		wait := backoff.Next()
		if time.Since(logged) >= logInterval {
			logged = time.Now()
			e.log.Warn("waiting for the database", "attempt", attempt, "backoff", wait, "error", err,
				"fix", "check host and port in DATABASE_URL, that the server runs, and that no firewall or network policy is in between")
		}
		relay.Sleep(ctx, wait)
	}
}

// checkSet asks how the table is divided, and where its events went before.
func (e *Engine) checkSet(ctx context.Context) error {
	set, _, err := e.store.Set(ctx)
	if err != nil {
		return err
	}
	e.divide(set)
	for _, shard := range set.All() {
		if err := e.checkSinks(ctx, shard.Slot); err != nil {
			return err
		}
	}
	return nil
}

// checkDatabase asks store and source once.
func (e *Engine) checkDatabase(ctx context.Context) error {
	err := e.store.Check(ctx)
	if err == nil && e.cfg.Mode != relay.ModePolling {
		var set relay.Set
		if set, _, err = e.store.Set(ctx); err == nil {
			err = e.source.Check(ctx, set)
		}
	}
	if setup := (*relay.SetupError)(nil); e.cfg.Mode == relay.ModeAuto && errors.As(err, &setup) && setup.Streaming {
		return nil // the pipeline logs it, and polls
	}
	return err
}

// noteStartError notes why the relay has not begun, for Status.
func (e *Engine) noteStartError(why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.startError = why
}

// keep is the keeper of one slot: it waits for the slot's lease, runs a pipeline while it holds it,
// and starts over when it loses it or has given it back.
//
//	standby ──lease taken──▶ owner ──ctx ends, or Yield──▶ draining ──▶ released
//	   ▲                       │                                           │
//	   └─lease lost, given up──┴───────────────── given back ──────────────┘
func (e *Engine) keep(ctx context.Context, shard relay.Shard) error {
	slot := shard.Slot
	backoff := relay.Backoff{Min: e.cfg.BackoffMin, Max: e.cfg.BackoffMax}
	for ctx.Err() == nil {
		e.become(slot, relay.Standby, nil, false)
		e.obs.Changed(relay.Change{Kind: relay.ChangeStandby, Level: relay.LevelInfo, Slot: slot, Text: "waiting for the lease"})
		lease, err := e.acquire(ctx, shard)
		if err != nil || lease == nil {
			return err
		}
		p := newPipeline(e, shard, lease)
		p.draining = func(givesBack bool) {
			e.become(slot, relay.Draining, p, givesBack)
			switch {
			case givesBack:
				e.log.Info("giving the slot back: what is in flight is finished first", "slot", slot, "epoch", lease.Epoch(), "events", p.window.busy())
				e.obs.Changed(relay.Change{Kind: relay.ChangeDraining, Level: relay.LevelInfo, Slot: slot, Text: "finishing what is in flight, for another relay to take the slot"})
			case ctx.Err() != nil: // and not because the lease is lost
				e.obs.Changed(relay.Change{Kind: relay.ChangeDraining, Level: relay.LevelInfo, Slot: slot, Text: "finishing what is in flight"})
			}
		}
		e.become(slot, relay.Owner, p, false)
		e.obs.Changed(relay.Change{Kind: relay.ChangeLeaseTaken, Level: relay.LevelOK, Slot: slot, Text: fmt.Sprintf("epoch %d", lease.Epoch())})
		e.log.Info("lease taken", "slot", slot, "owner", e.cfg.WorkerID, "epoch", lease.Epoch(), "marked_lsn", lease.MarkedLSN())
		if err = e.mayDeliver(ctx, slot, lease); err == nil {
			err = p.run(ctx)
		}
		p.window.close()
		e.become(slot, relay.Draining, nil, err == nil && ctx.Err() == nil)

		// The lease goes last, whatever has ended the work, so that a successor finds the slot
		// free. A stop must not cancel this: the others would wait for the connection to die.
		release, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		if rerr := lease.Release(release, err == nil && p.clean()); rerr != nil {
			e.log.Warn("releasing the lease", "slot", slot, "error", rerr)
		}
		cancel()
		switch {
		case err == nil:
			why := "on the way out"
			if ctx.Err() == nil {
				why = "given back, for another relay to take it"
			}
			e.log.Info("slot released", "slot", slot, "epoch", lease.Epoch(), "why", why)
			e.obs.Changed(relay.Change{Kind: relay.ChangeReleased, Level: relay.LevelInfo, Slot: slot, Text: why})
			backoff.Reset()
		case errors.Is(err, relay.ErrLeaseLost):
			e.log.Warn("lease lost, standing by", "slot", slot, "epoch", lease.Epoch(), "error", err)
			e.obs.Changed(relay.Change{Kind: relay.ChangeLeaseLost, Level: relay.LevelDegraded, Slot: slot, Text: err.Error()})
			relay.Sleep(ctx, backoff.Next())
		case errors.Is(err, errStalled):
			others := p.control.slotSeen().Relays != 1 // 0: behind a pooler nobody knows
			e.noteStall(slot, p.window.counted().marked > 0)
			e.log.Error("the lease is given up, so that another relay may try", "slot", slot, "epoch", lease.Epoch(), "others", others, "error", err)
			e.obs.Changed(relay.Change{Kind: relay.ChangeLeaseLost, Level: relay.LevelBroken, Slot: slot, Text: "given up, so that another relay may try: " + err.Error()})
			wait := backoff.Next()
			if others {
				wait = giveWay
			}
			relay.Sleep(ctx, wait)
		default:
			return err
		}
	}
	return nil
}

// acquire waits for the slot's lease. It returns nil when ctx has ended.
func (e *Engine) acquire(ctx context.Context, shard relay.Shard) (relay.Lease, error) {
	backoff := relay.Backoff{Min: e.cfg.BackoffMin, Max: e.cfg.BackoffMax}
	for {
		lease, err := e.store.Acquire(ctx, shard)
		switch {
		case err == nil:
			return lease, nil
		case ctx.Err() != nil:
			return nil, nil
		case !errors.Is(err, relay.ErrSetChanged):
			return nil, err
		}
		// keepSet will know, too, and end this keeper.
		e.log.Debug("the slot is not of the table's set any more", "slot", shard.Slot)
		relay.Sleep(ctx, backoff.Next())
	}
}

// giveWay is how long a relay that has given up a lease leaves it to the standbys, which ask for it
// several times a second.
const giveWay = 15 * time.Second

// noteStall notes that a lease was given up, and whether anything was marked under it.
func (e *Engine) noteStall(slot string, anyMarked bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.slots[slot]
	if anyMarked {
		s.stalls = 0
	}
	s.stalls++
}

// become notes a slot's new role, and the pipeline that goes with it.
func (e *Engine) become(slot string, role relay.Role, p *pipeline, givesBack bool) {
	e.mu.Lock()
	s := e.slots[slot]
	if role != s.role {
		s.since = time.Now()
	}
	s.role, s.pipeline, s.givesBack = role, p, givesBack
	e.mu.Unlock()
	e.obs.Became(slot, role, p != nil)
}

// lookInterval is how often the engine checks its own progress.
const lookInterval = time.Second

// look looks whether slots move, until ctx ends.
func (e *Engine) look(ctx context.Context) error {
	for {
		now := time.Now()
		e.noteProgress(now)
		e.obs.Looked(now)
		if !relay.Sleep(ctx, lookInterval) {
			return nil
		}
	}
}
