package relay

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff gives growing waits between attempts: from Min, doubling, to Max, each shortened at
// random by up to a third, so that many relays do not knock at once. The zero state is the first
// attempt.
type Backoff struct {
	Min, Max time.Duration
	next     time.Duration
}

// Next returns the wait before the next attempt.
func (b *Backoff) Next() time.Duration {
	d := min(max(b.next, b.Min), b.Max)
	b.next = 2 * d
	return d - rand.N(d/3+1)
}

// Reset makes the next wait the first again, after something has worked.
func (b *Backoff) Reset() { b.next = 0 }

// Sleep waits for d, or until ctx ends, and reports whether the whole time has passed.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
