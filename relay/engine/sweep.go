package engine

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

const (
	// lookCeiling bounds the pause, whatever a look costs.
	lookCeiling = 10 * time.Minute
	// A look at the newest rows alone, while polling, may take more: it is what its latency is made
	// of.
	windowShare = 20
	// lookBack is how far back such a look goes, from the moment at which the last look at the
	// whole table began: rows are seen when their transaction ends, and created_at is the client's
	// clock. What comes later or is further off is found by the next look at the whole table.
	lookBack = 10 * time.Minute
	// edge is how much of its oldest part, added to the time since that look, is left to the looks
	// at the whole table. A key with a row there is left to them altogether: it may have an older
	// row that the look does not show, and that must not be overtaken. Two rows of a key that have
	// both come since the last look at the whole table are apart by no more than the time since
	// then and the length of a transaction. So a look at the newest rows always takes those of the
	// last lookBack - edge.
	edge = 2 * time.Minute
	// leftSoon is how soon the whole table is looked at again after the newest rows have shown a
	// key that was left out.
	leftSoon = time.Minute
)

// looks is when which kind of row is looked for next.
type looks struct {
	whole  [relay.SweepFailed + 1]relay.Schedule
	window relay.Schedule
	// When the last complete look at the whole table for pending rows began; zero: none yet.
	last time.Time
}

// sweeps look through the table, one at a time: the feeder's, when it recovers or polls, and those
// while streaming.
type sweeps struct {
	cfg     *Config
	log     hclog.Logger
	slotObs relay.SlotObserver
	slot    string
	lease   relay.Sweeper
	facts   relay.Facts
	intake  *intake
	window  *window
	doing   *doing
	doubts  inDoubt

	turn  relay.Turn // whoever has it goes through the table, and owns what follows
	looks looks
}

// sweep gives the rows that the query finds to the lanes, and returns how many there were.
func (s *sweeps) sweep(ctx context.Context, q relay.SweepQuery, cause string) (rows int, err error) {
	defer s.traceSweep(time.Now(), cause, &rows, &err)
	s.doing.lookBegins()
	defer func() { s.doing.lookEnds(ctx, err) }()
	err = s.lease.Sweep(ctx, q, func(events []relay.Event) error {
		n, err := s.intake.admitSwept(ctx, events)
		rows += n
		return err
	})
	if rows > 0 {
		s.slotObs.Found(cause, rows)
	}
	return rows, err
}

// look looks for rows of one kind, and waits until they are marked, so that the next look does not
// find them again. It returns how many there were.
func (s *sweeps) look(ctx context.Context, next *relay.Schedule, q relay.SweepQuery, cause string, share int) (rows int, err error) {
	began, waited := time.Now(), time.Duration(0)
	s.doing.lookBegins()
	defer func() { s.doing.lookEnds(ctx, err) }()
	defer s.traceSweep(began, cause, &rows, &err)
	whole, left := wholeKeys(q.Since, edge+began.Sub(s.looks.last))
	err = s.lease.Sweep(ctx, q, func(events []relay.Event) error {
		at := time.Now()
		n, err := s.intake.admitSwept(ctx, whole(events))
		rows += n
		waited += time.Since(at)
		return err
	})
	took := time.Since(began) - waited
	if left() > 0 {
		s.looks.whole[relay.SweepPending].NotAfter(s.looks.last.Add(leftSoon))
	}
	s.slotObs.LookedFor(q.Kind, took)
	if rows > 0 {
		s.slotObs.Found(cause, rows)
		if err := s.window.waitSwept(ctx); err != nil {
			return rows, err
		}
	}
	switch {
	case err != nil:
		next.At(time.Now().Add(s.cfg.BackoffMax))
	case rows > 0:
		next.At(time.Now().Add(s.cfg.PollInterval))
	default:
		next.After(took, s.cfg.PollInterval, share, lookCeiling)
	}
	return rows, err
}

// traceSweep reports a look at the table to the tracer, unless there was nothing to find.
func (s *sweeps) traceSweep(began time.Time, cause string, rows *int, err *error) {
	if t := s.cfg.Tracer; t != nil && (*rows > 0 || *err != nil) {
		t.Swept(relay.Swept{Slot: s.slot, Cause: cause, Rows: *rows, Started: began, Took: time.Since(began), Err: *err})
	}
}

// wholeKeys returns a filter for the rows of a look that begins at since, in the order of
// created_at. The filter leaves out every key that has a row in the look's first part. left is how
// many keys it has left out.
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

// kinds are what is looked for, in this order: what a dead owner had claimed comes before what is
// pending of its key.
var kinds = [...]relay.SweepKind{relay.SweepClaimed, relay.SweepPending, relay.SweepFailed}

