package monitoring

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// Four slots over three relays: sums are of all slots, what is of one slot is told apart, and a slot
// that nobody gets is the one whose alert fires. Then there are two.
func TestSeveralSlots(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Newest, map[string]string{"max_prepared_transactions": "5"})
	s := &scene{
		t: t, db: pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated()), rabbit: &pgtest.Proxy{}, // there is none
		relays: map[string]*product.Process{}, env: map[string]map[string]string{},
	}
	targets := s.pods(3, "", map[string]string{"BROKER_TYPE": "stdout", "RELAY_SHARDS": "4"})
	s.alerts = quick(t, string(product.Read(t, rulesFile)))
	s.prometheus = startPrometheus(t, s.alerts, targets)
	p := s.prometheus
	start := func() {
		for pod := range s.env {
			s.run(pod)
		}
	}
	start()
	p.until(`sum(outbox_shards_owned) == 4 and min(outbox_shards_owned) == 1 and max(outbox_shards) == 4`)
	p.until(`sum(outbox_stream_up) == 4`)
	s.insert("order.note", 300)
	p.until(`sum(outbox_marked_events_total) == 300`)
	p.until(`count(count by (slot) (outbox_slot_confirmed_flush_lag_bytes)) == 4 and count(count by (slot) (outbox_slot_retained_wal_bytes)) == 4`) // each was looked at
	for name, d := range dashboards(t) {
		for _, panel := range d.Panels {
			for _, q := range panel.Targets {
				if q.Datasource.Type == "prometheus" && name == "grafana-dashboard-replication.json" && (panel.Title == "By slot" || panel.Title == "Slots not streamed") {
					got := p.labels(filled(q.Expr), "slot")
					t.Logf("%s: %v", q.Expr, got)
					if want := map[string]int{"By slot": 4, "Slots not streamed": 1}[panel.Title]; len(got) != want {
						t.Errorf("%s: %q has %d rows, want %d: %v", panel.Title, q.Expr, len(got), want, got)
					}
				}
			}
		}
	}

	// Something that does not end holds one slot's lock.
	for pod := range s.env {
		s.relays[pod].Stop()
	}
	s.sql(`BEGIN; SELECT pg_advisory_xact_lock(x'5341475a'::int, hashtext('sagaz_outbox_2of4')); PREPARE TRANSACTION 'holds'`)
	start()
	s.fires("OutboxSlotUnowned")
	p.until(`sum(outbox_shards_owned) == 3 and max(outbox_slot_owned{slot="sagaz_outbox_2of4"}) == 0`)
	// the pending time is so short here that the others' slots may have fired, too, while relays started
	product.Until(t, "OutboxSlotUnowned fires for the slot that nobody gets, and for no other", func() bool {
		return strings.Join(p.labels(`ALERTS{alertname="OutboxSlotUnowned", alertstate="firing"}`, "slot"), " ") == "sagaz_outbox_2of4"
	})
	s.runbook("OutboxSlotUnowned", "outbox-worker-0", "sagaz_outbox_2of4", "sagaz_outbox_3of4")
	if _, some := p.now(`count(ALERTS{alertname="OutboxStandbyMissing", alertstate="firing"})`); some {
		t.Error("OutboxStandbyMissing fires with three relays")
	}
	s.sql(`ROLLBACK PREPARED 'holds'`)
	s.ends("OutboxSlotUnowned")

	// Who owns nothing after the change shows it, too.
	s.shards("2")
	p.until(`count(outbox_shards == 2) == 3 and sum(outbox_shards_owned) == 2 and count(outbox_shards_change_seconds == 0) == 3`)
	product.Until(t, "the old slots are gone", func() bool { return s.count(`SELECT count(*) FROM pg_replication_slots`) == 2 })
	product.Until(t, "no alert is left but those for looking at", func() bool {
		_, some := p.now(`count(ALERTS{alertstate="firing", severity!="info"})`)
		return !some
	})
	s.insert("order.note", 100)
	product.Until(t, "every row is sent", func() bool { return s.count(`SELECT count(*) FROM saga_outbox WHERE status <> 'sent'`) == 0 })
}

// labels are the values that a label has in what an expression gives now, in their order.
func (p *prometheus) labels(expr, label string) (all []string) {
	p.t.Helper()
	var result struct {
		Result []struct {
			Metric map[string]string
		}
	}
	if err := p.get("/api/v1/query", url.Values{"query": {expr}}, &result); err != nil {
		p.t.Fatalf("%s: %v", expr, err)
	}
	for _, r := range result.Result {
		all = append(all, r.Metric[label])
	}
	slices.Sort(all)
	return all
}
