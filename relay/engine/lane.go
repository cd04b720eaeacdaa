package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// lane carries the events of its keys to one sink, in order, one batch at a time: those that the stream tells of, those found in the
// table, and those from the ledger.
//
// Its queue is not bounded by itself: everything in it is in flight, or in the one round of ledger entries, so the in-flight
// budget bounds it, and whoever pushes never waits.
//
// The order of a key is kept here, and nowhere else: a key has one lane per sink. An event whose key has entries in the ledger goes there
// too (shelf.verdict), or waits aside for as long as all of them are being offered.
type lane struct {
	slot   string
	sink   relay.Sink
	index  int // of the sink
	health *sinkHealth
	shelf  *shelf
	cfg    *Config
	log    hclog.Logger
	valid  func() bool // the lease's; asked before every offer
	settle func(sink int, batch []*flight, parks []*relay.Parked)
	told   relay.SinkObserver // of what the sink is offered
	parks  relay.SlotObserver // of what goes to the ledger

	offering atomic.Bool // the sink has not answered yet

	wake chan struct{} // capacity one: "the queue was empty and is not any more", or a round has ended

	// Owned by run.
	offers      int             // of what is being offered, this one included
	failing     bool            // the last offer was not taken; known to health
	failingFrom time.Time       // when the offer was made that began the failing
	aside       []*flight       // wait for the end of a round, in order
	asideOf     map[uint32]bool // their buckets
	asideSince  int             // shelf.rounds when the first of them was put aside
	reports     reports

	mu    sync.Mutex // guards queue
	queue []*flight
}

// push puts events behind all others.
func (l *lane) push(flights []*flight) {
	l.mu.Lock()
	wasEmpty := len(l.queue) == 0
	l.queue = append(l.queue, flights...)
	l.mu.Unlock()
	if wasEmpty {
		signal(l.wake)
	}
}

// take moves the front of the queue, up to the batch limits, into buf.
func (l *lane) take(buf []*flight) []*flight {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, size := 0, 0
	for n < len(l.queue) && n < l.cfg.BatchSize {
		size += l.queue[n].size
		if n > 0 && size > l.cfg.BatchBytes {
			break
		}
		n++
	}
	buf = append(buf, l.queue[:n]...)
	rest := copy(l.queue, l.queue[n:])
	clear(l.queue[rest:])
	l.queue = l.queue[:rest]
	return buf
}

// untake puts events that were taken back to the front of the queue.
func (l *lane) untake(flights []*flight) {
	l.mu.Lock()
	l.queue = slices.Insert(l.queue, 0, flights...)
	l.mu.Unlock()
}

// unshelve puts what waits aside back to the front of the queue, once the round has ended.
func (l *lane) unshelve() {
	if len(l.aside) == 0 {
		return
	}
	l.shelf.mu.Lock()
	ended := l.shelf.rounds != l.asideSince
	l.shelf.mu.Unlock()
	if !ended {
		return
	}
	l.untake(l.aside)
	l.aside, l.asideOf = nil, nil
}

// triage returns what of a batch is to be offered, at the front of batch's own memory. The rest it parks, leaves in the ledger, or puts
// aside.
//
// Nothing is parked past what is still to be offered: the sink may not take that, it would come to the ledger later, and be behind. So
// the batch ends in front of an event that has to go to the ledger while one of its key (or bucket: their counts are one) is kept, and
// the rest goes back to the queue until the kept ones have their fates.
func (l *lane) triage(batch []*flight) []*flight {
	var parked []*flight
	var parks []*relay.Parked
	var unfit []relay.Refusal
	kept, keeps := batch[:0], keeping{}
	l.shelf.mu.Lock()
	isolated := l.shelf.down || l.shelf.overWAL
	for i, f := range batch {
		if f.round != nil {
			switch {
			case f.round.haltedKey(f.Record.Key):
				f.round.leave(f.Entry, nil)
			case f.Unfit != nil && keeps.entry(kept, f):
				f.round.leave(f.Entry, nil) // its turn comes when those in front of it have their fates
			case f.Unfit != nil:
				unfit = append(unfit, relay.Refusal{Flight: &f.Flight, Err: f.Unfit})
				f.round.settle(l.cfg.refusedAgain(f.Entry, f.Unfit))
			default:
				kept = append(kept, f)
			}
			continue
		}
		v := l.shelf.verdict(f.keyHash)
		if l.asideOf[bucketOf(f.keyHash)] {
			v = hold // its predecessors are there
		}
		if (v == toShelf || v == offer && f.Unfit != nil) && keeps.event(kept, f) {
			l.untake(batch[i:])
			break
		}
		switch {
		case v == hold:
			if l.aside == nil {
				l.asideOf, l.asideSince = make(map[uint32]bool), l.shelf.rounds
			}
			l.aside = append(l.aside, f)
			l.asideOf[bucketOf(f.keyHash)] = true
		case v == toShelf:
			park := &relay.Parked{Sink: l.sink.Name(), State: relay.StateHeld}
			if isolated {
				park.Reason = relay.ReasonSinkDown
			}
			l.shelf.park(f)
			parked, parks = append(parked, f), append(parks, park)
		case f.Unfit != nil:
			unfit = append(unfit, relay.Refusal{Flight: &f.Flight, Err: f.Unfit})
			park := l.refusal(f.Unfit)
			l.shelf.parkRefused(f, park)
			parked, parks = append(parked, f), append(parks, park)
		default:
			kept = append(kept, f)
		}
	}
	l.shelf.mu.Unlock()
	clear(batch[len(kept):])
	if len(unfit) > 0 {
		l.told.Refused(unfit, 1)
	}
	if len(parked) > 0 {
		l.parks.Parked(l.sink.Name(), observed(parked), parks)
		l.settle(l.index, parked, parks)
	}
	return kept
}

