package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/relay"
)

// pipeline is the work on one slot under one lease: feeder → intake → lanes → window → marker →
// window. It lives exactly as long as the lease is trusted; a new lease gets a new pipeline. It
// owns no state: each of its parts has its own.
//
// When the replication connection breaks, the pipeline outlives it: what is in flight goes on, and
// the new connection's repetition of it is recognised by its place in commit order and dropped.
type pipeline struct {
	cfg     *Config
	log     hclog.Logger
	shard   relay.Shard
	lease   relay.Lease
	sinks   []relay.Sink
	health  []*sinkHealth // by sink
	slotObs relay.SlotObserver

	// Called when the reading has ended and the drain begins, with whether the slot is given back;
	// set before run.
	draining func(givesBack bool)

	feeder   *feeder
	sweeps   *sweeps
	intake   *intake
	window   *window
	lanes    [][]*lane // by sink, then by key
	marker   *marker
	confirm  *confirmation
	control  *control
	doing    *doing
	unmarked *unmarkedRows

	ledger   *ledger
	shelves  []*shelf // by sink
	drainers []*drainer
	doubts   inDoubt

	done   reports       // of the marker
	ending chan struct{} // closed when the drain begins
}

func newPipeline(e *Engine, shard relay.Shard, lease relay.Lease) *pipeline {
	cfg, slot, epoch := &e.cfg, shard.Slot, lease.Epoch()
	p := &pipeline{
		cfg: cfg, log: e.log.Named("pipeline").With("slot", slot, "epoch", epoch), shard: shard, lease: lease, sinks: e.sinks, health: e.health,
		slotObs: e.obs.Owned(shard, epoch), window: newWindow(e.budget, len(e.sinks)), doing: newDoing(slot, e.obs, cfg.Mode), ending: make(chan struct{}),
	}
	recovery := lease.Recovery()
	p.confirm = &confirmation{window: p.window, lease: lease, at: recovery.Confirmed}
	p.marker = &marker{
		slot: slot, lease: lease, cfg: cfg, log: p.log.Named("marker"), slotObs: p.slotObs, done: p.marked, confirm: p.window.watermark,
		since: p.since, wake: make(chan struct{}, 1), hurry: p.ending,
	}
	p.window.marker = p.marker
	p.doubts = newInDoubt(e, p.log, lease)
	for i, sink := range e.sinks {
		p.addSink(e, slot, i, sink)
	}
	p.intake = newIntake(e, p.log, p.slotObs, lease, p.window, p.confirm, p.doing, p.lanes)
	p.sweeps = &sweeps{
		cfg: cfg, log: p.log, slotObs: p.slotObs, slot: slot, lease: lease, facts: lease, intake: p.intake, window: p.window, doing: p.doing,
		doubts: p.doubts, turn: relay.NewTurn(),
	}
	p.feeder = &feeder{
		cfg: cfg, log: p.log, obs: e.obs, slotObs: p.slotObs, slot: slot, shard: shard, source: e.source, worked: &e.worked, tenure: lease, lease: lease,
		window: p.window, confirm: p.confirm, intake: p.intake, sweeps: p.sweeps, doing: p.doing, doubts: p.doubts, recovery: recovery,
	}
	p.control = &control{
		cfg: cfg, log: p.log, slotObs: p.slotObs, facts: lease, window: p.window, confirm: p.confirm, doing: p.doing, doubts: p.doubts, shelves: p.shelves,
		health: e.health, stalled: make(chan error, 1),
	}
	p.unmarked = &unmarkedRows{log: p.log, obs: e.obs, slot: slot, lease: lease}
	p.ledger = &ledger{cfg: cfg, log: p.log, obs: e.obs, slot: slot, lease: lease, sinks: sinkNames(e.sinks), shelves: p.shelves, mask: shelfMask(shard.Set.Shards)}
	return p
}

// addSink makes what a sink has of its own: its lanes, its shelf, its drainer.
func (p *pipeline) addSink(e *Engine, slot string, i int, sink relay.Sink) {
	log := e.log.Named("sink." + sink.Name())
	shelf := newShelf(sink.Name(), shelfMask(p.shard.Set.Shards))
	lanes := make([]*lane, p.cfg.Lanes)
	for j := range lanes {
		lanes[j] = &lane{
			slot: slot, sink: sink, index: i, health: e.health[i], shelf: shelf, doubt: p.doubts.of[i], cfg: p.cfg, sinkObs: e.sinkObs[i], slotObs: p.slotObs,
			log: log, valid: p.lease.Valid, settle: p.window.settle, budget: e.budget, rules: newRuleCounter(p.cfg.Routers[sink.Name()], i, e.sinkObs[i]),
			wake: make(chan struct{}, 1),
		}
	}
	p.lanes = append(p.lanes, lanes)
	p.shelves = append(p.shelves, shelf)
	p.drainers = append(p.drainers, &drainer{
		cfg: p.cfg, slot: slot, lease: p.lease, maker: newMaker(e), rules: newRuleCounter(p.cfg.Routers[sink.Name()], i, e.sinkObs[i]), slotObs: p.slotObs, window: p.window,
		sink: sink, index: i, health: e.health[i], shelf: shelf, lanes: lanes, log: log, healAt: math.MinInt32,
	})
}

