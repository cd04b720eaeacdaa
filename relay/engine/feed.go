package engine

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// How events are found, in one place. The feeder is one goroutine; it streams, recovers or polls,
// never two of them at a time:
//
//	      ┌────────────── slot gone ◀─────────────┐
//	      ▼                                       │
//	  owe a sweep ─▶ create ─▶ sweep ─▶ all marked ─▶ stream ──connection lost──▶ (again)
//	      ▲                                       │
//	      └── streaming impossible: poll for a while, in mode auto ◀──┘
//
// Crashes that a recovery survives:
//   - Before the sweep is noted as owed: the slot is found gone again.
//   - Between the note and the new slot: the note is there, the slot is not.
//   - Between the new slot and the snapshot, during the sweep, and before its end is noted: the
//     note is still there. The next owner sweeps the same rows again, without those that were
//     marked.
//   - After the end is noted: MarkedLSN is past everything that the sweep has marked. What the slot
//     delivers of it is looked up and left out.

// feeder finds events for one pipeline. It is one goroutine, which owns what it has.
type feeder struct {
	cfg     *Config
	log     hclog.Logger
	obs     relay.Observer
	slotObs relay.SlotObserver
	slot    string
	shard   relay.Shard
	source  relay.Source
	tenure  relay.Tenure
	lease   relay.Sweeper
	window  *window
	confirm *confirmation
	intake  *intake
	sweeps  *sweeps
	doing   *doing
	doubts  inDoubt

	recovery relay.Recovery
	opened   bool         // the slot could be read at least once
	worked   *atomic.Bool // any slot of this process could be
}

// run finds events until ctx ends. Then it calls finish with the open stream, or with nil when no
// stream is open.
func (f *feeder) run(ctx context.Context, finish func(relay.Stream) error) error {
	if f.cfg.Mode == relay.ModePolling {
		f.sweeps.poll(ctx, nil, relay.WantsPolling)
		return finish(nil)
	}
	return f.readStream(ctx, finish)
}

