package relay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
)

// pipeline is the work on one slot under one lease: stream → tracker → lanes → marker → watermark. It
// lives exactly as long as the lease is trusted; a new lease gets a new pipeline.
//
// When the replication connection breaks, the pipeline outlives it: what is in flight goes on, and the new
// connection's repetition of it is recognised by its place in commit order and dropped.
type pipeline struct {
	cfg     *Config
	log     hclog.Logger
	metrics *Metrics
	slot    string
	source  Source
	lease   Lease
	enc     *Encoder
	sinks   []Sink
	health  []*sinkHealth

	draining func() // called when the reading has ended and the drain begins; set before run

	lanes  [][]*lane // by sink, then by key
	marker *marker

	// Owned by the goroutine that runs the stream.
	last     position    // of the newest event admitted
	lookupTo LSN         // up to here, rows may be settled though the stream tells of them
	scratch  [][]*flight // by lane, reused
	pending  []Event     // events that are not known already, reused

	mu      sync.Mutex // guards what follows
	tracker *tracker
	heard   LSN // how far the server's WAL goes, as far as we know
	read    LSN // how far the stream has come
	counts  pipelineCounts

	streaming     bool // the replication connection is open
	streamChanged time.Time

	freed   chan struct{} // capacity one: the budget has room again
	drained chan struct{} // capacity one: nothing is in flight
}

// position is an event's place in commit order.
type position struct {
	commit  LSN
	ordinal uint32
}

func (p position) atOrBefore(q position) bool {
	return p.commit < q.commit || p.commit == q.commit && p.ordinal <= q.ordinal
}

// pipelineCounts are what the status shows, since the lease was taken.
type pipelineCounts struct {
	admitted, marked, skipped uint64
}

func newPipeline(r *Relay, slot string, lease Lease) *pipeline {
	p := &pipeline{
		cfg:      &r.cfg,
		log:      r.log.Named("pipeline").With("slot", slot, "epoch", lease.Epoch()),
		metrics:  r.metrics,
		slot:     slot,
		source:   r.source,
		lease:    lease,
		enc:      r.enc,
		sinks:    r.sinks,
		health:   r.health,
		lookupTo: lease.MarkedLSN(),
		scratch:  make([][]*flight, r.cfg.Lanes),
		tracker:  newTracker(len(r.sinks)),
		freed:    make(chan struct{}, 1),
		drained:  make(chan struct{}, 1),

		streamChanged: time.Now(),
	}
	p.marker = &marker{
		lease: lease, cfg: &r.cfg, log: p.log.Named("marker"), done: p.marked,
		wake: make(chan struct{}, 1),
	}
	if r.cfg.Hybrid {
		p.lookupTo = math.MaxUint64
	}
	for i, sink := range r.sinks {
		lanes := make([]*lane, r.cfg.Lanes)
		for j := range lanes {
			lanes[j] = &lane{
				sink: sink, health: r.health[i], cfg: &r.cfg, metrics: r.metrics.sink(sink.Name()),
				log: r.log.Named("sink." + sink.Name()), valid: lease.Valid, settle: p.settle,
				wake: make(chan struct{}, 1),
			}
		}
		p.lanes = append(p.lanes, lanes)
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
			return fmt.Errorf("%w: %w", ErrLeaseLost, p.lease.Err())
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
	group.Go(func() error { return p.observe(work) })

	// The reader also ends with work, so that a lost lease closes the stream.
	read, endRead := context.WithCancel(ctx)
	defer endRead()
	defer context.AfterFunc(work, endRead)()
	readErr := p.readStream(read, func(stream Stream) error {
		p.draining()
		p.drain(work)
		if stream == nil {
			return nil
		}
		// These are milliseconds of feedback that spare the next owner a repetition.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if err := stream.Close(last); err != nil {
			p.log.Warn("closing the stream", "error", err)
		}
		return nil
	})
	stop(nil)
	err := group.Wait()
	if err == nil {
		err = readErr
	}
	return err
}

const closeTimeout = 3 * time.Second

