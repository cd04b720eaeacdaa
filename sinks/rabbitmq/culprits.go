package rabbitmq

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// culprits remembers the events for which the broker closed a channel or the connection.
//
// It serves three ends: an event that was refused is sent alone the next time, so that it takes nothing with it; where there are too
// many of them to try each, the others are refused as they were before; and an end that may be the broker's own counts only when
// it has come again and again for the same event.
type culprits struct {
	span time.Duration // unclearSpan
	some atomic.Bool   // events has entries

	// crowded is when a batch last had more of them than are tried; as routes.now has it.
	crowded atomic.Int64

	mu     sync.Mutex
	events map[relay.UUID]*culprit
}

type culprit struct {
	refusal error // nil while it is only suspected
	times   int   // in a row
	first   time.Time
}

// Enough says when an end that may be the broker's own is an event's fault: an operator, or a broker that is being restarted, does
// not hit the same one so often.
const (
	unclearTimes = 4
	unclearSpan  = time.Second // of culprits.span
)

func (c *culprits) entry(id relay.UUID) *culprit {
	if c.events == nil || len(c.events) >= maxRemembered {
		c.events = make(map[relay.UUID]*culprit)
	}
	e := c.events[id]
	if e == nil {
		e = &culprit{first: time.Now()}
		c.events[id] = e
		c.some.Store(true)
	}
	return e
}

// suspect counts one more, and reports whether that is enough.
func (c *culprits) suspect(id relay.UUID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entry(id)
	e.times++
	return e.times >= unclearTimes && time.Since(e.first) >= c.span
}

func (c *culprits) refused(id relay.UUID, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entry(id).refusal = err
}

// refusal returns why the event was refused the last time; nil when it was not.
func (c *culprits) refusal(id relay.UUID) error {
	if !c.some.Load() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.events[id]; e != nil {
		return e.refusal
	}
	return nil
}

// confirmed forgets the event.
func (c *culprits) confirmed(id relay.UUID) {
	if !c.some.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.events, id)
	c.some.Store(len(c.events) > 0)
}
