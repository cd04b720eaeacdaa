package store

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
)

// What keeps a new slot from being made is for a person to mend. The old slots go on meanwhile, and
// every relay says why: nothing is polled instead because of it, unless nothing is streamed anyway.
func TestChangeWhereASlotCannotBeMade(t *testing.T) {
	t.Parallel()
	noRoom := &relay.SetupError{Problem: "all replication slots are in use", Fix: "raise max_replication_slots", Streaming: true}
	for name, of := range map[string]struct{ streamed, onlyStreams, stays bool }{
		"the old slots are streamed":       {streamed: true, stays: true},
		"nothing is streamed":              {},
		"nothing is streamed, in mode cdc": {onlyStreams: true, stays: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := changing(t, 2)
			if c == nil {
				return
			}
			maker := c.create
			var mended atomic.Bool
			c.create = func(ctx context.Context, shard relay.Shard) (relay.LSN, error) {
				if shard.Index == 2 && !mended.Load() {
					return 0, noRoom
				}
				return maker(ctx, shard)
			}
			c.unread, c.onlyStreams = 2*time.Second, of.onlyStreams
			end := func() {}
			if of.streamed {
				end = c.read(c.base+"_1of2", maker)
			}
			c.join()
			c.join()
			c.even("two")
			exec(t, c.db, `UPDATE saga_outbox_relay SET sweep_owed = false`) // that of the first start
			c.begin(3)
			if !of.stays {
				c.changed(3)
				if got := value[int](t, c.db.Pool, `SELECT count(*) FROM saga_outbox_relay WHERE heir IS NULL AND sweep_owed AND sweep_cause = 'not streamed'`); got != 3 {
					t.Errorf("%d slots owe a sweep, want 3", got)
				}
				return
			}
			c.db.Until(t, `SELECT trouble LIKE '%all replication slots are in use%' FROM saga_outbox_set`)
			time.Sleep(3 * c.unread)
			set := c.set()
			if set.State != SetMaking || set.Shards != 2 {
				t.Fatalf("the set is %+v, want that the new slots are still to be made", *set)
			}
			c.even("while it waits")
			change, err := ReadChange(t.Context(), c.db.Conn(t), set)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := change.Waits(), set.Changer+", which makes the new slots, and did not succeed: make slot"; len(got) < len(want) || got[:len(want)] != want {
				t.Errorf("it waits for: %s", got)
			}
			mended.Store(true)
			c.db.Until(t, `SELECT state IS DISTINCT FROM 'making' FROM saga_outbox_set`)
			end()
			c.changed(3)
			if got := value[int](t, c.db.Pool, `SELECT count(*) FROM saga_outbox_relay r, saga_outbox_set s WHERE r.heir IS NULL AND NOT r.sweep_owed AND r.confirmed_lsn > '0/0' AND s.trouble IS NULL`); got != 3 {
				t.Errorf("%d slots begin where they were made, want 3", got)
			}
		})
	}
}

// read streams an old slot, until end.
func (c *crew) read(slot string, maker func(context.Context, relay.Shard) (relay.LSN, error)) (end func()) {
	c.t.Helper()
	if _, err := maker(c.t.Context(), relay.Alone(slot, "")); err != nil {
		c.t.Fatal(err)
	}
	exec(c.t, c.db, `CREATE PUBLICATION any_of_it FOR TABLE saga_outbox`)
	conn, err := pgconn.Connect(c.t.Context(), c.db.DSN+"&replication=database")
	if err == nil {
		err = pglogrepl.StartReplication(c.t.Context(), conn, slot, 0, pglogrepl.StartReplicationOptions{PluginArgs: []string{"proto_version '1'", "publication_names 'any_of_it'"}})
	}
	if err != nil {
		c.t.Fatal(err)
	}
	closed := make(chan struct{})
	end = func() {
		select {
		case <-closed:
			return
		default:
			close(closed)
		}
		if err := conn.Close(context.Background()); err != nil && !errors.Is(err, context.Canceled) {
			c.t.Log(err)
		}
		c.db.Until(c.t, `SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)`, slot)
	}
	c.t.Cleanup(end)
	return end
}

