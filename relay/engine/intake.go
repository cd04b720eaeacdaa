package engine

import (
	"context"
	"errors"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// Admit implements Intake.
func (p *pipeline) Admit(ctx context.Context, events []relay.Event) error {
	if err := p.admitting.Take(ctx); err != nil {
		return err
	}
	defer p.admitting.Give()
	p.mu.Lock()
	p.signs++
	p.mu.Unlock()
	events, err := p.fresh(ctx, events)
	if err != nil {
		return err
	}
	for len(events) > 0 {
		n, err := p.reserve(ctx, events)
		if err != nil {
			return err
		}
		p.launch(events[:n], false)
		// Only now: when the connection breaks while we wait for room, the next one tells of the rest again, and it must not
		// count as known then.
		p.last = position{events[n-1].CommitLSN, events[n-1].Ordinal}
		events = events[n:]
	}
	return nil
}

// fresh returns the events that are to be published: not those that a broken connection repeats, not rows that were
// inserted with another status than pending, not those that an earlier owner, or in hybrid mode any worker, has settled.
func (p *pipeline) fresh(ctx context.Context, events []relay.Event) ([]relay.Event, error) {
	known := func(ev *relay.Event) bool {
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
	p.told.Skipped(asked - len(p.pending))
	return p.pending, nil
}

// keep appends the events that the test wants to kept, which may be the front of events itself. The position that a dropped
// event carries goes to the event before it, so that the slot still moves past it, and not before its time.
func (p *pipeline) keep(kept, events []relay.Event, want func(i int) bool) []relay.Event {
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
func (p *pipeline) settledRetry(ctx context.Context, events []relay.Event) ([]bool, error) {
	backoff := relay.Backoff{Min: p.cfg.BackoffMin, Max: p.cfg.BackoffMax}
	defer p.waitForClaims(false)
	for waits := 0; ; {
		settled, err := p.lease.Settled(ctx, events)
		if err == nil {
			return settled, nil
		}
		if ctx.Err() != nil || errors.Is(err, relay.ErrLeaseLost) {
			return nil, err
		}
		wait := backoff.Next()
		claimed := (*relay.ClaimedError)(nil)
		p.waitForClaims(errors.As(err, &claimed))
		if claimed != nil {
			// A worker that lives is through with its batch in a moment; where both publish, that happens many times a second. What is told
			// is a wait of a second or two, and then every 10 s.
			if waits++; waits%20 == 5 {
				p.log.Info("waiting for rows that another worker has claimed", "rows", claimed.Rows, "worker", claimed.Worker, "at_most", claimed.AtMost)
			}
			relay.Sleep(ctx, min(wait, claimPause))
			continue
		}
		p.log.Warn("look-up did not succeed, trying again", "events", len(events), "backoff", wait, "error", err)
		relay.Sleep(ctx, wait)
	}
}

// waitForClaims notes whether the stream waits for another worker, for the status.
func (p *pipeline) waitForClaims(is bool) {
	p.mu.Lock()
	p.claimed = is
	p.mu.Unlock()
}

// claimPause is how often claimed rows are looked at again: the library's worker needs some 100 ms for a batch.
const claimPause = 500 * time.Millisecond

// reserve waits until the budget has room for the first of events and returns how many of them fit.
func (p *pipeline) reserve(ctx context.Context, events []relay.Event) (int, error) {
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

// trace finds the record's trace context, or has one begun. It is called once, by whoever has encoded the record.
func (c *Config) trace(rec *relay.Record, ev *relay.Event) {
	if c.Tracer == nil {
		return
	}
	for i := range rec.Headers {
		if rec.Headers[i].Key == relay.TraceParent {
			rec.Trace, _ = relay.ParseTraceParent(rec.Headers[i].Value)
			return
		}
	}
	c.Tracer.Begin(rec, ev)
}

// launch encodes events and puts them on their way.
func (p *pipeline) launch(events []relay.Event, swept bool) {
	flights := make([]*flight, len(events))
	for i := range events {
		// Each by itself: in one piece, an event that is stuck would keep all of them in memory.
		ev, f := &events[i], new(flight)
		flights[i] = f
		f.CommitLSN, f.xid, f.CommittedAt, f.size = ev.CommitLSN, ev.XID, ev.CommittedAt, ev.Size()
		f.confirm, f.Swept = ev.CommitEnd, swept
		p.place++
		f.position = p.place
		f.keyHash = relay.KeyHash(ev.AggregateID)
		f.SagaID, f.AggregateType = ev.SagaID, ev.AggregateType
		if err := p.enc.Encode(&f.Record, ev); err != nil {
			// It takes its place on the lanes all the same, which know what is before and behind it.
			f.Unfit, _ = relay.Refused(err)
			f.Record.EventID, f.Record.EventType, f.Record.Key, f.Record.Timestamp = ev.ID, ev.EventType, ev.AggregateID, ev.CreatedAt.Time()
		} else {
			p.cfg.trace(&f.Record, ev)
		}
		lane := relay.Partition(f.keyHash, p.cfg.Lanes)
		p.scratch[lane] = append(p.scratch[lane], f)
	}

	p.told.Received(p.taken.of(flights))
	p.taken.clear()
	p.mu.Lock()
	beside := swept && p.doing.mode == relay.ModeCDC
	for _, f := range flights {
		f.Beside = beside
		p.tracker.admit(f)
	}
	p.counts.admitted += uint64(len(flights))
	if swept {
		p.sweeping += len(flights)
		p.counts.swept += uint64(len(flights))
	} else {
		p.inside += len(flights)
		for i := len(flights) - 1; i >= 0; i-- {
			if end := flights[i].confirm; end != 0 {
				p.read, p.inside = max(p.read, end), len(flights)-1-i
				break
			}
		}
	}
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
}

// settle takes a lane's report: these events are acknowledged, or want an entry in the ledger where parks has one. Events of one key come in
// order from each lane, so they are resolved in order, and the marker gets them in order.
func (p *pipeline) settle(sink int, batch []*flight, parks []*relay.Parked) {
	resolved := make([]*flight, 0, len(batch))
	p.mu.Lock()
	for i, f := range batch {
		if p.tracker.settle(f, sink, parks[i]) {
			resolved = append(resolved, f)
		}
	}
	p.marker.push(resolved) // under the lock: another sink's lane may be about to resolve what is behind them
	p.mu.Unlock()
}

// marked takes the marker's report: the rows, and the ledger, tell these events' fates, and the server may be told of confirmed.
func (p *pipeline) marked(batch []*flight, confirmed relay.LSN) {
	p.told.Marked(p.done.of(batch))
	p.done.clear()
	p.mu.Lock()
	for _, f := range batch {
		if p.tracker.mark(f) {
			p.settled = true
		}
		if f.Swept {
			p.sweeping--
		}
	}
	p.counts.marked += uint64(len(batch))
	p.confirmed = max(p.confirmed, confirmed)
	empty := p.tracker.len() == 0 && p.rounds == 0
	p.mu.Unlock()
	for _, s := range p.shelves {
		if s.written(batch) {
			signal(s.wake)
		}
	}
	signal(p.freed)
	if empty {
		signal(p.drained)
	}
}

// Pass implements Intake.
func (p *pipeline) Pass(lsn relay.LSN) {
	p.mu.Lock()
	p.signs++
	p.tracker.pass(lsn)
	p.read, p.inside = max(p.read, lsn), 0
	p.heard = max(p.heard, lsn)
	p.mu.Unlock()
}

// Heard implements Intake.
func (p *pipeline) Heard(lsn relay.LSN) {
	p.mu.Lock()
	p.signs++
	p.heard = max(p.heard, lsn)
	p.mu.Unlock()
}

// Watermark implements Intake.
func (p *pipeline) Watermark() relay.LSN {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.confirmed
}

// watermark is the position up to which everything is settled, whether the database has a note of it or not.
func (p *pipeline) watermark() relay.LSN {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tracker.watermark
}

// confirm notes the watermark in the database, and then lets the server be told.
//
// A slot that stands further on than any note was moved by somebody, or is another one under the same name: what was committed in
// between would never be told. That is why the note comes first. A crash between the two repeats nothing, it only leaves some WAL
// on the server until the next report.
func (p *pipeline) confirm(ctx context.Context) error {
	p.mu.Lock()
	at := p.tracker.watermark
	p.settled = false
	p.noted = time.Now()
	noted := at <= p.confirmed
	p.mu.Unlock()
	if noted {
		return nil
	}
	if err := p.lease.Confirm(ctx, at); err != nil {
		return err
	}
	p.mu.Lock()
	p.confirmed = max(p.confirmed, at)
	p.mu.Unlock()
	return nil
}

// confirmBytes is how far, and confirmAfter for how long, the watermark may run ahead of its note while only other tables are written
// to. Notes are WAL too, so an idle server must not be kept busy by them.
const (
	confirmBytes = 1 << 20
	confirmAfter = 10 * time.Second
)

// wantsConfirm reports whether the watermark should be noted.
func (p *pipeline) wantsConfirm() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ahead := p.tracker.watermark > p.confirmed
	return ahead && (p.settled || p.tracker.watermark > p.confirmed+confirmBytes || time.Since(p.noted) >= confirmAfter)
}