// readStream opens the slot and receives, again and again, until ctx ends.
func (f *feeder) readStream(ctx context.Context, finish func(relay.Stream) error) error {
	backoff := relay.Backoff{Min: f.cfg.BackoffMin, Max: f.cfg.BackoffMax}
	resumed := "streaming"
	for {
		var stream relay.Stream
		err := f.recover(ctx)
		if err == nil {
			stream, err = f.source.Open(ctx, f.shard, f.confirm.confirmed())
		}
		if err == nil {
			f.log.Info(resumed)
			resumed, f.opened = "replication resumed", true
			f.worked.Store(true)
			f.doing.became(relay.ModeCDC, true, "")
			since := time.Now()
			err = stream.Run(ctx, f.intake)
			if ctx.Err() != nil {
				f.doing.became(relay.ModeCDC, true, "")
				return finish(stream)
			}
			f.doing.became(relay.ModeCDC, false, err.Error())
			// Opening proves nothing: a message that cannot be understood comes again at once.
			if time.Since(since) > f.cfg.BackoffMax {
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
		f.slotObs.Interrupted()
		wait := backoff.Next()
		var setup *relay.SetupError
		var gone *relay.SlotGoneError
		switch {
		case errors.As(err, &gone):
			f.log.Error("the slot cannot deliver everything any more: rows will be found in the table, and the slot made again if need be", "cause", gone.Cause, "error", err)
			f.obs.Changed(relay.Change{Kind: relay.ChangeSlotGone, Level: relay.LevelBroken, Slot: f.slot, Text: "it cannot deliver everything any more: " + string(gone.Cause)})
			if err := f.owe(ctx, string(gone.Cause)); errors.Is(err, relay.ErrLeaseLost) {
				return err
			}
		case errors.As(err, &setup) && setup.Streaming && f.cfg.Mode == relay.ModeAuto:
			f.log.Error("streaming is impossible, so the table is polled until it is possible", "poll_interval", f.cfg.PollInterval, "error", err)
			f.sweeps.poll(ctx, timeUp(retryStreaming), err.Error())
			if ctx.Err() != nil {
				return finish(nil)
			}
			continue
		case setup != nil && !f.opened && (f.shard.Whole() || !f.worked.Load()):
			return err // otherwise the other slots go on
		case setup != nil:
			f.log.Error("replication cannot go on", "backoff", wait, "error", err)
		case errors.Is(err, relay.ErrSlotBusy):
			// The walsender of an owner that died lives on for a moment; a person may look in with
			// pg_recvlogical.
			wait = min(wait, busyPause)
			f.log.Info("waiting for the slot", "error", err)
		default:
			f.log.Warn("replication interrupted", "backoff", wait, "error", err)
		}
		relay.Sleep(ctx, wait)
	}
}

const (
	busyPause = 200 * time.Millisecond
	// retryStreaming is how long mode auto polls before it tries to stream again.
	retryStreaming = 30 * time.Second
)

// owe notes durably that the table has to be swept before the slot is read again.
func (f *feeder) owe(ctx context.Context, cause string) error {
	err := relay.Retry(ctx, relay.Backoff{Min: f.cfg.BackoffMin, Max: f.cfg.BackoffMax}, func() error {
		return f.lease.OweSweep(ctx, cause)
	}, func(err error, _ time.Duration) bool {
		if errors.Is(err, relay.ErrLeaseLost) {
			return false
		}
		f.log.Warn("noting that a sweep is owed", "error", err)
		return true
	})
	switch {
	case err == nil:
		f.recovery = relay.Recovery{Owed: true, Cause: cause}
		return nil
	case ctx.Err() != nil && !errors.Is(err, relay.ErrLeaseLost):
		return context.Cause(ctx)
	}
	return err
}

// recover does the sweep that is owed: it makes the slot, sweeps what the slot will not deliver,
// and waits until all of that is marked.
func (f *feeder) recover(ctx context.Context) error {
	if !f.recovery.Owed {
		return nil
	}
	cause := f.recovery.Cause
	f.doing.became(relay.ModeRecovering, false, cause)
	if !f.tenure.Valid() {
		// The epoch does not protect a slot. If we freeze right here, the next owner finds it gone,
		// or moved.
		return relay.ErrLeaseLost
	}
	at, err := f.create(ctx)
	if err != nil {
		return err
	}
	f.doing.became(relay.ModeRecovering, false, cause)
	from, err := f.lease.SweepFrom(ctx, at)
	if err != nil {
		return fmt.Errorf("begin the sweep: %w", err)
	}
	began := time.Now()
	rows := 0
	if err := f.sweeps.turn.Take(ctx); err != nil {
		return err
	}
	defer f.sweeps.turn.Give()
	// What the old slot delivered is still in flight, and its rows are pending until it is marked.
	if err := f.window.waitIdle(ctx); err != nil {
		return err
	}
	for _, k := range kinds {
		n, err := f.sweeps.sweep(ctx, relay.SweepQuery{Kind: k, Seen: from.Snapshot}, cause)
		rows += n
		if err != nil {
			return fmt.Errorf("sweep the table: %w", err)
		}
	}
	if err := f.window.waitIdle(ctx); err != nil {
		return err
	}
	marked, err := f.lease.EndSweep(ctx, at)
	if err != nil {
		return fmt.Errorf("end the sweep: %w", err)
	}
	if err := f.intake.restart(ctx, at, marked); err != nil {
		return err
	}
	f.window.restart(at)
	f.confirm.restart(at)
	f.recovery = relay.Recovery{}
	f.doubts.close()
	f.log.Info("recovered: what the slot does not deliver was found in the table", "cause", cause, "rows", rows, "took", time.Since(began).Round(time.Millisecond), "slot_from", at)
	return nil
}