// keeping knows of what is kept of a batch, so far as it was asked.
type keeping struct {
	seen    int
	buckets map[uint32]bool // of events that the stream or the table brought
	keys    map[string]bool // of ledger entries
}

func (k *keeping) see(kept []*flight) {
	if k.buckets == nil {
		k.buckets, k.keys = make(map[uint32]bool), make(map[string]bool)
	}
	for _, f := range kept[k.seen:] {
		if f.round != nil {
			k.keys[f.Record.Key] = true
		} else {
			k.buckets[bucketOf(f.keyHash)] = true
		}
	}
	k.seen = len(kept)
}

// event reports whether an event of f's bucket is among the kept ones. Entries do not count: what is parked has its place behind them.
func (k *keeping) event(kept []*flight, f *flight) bool {
	k.see(kept)
	return k.buckets[bucketOf(f.keyHash)]
}

// entry reports whether an entry of f's key is among them.
func (k *keeping) entry(kept []*flight, f *flight) bool {
	k.see(kept)
	return k.keys[f.Record.Key]
}

// refusal is the ledger entry for an event that was refused for the first time.
func (l *lane) refusal(r *relay.RefusedError) *relay.Parked {
	p := &relay.Parked{Sink: l.sink.Name(), State: relay.StateRetry, Reason: r.Reason, Error: r.Error(), Attempts: 1, Delay: l.cfg.retryDelay(1)}
	if l.cfg.givesUp(r, 1) {
		p.State, p.Delay, p.Detached = relay.StateDead, 0, l.cfg.DeadLetter == relay.DeadLetterContinue
	}
	return p
}

// run publishes until ctx ends. It returns ErrLeaseLost when the lease is past its time: whatever has not been
// acknowledged by then belongs to the next owner.
func (l *lane) run(ctx context.Context) error {
	var (
		batch   []*flight
		records []*relay.Record
		backoff = relay.Backoff{Min: l.cfg.BackoffMin, Max: l.cfg.BackoffMax}
	)
	defer func() {
		if l.failing {
			l.health.left()
		}
	}()
	for {
		// What failed is offered again alone, before anything behind it.
		for len(batch) == 0 {
			l.unshelve()
			if batch = l.take(batch); len(batch) == 0 {
				select {
				case <-l.wake:
					continue
				case <-ctx.Done():
					return nil
				}
			}
			batch = l.triage(batch)
			l.offers = 0
		}
		if ctx.Err() != nil {
			return nil
		}
		if !l.valid() {
			return relay.ErrLeaseLost
		}

		records = records[:0]
		for _, f := range batch {
			records = append(records, &f.Record)
		}
		l.offers++
		started := time.Now()
		limit := min(l.cfg.PublishTimeout, l.cfg.SinkIsolation)
		pctx, cancel := context.WithTimeoutCause(ctx, limit, noAnswer{l.sink.Name(), limit})
		l.offering.Store(true)
		err := l.sink.Publish(relay.WithFence(pctx, l.valid), records)
		l.offering.Store(false)
		cancel()
		took := time.Since(started)

		rest, trouble := l.outcome(batch, err, took)
		if l.cfg.Tracer != nil { // not before: those who wait for the outcome come first
			l.cfg.Tracer.Sent(relay.Offer{Slot: l.slot, Sink: l.sink, Batch: records, Started: started, Took: took, Err: err})
		}
		clear(records)
		if len(rest) == 0 {
			backoff.Reset()
			if !trouble && l.failing {
				l.failing = false
				l.health.recovered(l.log)
			}
			clear(batch)
			batch = batch[:0]
			continue
		}
		clear(batch[len(rest):])
		batch = rest
		if ctx.Err() != nil {
			return nil // a cancelled offer says nothing about the sink
		}
		if !l.valid() {
			return relay.ErrLeaseLost // nor does one that was fenced
		}
		wait := backoff.Next()
		l.health.failed(l.log, !l.failing, err, started, len(rest), wait)
		l.told.Again(observed(rest), l.offers, err)
		if !l.failing {
			l.failing, l.failingFrom = true, started
		}
		if l.giveUp(batch) || pause(ctx, wait, l.shelf.stopping) && l.giveUp(batch) {
			clear(batch)
			batch = batch[:0]
			backoff.Reset()
		}
	}
}

