package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
)

// Two sinks with rules of their own, on real brokers: what a rule sends elsewhere, what it drops,
// what is in the ledger when the rules are changed, and what the commands say of it.
func TestRoutes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := brokertest.Kafka(t).Plaintext
	orders := newTopic(t, addr, 4)
	queue := newQueue(t, brokertest.RabbitMQ(t).URL, "audit.#")
	rules := filepath.Join(t.TempDir(), "routes.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(rules, []byte(strings.ReplaceAll(text, "ORDERS", orders.name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := settings{
		"RELAY_SINKS":                  "orders-kafka,audit-rabbit",
		"RELAY_SINK_ORDERS_KAFKA_KIND": "kafka", "RELAY_SINK_ORDERS_KAFKA_BOOTSTRAP_SERVERS": addr,
		"RELAY_SINK_AUDIT_RABBIT_KIND": "rabbitmq", "RELAY_SINK_AUDIT_RABBIT_URL": queue.url, "RELAY_SINK_AUDIT_RABBIT_EXCHANGE": queue.name,
		"RELAY_ROUTES_FILE":           rules,
		"INITIAL_RETRY_DELAY_SECONDS": "0.3", "MAX_RETRY_DELAY_SECONDS": "0.3", "MAX_RETRIES": "1000",
	}
	const common = `
- {name: noise, event_type: "Noise*", drop: true}
- {name: orders, sinks: orders-kafka, event_type: "Order*", topic: ORDERS, key: "{saga_id}"}
- {name: audit, sinks: audit-rabbit, event_type: ["Order*", "Lost*"], headers: {audit: "y*"}, routing_key: "audit.{event_type}"}
- {name: not-audited, sinks: audit-rabbit, drop: true}
`
	// A topic that no aggregate_type with a space can name: those events are refused, each by itself.
	write(common + `- {name: lost, sinks: orders-kafka, event_type: "Lost*", topic: "ORDERS.{aggregate_type}"}
- {name: rest, sinks: orders-kafka, drop: true}
`)
	p := w.relay("routes", env)
	p.waitStreaming()
	const audited = `{"audit": "yes"}`
	ids := w.insert(
		row{key: "a", topic: "OrderPlaced", saga: "saga-a", headers: audited},
		row{key: "a", topic: "NoiseMade", saga: "saga-a", headers: audited},
		row{key: "a", topic: "OrderShipped", saga: "saga-a"},
		row{key: "a", topic: "Other", saga: "saga-a", headers: audited},
		row{key: "b", topic: "LostFirst", saga: "saga-b", aggregate: "no topic", headers: audited},
		row{key: "b", topic: "OrderPlaced", saga: "saga-b", headers: audited},
		row{key: "b", topic: "LostSecond", saga: "saga-b", aggregate: "no topic"},
		row{key: "b", topic: "NoiseMade", saga: "saga-b"},
	)
	w.waitLedger(p, "orders-kafka", 3) // the refused one, and what it holds; not what is dropped
	for i, want := range []string{"sent", "sent", "sent", "sent", "failed", "pending", "pending", "sent"} {
		eventually(t, patience, fmt.Sprintf("row %d is %s", i, want), func() string {
			if status, _ := w.fate(ids[i]); status != want {
				return status
			}
			return ""
		})
	}
	if _, why := w.fate(ids[4]); !strings.Contains(why, "orders-kafka: unknown_topic: ") || !strings.Contains(why, "is no legal topic name") {
		t.Errorf("the refused event's error is %q", why)
	}
	_, metrics := p.get("/metrics")
	for _, want := range []string{
		`outbox_dropped_events_total{rule="noise",sink="orders-kafka"} 2`, `outbox_dropped_events_total{rule="rest",sink="orders-kafka"} 1`,
		`outbox_routed_events_total{rule="orders",sink="orders-kafka"} 2`,
		`outbox_dropped_events_total{rule="not-audited",sink="audit-rabbit"} 3`, `outbox_routed_events_total{rule="audit",sink="audit-rabbit"} 3`,
	} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	p.stop()

	// Other rules: they decide about the ledger, too.
	write(common + `- {name: found, sinks: orders-kafka, event_type: LostFirst, topic: ORDERS, key: "{saga_id}"}
- {name: given-up, sinks: orders-kafka, event_type: LostSecond, drop: true}
- {name: rest, sinks: orders-kafka, event_type: "[^"}
`)
	w.fails(t, env, "RELAY_ROUTES: rule 7 (rest): event_type: \"[^\": \"[\" has no meaning here")
	write(common + `- {name: found, sinks: orders-kafka, event_type: LostFirst, topic: ORDERS, key: "{saga_id}"}
- {name: given-up, sinks: orders-kafka, event_type: LostSecond, drop: true}
- {name: rest, sinks: orders-kafka, drop: true}
`)
	p = w.relay("other-routes", env)
	p.waitStreaming()
	w.waitLedger(p, "orders-kafka", 0)
	if got := w.waitNonePending(p); got["sent"] != len(ids) {
		t.Errorf("rows are %v, want all sent", got)
	}
	// One that was sent, and one that no sink got, are wanted once more.
	if out, code := w.command(env, "replay", "--event-id", ids[0].String()+","+ids[3].String()); code != 0 {
		t.Errorf("replay: exit code %d, %s", code, out)
	}
	eventually(t, patience, "the replayed event is there again", func() string {
		if n := len(orders.read()); n != 5 {
			return fmt.Sprintf("%d records", n)
		}
		return ""
	})
	w.waitLedger(p, "orders-kafka", 0)
	w.waitLedger(p, "audit-rabbit", 0)

	// Keys of messages are the sagas'; the order is that of each aggregate_id.
	of := make(map[string][]string)
	for _, e := range orders.read() {
		of[e.key] = append(of[e.key], e.header("event_type"))
	}
	if want := []string{"OrderPlaced", "OrderShipped", "OrderPlaced"}; !slices.Equal(of["saga-a"], want) {
		t.Errorf("saga-a: %q, want %q", of["saga-a"], want)
	}
	if want := []string{"LostFirst", "OrderPlaced"}; !slices.Equal(of["saga-b"], want) {
		t.Errorf("saga-b: %q, want %q", of["saga-b"], want)
	}
	if out, code := w.command(env, "verify", "--since", "1h", "--queue", queue.name); code != 0 ||
		!strings.Contains(out, "orders-kafka: 4 of them there, in 5 deliveries (1 replays); 0 missing") || !strings.Contains(out, "4 are not there by a rule of RELAY_ROUTES") {
		t.Errorf("verify: exit code %d, %s", code, out)
	}
	var keys []string
	for _, m := range queue.drain() {
		keys = append(keys, m.RoutingKey)
	}
	slices.Sort(keys)
	if want := []string{"audit.LostFirst", "audit.OrderPlaced", "audit.OrderPlaced", "audit.OrderPlaced"}; !slices.Equal(keys, want) {
		t.Errorf("routing keys %q, want %q", keys, want)
	}

	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"routes"}, []string{"orders-kafka (kafka):", "event_type=Noise*", "any other", "header audit=y*", "routing_key=audit.{event_type}"}},
		{[]string{"routes", "--explain", "--id", ids[5].String()}, []string{"audit-rabbit  audit   audit.OrderPlaced", "saga-b"}},
		{[]string{"routes", "--explain", "--last", "10"}, []string{"the newest 8 rows", "rest", "dropped", "audit.LostFirst"}},
		{[]string{"routes", "--explain", "--event-type", "OrderPlaced", "--json"}, []string{`"rule": "not-audited"`, `"dropped": true`, `"topic": "` + orders.name}},
		{[]string{"doctor"}, []string{"rules orders-kafka", "each matches some of the last day's 8 events"}},
	} {
		out, _ := w.command(env, c.args...)
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("%q lacks %q:\n%s", c.args, want, out)
			}
		}
	}
	p.stop()
}
