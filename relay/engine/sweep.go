package engine

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

const (
	// lookCeiling bounds the pause, whatever a look costs.
	lookCeiling = 10 * time.Minute
	// A look at the newest rows alone, while polling, may take more: it is what its latency is made of.
	windowShare = 20
	// window is how far back such a look goes, from the moment at which the last look at the whole table began: rows are seen when
	// their transaction ends, and created_at is the client's clock. What comes later or is further off is found by the next look
	// at the whole table.
	window = 10 * time.Minute
	// edge is the part of the window's far end, next to the time since that look, which belongs to the looks at the whole table too. A key with
	// a row there is left to them altogether: it may have an older row that the window does not show, and that must not be
	// overtaken. Two rows of a key that have both come since the last look at the whole table are apart by no more than the time
	// since then and the length of a transaction. So a look at the newest rows always takes those of the last window - edge.
	edge = 2 * time.Minute
	// leftSoon is how soon the whole table is looked at again after the newest rows have shown a key that was left out.
	leftSoon = time.Minute
)

// looks says when which kind of row is looked for next.
type looks struct {
	whole  [relay.SweepFailed + 1]relay.Schedule
	window relay.Schedule
	last   time.Time // when the last look at the whole table for pending rows that found what there was began; zero: there was none yet
}

// sweep gives the rows that the query finds to the lanes, and returns how many there were.
func (p *pipeline) sweep(ctx context.Context, q relay.SweepQuery, cause string) (rows int, err error) {
	defer p.traceSweep(time.Now(), cause, &rows, &err)
	p.lookBegins()
	defer func() { p.lookEnds(ctx, err) }()
	err = p.lease.Sweep(ctx, q, func(events []relay.Event) error {
		n, err := p.admitSwept(ctx, events)
		rows += n
		return err
	})
	if rows > 0 {
		p.told.Found(cause, rows)
	}
	return rows, err
}

// admitSwept is Admit for rows from the table.
func (p *pipeline) admitSwept(ctx context.Context, events []relay.Event) (rows int, err error) {
	if err := p.admitting.Take(ctx); err != nil {
		return 0, err
	}
	defer p.admitting.Give()
	if p.cfg.Hybrid {
		if events, err = p.claimSwept(ctx, events); err != nil {
			return 0, err
		}
	}
	for len(events) > 0 {
		n, err := p.reserve(ctx, events)
		if err != nil {
			return rows, err
		}
		p.launch(events[:n], true)
		rows += n
		events = events[n:]
	}
	return rows, nil
}

// claimSwept claims rows, so that no other worker takes them meanwhile, and returns those that are ours. What another worker holds it leaves
// out: unlike the stream, a sweep comes again.
func (p *pipeline) claimSwept(ctx context.Context, events []relay.Event) ([]relay.Event, error) {
	kept := make([]relay.Event, 0, len(events))
	settled, err := p.lease.Settled(ctx, events)
	for i := range events {
		claimed := (*relay.ClaimedError)(nil)
		if err == nil {
			if !settled[i] {
				kept = append(kept, events[i])
			}
			continue
		}
		if !errors.As(err, &claimed) {
			return nil, err
		}
		// Some are others', and it is not said which.
		switch one, err := p.lease.Settled(ctx, events[i:i+1]); {
		case errors.As(err, &claimed):
		case err != nil:
			return nil, err
		case !one[0]:
			kept = append(kept, events[i])
		}
	}
	return kept, nil
}

// waitIdle waits until nothing is in flight: whatever was taken is marked, or in the ledger.
func (p *pipeline) waitIdle(ctx context.Context) error {
	return p.waitNone(ctx, func() int { return p.tracker.len() })
}

// waitSwept waits until all swept rows are marked, or in the ledger.
func (p *pipeline) waitSwept(ctx context.Context) error {
	return p.waitNone(ctx, func() int { return p.sweeping })
}

