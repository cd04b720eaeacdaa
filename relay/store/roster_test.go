package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// Relays come, stop, die and freeze: each time their shares even out, no two own one shard, and no
// slot moves without need.
func TestSharesOfRelays(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 4, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t, pgtest.Migrated())
			if n > 1 && !dividesTable(db) {
				_, _, err := quickLease(t, db, "relay", func(cfg *Config) { cfg.Shards = n }).Set(t.Context())
				wantSetup(t, err, "row filters", "RELAY_SHARDS=1")
				return
			}
			c := divided(t, db, n)
			first := c.join()
			c.even("one")
			if got := len(c.taken()); got != n {
				t.Errorf("one relay has taken %d slots, want %d", got, n)
			}
			c.join()
			c.wantMoved(c.even("two"), n, n/2)
			third := c.join()
			before := len(c.taken())
			c.wantMoved(c.even("three"), before, n/3)
			c.still(3 * time.Second)

			had := len(first.valid())
			before = len(c.taken())
			first.leave()
			c.wantMoved(c.even("a stop"), before, had)
			had, before = len(third.valid()), len(c.taken())
			third.die()
			c.wantMoved(c.even("a death"), before, had)
			for range 8 {
				c.join()
			}
			c.even("nine")
			c.still(3 * time.Second)
			if got, want := value[string](t, db.Pool, `SELECT format('%s %s', count(*), count(DISTINCT member)) FROM saga_outbox_relay WHERE heir IS NULL`), fmt.Sprintf("%d %d", n, n); got != want {
				t.Errorf("slots and members: %s, want %s", got, want)
			}
			for i, name := range (relay.Set{Slot: "sagaz_outbox", Shards: n}).Slots() {
				if got := value[string](t, db.Pool, `SELECT format('%s of %s', shard, shards) FROM saga_outbox_relay WHERE slot = $1`, name); got != fmt.Sprintf("%d of %d", i, n) {
					t.Errorf("slot %s is shard %s", name, got)
				}
			}
		})
	}
}

// One of three relays freezes: after its time the others have its slots, and it is fenced when it
// wakes up.
func TestSharesAfterAFreeze(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	if !dividesTable(db) {
		t.Log("this server divides no table")
		return
	}
	c := divided(t, db, 5)
	frozen := c.join()
	c.even("one")
	c.join()
	c.join()
	c.even("three")
	frozen.mu.Lock()
	old := make([]*lease, 0, len(frozen.leases))
	for _, l := range frozen.leases {
		old = append(old, l)
	}
	frozen.mu.Unlock()
	frozen.proxy.Freeze()
	c.forget(frozen)
	c.even("a freeze")
	for _, l := range old {
		if l.Valid() {
			t.Errorf("the frozen relay trusts its lease of shard %d when another has it", l.shard.Index)
		}
	}
	events := insert(t, db, 1, 3)
	frozen.proxy.Thaw()
	for _, l := range old {
		checkFenced(t, db, l, marksOf(events))
	}
	c.mu.Lock()
	c.all = append(c.all, frozen)
	c.mu.Unlock()
	c.even("it is back")
}

// A member that lives and gives back at once what it gets does not keep a shard from the others.
func TestSharesOfARelayThatCannot(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	if !dividesTable(db) {
		t.Log("this server divides no table")
		return
	}
	c := divided(t, db, 4)
	c.join()
	c.even("one")
	bad := c.join()
	bad.mu.Lock()
	bad.unable = true
	bad.mu.Unlock()
	db.Until(t, `SELECT count(DISTINCT member) = 2 OR count(*) FILTER (WHERE epoch > 1) > 0 FROM saga_outbox_relay`)
	c.forget(bad)
	c.even("the other gives back what it gets")
	c.still(10 * time.Second)
	bad.leave()
}