// run works until ctx ends or the slot is to be given back, then drains and returns nil. When the
// lease is lost it returns the reason. A *SetupError of the first connection is returned too. Later
// ones are waited out, because what worked once may be fixed while we run.
func (p *pipeline) run(ctx context.Context) error {
	// work ends when the lease is lost, or after the drain: a stop alone does not touch it, so that
	// what has been offered can be acknowledged and marked.
	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	group, work := errgroup.WithContext(work)
	group.Go(func() error {
		select {
		case <-p.lease.Lost():
			return fmt.Errorf("%w: %w", relay.ErrLeaseLost, p.lease.Err())
		case err := <-p.control.stalled:
			return err
		case <-work.Done():
			return nil
		}
	})
	for _, lanes := range p.lanes {
		for _, l := range lanes {
			group.Go(func() error { return l.run(work) })
		}
	}
	group.Go(func() error { return p.marker.run(work) })
	group.Go(func() error { return p.control.run(work) })
	group.Go(func() error {
		p.slotObs.Sample(work, p.lease)
		return nil
	})
	group.Go(func() error { return p.unmarked.run(work) })
	defer p.restoreSinks()

	// The reader also ends with work, so that a lost lease closes the stream; and so does who
	// removes old rows.
	read, endRead := context.WithCancel(ctx)
	defer endRead()
	defer context.AfterFunc(work, endRead)()
	if closed(p.lease.Yield()) {
		endRead() // before the first event
	}
	group.Go(func() error {
		select {
		case <-p.lease.Yield(): // given back in order, as at a stop
			endRead()
		case <-read.Done():
		}
		return nil
	})
	group.Go(func() error { return p.retain(read) })
	readErr := p.start(read, work, group, func(stream relay.Stream) error {
		p.draining(ctx.Err() == nil && work.Err() == nil && closed(p.lease.Yield()))
		p.drain(work)
		// These are milliseconds of feedback that spare the next owner a repetition.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if work.Err() == nil {
			if err := p.confirm.confirm(last); err != nil {
				p.log.Warn("noting the last position", "error", err)
			}
		}
		if stream == nil {
			return nil
		}
		if err := stream.Close(last); err != nil {
			p.log.Warn("closing the stream", "error", err)
		}
		return nil
	})
	stop(nil)
	err, ended := p.leave(work, group)
	if err == nil && ended {
		err = readErr
	}
	return err
}

// start loads what is known of the ledger, starts the work on it, and feeds the pipeline until ctx
// ends. Then it calls finish with the open stream, or with nil when no stream is open.
func (p *pipeline) start(ctx, work context.Context, group *errgroup.Group, finish func(relay.Stream) error) error {
	unknown, err := p.ledger.load(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return finish(nil)
		}
		return err
	}
	p.ledger.noteSinks(ctx, unknown)
	for _, d := range p.drainers {
		group.Go(func() error { return d.run(work, ctx) })
	}
	if len(unknown) > 0 {
		group.Go(func() error { return p.ledger.dropDiscarded(ctx, slices.Sorted(maps.Keys(unknown))) })
	}
	if p.cfg.Mode != relay.ModePolling {
		group.Go(func() error { return p.sweeps.sweepWhileStreaming(ctx) })
	}
	return p.feeder.run(ctx, finish)
}

// marked takes the marker's report: these events' fates are committed, in their rows and in the
// ledger, and confirmed may be reported to the server.
func (p *pipeline) marked(batch []*flight, confirmed relay.LSN) {
	p.slotObs.Marked(p.done.of(batch))
	p.done.clear()
	p.confirm.marked(confirmed, p.window.mark(batch))
	p.doubts.mind(p.window.watermark())
	for _, s := range p.shelves {
		if s.written(batch) {
			relay.Wake(s.wake)
		}
	}
}

// leave waits until all work has ended, but not for ever. A sink that obeys no context, on a pipe
// that nobody reads, must keep neither the lease nor the process. What is left behind may send
// nothing more, since the lease is released next. It returns the group's error, if there is one.
func (p *pipeline) leave(work context.Context, group *errgroup.Group) (err error, ended bool) { //nolint:revive
	all := make(chan error, 1)
	go func() { all <- group.Wait() }()
	timeout := time.NewTimer(leaveTimeout)
	defer timeout.Stop()
	select {
	case err := <-all:
		return err, true
	case <-timeout.C:
	}
	var stuck []string
	for i, lanes := range p.lanes {
		for _, l := range lanes {
			if l.offering.Load() {
				stuck = append(stuck, p.sinks[i].Name())
				break
			}
		}
	}
	p.log.Error("what was under way does not end, and is left behind", "sinks", stuck, "after", leaveTimeout)
	if cause := context.Cause(work); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause, false
	}
	return nil, false
}

const (
	closeTimeout = 3 * time.Second
	// leaveTimeout is how long the end of all work may take once it was asked to end.
	leaveTimeout = 5 * time.Second
)

// drain waits until nothing is in flight, at most DrainTimeout. No round of ledger entries begins
// from here on, and what its sink does not take goes to the ledger.
func (p *pipeline) drain(work context.Context) {
	p.window.stop()
	close(p.ending)
	for _, s := range p.shelves {
		s.stop()
	}
	draining, cancel := context.WithTimeout(work, p.cfg.DrainTimeout)
	defer cancel()
	p.intake.finish(draining)
	for p.window.busy() > 0 {
		select {
		case <-p.window.drained:
		case <-p.lease.Lost():
			return
		case <-draining.Done():
			if work.Err() != nil {
				return
			}
			p.log.Warn("drain timed out, the next owner delivers these events again", "events", p.window.busy(), "drain_timeout", p.cfg.DrainTimeout)
			return
		}
	}
}

// restoreSinks takes the isolation of sinks back in what the outside sees. Nothing else would,
// after the pipeline.
func (p *pipeline) restoreSinks() {
	for i, s := range p.shelves {
		if s.isolated() {
			p.health[i].restore(restoredOwner)
		}
	}
}
