package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/relay"
)

// A table's events may be divided among several slots, and how can change while we run. There is
// one keeper for each shard of the set that the store has now, and what follows holds at each
// moment:
//
//   - A keeper lives as long as its shard is of the set. When it is not any more the keeper ends as
//     at a stop: what is in flight is finished and marked, the lease released. By then the store
//     has asked for the slot (Tenure.Yield), or another relay has fenced it.
//   - Acquire's ErrSetChanged ends nothing: it may come before the set's channel is closed, and the
//     new set is known only after that.
//   - A set may come again with the same names (4 slots, then 2, then 4). The new keeper of a name
//     begins when the old one has ended, so no slot has two pipelines in one process.
//
// There is nothing to survive a crash here: the set is in the database, and is asked for again.

// keeper is the goroutine that keeps one shard's slot.
type keeper struct {
	shard  relay.Shard
	cancel context.CancelFunc
	ending bool          // it was asked to end
	done   chan struct{} // closed when it has ended
}

// end asks it to end.
func (k *keeper) end() {
	k.ending = true
	k.cancel()
}

// keepSet has a keeper for each shard until ctx ends, or one of them returns an error: then all
// end, each as at a stop.
func (e *Engine) keepSet(ctx context.Context) error {
	group, asked := errgroup.WithContext(ctx)
	ctx, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	group.Go(func() error {
		<-asked.Done()
		e.store.Leave() // first: the others take over while we drain
		end()
		return nil
	})
	group.Go(func() error {
		keepers := make(map[string]*keeper) // by slot; also those that are ending
		for {
			set, changed, err := e.store.Set(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			e.divide(set)
			all := set.All()
			for slot, k := range keepers {
				if !slices.Contains(all, k.shard) {
					k.end()
				}
				if closed(k.done) {
					delete(keepers, slot)
				}
			}
			for _, shard := range all {
				before := keepers[shard.Slot]
				if before != nil && !before.ending {
					continue
				}
				work, cancel := context.WithCancel(ctx)
				k := &keeper{shard: shard, cancel: cancel, done: make(chan struct{})}
				keepers[shard.Slot] = k
				group.Go(func() error {
					defer close(k.done)
					defer cancel()
					if before != nil {
						<-before.done
					}
					return e.keepShard(work, shard)
				})
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return nil
			}
		}
	})
	return group.Wait()
}

// keepShard keeps one shard's slot, and forgets it at the end if it is not of the set any more.
func (e *Engine) keepShard(ctx context.Context, shard relay.Shard) error {
	defer e.forget(shard)
	if err := e.keep(ctx, shard); err != nil {
		return fmt.Errorf("slot %q: %w", shard.Slot, err)
	}
	return nil
}

// divide takes over how the table is divided.
func (e *Engine) divide(set relay.Set) {
	e.mu.Lock()
	before := e.set
	e.set = set
	for _, shard := range set.All() {
		s := e.slots[shard.Slot]
		if s == nil {
			s = &slotState{role: relay.Starting, since: time.Now()}
			e.slots[shard.Slot] = s
		}
		s.shard = shard
	}
	e.mu.Unlock()
	if set == before {
		return
	}
	if before.Shards > 0 {
		e.log.Info("the table is divided in another way", "shards", set.Shards, "before", before.Shards, "generation", set.Generation)
	}
	e.obs.Divided(set)
	if before.Shards > 0 {
		e.obs.Changed(relay.Change{Kind: relay.ChangeDivided, Level: relay.LevelInfo, Text: fmt.Sprintf("the number of slots has changed from %d to %d", before.Shards, set.Shards)})
	}
}

// forget drops what is known of a slot whose keeper has ended, unless it is still of the set.
func (e *Engine) forget(shard relay.Shard) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.ContainsFunc(e.set.All(), func(one relay.Shard) bool { return one.Slot == shard.Slot }) {
		delete(e.slots, shard.Slot)
	}
}

// states returns what is known of the slots in the set's order, and behind them of those that are
// not of it any more and end just now. It is called with mu held.
func (e *Engine) states() []*slotState {
	all := make([]*slotState, 0, len(e.slots))
	for _, s := range e.slots {
		all = append(all, s)
	}
	gone := func(s *slotState) int {
		if s.shard.Set == e.set {
			return 0
		}
		return 1
	}
	slices.SortFunc(all, func(a, b *slotState) int {
		return cmp.Or(gone(a)-gone(b), cmp.Compare(a.shard.Index, b.shard.Index), strings.Compare(a.shard.Slot, b.shard.Slot))
	})
	return all
}