// Relays with another RELAY_SLOT stand by while one of the set lives, and do not count as members.
// When none does they take over, shard by shard.
func TestAnotherSetStandsBy(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	if !dividesTable(db) {
		t.Log("this server divides no table")
		return
	}
	c := divided(t, db, 4)
	a, b := c.join(), c.join()
	c.even("two")
	others := divided(t, db, 4)
	others.cfg = func(cfg *Config) { cfg.Slot = "other" }
	for range 2 {
		others.join()
	}
	other := others.all[0].store
	waits := make(chan struct{})
	go func() {
		defer close(waits)
		for other.Waiting("other_2of4") == nil {
			time.Sleep(20 * time.Millisecond)
		}
	}()
	within(t, time.Minute, "the other set reports for whom it waits", waits)
	if err := other.Waiting("other_2of4"); !strings.Contains(err.Error(), "sagaz_outbox_") || !strings.Contains(err.Error(), "RELAY_SLOT=sagaz_outbox") {
		t.Errorf("it waits for %v", err)
	}
	c.still(3 * time.Second)
	a.leave()
	c.even("one")
	if got := len(others.taken()); got != 0 {
		t.Fatalf("two sets of one table are owned: %v", others.taken())
	}
	// Of each shard an entry of the ledger, which goes to the shard of the same key.
	for i, l := range b.leases {
		exec(t, db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state)
			SELECT gen_random_uuid(), 'kafka', $1, 7, key, 1, 'Tested', 'held' FROM (SELECT i::text AS key FROM generate_series(1, 1000) i) k WHERE `+l.shard.SQL("key"), l.slot)
		if i != l.shard.Index {
			t.Errorf("the lease of shard %d is of %d", i, l.shard.Index)
		}
	}
	b.leave()
	others.even("the others")
	if got := value[string](t, db.Pool, `SELECT string_agg(DISTINCT slot || CASE WHEN slot = 'other_' || `+relay.ShardSQL("partition_key", "4")+` || 'of4' THEN '' ELSE '!' END, ' ') || ' ' || count(*) FROM saga_outbox_delivery`); got != "other_0of4 other_1of4 other_2of4 other_3of4 1000" {
		t.Errorf("the ledger has %s", got)
	}
	if got := value[string](t, db.Pool, `SELECT string_agg(slot || ' ' || heir, ', ' ORDER BY slot) FROM saga_outbox_relay WHERE heir IS NOT NULL`); got !=
		"sagaz_outbox_0of4 other_0of4, sagaz_outbox_1of4 other_1of4, sagaz_outbox_2of4 other_2of4, sagaz_outbox_3of4 other_3of4" {
		t.Errorf("heirs: %s", got)
	}
	if got := value[string](t, db.Pool, `SELECT format('%s %s %s', slot, shards, generation) FROM saga_outbox_set`); got != "other 4 1" {
		t.Errorf("the set is %s", got)
	}
	// And back again.
	for _, m := range slices.Clone(others.all) {
		m.leave()
	}
	c.join()
	c.even("the first set again")
	if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_delivery WHERE slot = 'sagaz_outbox_' || `+relay.ShardSQL("partition_key", "4")+` || 'of4'`); got != 1000 {
		t.Errorf("%d entries are where they belong, want 1000", got)
	}
	if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_relay WHERE heir IS NULL AND slot LIKE 'sagaz%' AND sweep_owed`); got != 4 {
		t.Errorf("%d slots owe a sweep, want all 4", got)
	}
}

// A relay of a version before this one takes over a set when nobody owns a slot of it, and it is
// taken over from again, each entry to its key's shard.
func TestOneSlotAfterSeveral(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	if !dividesTable(db) {
		t.Log("this server divides no table")
		return
	}
	c := divided(t, db, 4)
	m := c.join()
	c.even("one")
	m.leave()
	// As that version leaves it: all is its own slot's.
	exec(t, db, `INSERT INTO saga_outbox_relay (slot, epoch, owner, marked_lsn, released_at) VALUES ('sagaz_outbox', 9, 'old', 'F/0', now())`)
	exec(t, db, `UPDATE saga_outbox_relay SET heir = 'sagaz_outbox', pooled = true, released_at = NULL, renewed_at = now() + interval '100 years' WHERE shards = 4`)
	exec(t, db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state)
		SELECT gen_random_uuid(), 'kafka', 'sagaz_outbox', i, i::text, 1, 'Tested', 'held' FROM generate_series(1, 1000) i`)
	c.join()
	c.even("one again")
	if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_delivery WHERE slot = 'sagaz_outbox_' || `+relay.ShardSQL("partition_key", "4")+` || 'of4'`); got != 1000 {
		t.Errorf("%d entries are where they belong, want 1000", got)
	}
	if got := value[string](t, db.Pool, `SELECT string_agg(format('%s %s %s %s', slot, epoch > 9, marked_lsn, coalesce(heir, '-')), ', ' ORDER BY slot) FROM saga_outbox_relay`); got !=
		"sagaz_outbox t F/0 sagaz_outbox_0of4, sagaz_outbox_0of4 t F/0 -, sagaz_outbox_1of4 t F/0 -, sagaz_outbox_2of4 t F/0 -, sagaz_outbox_3of4 t F/0 -" {
		t.Errorf("slots: %s", got)
	}
}

// Through a pooler there is no lock that shows who lives: what is free is taken, and nothing given
// back.
func TestSharesThroughAPooler(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2} {
		db := pgtest.New(t, pgtest.Migrated())
		if n > 1 && !dividesTable(db) {
			t.Log("this server divides no table")
			return
		}
		pooled := db.Pooled(t)
		c := divided(t, db, n)
		c.cfg = func(cfg *Config) { cfg.DatabaseURL = pooled }
		first := c.join()
		c.even("one")
		second := c.join()
		c.still(3 * time.Second)
		if got := len(first.valid()); got != n {
			t.Errorf("the first has %d slots, want all %d", got, n)
		}
		first.leave()
		c.even("a stop")
		if got := len(second.valid()); got != n {
			t.Errorf("the second has %d slots, want all %d", got, n)
		}
		second.leave()
	}
}

// What RELAY_SHARDS says is compared with what the table has: one warning, with what to do.
func TestShardsThatDiffer(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	release(t, acquire(t, quickLease(t, db, "first", nil), "outbox"))
	var out syncBuffer
	cfg := testConfig(db)
	cfg.Shards, cfg.AcquireInterval = 4, 20*time.Millisecond
	s := newStore(t, cfg, hclog.New(&hclog.LoggerOptions{Output: &out}))
	for range 3 {
		set, _, err := s.Set(t.Context())
		if err != nil || set != (relay.Set{Slot: "outbox", Publication: "sagaz_outbox", Shards: 1, Generation: 1}) {
			t.Fatalf("the set is %+v, %v", set, err)
		}
		release(t, acquire(t, s, "outbox"))
	}
	if got := out.String(); strings.Count(got, "WARN") != 1 || strings.Contains(got, "sagaz-relay migrate --shards 4") != dividesTable(db) || !strings.Contains(got, "RELAY_SHARDS=1") {
		t.Errorf("the log has\n%s", got)
	}
}

// Whoever waits for a shard that is not of the set any more hears of it, and so does who asked for
// the set.
func TestSetChanges(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	s := quickLease(t, db, "relay", nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	set, changed, err := s.Set(ctx)
	if err != nil {
		t.Fatal(err)
	}
	other := acquire(t, quickLease(t, db, "other", nil), "outbox")
	ended := make(chan error, 1)
	go func() {
		_, err := s.Acquire(ctx, set.Shard(0))
		ended <- err
	}()
	select {
	case <-changed:
		t.Fatal("the set has changed")
	case err := <-ended:
		t.Fatalf("the wait has ended: %v", err)
	case <-time.After(time.Second):
	}
	exec(t, db, `UPDATE saga_outbox_set SET generation = 2`)
	within(t, time.Minute, "the change is noticed", changed)
	if err := <-ended; err != relay.ErrSetChanged {
		t.Errorf("who waits gets %v, want ErrSetChanged", err)
	}
	again, _, err := s.Set(ctx)
	if err != nil || again.Generation != 2 {
		t.Errorf("the set is %+v, %v", again, err)
	}
	release(t, other)
	if _, err := s.Acquire(ctx, set.Shard(0)); err != relay.ErrSetChanged {
		t.Errorf("who comes gets %v, want ErrSetChanged", err)
	}
	l, err := s.Acquire(ctx, again.Shard(0))
	if err != nil {
		t.Fatal(err)
	}
	release(t, l.(*lease))
}

// A relay freezes that owns no slot: after the time of a lease it has no share any more, and when it
// wakes up it has one again.
func TestSharesWithoutAFrozenStandby(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	c := divided(t, db, 1)
	for range 3 {
		c.join()
	}
	c.even("three")
	members := func(n int) {
		t.Helper()
		db.Until(t, `SELECT count(DISTINCT objid) = $2 FROM pg_locks WHERE locktype = 'advisory' AND classid = $1::bigint::oid AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, int64(memberClass), n)
	}
	members(3)
	var frozen *mate
	for _, m := range c.all {
		if len(m.valid()) == 0 {
			frozen = m
		}
	}
	frozen.proxy.Freeze()
	members(2)
	c.still(2 * testTTL) // the others live
	members(2)
	frozen.proxy.Thaw()
	members(3)
}

// A goroutine of the roster that is about to end may have looked at an older set than those who
// wait by now know.
func TestRosterOfAnOlderSet(t *testing.T) {
	s := newStore(t, testConfig(&pgtest.DB{DSN: "postgres://localhost/none"}), nil)
	newer := relay.Set{Slot: "outbox", Shards: 4, Generation: 2}
	w := &waiter{shard: newer.Shard(3), wanting: true, through: make(chan permit, 1), refused: make(chan error, 1)}
	s.roster.set, s.roster.waits[w] = newer, struct{}{}
	for _, older := range []relay.Set{{Shards: 2, Generation: 1}, {Shards: 4, Generation: 1}} {
		x := &session{roster: s.roster, store: s}
		now := situation{at: time.Now(), pooled: true, shards: make([]shardSeen, older.Shards)}
		for i := range now.shards {
			now.shards[i].free = true
		}
		x.decide(now, make([]error, older.Shards), permit{}, &looked{set: older, mine: make([]slotSeen, older.Shards)})
		if len(w.through) > 0 {
			t.Errorf("by a look at %+v a slot of %+v is let through", older, newer)
		}
	}
}
