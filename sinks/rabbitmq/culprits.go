package rabbitmq

import (
	"sync/atomic"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// culprits remembers the events for which the broker closed a channel or the connection.
//
// It has three uses. An event that was refused is sent alone the next time, so that it takes
// nothing with it. Where there are too many of them to try each, the others are refused as they
// were before. And an end that may be the broker's own counts only when it has come again and again
// for the same event.
type culprits struct {
	tally // of ends that may be the broker's own

	// crowded is when a batch last had more of them than are tried; as routes.now has it.
	crowded atomic.Int64
}

// From so many and so long on, an end that may be the broker's own is an event's fault. An
// operator, or a broker that is being restarted, does not hit the same one so often.
const (
	unclearTimes = 4
	unclearSpan  = time.Second
)

// refused notes why an event was refused; until then it is only suspected.
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
