package engine

import (
	"slices"
	"sync"

	"github.com/sagaz-relay/relay/relay"
)

// budget is how much may be in flight in this process, whatever the number of slots that it owns.
// Each pipeline has a share of it, budget / pipelines at work, so none can take the room of
// another. Whoever asks for room is told the share of that moment: it shrinks when a slot is taken,
// and what is in flight beyond it goes as it is marked.
//
// An event that is larger than a share passes alone, as one larger than all does with one slot. One
// pipeline at a time may have such an event, in the order in which they have asked: otherwise as
// many large events as there are slots would be in memory at once. Who waits for that turn reads
// nothing meanwhile, and has nothing in flight that others wait for.
type budget struct {
	events, bytes int

	mu      sync.Mutex // guards what follows
	windows []*window  // of the pipelines at work
	// The first has the turn to have an event larger than its share in flight, the others wait for
	// it.
	large []*window
}

func newBudget(events, bytes int) *budget { return &budget{events: events, bytes: bytes} }

// join gives a pipeline its share, until it leaves.
func (b *budget) join(w *window) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.windows = append(b.windows, w)
}

// leave gives the share, and the turn, to the others.
func (b *budget) leave(w *window) {
	b.mu.Lock()
	b.windows = slices.DeleteFunc(b.windows, func(one *window) bool { return one == w })
	others := slices.Clone(b.windows)
	b.dropTurn(w)
	b.mu.Unlock()
	for _, one := range others {
		relay.Wake(one.freed)
	}
}

// share is how much each pipeline may have in flight now.
func (b *budget) share() (events, bytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := max(1, len(b.windows))
	return max(1, b.events/n), max(1, b.bytes/n)
}

// leastBatch is what a lane may offer at once however many slots there are: fewer events, and the
// brokers' round trips show.
const (
	leastBatch      = 100
	leastBatchBytes = 64 << 10
)

// batch is how much a lane may offer its sink at once, of what it could with one slot. A sink has
// its own copy of what it is offered, which no budget counts. With many slots, and so many times as
// many lanes, all that is in flight could be offered at once.
func (b *budget) batch(events, bytes int) (mostEvents, mostBytes int) {
	return b.part(events, leastBatch), b.part(bytes, leastBatchBytes)
}

// part is an equal part for each pipeline at work, but no less than so much.
func (b *budget) part(of, least int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(of/max(1, len(b.windows)), min(of, least))
}

// takeTurn asks for the turn, and reports whether it is the caller's. If not, the caller is woken
// when it is.
func (b *budget) takeTurn(w *window) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.large, w) {
		b.large = append(b.large, w)
	}
	return b.large[0] == w
}

// waitsFor returns the pipeline whose event a large one of this one waits for, nil for none.
func (b *budget) waitsFor(w *window) *window {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Index(b.large, w) > 0 {
		return b.large[0]
	}
	return nil
}

// giveTurn gives the turn to whoever waits for it, or leaves the queue.
func (b *budget) giveTurn(w *window) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropTurn(w)
}

// dropTurn is giveTurn. It is called with mu held.
func (b *budget) dropTurn(w *window) {
	had := len(b.large) > 0 && b.large[0] == w
	b.large = slices.DeleteFunc(b.large, func(one *window) bool { return one == w })
	if had && len(b.large) > 0 {
		relay.Wake(b.large[0].freed)
	}
}
