package store

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// 1 → 4 → 2 → 1: each time the old slots stop, the ledger goes to the new ones, and all are owned.
func TestChangeTheNumberOfSlots(t *testing.T) {
	t.Parallel()
	c := changing(t, 1)
	if c == nil {
		return
	}
	for range 3 {
		c.join()
	}
	c.even("three")
	for _, n := range []int{4, 2, 1} {
		c.park()
		exec(t, c.db, `UPDATE saga_outbox_relay SET sweep_owed = false`) // or the new slots would owe one, too
		old, before := c.set(), walEnd(t, c.db)
		c.begin(n)
		c.changed(n)
		c.wantParked()
		c.wantSwitched(old, before)
		if got := value[int](t, c.db.Pool, `SELECT count(*) FROM pg_replication_slots s JOIN saga_outbox_relay r ON r.slot = s.slot_name WHERE r.heir IS NULL AND r.confirmed_lsn >= '0/1' AND NOT r.sweep_owed AND s.database = current_database()`); got != n {
			t.Errorf("%d slots are made, and owe no sweep", got)
		}
		c.still(2 * time.Second)
	}
}

// The changer dies while it makes slots, and while the old ones stop: another goes on.
func TestChangerDies(t *testing.T) {
	t.Parallel()
	c := changing(t, 2)
	if c == nil {
		return
	}
	create := c.create
	var blocked atomic.Bool
	blocked.Store(true)
	c.create = func(ctx context.Context, shard relay.Shard) (relay.LSN, error) {
		if shard.Index == 1 && blocked.Load() {
			<-ctx.Done()
			return 0, ctx.Err()
		}
		return create(ctx, shard)
	}
	for range 3 {
		c.join()
	}
	c.even("three")
	c.park()
	old, before := c.set(), walEnd(t, c.db)
	c.stuck.Store(true)
	c.begin(3)
	first := c.changerIn(SetMaking)
	c.db.Until(t, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)`, c.base+"_0of3")
	blocked.Store(false)
	first.die()
	second := c.changerIn(SetDraining)
	if second == first {
		t.Fatal("the changer has not changed")
	}
	if second.valid() == nil { // it must hold up the others by what it owns, too
		t.Logf("%s owns nothing", second.name)
	}
	if set := c.set(); set.Switch == 0 {
		t.Errorf("no switch is noted: %+v", *set)
	}
	second.die()
	c.join()
	c.even("two") // the old slots are still theirs
	c.stuck.Store(false)
	c.changed(3)
	c.wantParked()
	c.wantSwitched(old, before)
}

// The changer freezes while it makes slots: after its time another goes on.
func TestChangerFreezes(t *testing.T) {
	t.Parallel()
	c := changing(t, 1)
	if c == nil {
		return
	}
	create := c.create
	var blocked atomic.Bool
	blocked.Store(true)
	c.create = func(ctx context.Context, shard relay.Shard) (relay.LSN, error) {
		if blocked.Load() {
			<-ctx.Done()
			return 0, ctx.Err()
		}
		return create(ctx, shard)
	}
	for range 3 {
		c.join()
	}
	c.even("three")
	c.begin(2)
	first := c.changerIn(SetMaking)
	time.Sleep(testTTL + testTTL/2) // while it makes slots it is not taken for one that is frozen
	if now := c.changerIn(SetMaking); now != first {
		t.Errorf("%s was replaced by %s", first.name, now.name)
	}
	first.proxy.Freeze()
	blocked.Store(false)
	c.forget(first)
	c.changed(2)
	first.proxy.Thaw()
	first.leave()
}

// A change is given up while slots are made, and while the old ones stop. The old ones go on, and
// another change may begin.
func TestChangeGivenUp(t *testing.T) {
	t.Parallel()
	c := changing(t, 2)
	if c == nil {
		return
	}
	create := c.create
	hold := make(chan struct{})
	c.create = func(ctx context.Context, shard relay.Shard) (relay.LSN, error) {
		if shard.Index == 1 && shard.Set.Shards == 4 {
			<-hold
		}
		return create(ctx, shard)
	}
	for range 2 {
		c.join()
	}
	c.even("two")
	c.begin(4)
	c.changerIn(SetMaking)
	c.db.Until(t, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)`, c.base+"_0of4")
	c.cancel()
	close(hold)
	c.db.Until(t, `SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name LIKE $1 || '_%of4')`, c.base)
	c.even("given up")

	c.stuck.Store(true)
	c.begin(3)
	c.changerIn(SetDraining)
	c.db.Until(t, `SELECT count(*) = 3 FROM pg_replication_slots WHERE slot_name LIKE $1 || '_%of3'`, c.base)
	// One of the two slots is past the switch: its keys do not wait for the other one's.
	exec(t, c.db, `UPDATE saga_outbox_relay SET confirmed_lsn = 'FF/0' WHERE slot = $1`, c.base+"_0of2")
	c.still(2 * time.Second)
	if _, owned := c.shares(); owned != 2 {
		t.Errorf("%d slots are owned, want both until both are past the switch", owned)
	}
	// Both have stopped, and nobody switches.
	unlock := c.lockSet()
	exec(t, c.db, `UPDATE saga_outbox_relay SET confirmed_lsn = 'FF/0' WHERE slot = $1`, c.base+"_1of2")
	c.db.Until(t, `SELECT count(*) = 2 FROM saga_outbox_relay WHERE released_at IS NOT NULL AND slot LIKE $1 || '_%of2'`, c.base)
	time.Sleep(time.Second)
	if _, owned := c.shares(); owned != 0 {
		t.Errorf("%d slots are owned, want none that has stopped", owned)
	}
	c.cancel()
	unlock()
	c.even("given up again")
	if got := value[int](t, c.db.Pool, `SELECT count(*) FROM saga_outbox_relay WHERE shards IN (3, 4) AND heir = $1`, c.base+"_0of2"); got != 7 {
		t.Errorf("%d rows of what was given up have an heir, want 7: %s", got, value[string](t, c.db.Pool, `SELECT string_agg(r::text, E'\n') FROM saga_outbox_relay r`))
	}
	c.stuck.Store(false)
	old, before := c.set(), walEnd(t, c.db)
	c.park()
	c.begin(3)
	c.changed(3)
	c.wantParked()
	c.wantSwitched(old, before)
}