// noAnswer is why an offer is broken off. It is a context.DeadlineExceeded, for those who count timeouts.
type noAnswer struct {
	sink  string
	limit time.Duration
}

func (e noAnswer) Error() string {
	return fmt.Sprintf("publish to %s: no answer within %s", e.sink, e.limit)
}

func (noAnswer) Is(target error) bool { return target == context.DeadlineExceeded }

// giveUp passes a batch that fails in passing to the ledger, when its sink is isolated or has to be, when the batch alone has failed for
// as long as that takes (one partition without a leader, for instance), or when the relay is being stopped; it reports whether it did.
func (l *lane) giveUp(batch []*flight) bool {
	alone := false
	switch {
	case l.shelf.isolated():
	case l.health.downFor() >= l.cfg.SinkIsolation:
		if l.shelf.isolate(false) {
			l.log.Error("sink isolated: its events go to the ledger until it is back", "failing_for", l.health.downFor().Round(time.Second))
			l.health.isolate(isolatedDown)
		}
	case time.Since(l.failingFrom) >= l.cfg.SinkIsolation && l.health.downFor() < l.cfg.SinkIsolation/2: // or else the sink is on its way to the case above
		alone = true
		l.log.Warn("events isolated: the sink takes others and not these, which go to the ledger", "events", len(batch), "failing_for", time.Since(l.failingFrom).Round(time.Second))
		l.health.setAside()
	case l.shelf.isStopping():
	default:
		return false
	}
	first := make(map[string]bool)
	parks := make([]*relay.Parked, len(batch))
	l.shelf.mu.Lock()
	for i, f := range batch {
		l.shelf.park(f)
		parks[i] = &relay.Parked{Sink: l.sink.Name(), State: relay.StateHeld, Reason: relay.ReasonSinkDown}
		if alone && !first[f.Record.Key] {
			// Apart from those that the drainer offers in order, or they would be in their way at every round.
			first[f.Record.Key] = true
			parks[i].State, parks[i].Delay = relay.StateRetry, l.cfg.BackoffMax
		}
	}
	l.shelf.mu.Unlock()
	l.parks.Parked(l.sink.Name(), observed(batch), parks)
	l.settle(l.index, batch, parks)
	l.failing = false
	l.health.left()
	return true
}

