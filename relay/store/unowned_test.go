package store

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// Nobody wants three of four slots: one of the relays speaks for them, whoever comes and goes, and
// for none that has an owner. What waits on them is counted once.
func TestUnownedSlots(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	if !dividesTable(db) {
		t.Log("this server divides no table")
		return
	}
	const rows = 40
	insert(t, db, 1, rows)
	set := relay.Set{Slot: "outbox", Shards: 4}
	type mate struct {
		*Store
		stop context.CancelFunc
		done chan struct{}
	}
	var all []*mate
	join := func() *mate {
		m := &mate{Store: quickLease(t, db, fmt.Sprint("relay-", len(all)), func(cfg *Config) { cfg.Shards = 4 }), done: make(chan struct{})}
		var ctx context.Context
		ctx, m.stop = context.WithCancel(context.Background())
		all = append(all, m)
		go func() {
			defer close(m.done)
			if l, err := m.Acquire(ctx, set.Shard(0)); err == nil {
				<-ctx.Done()
				_ = l.Release(context.Background(), true) // the database's session ends anyway
			}
		}()
		return m
	}
	t.Cleanup(func() {
		for _, m := range all {
			m.stop()
			<-m.done
		}
	})
	wantSpoken := func(when string, want ...int) {
		t.Helper()
		var spoken []int
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			spoken = nil
			for _, m := range all {
				for _, shard := range m.Unowned() {
					spoken = append(spoken, shard.Index)
				}
			}
			slices.Sort(spoken)
			if slices.Equal(spoken, want) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: the relays speak for the slots %v, want %v", when, spoken, want)
			}
		}
	}
	one, two := join(), join()
	wantSpoken("two relays", 1, 2, 3)
	for _, m := range all {
		if got := len(m.Unowned()); got != 0 && got != 3 {
			t.Errorf("a relay speaks for %d of three slots", got)
		}
	}
	join()
	wantSpoken("three relays", 1, 2, 3)

	owned, err := all[2].Acquire(t.Context(), set.Shard(1))
	if err != nil {
		t.Fatal(err)
	}
	wantSpoken("another slot has an owner", 2, 3)
	counted := 0
	for _, m := range all {
		for _, shard := range m.Unowned() {
			n, err := m.UnownedEvents(t.Context(), shard, rows)
			if err != nil {
				t.Error(err)
			}
			counted += n
		}
	}
	if want := value[int](t, db.Pool, `SELECT count(*)::int FROM saga_outbox WHERE `+relay.ShardSQL(relay.RowKey, "4")+` IN (2, 3)`); counted != want || want == 0 {
		t.Errorf("%d rows are counted, want %d", counted, want)
	}
	for _, m := range []*mate{one, two} {
		m.stop()
		<-m.done
	}
	wantSpoken("one relay, which owns two slots", 2, 3)
	if err := owned.Release(t.Context(), true); err != nil {
		t.Error(err)
	}
	all[2].Leave()
	wantSpoken("nobody")
}
