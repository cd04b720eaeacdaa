package engine

import (
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// givesUp reports whether an event that was refused so many times is a dead letter. What a person
// can make welcome has a time, too.
func (c *Config) givesUp(r *relay.RefusedError, attempts int) bool {
	switch {
	case r.Final:
		return true
	case attempts < c.MaxRetries:
		return false
	case r.Reason != relay.ReasonUnroutable && r.Reason != relay.ReasonUnknownTopic:
		return true
	}
	var waited time.Duration
	for n, pause := 1, c.RetryMin; n < attempts && waited < c.UnroutablePatience; n++ {
		waited += pause - pause/3 // as short as chance makes it
		pause = min(2*pause, c.RetryMax)
	}
	return waited >= c.UnroutablePatience
}

// retryDelay is the wait before an event that was refused so many times is offered again.
func (c *Config) retryDelay(attempts int) time.Duration {
	b := relay.Backoff{Min: c.RetryMin, Max: c.RetryMax}
	for range min(attempts, 40) - 1 {
		b.Next()
	}
	return b.Next()
}

// refusedAgain is the outcome of a ledger entry that was refused once more.
func (c *Config) refusedAgain(e *relay.Entry, r *relay.RefusedError) relay.Outcome {
	o := relay.Outcome{Entry: e, Fate: relay.FateRefused, Reason: r.Reason, Error: r.Error(), Attempts: e.Attempts + 1}
	if c.givesUp(r, o.Attempts) {
		o.Fate, o.Detach = relay.FateDead, c.DeadLetter == relay.DeadLetterContinue
		return o
	}
	o.Delay = c.retryDelay(o.Attempts)
	return o
}
