package e2e

import (
	"fmt"
	"maps"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
)

// crew is several relays that share the slots of one table.
type crew struct{ fleet }

// newCrew starts so many relays of a table that is divided among so many slots.
func newCrew(t *testing.T, path string, slots, relays int, more settings) *crew {
	t.Helper()
	return newCrewIn(t, bareWorldAt(t, pgtest.Server(t, pgtest.Version())), path, slots, relays, more)
}

func newCrewIn(t *testing.T, w *world, path string, slots, relays int, more settings) *crew {
	t.Helper()
	w.shards = slots
	w.migrate("--slot")
	c := &crew{fleetIn(t, w, path, more)}
	for range relays {
		c.add()
	}
	c.waitShared()
	return c
}

// streams are the slots that a relay streams from, with their epochs.
func (p *process) streams() map[string]int64 {
	p.t.Helper()
	all := make(map[string]int64)
	for _, s := range p.status().Slots {
		if s.Role == relay.Owner && s.Streaming {
			all[s.Slot] = s.Epoch
		}
	}
	return all
}

// waitShared waits until each slot has one owner that streams, the relays have as many as each
// other or one more, and all of them are ready. It returns the slots' owners.
func (c *crew) waitShared() (owners map[string]*process) {
	c.t.Helper()
	began := time.Now()
	eventually(c.t, patience, fmt.Sprintf("%d relays share %d slots", len(c.relays), c.shards), func() string {
		owners = make(map[string]*process)
		least, most := c.shards, 0
		seen := ""
		for _, p := range c.relays {
			p.mustRun("")
			owned := slices.Sorted(maps.Keys(p.streams()))
			seen += fmt.Sprintf("%s has %v, ", p.name, owned)
			least, most = min(least, len(owned)), max(most, len(owned))
			for _, slot := range owned {
				if owners[slot] != nil {
					return fmt.Sprintf("%s and %s own %s", owners[slot].name, p.name, slot)
				}
				owners[slot] = p
			}
		}
		if len(owners) == c.shards && most-least <= 1 {
			return ""
		}
		return seen
	})
	c.t.Logf("%d relays share %d slots after %s", len(c.relays), c.shards, time.Since(began).Round(10*time.Millisecond))
	for _, p := range c.relays {
		p.waitReady()
	}
	return owners
}

// load is world.load with many keys.
func (c *crew) load(rate int) *load {
	c.t.Helper()
	return c.world.load(loadOptions{topic: c.k.name, keys: 500, rate: rate, survives: true})
}

// end stops the load and all relays, and has everything checked: nothing lost, each key in order.
// It logs for how long at most a slot was without deliveries.
func (c *crew) end(l *load, maxDuplicates int) {
	c.t.Helper()
	l.finish(nil)
	c.stopAll()
	all := c.k.read()
	c.logGaps(all)
	l.judge("kafka", events(c.t, all), maxDuplicates)
	c.atEnd()
}

// atEnd checks that nothing is left of the relays' work.
func (c *crew) atEnd() {
	c.t.Helper()
	if n := value[int](c.world, `SELECT count(*) FROM saga_outbox_delivery`); n != 0 {
		c.t.Errorf("%d ledger entries are left", n)
	}
	if n := value[int](c.world, `SELECT count(*) FROM pg_replication_slots WHERE database = current_database()`); n != c.shards {
		c.t.Errorf("%d slots, want %d", n, c.shards)
	}
}

// logGaps logs, for each slot, the longest time between two deliveries of its keys.
func (c *crew) logGaps(all []arrival) {
	c.t.Helper()
	keys := make(map[string]int)
	for i := range all {
		keys[all[i].key] = 0
	}
	rows, err := c.db.Pool.Query(c.t.Context(), `SELECT k, `+relay.ShardSQL("k", fmt.Sprint(c.shards))+` FROM unnest($1::text[]) k`, slices.Collect(maps.Keys(keys)))
	if err != nil {
		c.t.Fatal(err)
	}
	for rows.Next() {
		var key string
		var shard int
		if err := rows.Scan(&key, &shard); err != nil {
			c.t.Fatal(err)
		}
		keys[key] = shard
	}
	if err := rows.Err(); err != nil {
		c.t.Fatal(err)
	}
	last, gaps := make(map[int]time.Time), make([]time.Duration, c.shards)
	for i := range all {
		shard := keys[all[i].key]
		if at, ok := last[shard]; ok {
			gaps[shard] = max(gaps[shard], all[i].at.Sub(at))
		}
		last[shard] = all[i].at
	}
	c.t.Logf("%d deliveries; the longest time without one, by slot: %v", len(all), gaps)
}

// A Deployment of relays that share four slots is rolled over under load: each new relay is ready
// before an old one gets its SIGTERM. Nothing is lost, nothing comes twice, each key in order.
func TestShardsRollingRestart(t *testing.T) {
	c := newCrew(t, program.Plain(t), 4, 3, nil)
	l := c.load(300)
	for _, old := range slices.Clone(c.relays) {
		l.waitCommitted(100)
		c.add().waitReady()
		old.stop()
		c.remove(old)
		c.waitShared()
	}
	l.waitCommitted(100)
	c.end(l, 0)
}

