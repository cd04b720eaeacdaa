package e2e

import (
	"context"
	"fmt"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
)

// The primary dies by SIGKILL and the standby takes its place, for relays that share two slots and
// know both servers by DATABASE_URL. They are back by themselves, whatever became of the slots and
// of a change of their number. Nothing is lost, each key is in order.
func TestShardsFailover(t *testing.T) {
	for _, f := range []struct {
		name     string
		failover bool   // the slots are made to survive it
		change   string // the state in which a change of the number of slots is then
		after    func(t *testing.T, c *crew, standby string)
		gone     bool // a slot has to be made again
	}{
		{name: "with the slots", failover: true},
		{name: "one slot is dropped after it", failover: true, gone: true, after: func(t *testing.T, c *crew, standby string) {
			dropAt(t, standby, c.slot+"_1of2")
		}},
		{name: "without the slots", gone: true},
		{name: "while new slots are made", failover: true, change: "making"},
		{name: "while old slots drain", failover: true, change: "draining"},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			pair := pgtest.NewPair(t, map[string]string{"synchronous_standby_names": "*"})
			c := newCrewIn(t, bareWorldAt(t, pair.DSN("postgres")), program.Plain(t), 2, 2, settings{
				"RELAY_SLOT_FAILOVER": strconv.FormatBool(f.failover), "RELAY_BACKOFF_MAX": "500ms", "RELAY_WAL_SENDER_TIMEOUT": "5s",
			})
			l := c.load(200)
			l.waitCommitted(100)
			if f.failover {
				pair.WaitSynced(t, c.slot+"_0of2")
				pair.WaitSynced(t, c.slot+"_1of2")
			}
			frozen := c.relays[0]
			if f.change != "" {
				release := c.holdMaking(pair.Primary.DSN("postgres"))
				c.begin(4)
				c.waitState("making")
				if f.change == "draining" {
					frozen.signal(syscall.SIGSTOP)
					release()
					c.waitState("draining")
				}
				defer release()
			}
			began := time.Now()
			pair.Failover(t)
			c.db.Pool.Reset()
			if f.after != nil {
				f.after(t, c, pair.Standby.DSN("postgres"))
			}
			if f.change == "draining" {
				frozen.signal(syscall.SIGCONT)
			}
			c.waitDelivered(l)
			t.Logf("an event of each slot was delivered %s after the primary's end", time.Since(began).Round(10*time.Millisecond))
			n := 2
			if f.change != "" {
				n = 4
				c.change(n)
			}
			owners := c.waitShared()
			made := 0
			for _, p := range c.relays {
				made += len(p.logged("the slot cannot deliver everything any more"))
			}
			if f.gone != (made > 0) && f.change == "" {
				t.Errorf("%d times a slot was made again", made)
			}
			t.Logf("%d times a slot was made again; %d slots are owned", made, len(owners))
			l.waitCommitted(100)
			c.atEndOfChange()
			c.end(l, 100_000)
		})
	}
}

// dropAt drops a slot of a server, from under its reader if need be.
func dropAt(t testing.TB, superuser, slot string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), superuser)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	eventually(t, patience, fmt.Sprintf("slot %s is dropped", slot), func() string {
		if _, err := conn.Exec(t.Context(), `DO $$ BEGIN
				PERFORM pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = '`+slot+`' AND active;
				PERFORM pg_drop_replication_slot('`+slot+`');
			END $$`); err != nil {
			return err.Error()
		}
		return ""
	})
}
