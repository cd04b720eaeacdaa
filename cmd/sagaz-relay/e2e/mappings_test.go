package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
)

// A header of the row names the topic and the routing key. verify looks for the events where they
// went, and doctor asks for those places. An event without the header is refused and holds up
// nothing but its key.
func TestTopicFromHeader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker := brokertest.Kafka(t).Plaintext
	acme, other := newTopic(t, broker, 1), newTopic(t, broker, 1)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "acme.#", "shared.#")
	env := q.env().with(settings{
		"BROKER_TYPE": "kafka,rabbitmq", "KAFKA_BOOTSTRAP_SERVERS": broker, "RELAY_ENVELOPE": "raw", "MAX_RETRIES": "1",
		"RELAY_TOPIC": "{header:topic}", "RELAY_ROUTING_KEY": "{header:tenant|shared}.{event_type}",
	})
	since := time.Now().Add(-time.Minute).Format(time.RFC3339Nano)
	p := w.relay("relay", env)
	p.waitStreaming()
	ids := w.insert(
		row{key: "a", topic: "Paid", headers: `{"topic": "` + acme.name + `", "tenant": "acme"}`},
		row{key: "b", topic: "Paid", headers: `{"topic": "` + other.name + `"}`},
		row{key: "c", topic: "Paid", headers: `{"tenant": "acme"}`},
		row{key: "b", topic: "Shipped", headers: `{"topic": "` + other.name + `", "tenant": ""}`},
	)
	if got := w.waitNonePending(p); got["sent"] != 3 || got["dead_letter"] != 1 {
		t.Fatalf("rows by status: %v", got)
	}
	p.stop()
	if status, why := w.fate(ids[2]); status != "dead_letter" || !strings.Contains(why, "RELAY_TOPIC={header:topic} needs the header topic") {
		t.Errorf("without the header: %s, %q", status, why)
	}
	if a, b := acme.read(), other.read(); len(a) != 1 || a[0].key != "a" || len(b) != 2 || b[0].key != "b" || b[1].key != "b" {
		t.Errorf("topics have %d and %d records", len(a), len(b))
	}
	keys := map[string]int{}
	for _, m := range q.drain() {
		keys[m.RoutingKey]++
	}
	if len(keys) != 3 || keys["acme.Paid"] != 1 || keys["shared.Paid"] != 1 || keys["shared.Shipped"] != 1 {
		t.Errorf("routing keys %v", keys)
	}
	env["BROKER_TYPE"] = "kafka"
	if out, code := w.command(env, "verify", "--since", since); code != 0 {
		t.Errorf("verify: exit code %d: %s", code, out)
	}
	if out, _ := w.command(env, "doctor"); !strings.Contains(out, "3 destinations of the last day's events: all there") {
		t.Errorf("doctor: %s", out)
	}
}
