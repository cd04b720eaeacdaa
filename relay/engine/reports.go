package engine

import (
	"github.com/sagaz-relay/relay/relay"
)

// reports hands batches to an observer, from one piece of memory. Whoever owns it clears it
// afterwards, or what is done would stay in memory.
type reports struct{ batch []*relay.Flight }

// of returns the batch as observers see it, until clear is called.
func (r *reports) of(batch []*flight) []*relay.Flight {
	r.batch = r.batch[:0]
	for _, f := range batch {
		r.batch = append(r.batch, &f.Flight)
	}
	return r.batch
}

func (r *reports) clear() { clear(r.batch) }

// observed is a batch as observers see it, in memory of its own.
func observed(batch []*flight) []*relay.Flight {
	var r reports
	return r.of(batch)
}
