package rabbitmq

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// lately is how long a confirm counts for its route, and a return or a nack against it.
const lately = 30 * time.Second

// routes is what the sink remembers of the routing keys of its exchange, to know where it can send
// a record without waiting for the fate of the one of its key before it.
//
// A return means that no queue is bound for that routing key, so it counts against that route
// alone. A nack comes from a queue, and one queue may be behind many routes; the broker does not
// name it. So it counts against all of them. Both learn from the first window at most; from then
// on, for 30 s after the last one, nothing is sent behind a record that may come back.
type routes struct {
	started time.Time
	nacked  atomic.Int64 // when the last nack came; all times are as now has them

	mu    sync.RWMutex // guards known
	known map[string]*route
}

// route is one routing key.
type route struct {
	confirmed atomic.Int64 // when it last took a message
	returned  atomic.Int64 // when it last gave one back
	// when an event was last refused because of its nacks; 0 once the route takes something
	full atomic.Int64
}

// maxRemembered bounds routes and tallies: routing keys come from rows, and so do events. It is far
// above what is normally in use; beyond it everything is learnt again.
const maxRemembered = 10_000

// now is in nanoseconds, and such that the zero of a time never set is long ago.
func (r *routes) now() int64 { return int64(time.Since(r.started) + lately) }

func (r *routes) of(routingKey string) *route {
	r.mu.RLock()
	known := r.known[routingKey]
	r.mu.RUnlock()
	if known != nil {
		return known
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if known = r.known[routingKey]; known == nil {
		if r.known == nil || len(r.known) >= maxRemembered {
			r.known = make(map[string]*route)
		}
		known = new(route)
		r.known[strings.Clone(routingKey)] = known // a part of a row's text keeps all of it
	}
	return known
}

// sure reports whether what is sent to the route will be taken, as far as can be known before.
func (r *routes) sure(to *route, now int64) bool {
	confirmed := to.confirmed.Load()
	return confirmed > 0 && now-confirmed < int64(lately) &&
		now-to.returned.Load() >= int64(lately) && now-r.nacked.Load() >= int64(lately)
}

// takes returns a routing key other than this one that took a message lately; empty when none is
// known.
func (r *routes) takes(other string) string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	now := r.now()
	for key, to := range r.known {
		if at := to.confirmed.Load(); key != other && at > 0 && now-at < int64(lately) {
			return key
		}
	}
	return ""
}

// forget is for an exchange that is made again, and for another connection: bindings may have gone.
func (r *routes) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.known)
}

// took notes a confirm. All lanes write here, so it does that rarely.
func (to *route) took(now int64) {
	if now-to.confirmed.Load() > int64(lately)/10 {
		to.confirmed.Store(now)
	}
	if to.full.Load() > 0 {
		to.full.Store(0)
	}
}