// readStream opens the slot and receives, again and again, until ctx ends; then it calls finish with the open stream, or
// with nil when there is none just then.
func (p *pipeline) readStream(ctx context.Context, finish func(Stream) error) error {
	backoff := Backoff{Min: p.cfg.BackoffMin, Max: p.cfg.BackoffMax}
	opened := false
	for {
		stream, err := p.source.Open(ctx, p.slot, 0)
		if err == nil {
			if opened {
				p.log.Info("replication resumed")
			}
			opened = true
			p.setStreaming(true)
			since := time.Now()
			err = stream.Run(ctx, p)
			p.setStreaming(false)
			// Opening proves nothing: a message that cannot be understood comes again at once.
			if time.Since(since) > p.cfg.BackoffMax {
				backoff.Reset()
			}
			if ctx.Err() != nil {
				return finish(stream)
			}
			closing, cancel := context.WithTimeout(ctx, closeTimeout)
			_ = stream.Close(closing) // it failed already, and that is what is reported
			cancel()
		}
		if ctx.Err() != nil {
			return finish(nil)
		}
		var setup *SetupError
		if errors.As(err, &setup) && !opened {
			return err
		}
		wait := backoff.Next()
		switch {
		case errors.Is(err, ErrSlotBusy):
			// The walsender of an owner that died lives on for a moment; a person may look in with pg_recvlogical.
			wait = min(wait, busyPause)
			p.log.Info("waiting for the slot", "error", err)
		case setup != nil:
			p.log.Error("replication cannot go on", "backoff", wait, "error", err)
		default:
			p.log.Warn("replication interrupted", "backoff", wait, "error", err)
		}
		p.metrics.reconnects.Inc()
		Sleep(ctx, wait)
	}
}

func (p *pipeline) setStreaming(on bool) {
	p.mu.Lock()
	p.streaming, p.streamChanged = on, time.Now()
	p.mu.Unlock()
}

const busyPause = 200 * time.Millisecond

// drain waits until nothing is in flight, at most DrainTimeout.
func (p *pipeline) drain(work context.Context) {
	deadline := time.NewTimer(p.cfg.DrainTimeout)
	defer deadline.Stop()
	left := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.tracker.len()
	}
	for left() > 0 {
		select {
		case <-p.drained:
		case <-work.Done():
			return
		case <-p.lease.Lost():
			return
		case <-deadline.C:
			p.log.Warn("drain timed out, the next owner delivers these events again", "events", left(), "drain_timeout", p.cfg.DrainTimeout)
			return
		}
	}
}

// Admit implements Intake.
func (p *pipeline) Admit(ctx context.Context, events []Event) error {
	events, err := p.fresh(ctx, events)
	if err != nil {
		return err
	}
	for len(events) > 0 {
		n, err := p.reserve(ctx, events)
		if err != nil {
			return err
		}
		p.launch(events[:n])
		// Only now: when the connection breaks while we wait for room, the next one tells of the rest again, and it must not
		// count as known then.
		p.last = position{events[n-1].CommitLSN, events[n-1].Ordinal}
		events = events[n:]
	}
	return nil
}

// fresh returns the events that are to be published: not those that a broken connection repeats, not rows that were
// inserted with another status than pending, not those that an earlier owner, or in hybrid mode any worker, has settled.
func (p *pipeline) fresh(ctx context.Context, events []Event) ([]Event, error) {
	known := func(ev *Event) bool {
		return position{ev.CommitLSN, ev.Ordinal}.atOrBefore(p.last) || ev.Status != "pending"
	}
	p.pending = p.keep(p.pending[:0], events, func(i int) bool { return !known(&events[i]) })
	if len(p.pending) == 0 || p.pending[0].CommitLSN > p.lookupTo {
		return p.pending, nil
	}
	settled, err := p.settledRetry(ctx, p.pending)
	if err != nil {
		return nil, err
	}
	asked := len(p.pending)
	p.pending = p.keep(p.pending[:0], p.pending, func(i int) bool {
		// Past lookupTo no earlier owner can have marked; asking was for the others of this batch.
		return !settled[i] || p.pending[i].CommitLSN > p.lookupTo
	})
	p.mu.Lock()
	p.counts.skipped += uint64(asked - len(p.pending))
	p.mu.Unlock()
	return p.pending, nil
}

// keep appends the events that the test wants to kept, which may be the front of events itself. The position that a dropped
// event carries goes to the event before it, so that the slot still moves past it, and not before its time.
func (p *pipeline) keep(kept, events []Event, want func(i int) bool) []Event {
	for i := range events {
		ev := events[i]
		switch {
		case want(i):
			kept = append(kept, ev)
		case ev.CommitEnd == 0:
		case len(kept) > 0:
			kept[len(kept)-1].CommitEnd = ev.CommitEnd
		default:
			p.Pass(ev.CommitEnd)
		}
	}
	return kept
}

