package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// outcome reports what became of a batch, and returns what is to be offered again, at the front of
// batch's own memory. trouble is that something failed for a transient error.
func (l *lane) outcome(batch []*flight, err error, took time.Duration) (rest []*flight, trouble bool) {
	offered := 0
	for _, f := range batch {
		if !f.dropped(l.index) {
			offered++
		}
	}
	fate := func(int) error { return nil }
	if err != nil {
		var perRecord *relay.BatchError
		if errors.As(err, &perRecord) {
			if len(perRecord.Errs) != offered {
				panic(fmt.Sprintf("sink %s reported the fate of %d records of %d", l.sink.Name(), len(perRecord.Errs), offered))
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
		entries  []entryFate // of ledger entries, for their rounds
		refusals []relay.Refusal
		failed   []error
		parked   bool
		// Keys with a refused record in this batch; true: those behind it wait for it.
		refused map[string]bool
		again   map[string]bool // keys with a record that is to be offered again
		later   int             // records that the sink has not begun to send
	)
	rest = batch[:0]
	at := 0 // among what was offered
	for _, f := range batch {
		if f.dropped(l.index) {
			if again[f.Record.Key] {
				rest = append(rest, f) // it is settled behind those
				continue
			}
			l.rules.note(f)
			settled, parks = append(settled, f), append(parks, nil)
			continue
		}
		e := fate(at)
		at++
		refusal, isRefused := relay.Refused(e)
		isLater := e != nil && !isRefused && errors.Is(e, relay.ErrLater)
		switch {
		case isLater:
			later++
		case e != nil && !isRefused:
			failed = append(failed, e)
		}
		switch {
		case e == nil:
			acked = append(acked, f)
			l.rules.note(f)
			if f.round != nil {
				entries = append(entries, entryFate{f: f, outcome: relay.Outcome{Entry: f.Entry, Fate: relay.FateDelivered}})
			} else {
				settled, parks = append(settled, f), append(parks, nil)
			}
		case isRefused && f.round == nil && again[f.Record.Key]:
			// Parked now, it would be in the ledger before those of its key that are still to be
			// offered.
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
		case f.round != nil && (isLater || errors.Is(e, relay.ErrBehind)):
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
			trouble = trouble || !isLater
		}
	}
	trouble = trouble || later == offered // or it would be asked again and again without a pause
	if len(refusals) > 0 {
		l.sinkObs.Refused(refusals, l.offers)
	}
	if offered > 0 {
		l.sinkObs.Answered(relay.Answer{Events: offered, Offers: l.offers, Took: took, Acked: l.reports.of(acked), Failed: failed})
		l.reports.clear()
	}
	l.rules.report()
	if len(acked) > 0 {
		l.health.acked()
	}
	for i := range entries {
		entries[i].report()
	}
	if parked {
		l.slotObs.Parked(l.sink.Name(), observed(settled), parks)
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
		e.f.round.note(e.outcome)
	}
}

// behind reports whether a record that was not taken has to go to the ledger, because one of its
// key before it went there, or because the sink did not send it for that reason.
func behind(refused map[string]bool, key string, err error) bool {
	waits, any := refused[key]
	return waits || any && errors.Is(err, relay.ErrBehind)
}
