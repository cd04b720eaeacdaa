package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/relay"
)

// How events are found, in one place. The feeder is one goroutine; it streams, recovers or polls, never two of them at a time:
//
//	      ┌────────────── slot gone ◀─────────────┐
//	      ▼                                       │
//	  owe a sweep ─▶ create ─▶ sweep ─▶ all marked ─▶ stream ──connection lost──▶ (again)
//	      ▲                                       │
//	      └── streaming impossible: poll for a while, in mode auto ◀──┘
//
// Crashes that a recovery survives. Before the sweep is noted as owed: the slot is found gone again. Between the note and the new
// slot: the note is there, the slot is not. Between the new slot and the snapshot, during the sweep, and before its end is noted: the
// note is there still, the next owner sweeps the same rows again, those that were marked are not among them. After the end is
// noted: MarkedLSN is past everything that the sweep has marked, so what the slot tells of it is looked up and left out.

// start loads what is known of the ledger, starts the work on it, and feeds the pipeline until ctx ends; then it calls finish with the
// open stream, or with nil when there is none just then.
func (p *pipeline) start(ctx, work context.Context, group *errgroup.Group, finish func(relay.Stream) error) error {
	unknown, err := p.loadLedger(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return finish(nil)
		}
		return err
	}
	p.noteSinks(ctx, unknown)
	for _, d := range p.drainers {
		group.Go(func() error { return d.run(work, ctx) })
	}
	if len(unknown) > 0 {
		group.Go(func() error { return p.dropDiscarded(ctx, slices.Sorted(maps.Keys(unknown))) })
	}
	if p.cfg.Mode == relay.ModePolling {
		p.poll(ctx, nil, relay.WantsPolling)
		return finish(nil)
	}
	group.Go(func() error { return p.sweepBeside(ctx) })
	return p.readStream(ctx, finish)
}

// loadLedger counts the entries that hold up later events, and returns the sinks that are not configured any more, with how many entries they have.
func (p *pipeline) loadLedger(ctx context.Context) (unknown map[string]int64, err error) {
	backoff := relay.Backoff{Min: p.cfg.BackoffMin, Max: p.cfg.BackoffMax}
	for {
		shelves := make(map[string]*shelf)
		for i, sink := range p.sinks {
			p.shelves[i].reset()
			shelves[sink.Name()] = p.shelves[i]
		}
		total, unknown := 0, make(map[string]int64)
		err := p.lease.Blocking(ctx, shelfBuckets, func(sink string, bucket uint32, entries, blocking int) {
			switch s := shelves[sink]; {
			case s != nil && blocking > 0:
				s.mu.Lock()
				s.add(bucket, blocking)
				s.mu.Unlock()
				total += blocking
			case s == nil && sink != relay.MarkSink:
				unknown[sink] += int64(entries)
			}
		})
		if err == nil {
			if total > 0 {
				p.log.Info("ledger read", "entries", total)
			}
			for sink, n := range unknown {
				p.log.Warn("the ledger has events for a sink that is not configured; they stay until it is, or until they are discarded",
					"sink", sink, "entries", n, "fix", "sagaz-relay dead-letter discard --state all --sink "+sink+" --all")
			}
			return unknown, nil
		}
		if ctx.Err() != nil || errors.Is(err, relay.ErrLeaseLost) {
			return nil, err
		}
		wait := backoff.Next()
		p.log.Warn("reading the ledger", "backoff", wait, "error", err)
		relay.Sleep(ctx, wait)
	}
}

