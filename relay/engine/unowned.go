package engine

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

const (
	// unownedEvery is how often the store is asked for slots without an owner.
	unownedEvery = 250 * time.Millisecond
	// unownedPause is the least time between two counts of what waits on one. Nobody delivers it, so
	// it grows only.
	unownedPause = 3 * time.Second
	// unownedShare bounds the counting: the pause is so many times what it took.
	unownedShare   = relay.LookShare / 10
	unownedCeiling = 10 * time.Minute
	unownedLimit   = 1_000_000
)

// countUnowned counts, until ctx ends, what waits on slots that no relay owns, where it falls to
// us.
// What waits on the others is counted by who watches their work.
func (e *Engine) countUnowned(ctx context.Context) {
	counts := make(map[string]*relay.Schedule)
	for relay.Sleep(ctx, unownedEvery) {
		shards := e.store.Unowned()
		owned := func(slot string) bool {
			return !slices.ContainsFunc(shards, func(shard relay.Shard) bool { return shard.Slot == slot })
		}
		maps.DeleteFunc(counts, func(slot string, _ *relay.Schedule) bool { return owned(slot) })
		e.mu.Lock()
		maps.DeleteFunc(e.unowned, func(slot string, _ int) bool { return owned(slot) })
		e.mu.Unlock()
		for _, shard := range shards {
			next := counts[shard.Slot]
			if next == nil {
				next = new(relay.Schedule)
				counts[shard.Slot] = next
			}
			if !next.Due() {
				continue
			}
			began := time.Now()
			n, err := e.store.UnownedEvents(ctx, shard, unownedLimit)
			next.After(time.Since(began), unownedPause, unownedShare, unownedCeiling)
			if err != nil {
				e.log.Debug("counting what waits on a slot without an owner", "slot", shard.Slot, "error", err)
				continue
			}
			e.mu.Lock()
			e.unowned[shard.Slot] = n
			e.mu.Unlock()
		}
	}
}

// waitsUnowned is what was counted of slots that still have no owner. It is called with mu held.
func (e *Engine) waitsUnowned() map[string]int {
	if len(e.unowned) == 0 {
		return nil
	}
	now := make(map[string]int)
	for _, shard := range e.store.Unowned() {
		if n, ok := e.unowned[shard.Slot]; ok {
			now[shard.Slot] = n
		}
	}
	return now
}
