package e2e

import (
	"fmt"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
)

// Two sinks of RabbitMQ, and what a person does with one of them by its name: its dead letters, a
// replay, and verify, each of which leaves the other one alone.
func TestNamedRabbitMQSinks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	url := brokertest.RabbitMQ(t).URL
	orders, audit := newQueue(t, url, "#"), newQueue(t, url, "order")
	env := settings{
		"RELAY_SINKS": "orders-mq,audit-mq", "MAX_RETRIES": "1", "INITIAL_RETRY_DELAY_SECONDS": "0.1", "MAX_RETRY_DELAY_SECONDS": "0.3",
		"RELAY_SINK_ORDERS_MQ_KIND": "rabbitmq", "RELAY_SINK_ORDERS_MQ_URL": url, "RELAY_SINK_ORDERS_MQ_EXCHANGE": orders.name,
		"RELAY_SINK_AUDIT_MQ_KIND": "rabbitmq", "RELAY_SINK_AUDIT_MQ_URL": url, "RELAY_SINK_AUDIT_MQ_EXCHANGE": audit.name,
	}
	p := w.relay("two-rabbits", env)
	p.waitStreaming()
	w.insert(w.randomKeys(newRand(t), 20, "order")...)
	w.insert(row{key: "refunded", topic: "refund"})
	w.db.Until(t, `SELECT count(*) = 1 FROM saga_outbox_delivery WHERE sink = 'audit-mq' AND state = 'dead' AND reason = 'unroutable'`)
	w.waitNonePending(p)
	for sink, want := range map[string]int{"audit-mq": 1, "orders-mq": 0} {
		if got := w.letters(env, "--sink", sink)["dead unroutable"]; got != want {
			t.Errorf("%s has %d dead letters, want %d", sink, got, want)
		}
	}
	if out, code := w.command(env, "dead-letter", "retry", "--sink", "orders-mq"); code != 0 || w.ledger("audit-mq", "state = 'dead'") != 1 {
		t.Errorf("retrying the other sink's: exit code %d, %s", code, out)
	}
	audit.on(func(ch *amqp.Channel) error { return ch.QueueBind(audit.name, "refund", audit.name, false, nil) })
	if out, code := w.command(env, "dead-letter", "retry", "--sink", "audit-mq"); code != 0 || !strings.Contains(out, "audit-mq") {
		t.Errorf("dead-letter retry: exit code %d, %s", code, out)
	}
	w.waitLedger(p, "audit-mq", 0)
	depths := func(inOrders, inAudit int) {
		t.Helper()
		if a, b := orders.depth(), audit.depth(); a != inOrders || b != inAudit {
			t.Errorf("%d messages of orders-mq and %d of audit-mq, want %d and %d", a, b, inOrders, inAudit)
		}
	}
	depths(21, 21)
	verify := func(want int, words string, args ...string) {
		t.Helper()
		out, code := w.command(env, append([]string{"verify", "--since", "1h"}, args...)...)
		if code != want || !strings.Contains(out, words) {
			t.Errorf("verify %q: exit code %d, want %d, and %q in %s", args, code, want, words, out)
		}
	}
	ofOrders, ofAudit := "orders-mq="+orders.name, "audit-mq="+audit.name
	verify(0, "audit-mq", "--queue", ofOrders, "--queue", ofAudit)
	verify(0, "audit-mq", "--sink", "audit-mq", "--queue", ofAudit)

	if out, code := w.command(env, "replay", "--since", "1h", "--sink", "orders-mq"); code != 0 || !strings.Contains(out, "orders-mq 21") {
		t.Errorf("replay: exit code %d, %s", code, out)
	}
	eventually(t, patience, "the replayed events arrive", func() string {
		if n := orders.depth(); n != 42 {
			return p.mustRun(fmt.Sprint(n))
		}
		return ""
	})
	w.waitLedger(p, "orders-mq", 0)
	depths(42, 21)
	if out, code := w.command(env, "replay", "--since", "1h", "--sink", "orders-rabbit"); code != 2 || out != "" {
		t.Errorf("replay to a sink that is none: exit code %d, %s", code, out)
	}
	audit.drain()
	verify(1, "21 missing", "--sink", "audit-mq", "--queue", ofAudit)
	verify(0, "orders-mq", "--sink", "orders-mq", "--queue", ofOrders)
	p.stop()
}
