package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/relay"
)

// pipeline is the work on one slot under one lease: stream → tracker → lanes → marker → watermark. It
// lives exactly as long as the lease is trusted; a new lease gets a new pipeline.
//
// When the replication connection breaks, the pipeline outlives it: what is in flight goes on, and the new
// connection's repetition of it is recognised by its place in commit order and dropped.
type pipeline struct {
	cfg    *Config
	log    hclog.Logger
	slot   string
	source relay.Source
	lease  relay.Lease
	enc    relay.Encoder
	sinks  []relay.Sink
	health []*sinkHealth
	obs    relay.Observer
	told   relay.SlotObserver

	draining func() // called when the reading has ended and the drain begins; set before run

	lanes    [][]*lane // by sink, then by key
	shelves  []*shelf  // by sink
	drainers []*drainer
	marker   *marker

	// Owned by the goroutine that feeds the pipeline (feed.go).
	recovery relay.Recovery
	opened   bool // the slot could be read at least once

	sweeper relay.Turn // one at a time goes through the table: the feeder, or the sweep beside the stream; whoever has it owns what follows
	looks   looks

	admitting relay.Turn // one feeder at a time: the stream, or a sweep beside it; whoever has it owns what follows
	last      position   // of the newest event admitted from the stream
	lookupTo  relay.LSN  // up to here, rows may be settled though the stream tells of them
	place     int64      // Position of the newest event
	scratch   [][]*flight
	pending   []relay.Event // events that are not known already, reused
	taken     reports

	done reports // of the marker

	mu        sync.Mutex // guards what follows
	tracker   *tracker
	heard     relay.LSN // how far the server's WAL goes, as far as we know
	read      relay.LSN // how far the stream has come: it has told everything that was committed before
	inside    int       // events admitted of the transaction that it tells of, whose end has not come
	confirmed relay.LSN // the watermark that the database has a note of, and that the server may be told
	noted     time.Time
	settled   bool // the watermark has moved by marks since it was noted
	sweeping  int  // swept events in flight
	rounds    int  // of ledger entries, under way
	stopping  bool
	counts    pipelineCounts
	signs     uint64 // times that the stream has brought anything, if only a sign of life
	steps     uint64 // see progress
	looking   bool   // a look at the table is under way
	lookError string // why the last one did not succeed
	holders   string // what making the slot waits for
	claimed   bool   // the stream waits for rows that another worker has claimed
	doing     doing
	stuck     *flight // the oldest in flight at the last look at the slot
	seen      relay.SlotInfo
	unmarked  relay.Unmarked // rows that were set aside

	stalled chan error // capacity one: give the lease up

	freed   chan struct{} // capacity one: the budget has room again
	drained chan struct{} // capacity one: nothing is in flight, and no round under way
	ending  chan struct{} // closed when the drain begins
}

// doing is what the status shows of how events are found.
type doing struct {
	mode      string // ModeCDC or ModePolling; what is done now
	why       string // of polling though a stream is wanted, or of a recovery
	streaming bool   // the replication connection is open
	since     time.Time
	told      bool // there is a change of state that says so
}

// position is an event's place in commit order.
type position struct {
	commit  relay.LSN
	ordinal uint32
}

func (p position) atOrBefore(q position) bool {
	return p.commit < q.commit || p.commit == q.commit && p.ordinal <= q.ordinal
}

// pipelineCounts are what the status shows, since the lease was taken.
type pipelineCounts struct {
	admitted, marked, skipped, swept uint64
}

func newPipeline(e *Engine, slot string, lease relay.Lease) *pipeline {
	p := &pipeline{
		cfg:      &e.cfg,
		log:      e.log.Named("pipeline").With("slot", slot, "epoch", lease.Epoch()),
		slot:     slot,
		source:   e.source,
		lease:    lease,
		enc:      e.enc,
		sinks:    e.sinks,
		health:   e.health,
		obs:      e.obs,
		told:     e.obs.Owned(slot, lease.Epoch()),
		lookupTo: lease.MarkedLSN(),
		place:    lease.LastPosition(),
		recovery: lease.Recovery(),
		sweeper:  relay.NewTurn(), admitting: relay.NewTurn(),
		scratch: make([][]*flight, e.cfg.Lanes),
		tracker: newTracker(len(e.sinks)),
		stalled: make(chan error, 1),
		freed:   make(chan struct{}, 1),
		drained: make(chan struct{}, 1),
		ending:  make(chan struct{}),
		doing:   doing{mode: relay.ModeCDC, since: time.Now()},
	}
	p.confirmed = p.recovery.Confirmed
	if e.cfg.Mode == relay.ModePolling {
		p.doing.mode = relay.ModePolling
	}
	p.marker = &marker{
		slot: slot, lease: lease, cfg: &e.cfg, log: p.log.Named("marker"), told: p.told, done: p.marked, confirm: p.watermark,
		wake: make(chan struct{}, 1), hurry: p.ending,
	}
	if e.cfg.Hybrid {
		p.lookupTo = math.MaxUint64
	}
	for i, sink := range e.sinks {
		log := e.log.Named("sink." + sink.Name())
		shelf := newShelf(sink.Name())
		lanes := make([]*lane, e.cfg.Lanes)
		for j := range lanes {
			lanes[j] = &lane{
				slot: slot, sink: sink, index: i, health: e.health[i], shelf: shelf, cfg: &e.cfg, told: e.told[i], parks: p.told,
				log: log, valid: lease.Valid, settle: p.settle,
				wake: make(chan struct{}, 1),
			}
		}
		p.lanes = append(p.lanes, lanes)
		p.shelves = append(p.shelves, shelf)
		p.drainers = append(p.drainers, &drainer{p: p, sink: sink, health: e.health[i], shelf: shelf, lanes: lanes, log: log, healAt: math.MinInt32})
	}
	return p
}