// An owner that froze before the change: nothing is switched until its time is over, and it is
// fenced when it wakes up after it.
func TestChangeWithAFrozenOwner(t *testing.T) {
	t.Parallel()
	c := changing(t, 2)
	if c == nil {
		return
	}
	frozen := c.join()
	c.even("one")
	c.join()
	c.even("two")
	frozen.mu.Lock()
	var old *lease
	for _, l := range frozen.leases {
		old = l
	}
	frozen.mu.Unlock()
	frozen.proxy.Freeze()
	c.forget(frozen)
	c.begin(1)
	c.changed(1)
	if old.Valid() {
		t.Error("the frozen owner trusts its lease after the switch")
	}
	events := insert(t, c.db, 1, 3)
	frozen.proxy.Thaw()
	checkFenced(t, c.db, old, marksOf(events))
	frozen.leave()
}

// Where nothing is streamed no slots are made, and the new ones owe a sweep.
func TestChangeWhilePolling(t *testing.T) {
	t.Parallel()
	c := changing(t, 1)
	if c == nil {
		return
	}
	c.create = func(context.Context, relay.Shard) (relay.LSN, error) { return 0, nil }
	c.stuck.Store(true)
	c.join()
	c.join()
	c.even("two")
	c.park()
	c.begin(4)
	c.changed(4)
	c.wantParked()
	if got := value[int](t, c.db.Pool, `SELECT count(*) FROM saga_outbox_relay WHERE heir IS NULL AND sweep_owed`); got != 4 {
		t.Errorf("%d slots owe a sweep, want 4", got)
	}
}

// The old slots do not come to the switch, because nobody streams them any more: the change goes on
// without, and the new slots owe a sweep.
func TestChangeOfSlotsThatNobodyStreams(t *testing.T) {
	t.Parallel()
	c := changing(t, 2)
	if c == nil {
		return
	}
	c.stuck.Store(true)
	c.unread = 2 * time.Second
	c.join()
	c.join()
	c.even("two")
	c.park()
	exec(t, c.db, `UPDATE saga_outbox_relay SET sweep_owed = false`)
	old, before := c.set(), walEnd(t, c.db)
	c.begin(3)
	c.changerIn(SetDraining)
	if at := c.set().Switch; at == 0 {
		t.Error("the switch is at 0, as if nothing could be streamed")
	}
	c.changed(3)
	c.wantParked()
	c.wantSwitched(old, before)
	if got := value[int](t, c.db.Pool, `SELECT count(*) FROM saga_outbox_relay WHERE heir IS NULL AND sweep_owed AND sweep_cause = 'not streamed' AND confirmed_lsn > '0/0'`); got != 3 {
		t.Errorf("%d slots owe a sweep, want 3", got)
	}
}

