package doctor

import (
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/route"
)

// Destinations are those that a sink's rules make, and rules that match nothing are named.
func TestRules(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	cfg := configFor(t, db.DSN)
	var asked []relay.Route
	cfg.Sinks = []relay.Sink{sink{asked: &asked}}
	rules := func(text string) {
		t.Helper()
		table, err := route.New(route.Config{Rules: text, NoMatch: route.Deliver}, []route.Sink{{Name: "kafka"}})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Routers, asked = table.Routers(), nil
	}
	rules(`[{name: noise, event_type: "Noise*", drop: true}]`)
	if f := Examine(t.Context(), cfg, nil).finding("rules kafka", OK, "1 rule; no event within a day"); f == nil {
		t.Error("an empty table is something wrong with rules")
	}
	exec(t, db.DSN, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, headers, status) VALUES
			(gen_random_uuid(), 's', 'k', 'OrderPlaced', '{}', '{"region": "eu-west"}', 'sent'), (gen_random_uuid(), 's', 'k', 'OrderPlaced', '{}', '{}', 'sent'),
			(gen_random_uuid(), 's', 'k', 'NoiseMade', '{}', '{}', 'sent')`)
	rules(`[{name: noise, event_type: "Noise*", drop: true}, {name: eu, headers: {region: "eu-*"}, topic: "eu.{event_type}"}, {name: us, headers: {region: "us-*"}}, {name: typo, event_type: OrderPlacd}]`)
	report := Examine(t.Context(), cfg, nil)
	f := report.finding("rules kafka", Note, "us, typo: matches none of the last day's 3 events")
	if f == nil || len(f.Fix) == 0 {
		t.Errorf("no finding about rules that never match:\n%s", show(report))
	}
	got := make(map[relay.Route]bool)
	for _, r := range asked {
		got[r] = true
	}
	if len(got) != 2 || !got[relay.Route{EventType: "OrderPlaced", Topic: "eu.OrderPlaced", RoutingKey: "OrderPlaced"}] || !got[relay.Route{EventType: "OrderPlaced", Topic: "OrderPlaced", RoutingKey: "OrderPlaced"}] {
		t.Errorf("asked about %v, want what is not dropped, where the rules have it", asked)
	}
	rules(`[{name: orders, event_type: "Order*"}, {name: noise, event_type: "Noise*"}]`)
	if report := Examine(t.Context(), cfg, nil); report.finding("rules kafka", OK, "2 rules: each matches some of the last day's 3 events") == nil {
		t.Errorf("nothing about rules that all match:\n%s", show(report))
	}
}
