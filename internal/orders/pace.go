package orders

import (
	"context"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// pacer spreads events evenly over time.
type pacer struct {
	rate int // events a second; 0 for no limit

	mu   sync.Mutex // guards next
	next time.Time
}

// wait takes a place in time for n events and waits for it. It returns false when ctx ends before.
func (p *pacer) wait(ctx context.Context, n int) bool {
	if p.rate == 0 {
		return ctx.Err() == nil
	}
	p.mu.Lock()
	// What was missed is not made up for beyond a moment: no burst after the database has stalled.
	if earliest := time.Now().Add(-50 * time.Millisecond); p.next.Before(earliest) {
		p.next = earliest
	}
	at := p.next
	p.next = at.Add(p.span(n))
	p.mu.Unlock()
	return relay.Sleep(ctx, time.Until(at)) && ctx.Err() == nil
}

// giveBack returns the place of events that were not committed after all; a negative number takes
// more.
func (p *pacer) giveBack(n int) {
	if p.rate == 0 {
		return
	}
	p.mu.Lock()
	p.next = p.next.Add(-p.span(n))
	p.mu.Unlock()
}

func (p *pacer) span(events int) time.Duration {
	return time.Duration(events) * time.Second / time.Duration(p.rate)
}
