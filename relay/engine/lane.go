package engine

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// lane carries the events of its keys to one sink, in order, one batch at a time: those that the
// stream delivers, those found in the table, and those from the ledger.
//
// Its queue has no bound of its own. Everything in it is in flight, or in the one round of ledger
// entries, so the in-flight budget bounds it. Whoever pushes never waits.
//
// The order of a key is kept here, and nowhere else: a key has one lane per sink. An event whose
// key has entries in the ledger goes there too (shelf.admit), or is deferred for as long as all
// of them are being offered.
type lane struct {
	slot    string
	sink    relay.Sink
	index   int // of the sink
	health  *sinkHealth
	shelf   *shelf
	doubt   *doubt // nil: nothing is
	cfg     *Config
	log     hclog.Logger
	valid   func() bool // the lease's; asked before every offer
	settle  func(sink int, batch []*flight, parks []*relay.Parked)
	budget  *budget
	sinkObs relay.SinkObserver // of what the sink is offered
	slotObs relay.SlotObserver // of what goes to the ledger

	offering atomic.Bool // the sink has not answered yet

	// Capacity one: "the queue was empty and is not any more", or a round has ended.
	wake chan struct{}

	// Owned by run.
	offers          int             // of what is being offered, this one included
	failing         bool            // the last offer was not taken; known to health
	failingFrom     time.Time       // when the offer was made that began the failing
	deferred        []*flight       // wait for the end of a round, in order
	deferredBuckets map[uint32]bool // their buckets
	deferredSince   int             // shelf.rounds when the first of them was deferred
	reports         reports
	rules           ruleCounter

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
		relay.Wake(l.wake)
	}
}

// take moves the front of the queue, up to the batch limits, into buf.
func (l *lane) take(buf []*flight) []*flight {
	mostEvents, mostBytes := l.budget.batch(l.cfg.BatchSize, l.cfg.BatchBytes)
	l.mu.Lock()
	defer l.mu.Unlock()
	n, size := 0, 0
	for n < len(l.queue) && n < mostEvents {
		size += l.queue[n].size
		if n > 0 && size > mostBytes {
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

// unshelve puts what is deferred back to the front of the queue, once the round has ended.
func (l *lane) unshelve() {
	if len(l.deferred) == 0 {
		return
	}
	l.shelf.mu.Lock()
	ended := l.shelf.rounds != l.deferredSince
	l.shelf.mu.Unlock()
	if !ended {
		return
	}
	l.untake(l.deferred)
	l.deferred, l.deferredBuckets = nil, nil
}

// run publishes until ctx ends. It returns ErrLeaseLost when the lease is past its time: whatever
// has not been acknowledged by then belongs to the next owner.
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
			l.doubt.readFor(ctx, batch)
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
			if !f.dropped(l.index) {
				records = append(records, f.record(l.index))
			}
		}
		if len(records) == 0 { // nothing that the sink is to get
			l.outcome(batch, nil, 0)
			clear(batch)
			batch = batch[:0]
			continue
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
			return nil // a cancelled offer shows nothing about the sink
		}
		if !l.valid() {
			return relay.ErrLeaseLost // nor does one that was fenced
		}
		if !trouble { // the sink has more to send than it could in the time of one offer
			backoff.Reset()
			l.offers = 0
			if l.failing {
				l.failing = false
				l.health.recovered(l.log)
			}
			continue
		}
		wait := backoff.Next()
		l.health.failed(l.log, !l.failing, err, started, len(rest), wait)
		l.sinkObs.Again(observed(l.offered(rest)), l.offers, err)
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

// offered are those of a batch that the sink is to get.
func (l *lane) offered(batch []*flight) []*flight {
	if l.rules.counts == nil {
		return batch
	}
	all := make([]*flight, 0, len(batch))
	for _, f := range batch {
		if !f.dropped(l.index) {
			all = append(all, f)
		}
	}
	return all
}

// noAnswer is why an offer is broken off. It is a context.DeadlineExceeded, for those who count
// timeouts.
type noAnswer struct {
	sink  string
	limit time.Duration
}

func (e noAnswer) Error() string {
	return fmt.Sprintf("publish to %s: no answer within %s", e.sink, e.limit)
}

func (noAnswer) Is(target error) bool { return target == context.DeadlineExceeded }

// giveUp passes a batch that fails for a transient error to the ledger, if that is to be (leaving),
// and reports whether it did.
func (l *lane) giveUp(batch []*flight) bool {
	why := l.leaving(len(batch))
	if why == offersAgain {
		return false
	}
	first := make(map[string]bool)
	parks := make([]*relay.Parked, len(batch))
	l.shelf.mu.Lock()
	for i, f := range batch {
		if f.dropped(l.index) {
			l.rules.note(f)
			continue
		}
		l.shelf.park(f)
		parks[i] = &relay.Parked{Sink: l.sink.Name(), State: relay.StateHeld, Reason: relay.ReasonSinkDown}
		if why == leavesAlone && !first[f.Record.Key] {
			// The first of each key is offered alone, after a while. Held, it would be the first
			// of every round of the drainer, in front of what the sink takes.
			first[f.Record.Key] = true
			parks[i].State, parks[i].Delay = relay.StateRetry, l.cfg.BackoffMax
		}
	}
	l.shelf.mu.Unlock()
	l.rules.report()
	l.slotObs.Parked(l.sink.Name(), observed(batch), parks)
	l.settle(l.index, batch, parks)
	l.failing = false
	l.health.left()
	return true
}