// waitNone waits until a count, which is taken under mu, is 0.
func (p *pipeline) waitNone(ctx context.Context, count func() int) error {
	for {
		p.mu.Lock()
		left := count()
		p.mu.Unlock()
		if left == 0 {
			return nil
		}
		if !relay.Sleep(ctx, 5*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

// look looks for rows of one kind, and waits until they are marked, so that the next look does not find them again. It returns how many there
// were.
func (p *pipeline) look(ctx context.Context, s *relay.Schedule, q relay.SweepQuery, cause string, share int) (rows int, err error) {
	began, waited := time.Now(), time.Duration(0)
	p.lookBegins()
	defer func() { p.lookEnds(ctx, err) }()
	defer p.traceSweep(began, cause, &rows, &err)
	whole, left := wholeKeys(q.Since, edge+began.Sub(p.looks.last))
	err = p.lease.Sweep(ctx, q, func(events []relay.Event) error {
		at := time.Now()
		n, err := p.admitSwept(ctx, whole(events))
		rows += n
		waited += time.Since(at)
		return err
	})
	took := time.Since(began) - waited
	if left() > 0 {
		p.looks.whole[relay.SweepPending].NotAfter(p.looks.last.Add(leftSoon))
	}
	p.told.LookedFor(q.Kind, took)
	if rows > 0 {
		p.told.Found(cause, rows)
		if err := p.waitSwept(ctx); err != nil {
			return rows, err
		}
	}
	switch {
	case err != nil:
		s.At(time.Now().Add(p.cfg.BackoffMax))
	case rows > 0:
		s.At(time.Now().Add(p.cfg.PollInterval))
	default:
		s.After(took, p.cfg.PollInterval, share, lookCeiling)
	}
	return rows, err
}

// traceSweep tells the tracer of a look at the table, unless there was nothing to find.
func (p *pipeline) traceSweep(began time.Time, cause string, rows *int, err *error) {
	if t := p.cfg.Tracer; t != nil && (*rows > 0 || *err != nil) {
		t.Swept(relay.Swept{Slot: p.slot, Cause: cause, Rows: *rows, Started: began, Took: time.Since(began), Err: *err})
	}
}

// wholeKeys returns a filter for rows in the order of created_at that leaves out, of a look that begins at since, the keys with a row in the
// first part of it. left is how many keys that were.
func wholeKeys(since relay.Timestamp, part time.Duration) (filter func([]relay.Event) []relay.Event, left func() int) {
	if since == 0 {
		return func(events []relay.Event) []relay.Event { return events }, func() int { return 0 }
	}
	until := since + relay.Timestamp(part.Microseconds())
	out := make(map[string]bool)
	return func(events []relay.Event) []relay.Event {
		kept := events[:0]
		for i := range events {
			ev := &events[i]
			if ev.CreatedAt < until {
				out[strings.Clone(ev.AggregateID)] = true // a part of a row's text keeps all of it
			}
			if !out[ev.AggregateID] {
				kept = append(kept, *ev)
			}
		}
		return kept
	}, func() int { return len(out) }
}

// kinds are what is looked for. What a dead owner had claimed lies in front of what is pending of its key.
var kinds = [...]relay.SweepKind{relay.SweepClaimed, relay.SweepPending, relay.SweepFailed}

// poll finds events in the table until ctx has ended, or until is closed (nil: never).
func (p *pipeline) poll(ctx context.Context, until <-chan struct{}, why string) {
	p.became(relay.ModePolling, false, why)
	if p.sweeper.Take(ctx) != nil {
		return
	}
	defer p.sweeper.Give()
	// What the slot told before is on its way, and its rows are pending as long.
	if p.waitIdle(ctx) != nil {
		return
	}
	if time.Since(p.looks.last) > window {
		p.looks = looks{} // what was not streamed since then is looked for in the whole table first
	}
	for {
		p.lookAgain(ctx, until)
		if ctx.Err() != nil || until == nil {
			return
		}
		// A slot that can be read again tells of the rows that were found here. All of them are marked; up to here it has to be asked.
		h, err := p.lease.Horizon(ctx)
		if err == nil {
			if p.admitting.Take(ctx) == nil {
				p.lookupTo = max(p.lookupTo, h.WAL)
				p.admitting.Give()
			}
			return
		}
		p.lookFailed(ctx, err)
		until = timeUp(time.Second) // nothing may be read from the slot before it is known, so the table is looked at meanwhile
	}
}

// lookAgain looks at the table, again and again, until ctx has ended or until is closed.
func (p *pipeline) lookAgain(ctx context.Context, until <-chan struct{}) {
	warned := time.Time{}
	for ctx.Err() == nil && !closed(until) {
		rows := 0
		for _, k := range kinds {
			if !p.looks.whole[k].Due() {
				continue
			}
			cause, began := k.String(), time.Now()
			if k == relay.SweepPending {
				cause = "polled"
			}
			n, err := p.look(ctx, &p.looks.whole[k], relay.SweepQuery{Kind: k}, cause, relay.LookShare)
			rows += n
			p.lookFailed(ctx, err)
			if k == relay.SweepPending && err == nil {
				p.looks.last = began
			}
		}
		if !p.looks.whole[relay.SweepPending].Due() && !p.looks.last.IsZero() && p.looks.window.Due() {
			n, err := p.look(ctx, &p.looks.window, relay.SweepQuery{Kind: relay.SweepPending, Since: relay.TimestampOf(p.looks.last.Add(-window))}, "polled", windowShare)
			rows += n
			p.lookFailed(ctx, err)
		}
		if time.Since(warned) > time.Minute {
			warned = time.Now()
			p.warnOfSlot(ctx)
		}
		if rows >= p.cfg.BatchSize { // there is likely more
			p.looks.whole[relay.SweepPending].At(time.Time{})
			continue
		}
		pause(ctx, p.cfg.PollInterval, until)
	}
}

// pause waits for d, or until ctx ends or done is closed, and reports whether done was closed.
func pause(ctx context.Context, d time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false
	case <-ctx.Done():
		return false
	case <-done:
		return true
	}
}

// timeUp returns a channel that is closed when the time has passed.
func timeUp(d time.Duration) <-chan struct{} {
	done := make(chan struct{})
	time.AfterFunc(d, func() { close(done) })
	return done
}

// closed reports whether a channel on which nothing is sent is closed.
func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (p *pipeline) lookFailed(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil && !errors.Is(err, relay.ErrLeaseLost) {
		p.log.Warn("a look at the table did not succeed", "error", err)
	}
}

// warnOfSlot says that a slot which nobody reads fills the database's disk.
func (p *pipeline) warnOfSlot(ctx context.Context) {
	info, err := p.lease.Slot(ctx)
	if err != nil || !info.Exists || info.Active {
		return
	}
	p.log.Warn("the replication slot is not being read, and keeps WAL on the database's disk",
		"retained_bytes", uint64(info.WALEnd-min(info.WALEnd, info.Restart)), "fix", "drop it if the relay is to go on polling: SELECT pg_drop_replication_slot('"+p.slot+"')")
}

// sweepBeside looks, beside a running stream, for rows that no slot tells of: set back to pending by hand, left behind by a dead worker,
// inserted by a subscription. It looks twice. What is visible at the first look was committed before the WAL's end just after it; when the
// watermark has passed that end, the stream is done with all of it, and whatever of it still asks for delivery is not the stream's.
func (p *pipeline) sweepBeside(ctx context.Context) error {
	var looks [relay.SweepFailed + 1]relay.Schedule
	for relay.Sleep(ctx, p.cfg.PollInterval) {
		// The slot tells of what dead owners had claimed.
		for _, k := range [...]relay.SweepKind{relay.SweepPending, relay.SweepClaimed, relay.SweepFailed} {
			if ctx.Err() != nil || !looks[k].Due() || !p.isStreaming() {
				continue
			}
			h, err := p.lease.Horizon(ctx)
			if err != nil {
				p.lookFailed(ctx, err)
				break
			}
			if !p.waitWatermark(ctx, h.WAL) {
				break
			}
			if p.sweeper.Take(ctx) != nil {
				return nil
			}
			if p.isStreaming() { // otherwise the feeder may have swept meanwhile
				var rows int
				rows, err = p.look(ctx, &looks[k], relay.SweepQuery{Kind: k, Seen: h.Snapshot}, k.String(), relay.LookShare)
				if rows > 0 {
					p.log.Info("found rows in the table that the slot does not tell of", "rows", rows, "cause", k.String())
				}
				p.lookFailed(ctx, err)
			}
			p.sweeper.Give()
		}
	}
	return nil
}

// waitWatermark waits until everything committed before lsn is settled; it returns false when the stream has ended before that.
func (p *pipeline) waitWatermark(ctx context.Context, lsn relay.LSN) bool {
	for p.watermark() < lsn {
		if !relay.Sleep(ctx, 50*time.Millisecond) || !p.isStreaming() {
			return false
		}
	}
	return true
}

// dropDiscarded takes out of the ledger what people discard of sinks that are not configured any more. Nothing else is done with
// those entries: the sink may come back.
func (p *pipeline) dropDiscarded(ctx context.Context, sinks []string) error {
	for relay.Sleep(ctx, 5*p.cfg.PollInterval) {
		for _, sink := range sinks {
			due, _, err := p.lease.Due(ctx, sink, roundEntries, roundBytes)
			if err != nil {
				continue // those who need the ledger say it
			}
			var outcomes []relay.Outcome
			for i := range due {
				if due[i].Discarded || due[i].Gone {
					outcomes = append(outcomes, relay.Outcome{Entry: &due[i], Fate: relay.FateDropped})
				}
			}
			if len(outcomes) == 0 {
				continue
			}
			if err := p.lease.Resolve(ctx, sink, outcomes); err != nil && ctx.Err() == nil {
				p.log.Warn("dropping discarded ledger entries", "sink", sink, "error", err)
			}
		}
	}
	return nil
}