// noteSinks tells which sinks the slot's last owner did not have, and which it had that we have not; unknown are those of the latter that have
// entries in the ledger. What it cannot find out is left out: no event depends on it.
func (p *pipeline) noteSinks(ctx context.Context, unknown map[string]int64) {
	now := sinkNames(p.sinks)
	before, err := p.lease.NoteSinks(ctx, now)
	if err != nil && ctx.Err() == nil {
		p.log.Debug("noting the sinks", "error", err)
	}
	for _, sink := range now {
		if len(before) > 0 && !slices.Contains(before, sink) {
			p.log.Info("a sink was added: it gets what is committed from now on", "sink", sink, "fix", "for older events: sagaz-relay replay --since 2h --sink "+sink)
			p.obs.Changed(relay.Change{Kind: relay.ChangeSinkAdded, Level: relay.LevelInfo, Slot: p.slot, Sink: sink, Text: "it gets what is committed from now on, older events only by replay"})
		}
	}
	gone := slices.Collect(maps.Keys(unknown))
	for _, sink := range before {
		if !slices.Contains(now, sink) && unknown[sink] == 0 {
			p.log.Warn("a sink was removed: what is committed from now on does not go there", "sink", sink, "before", before, "now", now,
				"fix", "if that is a mistake, set BROKER_TYPE="+strings.Join(before, ","))
			gone = append(gone, sink)
		}
	}
	slices.Sort(gone)
	for _, sink := range gone {
		c := relay.Change{Kind: relay.ChangeSinkGone, Level: relay.LevelInfo, Slot: p.slot, Sink: sink, Text: "it is not configured any more"}
		if n := unknown[sink]; n > 0 {
			c.Level, c.Text = relay.LevelDegraded, fmt.Sprintf("it is not configured any more, and has %d entries in the ledger", n)
		}
		p.obs.Changed(c)
	}
}

// readStream opens the slot and receives, again and again, until ctx ends.
func (p *pipeline) readStream(ctx context.Context, finish func(relay.Stream) error) error {
	backoff := relay.Backoff{Min: p.cfg.BackoffMin, Max: p.cfg.BackoffMax}
	resumed := "streaming"
	for {
		var stream relay.Stream
		err := p.recover(ctx)
		if err == nil {
			stream, err = p.source.Open(ctx, p.slot, p.Watermark())
		}
		if err == nil {
			p.log.Info(resumed)
			resumed, p.opened = "replication resumed", true
			p.became(relay.ModeCDC, true, "")
			since := time.Now()
			err = stream.Run(ctx, p)
			if ctx.Err() != nil {
				p.became(relay.ModeCDC, true, "")
				return finish(stream)
			}
			p.became(relay.ModeCDC, false, err.Error())
			// Opening proves nothing: a message that cannot be understood comes again at once.
			if time.Since(since) > p.cfg.BackoffMax {
				backoff.Reset()
			}
			closing, cancel := context.WithTimeout(ctx, closeTimeout)
			_ = stream.Close(closing) // it failed already, and that is what is reported
			cancel()
		}
		if ctx.Err() != nil {
			return finish(nil)
		}
		if errors.Is(err, relay.ErrLeaseLost) {
			return err
		}
		p.told.Interrupted()
		wait := backoff.Next()
		var setup *relay.SetupError
		var gone *relay.SlotGoneError
		switch {
		case errors.As(err, &gone):
			p.log.Error("the slot cannot tell everything any more: rows will be found in the table, and the slot made again if need be", "cause", gone.Cause, "error", err)
			p.obs.Changed(relay.Change{Kind: relay.ChangeSlotGone, Level: relay.LevelBroken, Slot: p.slot, Text: "it cannot tell everything any more: " + string(gone.Cause)})
			if err := p.owe(ctx, string(gone.Cause)); errors.Is(err, relay.ErrLeaseLost) {
				return err
			}
		case errors.As(err, &setup) && setup.Streaming && p.cfg.Mode == relay.ModeAuto:
			p.log.Error("streaming is impossible, so the table is polled until it is possible", "poll_interval", p.cfg.PollInterval, "error", err)
			p.poll(ctx, timeUp(retryStreaming), err.Error())
			if ctx.Err() != nil {
				return finish(nil)
			}
			continue
		case setup != nil && !p.opened:
			return err
		case setup != nil:
			p.log.Error("replication cannot go on", "backoff", wait, "error", err)
		case errors.Is(err, relay.ErrSlotBusy):
			// The walsender of an owner that died lives on for a moment; a person may look in with pg_recvlogical.
			wait = min(wait, busyPause)
			p.log.Info("waiting for the slot", "error", err)
		default:
			p.log.Warn("replication interrupted", "backoff", wait, "error", err)
		}
		relay.Sleep(ctx, wait)
	}
}

const (
	busyPause = 200 * time.Millisecond
	// retryStreaming is how long mode auto polls before it tries to stream again.
	retryStreaming = 30 * time.Second
)

