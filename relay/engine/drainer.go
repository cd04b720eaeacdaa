package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// drainer brings one sink's ledger entries to it, in rounds: read what is due, offer it through the
// lanes, write what became of it.
//
// Crashes it survives. Between the offer and the write: the entries are still there, and the next
// owner offers them again, in order. Their outcome is unknown, so a suffix of a key may be
// repeated. Between the write and the row's mark: they are one transaction. An owner that is fenced
// in between writes nothing, because the write checks the epoch.
//
// The sink is probed by offering the first entries to it. While it is isolated, nothing else would
// notice its return.
type drainer struct {
	cfg     *Config
	slot    string
	lease   relay.Ledger
	maker   maker
	rules   ruleCounter
	slotObs relay.SlotObserver
	window  *window
	sink    relay.Sink
	index   int // of the sink
	health  *sinkHealth
	shelf   *shelf
	lanes   []*lane
	log     hclog.Logger
	failing bool // the last round got nothing through

	healed bool  // all lines were looked at since the lease was taken
	healAt int32 // where the next look at them begins
}

// A round is large enough for its round trips not to show and small enough for memory. Slots of one
// process have equal parts of its bytes.
const (
	roundEntries    = 2000
	roundBytes      = 2 << 20
	leastRoundBytes = 128 << 10
)

// run drains until ctx ends; no round begins after stopping has. It returns an error only when the
// lease is gone.
func (d *drainer) run(ctx, stopping context.Context) error {
	backoff := relay.Backoff{Min: d.cfg.BackoffMin, Max: d.cfg.BackoffMax}
	defer func() {
		if d.failing {
			d.health.left()
		}
	}()
	for {
		wait, err := d.once(ctx, stopping, &backoff)
		switch {
		case errors.Is(err, relay.ErrLeaseLost):
			return err
		case ctx.Err() != nil:
			return nil
		case err != nil:
			wait = backoff.Next()
			d.log.Warn("the ledger could not be read or written, trying again", "backoff", wait, "error", err)
		}
		if wait == 0 {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-d.shelf.wake:
			if d.failing { // what was parked meanwhile does not make the sink come back sooner
				select {
				case <-timer.C:
				case <-stopping.Done():
				}
			}
		case <-stopping.Done():
			timer.Stop()
			<-ctx.Done()
			return nil
		}
		timer.Stop()
	}
}

// once makes one round and returns how long to wait before the next.
func (d *drainer) once(ctx, stopping context.Context, backoff *relay.Backoff) (wait time.Duration, err error) {
	if stopping.Err() != nil {
		<-ctx.Done()
		return 0, nil
	}
	if !d.healed {
		if _, err := d.heal(ctx); err != nil {
			return 0, err
		}
	}
	limit := roundEntries
	if d.failing {
		limit = len(d.lanes) * 10 // a probe
	}
	due, next, err := d.lease.Due(ctx, d.sink.Name(), limit, d.window.budget.part(roundBytes, leastRoundBytes))
	if err != nil {
		return 0, fmt.Errorf("read the ledger of sink %s: %w", d.sink.Name(), err)
	}
	if len(due) == 0 {
		return d.idle(ctx, next, backoff)
	}
	if !d.window.beginRound() {
		<-ctx.Done() // draining
		return 0, nil
	}
	defer d.window.endRound()

	began := time.Now()
	r, offered := d.launch(due)
	if offered == 0 {
		d.end(nil)
		return d.cfg.PollInterval, nil // the mark that makes them wakes us
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return 0, nil
	}
	if t := d.cfg.Tracer; t != nil {
		t.Drained(relay.Drained{
			Slot: d.slot, Sink: d.sink.Name(), Offered: offered, Settled: len(r.outcomes), Failing: len(r.failed), Started: began, Took: time.Since(began),
		})
	}
	// Nothing got through. Either the sink is down, or these are all of a part of it that is (a
	// partition without a leader), and others further on would be taken.
	part := len(r.failed) > 0 && (r.answers() > 0 || d.answers(ctx))
	if err := d.resolve(ctx, r, offered, part); err != nil {
		return 0, err
	}
	if len(r.failed) == 0 && len(r.outcomes) == 0 {
		return d.cfg.PollInterval, nil
	}
	if len(r.failed) == 0 && r.answers() == 0 {
		return 0, nil // the sink was not asked
	}
	if r.answers() > 0 {
		if len(r.failed) > 0 {
			d.health.partly(d.log, r.lastError, len(r.failed))
		}
		d.recovered()
		backoff.Reset()
		return 0, nil
	}
	wait = backoff.Next()
	d.health.failed(d.log, !d.failing, r.lastError, time.Now(), len(r.failed), wait)
	d.failing = true
	return wait, nil
}

// idle is for when nothing is due.
func (d *drainer) idle(ctx context.Context, next time.Duration, backoff *relay.Backoff) (time.Duration, error) {
	if _, down, _ := d.shelf.state(); down {
		// Nothing to try it with, so it is asked.
		if _, ok := d.sink.(relay.Checker); ok && !d.answers(ctx) {
			return backoff.Next(), nil
		}
		d.recovered()
	}
	if freed, err := d.heal(ctx); err != nil || freed > 0 {
		return 0, err
	}
	wait := d.cfg.PollInterval
	if next >= 0 {
		wait = min(wait, max(next, time.Millisecond))
	}
	return wait, nil
}

