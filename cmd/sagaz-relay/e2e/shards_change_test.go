package e2e

import (
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/relay"
)

// change changes among how many slots the table is divided, and waits until the relays share them.
func (c *crew) change(n int) {
	c.t.Helper()
	began := time.Now()
	if out, code := c.command(nil, "migrate", "--shards", strconv.Itoa(n)); code != 0 || !strings.Contains(out, relay.DividedText(n)) {
		c.t.Fatalf("migrate --shards %d: exit code %d", n, code)
	}
	c.t.Logf("%d slots instead of %d after %s", n, c.shards, time.Since(began).Round(10*time.Millisecond))
	c.shards = n
	c.waitShared()
}

// atEndOfChange checks that nothing is left of the slots that there were.
func (c *crew) atEndOfChange() {
	c.t.Helper()
	eventually(c.t, patience, "old slots and publications are gone", func() string {
		got := value[string](c.world, `SELECT format('%s slots, %s publications', (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()), (SELECT count(*) FROM pg_publication))`)
		if got != strconv.Itoa(c.shards)+" slots, "+strconv.Itoa(c.shards)+" publications" {
			return got
		}
		return ""
	})
}

// 1 → 4 → 2 → 1 slots under load: nothing is lost, nothing comes twice, each key is in order, and
// nothing is left of the slots that there were.
func TestShardsChange(t *testing.T) {
	c := newCrew(t, program.Plain(t), 1, 3, nil)
	l := c.load(300)
	for _, n := range []int{4, 2, 1} {
		l.waitCommitted(200)
		c.change(n)
		c.atEndOfChange()
	}
	l.waitCommitted(200)
	c.end(l, 0)
}

// All relays die by SIGKILL in the middle of a change, whenever that is. Those that come next go on
// with it. Nothing is lost, and each key is in order.
func TestShardsChangeInterrupted(t *testing.T) {
	c := newCrew(t, program.Plain(t), 1, 2, nil)
	l := c.load(300)
	for i, n := range []int{4, 2, 3} {
		l.waitCommitted(100)
		if _, code := c.command(nil, "migrate", "--shards", strconv.Itoa(n), "--no-wait"); code != 0 {
			t.Fatalf("migrate: exit code %d", code)
		}
		time.Sleep(time.Duration(i) * 150 * time.Millisecond)
		for _, p := range c.relays {
			p.signal(syscall.SIGKILL)
		}
		for _, p := range c.relays {
			p.end(patience)
		}
		c.relays = nil
		for range 2 {
			c.add()
		}
		c.change(n)
	}
	c.atEndOfChange()
	l.waitCommitted(200)
	c.end(l, 100_000)
}