// became notes what is being done, for the status.
func (p *pipeline) became(mode string, streaming bool, why string) {
	p.mu.Lock()
	d := &p.doing
	changed := d.streaming != streaming || d.mode != mode
	if changed {
		d.since = time.Now()
	}
	news := changed || !d.told || mode == relay.ModePolling && d.why != why
	d.mode, d.streaming, d.why, d.told = mode, streaming, why, true
	p.mu.Unlock()
	if news {
		p.obs.Changed(modeChange(p.slot, mode, streaming, why))
	}
}

func modeChange(slot, mode string, streaming bool, why string) relay.Change {
	c := relay.Change{Kind: relay.ChangeStreaming, Level: relay.LevelOK, Slot: slot, Text: "from the slot"}
	switch {
	case mode == relay.ModePolling:
		c.Kind, c.Level, c.Text = relay.ChangePolling, relay.LevelDegraded, why
		if why == relay.WantsPolling {
			c.Level = relay.LevelOK
		}
	case mode == relay.ModeRecovering:
		c.Kind, c.Level, c.Text = relay.ChangeRecovering, relay.LevelDegraded, "looking in the table for what the slot does not tell: "+why
	case !streaming:
		c.Kind, c.Level, c.Text = relay.ChangeBroken, relay.LevelDegraded, why
	}
	return c
}

func (p *pipeline) isStreaming() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.doing.streaming
}

// owe notes durably that the table has to be swept before the slot is read again.
func (p *pipeline) owe(ctx context.Context, cause string) error {
	backoff := relay.Backoff{Min: p.cfg.BackoffMin, Max: p.cfg.BackoffMax}
	for ctx.Err() == nil {
		err := p.lease.OweSweep(ctx, cause)
		if err == nil {
			p.recovery = relay.Recovery{Owed: true, Cause: cause}
			return nil
		}
		if errors.Is(err, relay.ErrLeaseLost) {
			return err
		}
		p.log.Warn("noting that a sweep is owed", "error", err)
		relay.Sleep(ctx, backoff.Next())
	}
	return context.Cause(ctx)
}

// recover does the sweep that is owed: it makes the slot, sweeps what the slot will not tell, and waits until all of that is marked.
func (p *pipeline) recover(ctx context.Context) error {
	if !p.recovery.Owed {
		return nil
	}
	cause := p.recovery.Cause
	p.became(relay.ModeRecovering, false, cause)
	if !p.lease.Valid() {
		return relay.ErrLeaseLost // a slot is nothing that the epoch protects; if we freeze right here, the next owner finds it gone, or moved
	}
	at, err := p.create(ctx)
	if err != nil {
		return err
	}
	p.became(relay.ModeRecovering, false, cause)
	from, err := p.lease.SweepFrom(ctx, at)
	if err != nil {
		return fmt.Errorf("begin the sweep: %w", err)
	}
	began := time.Now()
	rows := 0
	if err := p.sweeper.Take(ctx); err != nil {
		return err
	}
	defer p.sweeper.Give()
	// What the old slot told is on its way, and its rows are pending as long.
	if err := p.waitIdle(ctx); err != nil {
		return err
	}
	for _, k := range kinds {
		n, err := p.sweep(ctx, relay.SweepQuery{Kind: k, Seen: from.Snapshot}, cause)
		rows += n
		if err != nil {
			return fmt.Errorf("sweep the table: %w", err)
		}
	}
	if err := p.waitIdle(ctx); err != nil {
		return err
	}
	marked, err := p.lease.EndSweep(ctx, at)
	if err != nil {
		return fmt.Errorf("end the sweep: %w", err)
	}
	if err := p.admitting.Take(ctx); err != nil {
		return err
	}
	if !p.cfg.Hybrid {
		p.lookupTo = marked
	}
	p.last = position{} // a restored database counts its WAL from elsewhere
	p.admitting.Give()
	p.mu.Lock()
	p.confirmed, p.tracker.watermark, p.read, p.inside = at, at, at, 0
	p.mu.Unlock()
	p.recovery = relay.Recovery{}
	p.log.Info("recovered: what the slot does not tell was found in the table", "cause", cause, "rows", rows, "took", time.Since(began).Round(time.Millisecond), "slot_from", at)
	return nil
}
