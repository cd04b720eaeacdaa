package engine_test

import (
	"hash/fnv"
	"slices"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/ledgertest"
)

// place is one slot of a world, with what the database has of it. It shows its owner the rows of
// its keys, and no others. Guarded by world.mu.
type place struct {
	shard     relay.Shard
	ledger    ledgertest.Ledger // the entries of its keys
	recovery  relay.Recovery
	noted     relay.LSN // what may be reported to the slot
	sweepAt   relay.LSN // where the slot stood that the snapshot was taken for
	confirmed relay.LSN // the slot's
	marked    relay.LSN // as the next owner reads it
	epoch     int64
	owner     *lease // nil: free
	taken     bool   // by somebody else
	onlyFor   string // the one WORKER_ID that may take it; empty: any
	stopped   bool   // the set is about to change: nobody takes it any more
	reading   *stream
	sinks     []string        // of the last owner
	since     time.Time       // … and what it has noted: before that, it has sent nothing that has no mark
	gone      relay.GoneCause // what the next Open finds instead of a slot
}

// shardOf is the index of a key's shard.
func shardOf(key string, shards int) int {
	h := fnv.New32a()
	h.Write([]byte(key))
	return int(h.Sum32()>>3) % shards
}

// has reports whether a key is the slot's.
func (p *place) has(key string) bool { return shardOf(key, p.shard.Set.Shards) == p.shard.Index }

// keysOf returns so many keys of one shard.
func keysOf(shard, shards, n int) (keys []string) {
	for c := 'a'; len(keys) < n; c++ {
		if key := string(c); shardOf(key, shards) == shard {
			keys = append(keys, key)
		}
	}
	return keys
}

// endOf is the end of its transaction that an event of the WAL carries on its way to the slot: the
// last one of the slot's keys does. It is called with mu held.
func (s *stream) endOf(at int) relay.LSN {
	ev := &s.wal[at]
	for at++; at < len(s.wal) && s.wal[at].CommitLSN == ev.CommitLSN; at++ {
		if s.has(s.wal[at].AggregateID) {
			return 0
		}
	}
	return s.wal[at-1].CommitEnd
}

// at returns the current set's slot of an index.
func (w *world) at(shard int) *place {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.places[w.set.Shard(shard).Slot]
}

// leaseOf returns the held lease of a slot, once there is one.
func (w *world) leaseOf(p *place) (l *lease) {
	w.t.Helper()
	w.until("a lease is held of "+p.shard.Slot, func() bool { l = p.owner; return l != nil })
	return l
}

// giveBack asks the owner for the slot, which is then another one's.
func (l *lease) giveBack(to string) {
	l.change(func() {
		l.onlyFor = to
		l.askBack()
	})
}

// askBack is giveBack for anybody, with world.mu held.
func (l *lease) askBack() {
	select {
	case <-l.yield:
	default:
		close(l.yield)
	}
}

// divide divides the table among so many slots. It does what a change does in the database: the
// owners give back what they have, and nobody takes it again; the new slots begin where all old
// ones have been, and look up what they deliver of the time before the change; a sweep that is owed
// stays so; ledger entries go to their key's new slot as they are.
func (w *world) divide(shards int) {
	w.change(func() {
		for _, p := range w.places {
			if p.stopped = true; p.owner != nil {
				p.owner.askBack()
			}
		}
	})
	w.until("all slots are given back", func() bool {
		for _, p := range w.places {
			if p.owner != nil {
				return false
			}
		}
		return true
	})
	w.change(func() {
		old := w.set
		w.set = relay.Set{Slot: "sagaz_outbox", Publication: "sagaz_outbox", Shards: shards, Generation: old.Generation + 1}
		if old.Shards == 0 {
			w.set.Generation = 0 // the first
		}
		from := w.next
		var entries []*ledgertest.Entry
		var owed relay.Recovery
		for _, shard := range old.All() {
			p := w.places[shard.Slot]
			from = min(from, p.confirmed)
			if p.recovery.Owed {
				owed = relay.Recovery{Owed: true, Cause: p.recovery.Cause}
			}
			entries = append(entries, p.ledger.Entries...)
			p.ledger.Entries = nil
		}
		for _, shard := range w.set.All() {
			p := &place{shard: shard, confirmed: from, noted: from, marked: w.next, recovery: owed}
			if old.Shards == 0 {
				p.confirmed, p.noted, p.marked = 0, 0, 0
			}
			if before := w.places[shard.Slot]; before != nil {
				p.epoch = before.epoch + 1
			}
			for _, e := range entries {
				if p.has(e.Key) {
					p.ledger.Add(e)
				}
			}
			w.places[shard.Slot] = p
		}
		w.place = w.places[w.set.Shard(0).Slot]
		close(w.setChanged)
		w.setChanged = make(chan struct{})
	})
}

// owners are the WORKER_IDs of the owners of the set's slots, in their order; "-" without one.
func (w *world) owners() (all []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, shard := range w.set.All() {
		name := "-"
		if l := w.places[shard.Slot].owner; l != nil {
			name = l.worker
		}
		all = append(all, name)
	}
	return all
}

// untilOwned waits until each slot of the set has an owner.
func (w *world) untilOwned() {
	w.t.Helper()
	w.until("each slot has an owner", func() bool {
		return !slices.ContainsFunc(w.set.All(), func(s relay.Shard) bool { return w.places[s.Slot].owner == nil })
	})
}