// An owner of some slots is killed: others deliver what is committed from then on, and no slot that
// they had is disturbed.
func TestShardsOwnerKilled(t *testing.T) {
	const budget = 300
	c := newCrew(t, program.Plain(t), 4, 3, settings{"RELAY_INFLIGHT_EVENTS": fmt.Sprint(budget)})
	l := c.load(300)
	for range 2 {
		owners := c.waitShared()
		l.waitCommitted(100)
		victim := owners[c.slot+"_0of4"]
		others := make(map[*process]map[string]int64)
		for _, p := range c.relays {
			if p != victim {
				others[p] = p.streams()
			}
		}
		killed := time.Now()
		victim.crash()
		c.remove(victim)
		c.waitDelivered(l)
		t.Logf("an event of each slot was delivered %s after the kill", time.Since(killed).Round(10*time.Millisecond))
		for p, before := range others {
			now := p.streams()
			for slot, epoch := range before {
				if now[slot] != epoch {
					t.Errorf("%s had %s at epoch %d before the kill of another, and has %v now", p.name, slot, epoch, now)
				}
			}
		}
		c.add()
	}
	c.waitShared()
	c.end(l, 2*budget)
}

// waitDelivered commits an event of each slot's keys, and waits until all are delivered.
func (c *crew) waitDelivered(l *load) {
	c.t.Helper()
	var rows []row
	found := make(map[int]bool)
	for n := 0; len(found) < c.shards; n++ {
		key := fmt.Sprintf("probe-%s-%d", newID(), n)
		if shard := value[int](c.world, `SELECT `+relay.ShardSQL("$1", fmt.Sprint(c.shards)), key); !found[shard] {
			found[shard] = true
			rows = append(rows, row{key: key, topic: c.k.name})
		}
	}
	ids := c.insert(rows...)
	for i, id := range ids {
		l.check.Commit(verify.Event{ID: id, Key: rows[i].key})
	}
	eventually(c.t, patience, "an event of each slot is delivered", func() string {
		for _, id := range ids {
			if status, err := c.statusOf(id); status != "sent" {
				return fmt.Sprintf("a row is %s (%v)", status, err)
			}
		}
		return ""
	})
}

// An owner of some slots is frozen, with its connections open: others take them when the lease has
// lapsed. Awake again it publishes nothing of what was its, and gets its share again.
func TestShardsOwnerFrozen(t *testing.T) {
	const budget = 300
	c := newCrew(t, program.Path(t), 4, 3, settings{"RELAY_INFLIGHT_EVENTS": fmt.Sprint(budget)})
	l := c.load(300)
	owners := c.waitShared()
	l.waitCommitted(100)
	frozen := owners[c.slot+"_0of4"]
	had := frozen.streams()
	began := time.Now()
	frozen.signal(syscall.SIGSTOP)
	c.remove(frozen)
	c.waitDelivered(l)
	t.Logf("an event of each slot was delivered %s after the freeze", time.Since(began).Round(10*time.Millisecond))
	owners = c.waitShared()
	for slot, epoch := range had {
		if got := owners[slot].streams()[slot]; got <= epoch {
			t.Errorf("%s has epoch %d, want more than %d", slot, got, epoch)
		}
	}
	l.finish(nil) // from here on nothing is to be delivered
	before := c.k.ends()[0]
	frozen.signal(syscall.SIGCONT)
	frozen.waitLog("lease lost, standing by")
	c.relays = append(c.relays, frozen)
	c.waitShared()
	if after := c.k.ends()[0]; after != before {
		t.Errorf("%d events were published after the thaw", after-before)
	}
	l.start()
	c.waitDelivered(l)
	c.end(l, budget)
}

// An owner of some slots loses the network to PostgreSQL, and keeps that to the broker: others take
// its slots. When the network is back it is given its share again.
func TestShardsOwnerCutOff(t *testing.T) {
	const budget = 300
	c := newCrew(t, program.Plain(t), 4, 2, settings{"RELAY_INFLIGHT_EVENTS": fmt.Sprint(budget)})
	proxy := pgtest.NewProxy(t, c.url)
	cut := c.relayOf(c.path, "cut", c.env.with(settings{"DATABASE_URL": proxy.DSN}))
	c.relays = append(c.relays, cut)
	c.waitShared()
	l := c.load(300)
	l.waitCommitted(100)
	had := cut.streams()
	began := time.Now()
	proxy.Freeze()
	c.remove(cut)
	c.waitDelivered(l)
	t.Logf("an event of each slot was delivered %s after the cut", time.Since(began).Round(10*time.Millisecond))
	owners := c.waitShared()
	for slot, epoch := range had {
		if got := owners[slot].streams()[slot]; got <= epoch {
			t.Errorf("%s has epoch %d, want more than %d", slot, got, epoch)
		}
	}
	cut.waitLog("lease lost, standing by")
	proxy.Thaw()
	c.relays = append(c.relays, cut)
	c.waitShared()
	l.waitCommitted(100)
	c.end(l, budget)
}

// One relay, then four, then two: the slots follow, in order. Nothing is lost, nothing comes twice.
func TestShardsScale(t *testing.T) {
	c := newCrew(t, program.Plain(t), 4, 1, nil)
	l := c.load(300)
	for range 3 {
		c.add()
	}
	c.waitShared()
	l.waitCommitted(100)
	for _, p := range c.relays[:2] {
		p.signal(syscall.SIGTERM)
	}
	for _, p := range slices.Clone(c.relays[:2]) {
		p.stop()
		c.remove(p)
	}
	c.waitShared()
	l.waitCommitted(100)
	c.end(l, 0)
}

// What the relays export as pending adds up to the backlog, which the autoscaler reads, and to
// nothing when it is done.
func TestShardsBacklog(t *testing.T) {
	c := newCrew(t, program.Plain(t), 4, 2, settings{
		"RELAY_INFLIGHT_EVENTS": "300", "RELAY_LANES": "1", "BATCH_SIZE": "50", "RELAY_MARK_LINGER": "50ms",
	})
	c.comparePending(100_000, c.relays...)
	for _, p := range c.relays {
		p.waitMetric("outbox_pending_events_total", "0")
		p.waitMetric("outbox_shards_owned", "2")
		p.stop()
	}
	c.atEnd()
}