// run works until ctx ends, then drains and returns nil; or until the lease is lost, and returns the reason. A
// *SetupError of the first connection is returned too; later ones are waited out, because what worked
// once may be mended while we run.
func (p *pipeline) run(ctx context.Context) error {
	// work ends when the lease is lost, or after the drain: a stop alone does not touch it, so that what has been
	// offered can be acknowledged and marked.
	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	group, work := errgroup.WithContext(work)
	group.Go(func() error {
		select {
		case <-p.lease.Lost():
			return fmt.Errorf("%w: %w", relay.ErrLeaseLost, p.lease.Err())
		case err := <-p.stalled:
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
	group.Go(func() error { return p.control(work) })
	group.Go(func() error {
		p.told.Sample(work, p.lease)
		return nil
	})
	group.Go(func() error { return p.remark(work) })
	defer p.restoreSinks()

	// The reader also ends with work, so that a lost lease closes the stream; and so does who removes old rows.
	read, endRead := context.WithCancel(ctx)
	defer endRead()
	defer context.AfterFunc(work, endRead)()
	group.Go(func() error { return p.retain(read) })
	readErr := p.start(read, work, group, func(stream relay.Stream) error {
		p.draining()
		p.drain(work)
		// These are milliseconds of feedback that spare the next owner a repetition.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if work.Err() == nil {
			if err := p.confirm(last); err != nil {
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

// leave waits until all work has ended, but not without an end: a sink that obeys no context, on a pipe that nobody reads, must keep
// neither the lease nor the process. What is left behind may send nothing more, since the lease is released next.
func (p *pipeline) leave(work context.Context, group *errgroup.Group) (err error, ended bool) { //nolint:revive // errgroup's error, and whether it is there
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
	// leaveTimeout is how long the end of all work may take once it was told to end.
	leaveTimeout = 5 * time.Second
)

// drain waits until nothing is in flight, at most DrainTimeout. No round of ledger entries begins from here on, and what its
// sink does not take goes to the ledger.
func (p *pipeline) drain(work context.Context) {
	p.mu.Lock()
	p.stopping = true
	p.mu.Unlock()
	close(p.ending)
	for _, s := range p.shelves {
		s.stop()
	}
	deadline := time.NewTimer(p.cfg.DrainTimeout)
	defer deadline.Stop()
	for p.busy() > 0 {
		select {
		case <-p.drained:
		case <-work.Done():
			return
		case <-p.lease.Lost():
			return
		case <-deadline.C:
			p.log.Warn("drain timed out, the next owner delivers these events again", "events", p.busy(), "drain_timeout", p.cfg.DrainTimeout)
			return
		}
	}
}

// busy is how much there is to wait for: events in flight, and rounds.
func (p *pipeline) busy() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tracker.len() + p.rounds
}

// beginRound asks whether a round of ledger entries may begin.
func (p *pipeline) beginRound() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return false
	}
	p.rounds++
	return true
}

func (p *pipeline) endRound() {
	p.mu.Lock()
	p.rounds--
	empty := p.tracker.len() == 0 && p.rounds == 0
	p.mu.Unlock()
	if empty {
		signal(p.drained)
	}
}

// restoreSinks takes the isolation of sinks back in what the outside sees: nobody would, after the pipeline.
func (p *pipeline) restoreSinks() {
	for i, s := range p.shelves {
		if s.isolated() {
			p.health[i].restore(restoredOwner)
		}
	}
}

// signal wakes the one who waits, or will wait, on a channel of capacity one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