// poll finds events in the table until ctx has ended, or until is closed (nil: never).
func (s *sweeps) poll(ctx context.Context, until <-chan struct{}, why string) {
	s.doing.became(relay.ModePolling, false, why)
	if s.turn.Take(ctx) != nil {
		return
	}
	defer s.turn.Give()
	// What the slot delivered before is still in flight, and its rows are pending until it is
	// marked.
	if s.window.waitIdle(ctx) != nil {
		return
	}
	if time.Since(s.looks.last) > lookBack {
		s.looks = looks{} // what was not streamed since then is looked for in the whole table first
	}
	for {
		s.lookAgain(ctx, until)
		if ctx.Err() != nil || until == nil {
			return
		}
		// A slot that can be read again delivers the rows that were found here, too. All of them
		// are marked, so up to here its rows have to be looked up.
		h, err := s.lease.Horizon(ctx)
		if err == nil {
			_ = s.intake.lookUp(ctx, h.WAL) // it fails only when ctx ends
			return
		}
		s.lookFailed(ctx, err)
		// Nothing may be read from the slot before it is known, so the table is looked at
		// meanwhile.
		until = timeUp(time.Second)
	}
}

// lookAgain looks at the table, again and again, until ctx has ended or until is closed.
func (s *sweeps) lookAgain(ctx context.Context, until <-chan struct{}) {
	warned := time.Time{}
	for ctx.Err() == nil && !closed(until) {
		rows := 0
		for _, k := range kinds {
			if !s.looks.whole[k].Due() {
				continue
			}
			cause, began := k.String(), time.Now()
			if k == relay.SweepPending {
				cause = "polled"
			}
			n, err := s.look(ctx, &s.looks.whole[k], relay.SweepQuery{Kind: k}, cause, relay.LookShare)
			rows += n
			s.lookFailed(ctx, err)
			if k == relay.SweepPending && err == nil {
				s.looks.last = began
				s.doubts.close()
			}
		}
		if !s.looks.whole[relay.SweepPending].Due() && !s.looks.last.IsZero() && s.looks.window.Due() {
			n, err := s.look(ctx, &s.looks.window, relay.SweepQuery{Kind: relay.SweepPending, Since: relay.TimestampOf(s.looks.last.Add(-lookBack))}, "polled", windowShare)
			rows += n
			s.lookFailed(ctx, err)
		}
		if time.Since(warned) > time.Minute {
			warned = time.Now()
			s.warnOfSlot(ctx)
		}
		if rows >= s.cfg.BatchSize { // there is likely more
			s.looks.whole[relay.SweepPending].At(time.Time{})
			continue
		}
		pause(ctx, s.cfg.PollInterval, until)
	}
}

func (s *sweeps) lookFailed(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil && !errors.Is(err, relay.ErrLeaseLost) {
		s.log.Warn("a look at the table did not succeed", "error", err)
	}
}

// warnOfSlot logs that a slot which nobody reads fills the database's disk.
func (s *sweeps) warnOfSlot(ctx context.Context) {
	info, err := s.facts.Slot(ctx)
	if err != nil || !info.Exists || info.Active {
		return
	}
	s.log.Warn("the replication slot is not being read, and keeps WAL on the database's disk",
		"retained_bytes", uint64(info.WALEnd-min(info.WALEnd, info.Restart)), "fix", "drop it if the relay is to go on polling: SELECT pg_drop_replication_slot('"+s.slot+"')")
}

// sweepWhileStreaming looks, during a running stream, for rows that the stream does not deliver:
// set back to pending by hand, left behind by a dead worker, inserted by a subscription. It looks
// twice. What is visible at the first look was committed before the WAL's end just after it. When
// the watermark has passed that end, the stream is done with all of it. Whatever of it still asks
// for delivery is not the stream's.
func (s *sweeps) sweepWhileStreaming(ctx context.Context) error {
	var looks [relay.SweepFailed + 1]relay.Schedule
	for relay.Sleep(ctx, s.cfg.PollInterval) {
		// In any order: the slot delivers what dead owners had claimed.
		for _, k := range [...]relay.SweepKind{relay.SweepPending, relay.SweepClaimed, relay.SweepFailed} {
			if ctx.Err() != nil || !looks[k].Due() || !s.doing.isStreaming() {
				continue
			}
			h, err := s.lease.Horizon(ctx)
			if err != nil {
				s.lookFailed(ctx, err)
				break
			}
			if !s.waitWatermark(ctx, h.WAL) {
				break
			}
			if s.turn.Take(ctx) != nil {
				return nil
			}
			if s.doing.isStreaming() { // otherwise the feeder may have swept meanwhile
				var rows int
				rows, err = s.look(ctx, &looks[k], relay.SweepQuery{Kind: k, Seen: h.Snapshot}, k.String(), relay.LookShare)
				if rows > 0 {
					s.log.Info("found rows in the table that the stream does not deliver", "rows", rows, "cause", k.String())
				}
				s.lookFailed(ctx, err)
			}
			s.turn.Give()
		}
	}
	return nil
}

// waitWatermark waits until everything committed before lsn is settled; it returns false when the
// stream has ended before that.
func (s *sweeps) waitWatermark(ctx context.Context, lsn relay.LSN) bool {
	for s.window.watermark() < lsn {
		if !relay.Sleep(ctx, 50*time.Millisecond) || !s.doing.isStreaming() {
			return false
		}
	}
	return true
}
