package webhook

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// grace is how long a request that is under way when Publish's context ends may still take. Its
// answer tells whether the event has arrived; without it the event comes again.
const grace = time.Second

// Publish posts the batch, key by key, and returns when every request that it has begun is over. It
// begins none any more once slice has passed: what is left then has relay.ErrLater.
func (s *Sink) Publish(ctx context.Context, recs []*relay.Record) error {
	if len(recs) == 0 {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !s.enter() {
		return ErrClosed
	}
	defer s.running.Done()
	b := &batch{sink: s, ctx: ctx, fence: relay.Fence(ctx), recs: recs, errs: make([]error, len(recs)), late: make(chan struct{})}
	timer := time.AfterFunc(s.cfg.slice, func() { close(b.late) })
	defer timer.Stop()
	b.run()
	for _, err := range b.errs {
		if err != nil {
			return &relay.BatchError{Errs: b.errs}
		}
	}
	return nil
}

// batch is one Publish. Its goroutines share it: an entry of errs belongs to the one that has its
// key.
type batch struct {
	sink  *Sink
	ctx   context.Context
	fence func() bool
	recs  []*relay.Record
	errs  []error

	late     chan struct{} // closed when slice has passed
	begun    atomic.Bool   // one request at least
	answered atomic.Bool   // so was one at least
	silent   atomic.Int64  // requests without an answer
}

// run works through the keys, several at a time.
func (b *batch) run() {
	var keys [][]int // of each key the indices of its records
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
	workers := min(len(keys), cap(b.sink.slots))
	var next atomic.Int64
	work := func() {
		for at := next.Add(1) - 1; at < int64(len(keys)); at = next.Add(1) - 1 {
			b.key(keys[at])
		}
	}
	var others sync.WaitGroup
	for range workers - 1 {
		others.Go(work)
	}
	work()
	others.Wait()
}

// key posts the records of one key, one after the other, until one fails.
func (b *batch) key(indices []int) {
	for n, i := range indices {
		err := b.one(b.recs[i])
		b.errs[i] = err
		if err == nil {
			continue
		}
		if _, refused := relay.Refused(err); refused {
			err = relay.ErrBehind
		}
		for _, behind := range indices[n+1:] {
			b.errs[behind] = err
		}
		return
	}
}

// one posts one record, when it is its turn.
func (b *batch) one(rec *relay.Record) error {
	s := b.sink
	to, err := s.to.of(rec)
	if err != nil {
		return err
	}
	late := b.late
	if !b.begun.Load() { // what waits for the first turn would wait again for nothing
		late = nil
	}
	select {
	case <-late:
		return relay.ErrLater
	default:
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-late:
		return relay.ErrLater
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	case <-s.ctx.Done():
		return ErrClosed
	}
	// Nobody is there, as it seems: to find that out once more for each key would take too long.
	if silent := b.silent.Load(); silent >= int64(cap(s.slots)) && !b.answered.Load() {
		return errSilent
	}
	switch {
	case b.ctx.Err() != nil:
		return context.Cause(b.ctx)
	case s.ctx.Err() != nil:
		return ErrClosed
	case !b.fence():
		return relay.ErrFence
	}
	if err := s.pace.wait(to.RequestURI(), time.Now()); err != nil {
		return err
	}
	b.begun.Store(true)
	answered, err := s.post(b.ctx, b.fence, to, rec)
	if answered {
		b.answered.Store(true)
	} else {
		b.silent.Add(1)
	}
	return err
}
