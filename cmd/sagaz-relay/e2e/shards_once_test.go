package e2e

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/relay"
)

// Rows of random keys come in every way that there is, for four slots of three relays: found by the
// sweep that a new slot needs, streamed, streamed by some slots and swept for others, which were
// dropped meanwhile, and polled. Each is delivered exactly once.
func TestShardsDeliverEachRowOnce(t *testing.T) {
	const part = 5000
	w := bareWorldAt(t, pgtest.Server(t, pgtest.Version()))
	w.shards = 4
	w.migrate()
	c := &crew{fleetIn(t, w, program.Plain(t), nil)}
	insert := func(n int) {
		t.Helper()
		c.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
			SELECT gen_random_uuid(), 's', CASE n % 3 WHEN 0 THEN md5(random()::text) WHEN 1 THEN (random() * 1000)::int::text ELSE repeat('ü ', (random() * 100)::int) END, $1, '{}'
			FROM generate_series(1, $2::int) n`, c.k.name, n)
	}
	start := func(mode string) {
		t.Helper()
		c.env["RELAY_MODE"] = mode
		for range 3 {
			c.add()
		}
	}
	sent := func(n int) {
		t.Helper()
		eventually(t, patience, fmt.Sprintf("%d rows are sent", n), func() string {
			if got := value[int](w, `SELECT count(*) FROM saga_outbox WHERE status = 'sent'`); got != n {
				return fmt.Sprintf("%d are", got)
			}
			return ""
		})
	}
	stop := func() {
		t.Helper()
		for _, p := range c.relays {
			p.signal(syscall.SIGTERM)
		}
		for _, p := range c.relays {
			p.stop()
		}
		c.relays = nil
	}

	insert(part)
	start("cdc")
	sent(part)
	c.waitShared()
	insert(part / 2)
	sent(part + part/2)
	stop()
	insert(part / 2)
	c.exec(`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name IN ($1, $2)`, c.slot+"_1of4", c.slot+"_2of4")
	start("auto")
	insert(part / 2)
	sent(2*part + part/2)
	c.waitShared()
	stop()
	insert(part / 2)
	start("polling")
	insert(part)
	sent(4 * part)
	stop()

	seen := make(map[relay.UUID]int)
	for _, a := range c.k.read() {
		seen[a.id(t)]++
	}
	if len(seen) != 4*part {
		t.Errorf("%d events were delivered, want %d", len(seen), 4*part)
	}
	twice := 0
	for _, n := range seen {
		if n > 1 {
			twice++
		}
	}
	if twice > 0 {
		t.Errorf("%d events were delivered more than once", twice)
	}
	c.atEnd()
}
