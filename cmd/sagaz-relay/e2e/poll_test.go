package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgserver"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/relay"
)

// plainWorld is a world in which nothing can be streamed: the server's settings, a role without
// REPLICATION, no slot.
func plainWorld(t testing.TB, server map[string]string) (*world, *pgserver.Server) {
	t.Helper()
	s := pgtest.OwnServer(t, pgtest.Version(), server)
	w := bareWorldAt(t, s.DSN("postgres"))
	w.exec(`ALTER ROLE ` + w.role + ` NOREPLICATION`)
	w.migrate()
	return w, s
}

// pooled is DATABASE_URL by way of a PgBouncer in transaction mode.
func (w *world) pooled() string {
	w.t.Helper()
	asRole := *w.db
	asRole.DSN = w.url
	return asRole.Pooled(w.t)
}

// polling are the variables that let a relay look at the table ten times a second.
var polling = settings{"RELAY_MODE": "polling", "POLL_INTERVAL": "0.1"}

// waitPolling waits until the process owns its slot and polls.
func (p *process) waitPolling() {
	p.t.Helper()
	eventually(p.t, patience, p.name+" polls", func() string {
		if st := p.status(); len(st.Slots) == 1 && st.Slots[0].Role == relay.Owner && st.Slots[0].Mode == relay.ModePolling {
			return ""
		}
		return p.mustRun("role " + string(p.role()))
	})
	p.waitReady()
}

// noSlots wants the server without replication slots of this database.
func (w *world) noSlots() {
	w.t.Helper()
	if n := value[int](w, `SELECT count(*) FROM pg_replication_slots WHERE database = current_database()`); n != 0 {
		w.t.Errorf("%d replication slots, want none", n)
	}
}

// ofTheOwner are the metrics of a slot that say nothing of a replication slot.
var ofTheOwner = []string{"owned", "epoch", "lease_seconds", "stalled_seconds", "inflight_ratio", "switch_bytes"}

// Where nothing can be streamed, RELAY_MODE=polling delivers everything, in order, and makes no
// slot. A stop under load repeats nothing.
func TestPolling(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(t *testing.T) (*world, settings){
		"wal_level replica, no REPLICATION": func(t *testing.T) (*world, settings) {
			w, _ := plainWorld(t, map[string]string{"wal_level": "replica", "max_replication_slots": "0", "max_wal_senders": "0"})
			return w, nil
		},
		"pgbouncer": func(t *testing.T) (*world, settings) {
			w := bareWorldAt(t, pgtest.Server(t, pgtest.Version()))
			w.exec(`ALTER ROLE ` + w.role + ` NOREPLICATION`)
			w.migrate()
			return w, settings{"DATABASE_URL": w.pooled()}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, more := prepare(t)
			d := toKafka(t)
			l := w.load(loadOptions{topic: d.topic})
			l.waitCommitted(200) // rows from before the first relay
			env := d.env.with(polling).with(more)
			var p *process
			for i := range 3 {
				p = w.relay(fmt.Sprintf("relay-%d", i), env)
				p.waitPolling()
				l.waitCommitted(300)
				if i < 2 {
					p.stop()
				}
			}
			l.finish(p)
			// Nobody who only polls misses a slot: an alert on lost or idle ones must not fire. What is
			// exported is of the shard and its owner.
			p.waitMetric(`outbox_mode{mode="polling",slot="`+w.slot+`"}`, "1")
			p.waitMetric(`outbox_events_by_state{state="pending"}`, "0")
			p.waitMetric(`outbox_oldest_pending_seconds{slot="`+w.slot+`"}`, "0")
			for name := range p.families() {
				if strings.HasPrefix(name, "outbox_slot_") && !slices.Contains(ofTheOwner, strings.TrimPrefix(name, "outbox_slot_")) {
					t.Errorf("%s is exported without a slot", name)
				}
			}
			p.stop()
			for sink, got := range d.got() {
				l.judge(sink, got, 0)
			}
			if n := value[int](w, `SELECT count(*) FROM saga_outbox WHERE sent_at IS NULL OR retry_count <> 0 OR last_error IS NOT NULL`); n != 0 {
				t.Errorf("%d rows without sent_at, or with a retry", n)
			}
			w.noSlots()
		})
	}
}

// Of two relays that poll one does, and when it is killed the other goes on: at once where the
// lease is a lock, and where a pooler is in between, so that nobody sees a death, when the lease
// has lapsed.
func TestPollingTakeover(t *testing.T) {
	const budget = 300
	for name, c := range map[string]struct {
		pooled bool
		within time.Duration
	}{
		"direct":    {false, 3 * time.Second},
		"pgbouncer": {true, 5 * time.Second}, // RELAY_LEASE_TTL, 4 s here, and the next look
	} {
		t.Run(name, func(t *testing.T) {
			w := bareWorldAt(t, pgtest.Server(t, pgtest.Version()))
			w.migrate()
			broker := brokertest.Kafka(t)
			f := &fleet{world: w, k: newTopic(t, broker.Plaintext, 1), path: program.Path(t), env: polling.with(settings{
				"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext, "RELAY_INFLIGHT_EVENTS": fmt.Sprint(budget), "RELAY_LEASE_TTL": "4s",
			})}
			if c.pooled {
				f.env["DATABASE_URL"] = w.pooled()
			}
			l := w.load(loadOptions{topic: f.k.name, rate: 300})
			f.add()
			f.add()
			hs := f.handovers(3, c.within, func() handover {
				owner, _ := f.ownerAndStandby()
				l.waitCommitted(100)
				h := handover{asked: time.Now()}
				owner.crash()
				h.probe = l.probe()
				f.remove(owner)
				return h
			})
			l.finish(nil)
			f.stopAll()
			all := f.k.read()
			within(t, "from SIGKILL to the next owner's delivery", took(t, all, hs), c.within)
			l.judge("kafka", events(t, all), len(hs)*budget)
			w.noSlots()
		})
	}
}

// ownerAndStandby waits until one of two relays owns the slot and the other is a standby, both of
// them ready.
func (f *fleet) ownerAndStandby() (owner, standby *process) {
	f.t.Helper()
	eventually(f.t, patience, "one relay polls and the other is a standby", func() string {
		a, b := f.relays[0], f.relays[1]
		if a.role() == relay.Standby {
			a, b = b, a
		}
		if a.role() == relay.Owner && b.role() == relay.Standby {
			owner, standby = a, b
			return ""
		}
		return a.mustRun(b.mustRun(fmt.Sprintf("%s and %s", a.role(), b.role())))
	})
	owner.healthy("owner")
	standby.healthy("standby")
	return owner, standby
}