// outcome reports what became of a batch, and returns what is to be offered again, at the front of batch's own memory. trouble
// says that something failed in passing.
func (l *lane) outcome(batch []*flight, err error, took time.Duration) (rest []*flight, trouble bool) {
	fate := func(int) error { return nil }
	if err != nil {
		var perRecord *relay.BatchError
		if errors.As(err, &perRecord) {
			if len(perRecord.Errs) != len(batch) {
				panic(fmt.Sprintf("sink %s told the fate of %d records of %d", l.sink.Name(), len(perRecord.Errs), len(batch)))
			}
			fate = func(i int) error { return perRecord.Errs[i] }
		} else {
			fate = func(int) error { return err }
		}
	}
	var (
		settled  = make([]*flight, 0, len(batch))
		parks    = make([]*relay.Parked, 0, len(batch))
		acked    = make([]*flight, 0, len(batch))
		offered  = len(batch)
		entries  []entryFate // of ledger entries, for their rounds
		refusals []relay.Refusal
		failed   []error
		parked   bool
		refused  map[string]bool // keys with a refused record in this batch; true: those behind it wait for it
		again    map[string]bool // keys with a record that is to be offered again
	)
	rest = batch[:0]
	for i, f := range batch {
		e := fate(i)
		refusal, isRefused := relay.Refused(e)
		if e != nil && !isRefused {
			failed = append(failed, e)
		}
		switch {
		case e == nil:
			acked = append(acked, f)
			if f.round != nil {
				entries = append(entries, entryFate{f: f, outcome: relay.Outcome{Entry: f.Entry, Fate: relay.FateDelivered}})
			} else {
				settled, parks = append(settled, f), append(parks, nil)
			}
		case isRefused && f.round == nil && again[f.Record.Key]:
			// Parked now, it would be in the ledger before those of its key that are still to be offered.
			rest = append(rest, f)
		case isRefused:
			refusals = append(refusals, relay.Refusal{Flight: &f.Flight, Err: e})
			if f.round != nil {
				entries = append(entries, entryFate{f: f, outcome: l.cfg.refusedAgain(f.Entry, refusal)})
				continue
			}
			park := l.refusal(refusal)
			if refused == nil {
				refused = make(map[string]bool)
			}
			refused[f.Record.Key] = refused[f.Record.Key] || !park.Detached
			l.shelf.mu.Lock()
			l.shelf.parkRefused(f, park)
			l.shelf.mu.Unlock()
			settled, parks, parked = append(settled, f), append(parks, park), true
		case f.round != nil && errors.Is(e, relay.ErrBehind):
			entries = append(entries, entryFate{f: f, left: true})
		case f.round != nil:
			entries = append(entries, entryFate{f: f, left: true, err: e})
			trouble = true
		case behind(refused, f.Record.Key, e):
			l.shelf.mu.Lock()
			l.shelf.park(f)
			l.shelf.mu.Unlock()
			settled, parks, parked = append(settled, f), append(parks, &relay.Parked{Sink: l.sink.Name(), State: relay.StateHeld}), true
		default:
			if again == nil {
				again = make(map[string]bool)
			}
			again[f.Record.Key] = true
			rest = append(rest, f)
			trouble = true
		}
	}
	if len(refusals) > 0 {
		l.told.Refused(refusals, l.offers)
	}
	l.told.Answered(relay.Answer{Events: offered, Offers: l.offers, Took: took, Acked: l.reports.of(acked), Failed: failed})
	l.reports.clear()
	if len(acked) > 0 {
		l.health.acked()
	}
	for i := range entries {
		entries[i].report()
	}
	if parked {
		l.parks.Parked(l.sink.Name(), observed(settled), parks)
	}
	if len(settled) > 0 {
		l.settle(l.index, settled, parks)
	}
	return rest, trouble
}

// entryFate is what became of a ledger entry that was offered.
type entryFate struct {
	f       *flight
	outcome relay.Outcome
	left    bool  // it stays as it is …
	err     error // … because this came in its way
}

// report reports it to the entry's round.
func (e *entryFate) report() {
	if e.left {
		e.f.round.leave(e.f.Entry, e.err)
	} else {
		e.f.round.settle(e.outcome)
	}
}

// behind reports whether a record that was not taken has to go to the ledger, because one of its key before it went there, or because
// the sink did not send it for that reason.
func behind(refused map[string]bool, key string, err error) bool {
	waits, any := refused[key]
	return waits || any && errors.Is(err, relay.ErrBehind)
}

// givesUp reports whether an event that was refused so many times is a dead letter. What a person can make welcome has a time, too.
func (c *Config) givesUp(r *relay.RefusedError, attempts int) bool {
	switch {
	case r.Final:
		return true
	case attempts < c.MaxRetries:
		return false
	case r.Reason != relay.ReasonUnroutable && r.Reason != relay.ReasonUnknownTopic:
		return true
	}
	var waited time.Duration
	for n, pause := 1, c.RetryMin; n < attempts && waited < c.UnroutablePatience; n++ {
		waited += pause - pause/3 // as short as chance makes it
		pause = min(2*pause, c.RetryMax)
	}
	return waited >= c.UnroutablePatience
}

// retryDelay is the wait before an event that was refused so many times is offered again.
func (c *Config) retryDelay(attempts int) time.Duration {
	b := relay.Backoff{Min: c.RetryMin, Max: c.RetryMax}
	for range min(attempts, 40) - 1 {
		b.Next()
	}
	return b.Next()
}

// refusedAgain is the outcome of a ledger entry that was refused once more.
func (c *Config) refusedAgain(e *relay.Entry, r *relay.RefusedError) relay.Outcome {
	o := relay.Outcome{Entry: e, Fate: relay.FateRefused, Reason: r.Reason, Error: r.Error(), Attempts: e.Attempts + 1}
	if c.givesUp(r, o.Attempts) {
		o.Fate, o.Detach = relay.FateDead, c.DeadLetter == relay.DeadLetterContinue
		return o
	}
	o.Delay = c.retryDelay(o.Attempts)
	return o
}
