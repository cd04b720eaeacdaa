package aws

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// mostEntries is how many messages a request has at most.
const mostEntries = 10

// Publish sends the batch in rounds: in each the next record of every key. It begins no round any
// more once slice has passed: what is left then has relay.ErrLater.
func (s *Sink) Publish(ctx context.Context, recs []*relay.Record) error {
	if len(recs) == 0 {
		return nil
	}
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	b := &batch{sink: s, recs: recs, errs: make([]error, len(recs)), places: make(map[string]where)}
	b.run(ctx)
	for _, err := range b.errs {
		if err != nil {
			return &relay.BatchError{Errs: b.errs}
		}
	}
	return nil
}

// batch is one Publish. In a round an entry of errs belongs to the request that has its record.
type batch struct {
	sink   *Sink
	recs   []*relay.Record
	errs   []error
	places map[string]where // by topic; asked for once
}

type where struct {
	place string
	err   error
}

func (b *batch) run(ctx context.Context) {
	began := time.Now()
	keys := b.keys()
	for round := 0; len(keys) > 0; round++ {
		if round > 0 && time.Since(began) > b.sink.slice {
			b.rest(keys, relay.ErrLater)
			return
		}
		requests := b.requests(ctx, keys)
		var others sync.WaitGroup
		for _, r := range requests[min(1, len(requests)):] {
			others.Go(func() { b.send(ctx, r) })
		}
		if len(requests) > 0 {
			b.send(ctx, requests[0])
		}
		others.Wait()
		keys = b.next(keys)
	}
}

// keys are the records of each key, as their indices, in the order of their first ones.
func (b *batch) keys() [][]int {
	var keys [][]int
	of := make(map[string]int)
	for i, rec := range b.recs {
		at, seen := of[rec.Key]
		if !seen {
			at = len(keys)
			of[rec.Key] = at
			keys = append(keys, nil)
		}
		keys[at] = append(keys[at], i)
	}
	return keys
}

// rest gives one outcome to all that is left.
func (b *batch) rest(keys [][]int, err error) {
	for _, key := range keys {
		for _, i := range key {
			b.errs[i] = err
		}
	}
}

// next drops the first of each key, which has an outcome, and the whole key where that is an error.
func (b *batch) next(keys [][]int) [][]int {
	left := keys[:0]
	for _, key := range keys {
		err := b.errs[key[0]]
		if err == nil {
			if len(key) > 1 {
				left = append(left, key[1:])
			}
			continue
		}
		if _, refused := relay.Refused(err); refused {
			err = relay.ErrBehind
		}
		b.rest([][]int{key[1:]}, err)
	}
	return left
}

// request is what goes to one queue or topic at once.
type request struct {
	place   string
	entries []*entry
	size    int
}

// requests puts the first record of each key into requests. What cannot be sent has its outcome.
func (b *batch) requests(ctx context.Context, keys [][]int) []*request {
	var all []*request
	open := make(map[string]*request) // the last one of each place
	most := b.sink.service.most()
	for _, key := range keys {
		i := key[0]
		rec := b.recs[i]
		to, known := b.places[rec.Topic]
		if !known {
			own, cancel := b.sink.withTimeout(ctx)
			to.place, to.err = b.sink.service.place(own, rec.Topic)
			cancel()
			b.places[rec.Topic] = to
		}
		if to.err != nil {
			b.errs[i] = to.err
			continue
		}
		e := newEntry(i, rec)
		if e.size > most {
			b.errs[i] = &relay.RefusedError{Reason: relay.ReasonTooLarge, Size: int64(e.size), Limit: int64(most), Err: errors.New("larger than a message may be, with its attributes")}
			continue
		}
		r := open[to.place]
		if r == nil || len(r.entries) == mostEntries || r.size+e.size > most {
			r = &request{place: to.place}
			open[to.place] = r
			all = append(all, r)
		}
		r.entries = append(r.entries, e)
		r.size += e.size
	}
	return all
}

// send sends a request and gives its records their outcome.
func (b *batch) send(ctx context.Context, r *request) {
	failed, err := b.try(ctx, r.place, r.entries)
	if err != nil && len(r.entries) > 1 && mayBeOnes(err) {
		// One of them is at fault. It is found by sending each alone, which happens once: it is in
		// the ledger then.
		for _, e := range r.entries {
			failed, err := b.try(ctx, r.place, []*entry{e})
			b.note(r.place, e, failed[0], err)
		}
		return
	}
	for n, e := range r.entries {
		b.note(r.place, e, failed[n], err)
	}
}

// note gives one record its outcome.
func (b *batch) note(place string, e *entry, own, whole error) {
	err := own
	if whole != nil {
		err = b.sink.trouble.outcome(place, whole)
	}
	if refused, ok := relay.Refused(err); ok && refused.Reason == relay.ReasonUnknownTopic {
		b.sink.service.forget(place)
	}
	b.errs[e.at] = err
}

// try sends one request, when it is its turn.
func (b *batch) try(ctx context.Context, place string, entries []*entry) (failed map[int]error, err error) {
	select {
	case b.sink.slots <- struct{}{}:
		defer func() { <-b.sink.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if !relay.Fence(ctx)() {
		return nil, relay.ErrFence
	}
	own, cancel := b.sink.withTimeout(ctx)
	defer cancel()
	failed, err = b.sink.service.send(own, place, entries)
	if err != nil && own.Err() != nil {
		return nil, fmt.Errorf("send to %s: %w", place, context.Cause(own))
	}
	return failed, err
}
