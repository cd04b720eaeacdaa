package store

import (
	"context"
	"errors"
	"sync"
	"time"
)

// patience is how long statements of one kind may take before their connection is given up for
// another.
//
// A server that is at work cannot be distinguished from a connection that leads nowhere: a link
// that forwards nothing, a backend that was stopped. So the first limit is short, and each one that
// was not enough doubles the next. What succeeds sets it to a multiple of the time it took, so that
// a database which is slow for good is not interrupted again and again.
type patience struct {
	least, most time.Duration

	mu  sync.Mutex // guards what follows
	now time.Duration
}

// within runs f, a statement or a few, in the time that there is for it. The text of its error has
// no value of a row.
func (p *patience) within(ctx context.Context, f func(context.Context) error) error {
	p.mu.Lock()
	limit := max(p.now, p.least)
	p.mu.Unlock()
	began := time.Now()
	bounded, cancel := context.WithTimeoutCause(ctx, limit, slowError{limit})
	defer cancel()
	err := f(bounded)
	over := bounded.Err() != nil && ctx.Err() == nil
	if err != nil && over {
		err = errors.Join(err, context.Cause(bounded))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		p.now = min(max(p.least, 4*time.Since(began)), p.most)
	case over:
		p.now = min(2*limit, p.most)
	}
	return withoutValues(err)
}

// slowError is why a statement was given up.
type slowError struct{ limit time.Duration }

func (e slowError) Error() string {
	return "no answer from the database within " + e.limit.Round(time.Millisecond).String() + ", the connection is given up"
}

// Limits of the lease's statements. A mark is one round trip; a sweep may read a large table, and
// prune many of its pages.
const (
	markLeast   = 5 * time.Second
	factLeast   = 5 * time.Second
	factMost    = 30 * time.Second
	windowLeast = 15 * time.Second
	sweepLeast  = time.Minute
	sweepMost   = time.Hour
)