// settledRetry looks rows up, through passing trouble of the database.
func (p *pipeline) settledRetry(ctx context.Context, events []Event) ([]bool, error) {
	backoff := Backoff{Min: p.cfg.BackoffMin, Max: p.cfg.BackoffMax}
	for waits := 0; ; {
		settled, err := p.lease.Settled(ctx, events)
		if err == nil {
			return settled, nil
		}
		if ctx.Err() != nil || errors.Is(err, ErrLeaseLost) {
			return nil, err
		}
		wait := backoff.Next()
		if claimed := (*ClaimedError)(nil); errors.As(err, &claimed) {
			if waits++; waits%20 == 1 { // the first, then every 10 s
				p.log.Info("waiting for rows that another worker has claimed", "rows", claimed.Rows, "worker", claimed.Worker, "at_most", claimed.AtMost)
			}
			Sleep(ctx, min(wait, claimPause))
			continue
		}
		p.log.Warn("look-up did not succeed, trying again", "events", len(events), "backoff", wait, "error", err)
		Sleep(ctx, wait)
	}
}

// claimPause is how often claimed rows are looked at again: the library's worker needs some 100 ms for a batch.
const claimPause = 500 * time.Millisecond

// reserve waits until the budget has room for the first of events and returns how many of them fit.
func (p *pipeline) reserve(ctx context.Context, events []Event) (int, error) {
	for {
		p.mu.Lock()
		inflight, bytes := p.tracker.len(), p.tracker.bytes
		p.mu.Unlock()
		n := 0
		for n < len(events) && inflight+n < p.cfg.InflightEvents {
			bytes += events[n].Size()
			if bytes > p.cfg.InflightBytes && inflight+n > 0 {
				break
			}
			n++
		}
		if n > 0 {
			return n, nil
		}
		select {
		case <-p.freed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// launch encodes events and puts them on their way.
func (p *pipeline) launch(events []Event) {
	flights := make([]flight, len(events))
	var refused []*flight
	for i := range events {
		ev, f := &events[i], &flights[i]
		f.commitLSN, f.xid, f.committed, f.size = ev.CommitLSN, ev.XID, ev.CommittedAt, ev.Size()
		f.confirm = ev.CommitEnd
		if err := p.enc.Encode(&f.rec, ev); err != nil {
			r, _ := Refused(err)
			f.rec.EventID, f.rec.EventType = ev.ID, ev.EventType
			f.refused = []sinkRefusal{{"relay", r}}
			refused = append(refused, f)
			p.log.Warn("event refused", "event_id", ev.ID, "error", err)
			continue
		}
		lane := partition(ev.AggregateID, p.cfg.Lanes)
		p.scratch[lane] = append(p.scratch[lane], f)
	}

	p.mu.Lock()
	for i := range flights {
		p.tracker.admit(&flights[i])
	}
	for _, f := range refused {
		f.open = 0 // no sink gets it
	}
	p.counts.admitted += uint64(len(flights))
	p.read = max(p.read, events[len(events)-1].CommitLSN)
	p.mu.Unlock()

	for lane, part := range p.scratch {
		if len(part) == 0 {
			continue
		}
		for _, lanes := range p.lanes {
			lanes[lane].push(part)
		}
		clear(part)
		p.scratch[lane] = part[:0]
	}
	for _, f := range refused {
		p.metrics.refusedByEncoder(f)
	}
	p.marker.push(refused)
}

// settle takes a lane's report: these events are acknowledged, or refused where errs says so.
func (p *pipeline) settle(sink string, batch []*flight, errs []error) {
	resolved := make([]*flight, 0, len(batch))
	p.mu.Lock()
	for i, f := range batch {
		var refusal *RefusedError
		if errs != nil && errs[i] != nil {
			refusal, _ = Refused(errs[i])
		}
		if p.tracker.settle(f, sink, refusal) {
			resolved = append(resolved, f)
		}
	}
	p.mu.Unlock()
	p.marker.push(resolved)
}

// marked takes the marker's report: the rows tell these events' fates.
func (p *pipeline) marked(batch []*flight) {
	p.metrics.marked(batch)
	p.mu.Lock()
	for _, f := range batch {
		p.tracker.mark(f)
	}
	p.counts.marked += uint64(len(batch))
	advanced := p.tracker.advance()
	empty := p.tracker.len() == 0
	p.mu.Unlock()
	if advanced {
		signal(p.freed)
	}
	if empty {
		signal(p.drained)
	}
}

// signal wakes the one who waits, or will wait, on a channel of capacity one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Pass implements Intake.
func (p *pipeline) Pass(lsn LSN) {
	p.mu.Lock()
	p.tracker.pass(lsn)
	p.read = max(p.read, lsn)
	p.heard = max(p.heard, lsn)
	p.mu.Unlock()
}

// Heard implements Intake.
func (p *pipeline) Heard(lsn LSN) {
	p.mu.Lock()
	p.heard = max(p.heard, lsn)
	p.mu.Unlock()
}

// Watermark implements Intake.
func (p *pipeline) Watermark() LSN {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tracker.watermark
}
