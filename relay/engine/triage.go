package engine

import (
	"github.com/sagaz-relay/relay/relay"
)

// triage returns what of a batch is to be offered, and what a rule keeps from the sink, at the front
// of batch's own memory. The rest it parks, leaves in the ledger, or defers; or the sink has it already, from an owner that died.
//
// Nothing is parked past what is still to be offered. The sink may not take that, and then it would
// come to the ledger later, behind what has overtaken it. So the batch ends in front of an event
// that has to go to the ledger while one of its key is kept (or of its bucket: their counts are
// one). The rest goes back to the queue until the kept ones have their fates.
func (l *lane) triage(batch []*flight) []*flight {
	var parked []*flight
	var parks []*relay.Parked
	var unfit []relay.Refusal
	var arrived []*flight
	kept, keeps := batch[:0], keeping{shelf: l.shelf}
	l.shelf.mu.Lock()
	isolated := l.shelf.down || l.shelf.overWAL
	for i, f := range batch {
		why := f.unfit(l.index)
		if f.round != nil {
			switch {
			case f.round.haltedKey(f.Record.Key):
				f.round.leave(f.Entry, nil)
			case why != nil && keeps.entry(kept, f):
				// Its turn comes when those in front of it have their fates.
				f.round.leave(f.Entry, nil)
			case why != nil:
				unfit = append(unfit, relay.Refusal{Flight: &f.Flight, Err: why, Unoffered: true})
				f.round.note(l.cfg.refusedAgain(f.Entry, why))
			default:
				kept = append(kept, f)
			}
			continue
		}
		v := l.shelf.admit(f.keyHash)
		if l.deferredBuckets[l.shelf.bucketOf(f.keyHash)] {
			v = toDefer // its predecessors are there
		}
		if v != toDefer && f.dropped(l.index) {
			kept = append(kept, f) // nothing holds it up but what is before it of its key in this batch
			continue
		}
		if (v == toShelf || v == offer && why != nil) && keeps.event(kept, f) {
			l.untake(batch[i:])
			break
		}
		switch {
		case v == toDefer:
			if l.deferred == nil {
				l.deferredBuckets, l.deferredSince = make(map[uint32]bool), l.shelf.rounds
			}
			l.deferred = append(l.deferred, f)
			l.deferredBuckets[l.shelf.bucketOf(f.keyHash)] = true
		case v == toShelf:
			park := &relay.Parked{Sink: l.sink.Name(), State: relay.StateHeld}
			if isolated {
				park.Reason = relay.ReasonSinkDown
			}
			l.doubt.pass(f)
			l.shelf.park(f)
			parked, parks = append(parked, f), append(parks, park)
		case why != nil:
			unfit = append(unfit, relay.Refusal{Flight: &f.Flight, Err: why, Unoffered: true})
			l.doubt.pass(f)
			park := l.refusal(why)
			l.shelf.parkRefused(f, park)
			parked, parks = append(parked, f), append(parks, park)
		case l.doubt.hasArrived(f):
			arrived = append(arrived, f)
		default:
			kept = append(kept, f)
		}
	}
	l.shelf.mu.Unlock()
	clear(batch[len(kept):])
	if len(unfit) > 0 {
		l.sinkObs.Refused(unfit, 1)
	}
	if len(arrived) > 0 { // first: what is parked of their keys came behind them
		l.sinkObs.Arrived(observed(arrived))
		l.settle(l.index, arrived, make([]*relay.Parked, len(arrived)))
	}
	if len(parked) > 0 {
		l.slotObs.Parked(l.sink.Name(), observed(parked), parks)
		l.settle(l.index, parked, parks)
	}
	return kept
}

// keeping knows of what is kept of a batch, so far as it was asked.
type keeping struct {
	shelf   *shelf
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
			k.buckets[k.shelf.bucketOf(f.keyHash)] = true
		}
	}
	k.seen = len(kept)
}

// event reports whether an event of f's bucket is among the kept ones. Entries do not count: what
// is parked has its place behind them.
func (k *keeping) event(kept []*flight, f *flight) bool {
	k.see(kept)
	return k.buckets[k.shelf.bucketOf(f.keyHash)]
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
