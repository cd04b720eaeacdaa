package store

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// slotMaker makes real slots, and drops them when the test ends.
func slotMaker(t *testing.T, db *pgtest.DB) func(context.Context, relay.Shard) (relay.LSN, error) {
	t.Helper()
	drop := func() {
		conn, err := pgx.Connect(context.Background(), db.DSN)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close(context.Background()) //nolint:errcheck // nothing depends on it
		_, err = conn.Exec(context.Background(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database() AND NOT active`)
		if err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(drop)
	return func(ctx context.Context, shard relay.Shard) (relay.LSN, error) {
		conn, err := pgx.Connect(ctx, db.DSN)
		if err != nil {
			return 0, err
		}
		defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing depends on it
		if _, err := conn.Exec(ctx, `SELECT pg_create_logical_replication_slot($1, 'pgoutput') WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)`, shard.Slot); err != nil {
			return 0, err
		}
		var at int64
		err = conn.QueryRow(ctx, `SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = $1`, shard.Slot).Scan(&at)
		return relay.LSN(at), err
	}
}

// set is how the table is divided now.
func (c *crew) set() *TableSet {
	c.t.Helper()
	conn := c.db.Conn(c.t)
	defer conn.Close(context.Background()) //nolint:errcheck // nothing depends on it
	set, err := ReadSet(c.t.Context(), conn)
	if err != nil {
		c.t.Fatal(err)
	}
	return set
}

// begin asks for another number of slots.
func (c *crew) begin(n int) {
	c.t.Helper()
	conn := c.db.Conn(c.t)
	defer conn.Close(context.Background()) //nolint:errcheck // nothing depends on it
	if begun, err := BeginChange(c.t.Context(), conn, n); err != nil || !begun {
		c.t.Fatalf("begin: %t, %v", begun, err)
	}
}

// lockSet keeps everybody from taking a slot, and from the switch.
func (c *crew) lockSet() (unlock func()) {
	c.t.Helper()
	conn := c.db.Conn(c.t)
	if _, err := conn.Exec(c.t.Context(), `SELECT pg_advisory_lock($1, 0)`, int32(setClass)); err != nil {
		c.t.Fatal(err)
	}
	return func() { closeConn(conn) }
}

func (c *crew) cancel() {
	c.t.Helper()
	conn := c.db.Conn(c.t)
	defer conn.Close(context.Background()) //nolint:errcheck // nothing depends on it
	if was, err := CancelChange(c.t.Context(), conn); err != nil || !was {
		c.t.Fatalf("cancel: %t, %v", was, err)
	}
}

// changed waits until the table has n slots, and all are owned.
func (c *crew) changed(n int) {
	c.t.Helper()
	began := time.Now()
	for {
		set := c.set()
		if set.Target == 0 && set.Shards == n {
			break
		}
		if time.Since(began) > 2*time.Minute {
			c.t.Fatalf("the change to %d is not through: %+v", n, *set)
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.t.Logf("%d shards after %s", n, time.Since(began).Round(time.Millisecond))
	c.n = n
	c.even("after the change")
}

// mate is the relay of a name.
func (c *crew) mate(name string) *mate {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.all {
		if m.name == name {
			return m
		}
	}
	return nil
}

// changerIn waits until a relay works on a change that is in a state.
func (c *crew) changerIn(state string) *mate {
	c.t.Helper()
	c.db.Until(c.t, `SELECT EXISTS (SELECT FROM saga_outbox_set WHERE state = $1 AND changer IS NOT NULL)`, state)
	m := c.mate(c.set().Changer)
	if m == nil {
		c.t.Fatalf("nobody is %q", c.set().Changer)
	}
	return m
}

// park gives the slots of the set entries of 1000 keys.
func (c *crew) park() {
	c.t.Helper()
	names := make([]string, 0, c.n)
	for _, s := range (relay.Set{Slot: c.base, Shards: c.n}).All() {
		names = append(names, s.Slot)
	}
	exec(c.t, c.db, `DELETE FROM saga_outbox_delivery`)
	exec(c.t, c.db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state)
		SELECT gen_random_uuid(), 'kafka', ($1::text[])[1 + `+relay.ShardSQL("(i % 1000)::text", fmt.Sprint(c.n))+`], i, i % 1000, 1, 'Tested', 'held' FROM generate_series(1, 3000) i`, names)
}

// wantParked fails unless each entry is where its key belongs, at its position.
func (c *crew) wantParked() {
	c.t.Helper()
	slot := "'" + c.base + "'"
	if c.n > 1 {
		slot = fmt.Sprintf("'%s_' || %s || 'of%d'", c.base, relay.ShardSQL("partition_key", fmt.Sprint(c.n)), c.n)
	}
	if got := value[string](c.t, c.db.Pool, `SELECT format('%s %s %s', count(*), count(*) FILTER (WHERE slot = `+slot+`), count(*) FILTER (WHERE position % 1000 = partition_key::int)) FROM saga_outbox_delivery`); got != "3000 3000 3000" {
		c.t.Errorf("entries, in their slots, at their positions: %s", got)
	}
}

// wantSwitched fails unless the new rows follow the old ones.
func (c *crew) wantSwitched(old *TableSet, before relay.LSN) {
	c.t.Helper()
	set := c.set()
	if set.Generation != old.Generation+1 || set.State != "" || set.Slot != old.Slot {
		c.t.Errorf("the set was %+v and is %+v", *old, *set)
	}
	for _, was := range old.All() {
		if got := value[string](c.t, c.db.Pool, `SELECT coalesce((SELECT heir FROM saga_outbox_relay WHERE slot = $1), '-')`, was.Slot); got != set.Shard(0).Slot {
			c.t.Errorf("the heir of %s is %s", was.Slot, got)
		}
	}
	for _, is := range set.All() {
		if got := value[string](c.t, c.db.Pool, `SELECT format('%s %s %s %s %s', h.shard, h.shards, h.generation, h.marked_lsn >= $2::text::pg_lsn, h.epoch > (SELECT max(epoch) - 1 FROM saga_outbox_relay o WHERE o.slot = ANY($3)))
			FROM saga_outbox_relay h WHERE h.slot = $1 AND h.heir IS NULL`, is.Slot, before.String(), old.Slots()); got != fmt.Sprintf("%d %d %d t t", is.Index, is.Set.Shards, is.Set.Generation) {
			c.t.Errorf("the row of %s: %s", is.Slot, got)
		}
	}
}

func walEnd(t *testing.T, db *pgtest.DB) relay.LSN {
	t.Helper()
	at, err := relay.ParseLSN(value[string](t, db.Pool, `SELECT pg_current_wal_insert_lsn()::text`))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// changing is a crew of three whose relays make real slots.
func changing(t *testing.T, n int) *crew {
	t.Helper()
	db := pgtest.New(t, pgtest.Migrated())
	if !dividesTable(db) {
		_, err := BeginChange(t.Context(), db.Conn(t), 2)
		if n == 1 {
			exec(t, db, `INSERT INTO saga_outbox_set (slot, publication, shards) VALUES ('x', 'x', 1)`)
			_, err = BeginChange(t.Context(), db.Conn(t), 2)
		}
		wantSetup(t, err)
		return nil
	}
	c := divided(t, db, n)
	c.base = "o_" + db.Name[len(db.Name)-8:] // slots are the server's
	c.create = slotMaker(t, db)
	return c
}
