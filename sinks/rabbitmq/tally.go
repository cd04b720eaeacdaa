package rabbitmq

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// tally counts how often something happened to each event in a row, until the event is confirmed.
type tally struct {
	times int           // so often, and
	span  time.Duration // over so long, is enough

	some atomic.Bool // events has entries

	mu     sync.Mutex
	events map[relay.UUID]*tallied // guarded by mu
}

type tallied struct {
	times   int
	first   time.Time
	refusal error // see culprits
}

// entry needs mu locked.
func (t *tally) entry(id relay.UUID) *tallied {
	if t.events == nil || len(t.events) >= maxRemembered {
		t.events = make(map[relay.UUID]*tallied)
	}
	e := t.events[id]
	if e == nil {
		e = &tallied{first: time.Now()}
		t.events[id] = e
		t.some.Store(true)
	}
	return e
}

// add counts one more, and reports whether that is enough.
func (t *tally) add(id relay.UUID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entry(id)
	e.times++
	return e.times >= t.times && time.Since(e.first) >= t.span
}

// confirmed forgets the event.
func (t *tally) confirmed(id relay.UUID) {
	if !t.some.Load() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.events, id)
	t.some.Store(len(t.events) > 0)
}