// RELAY_SLOT is changed in the middle of a change of the number of slots: new slots are made by the
// new name, and what the old ones have left is theirs, behind nothing that came later.
func TestRenamedWhileChanging(t *testing.T) {
	t.Parallel()
	c := changing(t, 2)
	if c == nil {
		return
	}
	c.stuck.Store(true)
	first := c.join()
	c.even("one")
	c.park()
	c.begin(3)
	c.changerIn(SetDraining)
	first.die()
	was := c.base
	c.base += "_new"
	c.stuck.Store(false)
	c.join()
	c.join()
	c.changed(3)
	if got := value[int](t, c.db.Pool, `SELECT count(*) FROM saga_outbox_delivery WHERE starts_with(slot, $1 || '_') AND slot LIKE '%of3'`, c.base); got != 3000 {
		t.Errorf("%d entries are in the new slots, want 3000", got)
	}
	if got := value[int](t, c.db.Pool, `SELECT count(*) FROM saga_outbox_relay r WHERE heir IS NULL AND starts_with(slot, $1 || '_') AND shards = 3
		AND (epoch - 1) << 40 > (SELECT max(position) FROM saga_outbox_delivery) AND epoch > (SELECT max(epoch) - 1 FROM saga_outbox_relay o WHERE NOT starts_with(o.slot, $1 || '_'))`, c.base); got != 3 {
		t.Errorf("%d rows of the new slots are behind all that there was, want 3: %s", got, value[string](t, c.db.Pool, `SELECT string_agg(r::text, E'\n') FROM saga_outbox_relay r`))
	}
	if got := value[int](t, c.db.Pool, `SELECT count(*) FROM saga_outbox_relay WHERE heir IS NULL AND starts_with(slot, $1 || '_') AND NOT starts_with(slot, $2 || '_')`, was, c.base); got != 0 {
		t.Errorf("%d old rows have no heir", got)
	}
}

// A relay of a version that knows no sets takes the table over while all old slots have stopped,
// and dies: the change goes on, and what that relay has left is the new slots'.
func TestTakenOverWhileChanging(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"0/0", "FF/0"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			c := changing(t, 2)
			if c == nil {
				return
			}
			c.stuck.Store(true)
			c.unread = 2 * time.Second
			first := c.join()
			c.even("one")
			c.park()
			c.begin(3)
			c.changerIn(SetDraining)
			first.die()
			exec(t, c.db, `UPDATE saga_outbox_set SET switch_lsn = $1::text::pg_lsn`, at)
			exec(t, c.db, `INSERT INTO saga_outbox_relay (slot, epoch, owner, sinks, sweep_owed) VALUES ($1, 500, 'of the version before', NULL, true)`, c.base)
			exec(t, c.db, `UPDATE saga_outbox_relay SET heir = $1, epoch = epoch + 1, pooled = true, released_at = NULL, owner = 'none', renewed_at = now() + interval '100 years' WHERE slot LIKE $1 || '_%of2'`, c.base)
			exec(t, c.db, `UPDATE saga_outbox_delivery SET slot = $1`, c.base)
			c.join()
			c.join()
			c.changed(3)
			c.wantParked()
			if got := value[int](t, c.db.Pool, `SELECT count(*) FROM saga_outbox_relay WHERE heir IS NULL AND slot LIKE $1 || '_%of3' AND epoch > 500 AND sweep_owed`, c.base); got != 3 {
				t.Errorf("%d new slots are behind what was there, and owe a sweep, want 3: %s", got, value[string](t, c.db.Pool, `SELECT string_agg(r::text, E'\n') FROM saga_outbox_relay r`))
			}
		})
	}
}

// A change is given up while the server does not come to an end of making a slot: nothing more is
// made for it, and the next change may begin at once.
func TestChangeGivenUpWhileASlotIsMade(t *testing.T) {
	t.Parallel()
	c := changing(t, 2)
	if c == nil {
		return
	}
	maker := c.create
	var tries atomic.Int32
	ended := make(chan error, 1)
	c.create = func(ctx context.Context, shard relay.Shard) (relay.LSN, error) {
		if tries.Add(1) == 1 {
			<-ctx.Done()
			ended <- ctx.Err()
			return 0, ctx.Err()
		}
		return maker(ctx, shard)
	}
	c.join()
	c.even("one")
	c.begin(3)
	c.changerIn(SetMaking)
	c.db.Until(t, `SELECT count(*) = 3 FROM saga_outbox_relay WHERE shards = 3`)
	c.cancel()
	<-ended
	c.begin(4)
	c.changed(4)
	if got := tries.Load(); got != 5 {
		t.Errorf("%d slots were begun, want the one that was given up, and four", got)
	}
}