// heal has some lines looked at for entries that are held behind nothing. Nothing else would ever
// offer those.
func (d *drainer) heal(ctx context.Context) (freed int, err error) {
	if entries, _, _ := d.shelf.state(); entries == 0 {
		d.healed = true
		return 0, nil
	}
	freed, d.healAt, err = d.lease.Heal(ctx, d.sink.Name(), d.healAt)
	if err != nil {
		return 0, err
	}
	d.healed = d.healed || d.healAt == math.MinInt32
	if freed > 0 {
		d.log.Warn("ledger entries were held behind nothing, and go out now", "entries", freed)
	}
	return freed, nil
}

// answers reports whether the sink is one that can be asked, and is reachable.
func (d *drainer) answers(ctx context.Context) bool {
	c, ok := d.sink.(relay.Checker)
	if !ok {
		return false
	}
	asking, cancel := context.WithTimeout(ctx, d.cfg.BackoffMax)
	defer cancel()
	return c.Check(asking) == nil
}

// recovered notes that the sink answers.
func (d *drainer) recovered() {
	if d.failing {
		d.failing = false
		d.health.recovered(d.log)
	}
	if ended, after := d.shelf.up(false); ended {
		d.health.restore(restoredUp)
		entries, _, _ := d.shelf.state()
		d.log.Info("sink is back, its ledger is being drained", "isolated_for", after.Round(time.Second), "entries", entries)
	}
}

// launch puts the entries on the lanes, or settles those that there is nothing to offer of. It
// returns how many that were.
func (d *drainer) launch(due []relay.Entry) (r *round, offered int) {
	r = newRound(len(due))
	certain := d.shelf.certain(due)
	d.shelf.begin(due)
	again := 0
	var gone []*relay.Entry
	byLane := make([][]*flight, len(d.lanes))
	flights := make([]flight, len(due))
	for i := range due {
		e, f := &due[i], &flights[i]
		if !certain[i] || r.haltedKey(e.Event.AggregateID) {
			r.leave(e, nil)
			continue
		}
		offered++
		if e.Gone || e.Discarded {
			r.note(relay.Outcome{Entry: e, Fate: relay.FateDropped})
			if e.Gone {
				gone = append(gone, e)
			}
			continue
		}
		f.round, f.Entry, f.size, f.keyHash = r, e, e.Event.Size(), e.KeyHash
		f.SagaID, f.AggregateType = e.Event.SagaID, e.Event.AggregateType
		if d.maker.make(f, &e.Event, d.index, e.ReplayedAt); f.dropped(d.index) {
			// By the rules of now, whatever they were when it was parked.
			r.note(relay.Outcome{Entry: e, Fate: relay.FateDelivered, Dropped: true})
			d.rules.note(f)
			continue
		}
		if e.Attempts > 0 {
			again++
		}
		lane := relay.Partition(relay.KeyHash(e.Event.AggregateID), len(d.lanes))
		byLane[lane] = append(byLane[lane], f)
	}
	if len(gone) > 0 {
		d.slotObs.Gone(d.sink.Name(), gone)
	}
	var retried []*relay.Flight
	for _, flights := range byLane {
		for _, f := range flights {
			retried = append(retried, &f.Flight)
		}
	}
	d.slotObs.Retried(d.sink.Name(), retried, again)
	for lane, flights := range byLane {
		if len(flights) > 0 {
			d.lanes[lane].push(flights)
		}
	}
	return r, offered
}

// resolve writes the outcomes of a round, through transient errors of the database: what was
// delivered must not be forgotten.
func (d *drainer) resolve(ctx context.Context, r *round, offered int, part bool) error {
	outcomes := r.outcomes
	if part {
		// The sink takes others and not these. They are retried later, or they would be the first
		// at every round. That is no attempt of theirs.
		first := make(map[string]bool)
		for _, e := range r.failed {
			if key := e.Event.AggregateID; !first[key] {
				first[key] = true
				outcomes = append(outcomes, relay.Outcome{
					Entry: e, Fate: relay.FateRefused, Reason: relay.ReasonSinkDown, Error: validError(r.lastError), Attempts: e.Attempts, Delay: d.cfg.BackoffMax,
				})
			}
		}
	}
	if len(outcomes) > 0 {
		err := relay.Retry(ctx, relay.Backoff{Min: d.cfg.BackoffMin, Max: d.cfg.BackoffMax}, func() error {
			return d.lease.Resolve(ctx, d.sink.Name(), outcomes)
		}, func(err error, wait time.Duration) bool {
			if errors.Is(err, relay.ErrLeaseLost) {
				return false
			}
			d.log.Warn("the outcome of ledger entries could not be written, trying again", "entries", len(outcomes), "backoff", wait, "error", err)
			return true
		})
		if err != nil {
			return err
		}
	}
	var freed []*relay.Entry
	for i := range outcomes {
		o := &outcomes[i]
		if o.Fate != relay.FateRefused && !(o.Fate == relay.FateDead && !o.Detach) {
			freed = append(freed, o.Entry)
		}
	}
	d.end(freed)
	d.rules.report()
	d.slotObs.Resolved(d.sink.Name(), outcomes)
	d.log.Debug("ledger round", "offered", offered, "resolved", len(outcomes), "failed", len(r.failed))
	return nil
}

// end ends the round, and wakes the lanes for what they have deferred until then.
func (d *drainer) end(freed []*relay.Entry) {
	d.shelf.end(freed)
	for _, l := range d.lanes {
		relay.Wake(l.wake)
	}
}

func validError(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
