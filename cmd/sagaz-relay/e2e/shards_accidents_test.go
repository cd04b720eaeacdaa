package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/relay"
)

// begin asks for another number of slots, and does not wait.
func (c *crew) begin(n int) {
	c.t.Helper()
	if _, code := c.command(nil, "migrate", "--shards", strconv.Itoa(n), "--no-wait"); code != 0 {
		c.t.Fatalf("migrate --shards %d --no-wait: exit code %d", n, code)
	}
}

// waitState waits until somebody works on a change that is in a state.
func (c *crew) waitState(state string) {
	c.t.Helper()
	eventually(c.t, patience, "the change is "+state, func() string {
		got := value[string](c.world, `SELECT concat(state, CASE WHEN changer IS NULL THEN ' by nobody' END) FROM saga_outbox_set`)
		if got != state {
			return got
		}
		return ""
	})
}

// holdMaking keeps new slots from being made until it is called: the server waits for a transaction.
func (c *crew) holdMaking(superuser string) (release func()) {
	c.t.Helper()
	conn, err := pgx.Connect(c.t.Context(), superuser)
	if err == nil {
		_, err = conn.Exec(c.t.Context(), `BEGIN; SELECT pg_current_xact_id()`)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return func() { closeQuietly(conn) }
}

// dropSlotNamed drops a slot, from under its reader if need be.
func (c *crew) dropSlotNamed(slot string) {
	c.t.Helper()
	dropAt(c.t, c.db.DSN, slot)
}

func (c *crew) shardOf(n, i int) relay.Shard {
	return relay.Set{Slot: c.slot, Publication: "sagaz_outbox", Shards: n}.Shard(i)
}

// The number of slots is changed while slots are lost, and slots and publications are dropped by
// hand in each state of a change, old ones and new ones. Each change ends, nothing is lost, each key
// is in order, and nothing is left of the slots that there were.
func TestShardsChangeOverAccidents(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Version(), nil)
	superuser := server.DSN("postgres")
	c := newCrewIn(t, bareWorldAt(t, superuser), program.Plain(t), 2, 2, nil)
	l := c.load(300)
	l.waitCommitted(100)
	// Both slots are lost while no relay runs, and the change begins before one does.
	c.stopAll()
	c.exec(`ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'`)
	c.exec(`SELECT pg_reload_conf()`)
	eventually(t, patience, "the slots are lost", func() string {
		l.waitCommitted(20)
		c.exec(`SELECT pg_switch_wal()`)
		c.exec(`CHECKPOINT`)
		if n := value[int](c.world, `SELECT count(*) FROM pg_replication_slots WHERE wal_status = 'lost' AND database = current_database()`); n < 2 {
			return fmt.Sprintf("%d of 2 are lost", n)
		}
		return ""
	})
	c.exec(`ALTER SYSTEM RESET max_slot_wal_keep_size`)
	c.exec(`SELECT pg_reload_conf()`)
	c.begin(4)
	c.add()
	c.add()
	c.change(4)
	l.waitCommitted(50)

	// between changes the number while a transaction keeps new slots from being made, and then while
	// a frozen owner keeps the old ones from being through.
	between := func(to int, making, draining func()) {
		t.Helper()
		owner := c.waitShared()[c.shardOf(c.shards, 0).Slot]
		release := c.holdMaking(superuser)
		c.begin(to)
		c.waitState("making")
		making()
		owner.signal(syscall.SIGSTOP)
		release()
		c.waitState("draining")
		draining()
		owner.signal(syscall.SIGCONT)
		c.change(to)
		l.waitCommitted(50)
	}
	drop := func(publication string) { c.exec(`DROP PUBLICATION ` + publication) }
	between(2, func() {
		c.dropSlotNamed(c.shardOf(4, 1).Slot)
		drop(c.shardOf(4, 2).Publication)
	}, func() {
		c.dropSlotNamed(c.shardOf(2, 1).Slot)
		drop(c.shardOf(4, 3).Publication)
	})
	between(3, func() {
		drop(c.shardOf(3, 0).Publication)
	}, func() {
		drop(c.shardOf(3, 1).Publication)
		c.dropSlotNamed(c.shardOf(2, 1).Slot)
		c.dropSlotNamed(c.shardOf(2, 0).Slot)
	})
	c.atEndOfChange()

	// Two commands at once, of which one is killed.
	first := launch(t, program.Plain(t), "migrate", c.world.env(), c.secrets(), "migrate", "--shards", "1")
	c.begin(1)
	if first.Running() {
		first.crash()
	}
	c.change(1)
	c.atEndOfChange()
	l.waitCommitted(100)
	c.end(l, 100_000)
}

// The relays' role has only the rights that docs/operating.md gives it, and limits for statements and
// locks that are far too small; so has the owner's. Two deployments have another RELAY_SHARDS, one
// another RELAY_SLOT. The number of slots is changed all the same, and no event is delivered twice.
func TestShardsChangeOfOddDeployments(t *testing.T) {
	t.Parallel()
	w := bareWorldAt(t, pgtest.Server(t, pgtest.Version()))
	w.shards = 2
	w.migrate()
	poor := w.role + "_p"
	w.exec(fmt.Sprintf(`CREATE ROLE %[1]s LOGIN REPLICATION PASSWORD '%[2]s';
		GRANT SELECT, UPDATE ON saga_outbox TO %[1]s; GRANT SELECT, INSERT, UPDATE ON saga_outbox_relay, saga_outbox_set TO %[1]s;
		GRANT SELECT, INSERT, UPDATE, DELETE ON saga_outbox_delivery TO %[1]s`, poor, w.password))
	t.Cleanup(func() { adminSQL(t, w.db.DSN, `DROP OWNED BY `+poor+`; DROP ROLE `+poor) })
	for _, role := range []string{w.role, poor} {
		for _, limit := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"} {
			w.exec(fmt.Sprintf(`ALTER ROLE %s SET %s = '5ms'`, role, limit))
		}
	}
	url := strings.Replace(w.url, w.role+":", poor+":", 1)
	c := newCrewIn(t, w, program.Plain(t), 2, 1, settings{"DATABASE_URL": url})
	odd := c.relayOf(c.path, "odd", c.env.with(settings{"RELAY_SHARDS": "5"}))
	other := c.relayOf(c.path, "other", c.env.with(settings{"RELAY_SLOT": c.slot + "_x", "RELAY_SHARDS": "3"}))
	c.relays = append(c.relays, odd)
	c.waitShared()
	for _, p := range []*process{odd, other} {
		if l := p.waitLog("the table's events are divided among another number of slots"); !strings.Contains(l.text("fix"), "RELAY_SHARDS=2") {
			t.Errorf("%s: %v", p.name, l)
		}
	}
	if l := other.waitLog("standing by: the table's events are delivered through another slot"); !strings.Contains(l.text("fix"), "RELAY_SLOT="+c.slot) {
		t.Errorf("other: %v", l)
	}
	l := c.load(300)
	for _, n := range []int{3, 1, 2} {
		l.waitCommitted(100)
		c.change(n)
		c.atEndOfChange()
	}
	l.waitCommitted(100)
	if n := len(other.streams()); n != 0 {
		t.Errorf("the relay of another RELAY_SLOT streams %d slots", n)
	}
	other.stop()
	c.end(l, 0)
}