// The database is restored in another cluster in the middle of a change: the new slots are made
// there again.
func TestChangeInAnotherCluster(t *testing.T) {
	t.Parallel()
	c := changing(t, 1)
	if c == nil {
		return
	}
	c.stuck.Store(true)
	m := c.join()
	c.even("one")
	c.begin(2)
	c.changerIn(SetDraining)
	m.leave()
	exec(t, c.db, `UPDATE saga_outbox_relay SET system_id = 42, confirmed_lsn = 'FFFF/0'`)
	exec(t, c.db, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE $1 || '_%of2'`, c.base)
	before := c.set().Switch
	c.stuck.Store(false)
	c.join()
	c.changed(2)
	if got := value[int](t, c.db.Pool, `SELECT count(*) FROM saga_outbox_relay WHERE heir IS NULL AND system_id <> 42 AND confirmed_lsn < 'FFFF/0' AND sweep_owed`); got != 2 {
		t.Errorf("%d slots are of this cluster and owe a sweep, want 2 (the switch was %s)", got, before)
	}
}

// What cannot be changed, and why.
func TestChangeRefused(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	if !dividesTable(db) {
		t.Log("this server divides no table")
		return
	}
	conn := db.Conn(t)
	begin := func(n int) error {
		_, err := BeginChange(t.Context(), conn, n)
		return err
	}
	wantSetup(t, begin(2), "sagaz-relay migrate")
	exec(t, db, `INSERT INTO saga_outbox_set (slot, publication, shards) VALUES ($1, 'p', 2)`, strings.Repeat("x", 60))
	wantSetup(t, begin(0), "0 slots")
	wantSetup(t, begin(65), "1 to 64")
	wantSetup(t, begin(4), "RELAY_SLOT", "63")
	if begun, err := BeginChange(t.Context(), conn, 2); begun || err != nil {
		t.Errorf("to what it is: %t, %v", begun, err)
	}
	exec(t, db, `UPDATE saga_outbox_set SET slot = 'x'`)
	if err := begin(4); err != nil {
		t.Fatal(err)
	}
	wantSetup(t, begin(3), "from 2 to 4", "--shards 2")
	if err := begin(4); err != nil {
		t.Errorf("the same again: %v", err)
	}
	for _, want := range []bool{true, false} {
		if was, err := CancelChange(t.Context(), conn); was != want || err != nil {
			t.Errorf("cancel: %t, %v; want %t", was, err, want)
		}
	}
}

// The server has to have room for the new slots next to the old ones, and for those who read them.
func TestChangeNeedsRoom(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Newest, map[string]string{"max_replication_slots": "4", "max_wal_senders": "3"})
	db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
	conn := db.Conn(t)
	exec(t, db, `INSERT INTO saga_outbox_set (slot, publication, shards) VALUES ('x', 'p', 2)`)
	begin := func(n int) error {
		_, err := BeginChange(t.Context(), conn, n)
		return err
	}
	wantSetup(t, begin(5), "the change makes 5 slots next to the 0 that are there, and the server has room for 4", "ALTER SYSTEM SET max_replication_slots = 5;")
	wantSetup(t, begin(4), "to change 2 slots to 4 takes 4 walsenders, others use 0, and max_wal_senders is 3", "ALTER SYSTEM SET max_wal_senders = 4;")
	exec(t, db, `SELECT pg_create_logical_replication_slot('other_' || i, 'pgoutput') FROM generate_series(1, 2) i`)
	wantSetup(t, begin(3), "the change makes 3 slots next to the 2 that are there, and the server has room for 2", "max_replication_slots = 5;")
	exec(t, db, `SELECT pg_drop_replication_slot('other_1')`)
	if err := begin(3); err != nil {
		t.Error(err)
	}
}
