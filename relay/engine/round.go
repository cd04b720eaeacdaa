package engine

import (
	"sync"

	"github.com/sagaz-relay/relay/relay"
)

// round is one offer of ledger entries to one sink, through its lanes. Each entry gets one try;
// what fails for a transient error stays in the ledger as it was. Entries of one key are in order
// in one lane, and when one of them is not delivered those behind it are not offered.
type round struct {
	mu        sync.Mutex // guards what follows
	left      int        // entries without a fate in this round
	halted    map[string]bool
	outcomes  []relay.Outcome
	settled   int            // outcomes of entries that the sink was not asked about
	failed    []*relay.Entry // tried, and failed for a transient error
	lastError error
	done      chan struct{} // closed when left is 0
}

func newRound(entries int) *round {
	return &round{left: entries, halted: make(map[string]bool), done: make(chan struct{})}
}

// haltedKey reports whether an entry of this key was not delivered in this round.
func (r *round) haltedKey(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.halted[key]
}

// note takes an entry's outcome.
func (r *round) note(o relay.Outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !o.Entry.Detached && (o.Fate == relay.FateRefused || o.Fate == relay.FateDead && !o.Detach) {
		r.halted[o.Entry.Event.AggregateID] = true
	}
	r.outcomes = append(r.outcomes, o)
	if o.Dropped || o.Fate == relay.FateDropped {
		r.settled++
	}
	r.gone()
}

// answers are how many outcomes come from the sink, once the round has ended. Others show nothing
// about it.
func (r *round) answers() int { return len(r.outcomes) - r.settled }

// leave lets an entry stay as it is, because err came in its way, or (err nil) one of its key did.
func (r *round) leave(e *relay.Entry, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.halted[e.Event.AggregateID] = true
	if err != nil {
		r.failed = append(r.failed, e)
		r.lastError = err
	}
	r.gone()
}

// gone counts one entry down. It is called with mu held.
func (r *round) gone() {
	if r.left--; r.left == 0 {
		close(r.done)
	}
}
