package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay/verify"
)

// bind makes the queue take payments, unbind makes them unroutable.
func (q *queue) bind() {
	q.t.Helper()
	q.on(func(ch *amqp.Channel) error { return ch.QueueBind(q.name, "payment.*", q.name, false, nil) })
}

func (q *queue) unbind() {
	q.t.Helper()
	q.on(func(ch *amqp.Channel) error { return ch.QueueUnbind(q.name, "payment.*", q.name, nil) })
}

// An event that no queue takes waits in the ledger, and what follows of its key behind it, from the
// same transaction and from later ones; other keys do not notice. SQL shows all that. When a queue
// is bound, the key goes on in order.
func TestRefusedHoldsItsKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "order.*")
	l := w.load(loadOptions{topic: "order.created", rate: 300})
	p := w.relay("relay", q.env().with(settings{"INITIAL_RETRY_DELAY_SECONDS": "0.2", "MAX_RETRY_DELAY_SECONDS": "0.5", "MAX_RETRIES": "100000"}))
	p.waitStreaming()
	l.waitCommitted(50)

	const key = "refused"
	commit := func(topics ...string) (all []verify.Event) {
		var rows []row
		for _, topic := range topics {
			rows = append(rows, row{key: key, topic: topic})
		}
		for _, id := range w.insert(rows...) {
			all = append(all, verify.Event{ID: id, Key: key})
		}
		l.check.Commit(all...)
		return all
	}
	same := commit("order.created", "payment.due", "order.created", "order.created", "payment.due", "order.created")
	refused := same[1]
	w.db.Until(t, `SELECT retry_count >= 2 FROM saga_outbox WHERE event_id = $1`, [16]byte(refused.ID))
	var later []verify.Event
	for range 5 {
		later = append(later, commit("order.created", "order.created")...)
	}
	last := l.probe()
	w.db.Until(t, `SELECT count(*) = $1 FROM saga_outbox_delivery`, len(same)-1+len(later))

	if status, _ := w.fate(same[0].ID); status != "sent" {
		t.Errorf("the event before the refused one is %s", status)
	}
	status, text := w.fate(refused.ID)
	if status != "failed" || !strings.Contains(text, "unroutable") || !strings.Contains(text, "payment.due") {
		t.Errorf("the refused event's row is %s: %s", status, text)
	}
	if n := value[int](w, `SELECT count(*) FROM saga_outbox_delivery WHERE event_id = $1 AND sink = 'rabbitmq' AND slot = $2 AND partition_key = $3 AND state = 'retry'
		AND reason = 'unroutable' AND attempts >= 2 AND next_attempt_at IS NOT NULL AND NOT detached`, [16]byte(refused.ID), w.slot, key); n != 1 {
		t.Errorf("the refused event's entry is not as it should be")
	}
	for _, e := range append(same[2:], later...) {
		status, _ := w.fate(e.ID)
		if n := value[int](w, `SELECT count(*) FROM saga_outbox_delivery WHERE event_id = $1 AND state = 'held' AND attempts = 0`, [16]byte(e.ID)); n != 1 || status != "pending" {
			t.Errorf("an event behind the refused one: row %s, %d held entries; want pending and 1", status, n)
		}
	}
	// Other keys: what was committed after all that is sent, and has never been in the ledger.
	w.db.Until(t, `SELECT status = 'sent' FROM saga_outbox WHERE event_id = $1`, [16]byte(last))
	l.waitCommitted(300)
	w.waitPassed()
	eventually(t, patience, "the other keys' rows are sent", func() string {
		// While the load goes on the newest rows are always pending; older ones may not be.
		if n := value[int](w, `SELECT count(*) FROM saga_outbox WHERE aggregate_id <> $1 AND status <> 'sent' AND created_at < clock_timestamp() - interval '2 seconds'`, key); n != 0 {
			return p.mustRun(fmt.Sprintf("%d are not", n))
		}
		return ""
	})

	q.bind()
	w.waitLedger(p, "rabbitmq", 0)
	l.waitCommitted(50)
	l.settle(p, "rabbitmq")
	p.stop()
	l.judge("rabbitmq", messageEvents(t, q.drain()), 0)
}

// Relays are killed at random moments while events are refused, wait behind each other, are tried
// again and released: one row in twenty needs a binding that comes and goes. Nothing is lost, and
// each key stays in order. (The binding goes while no relay runs: one that takes its route for a
// good one learns of the end of it when what follows is sent already; sinks/rabbitmq, "Order behind
// a record that comes back".)
func TestRefusedAndKilled(t *testing.T) {
	t.Parallel()
	const (
		rounds = 8
		budget = 300
	)
	w := newWorld(t)
	rnd := newRand(t)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "order.*")
	env := q.env().with(settings{
		"INITIAL_RETRY_DELAY_SECONDS": "0.05", "MAX_RETRY_DELAY_SECONDS": "0.2", "MAX_RETRIES": "100000",
		"RELAY_BACKOFF_MAX": "500ms", "RELAY_INFLIGHT_EVENTS": fmt.Sprint(budget),
	})
	l := w.load(loadOptions{topic: "order.created", odd: "payment.due", keys: 40, rate: 200})
	for round := range rounds {
		p := w.relay(fmt.Sprintf("relay-%d", round), env)
		p.waitStreaming()
		w.db.Until(t, `SELECT count(*) > 50 FROM saga_outbox_delivery`)
		bound := rnd.IntN(3) > 0
		if bound {
			q.bind()
		}
		// Not to wait for anything: this is the random moment.
		time.Sleep(time.Duration(rnd.IntN(500)) * time.Millisecond)
		p.crash()
		w.waitGone()
		t.Logf("kill %d, bound %t: %d committed, entries: %d waiting, %d ready, %d held", round, bound, l.committed(),
			w.ledger("rabbitmq", "state = 'retry' AND next_attempt_at IS NOT NULL"), w.ledger("rabbitmq", "state = 'retry' AND next_attempt_at IS NULL"), w.ledger("rabbitmq", "state = 'held'"))
		q.unbind()
	}
	p := w.relay("relay-last", env)
	p.waitStreaming()
	q.bind()
	w.waitLedger(p, "rabbitmq", 0)
	l.waitCommitted(50)
	l.settle(p, "rabbitmq")
	p.stop()
	l.judge("rabbitmq", messageEvents(t, q.drain()), rounds*(budget+roundEntries))
}

// Rows with a header CC as text made RabbitMQ close the channel for ever, and nothing of other keys
// arrived. They are sent, what cannot be an array of routing keys ends as a dead letter, and the
// relay is ready all the time.
func TestHeaderThatRabbitMQTakesForRoutes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "#")
	var rows []row
	for i := range 5 {
		rows = append(rows, row{key: fmt.Sprint("cc", i), topic: "order.created", headers: `{"CC": "audit"}`})
		rows = append(rows, row{key: fmt.Sprint("bad", i), topic: "order.created", headers: `{"CC": [1]}`})
	}
	for i := range 40 {
		rows = append(rows, row{key: fmt.Sprint("good", i), topic: "order.created"})
	}
	w.insert(rows...)
	p := w.relay("relay", q.env().with(settings{"INITIAL_RETRY_DELAY_SECONDS": "0.1", "MAX_RETRY_DELAY_SECONDS": "0.2", "MAX_RETRIES": "3"}))
	p.waitReady()
	w.db.Until(t, `SELECT count(*) = 45 FROM saga_outbox WHERE status = 'sent'`)
	w.db.Until(t, `SELECT count(*) = 5 FROM saga_outbox WHERE status = 'dead_letter' AND last_error LIKE '%encode%CC%'`)
	p.waitReady()
	if n := len(p.logged("sink isolated")); n != 0 {
		t.Errorf("the sink was isolated %d times", n)
	}
	p.stop()
	if n := len(q.drain()); n != 45 {
		t.Errorf("%d messages arrived, want 45", n)
	}
}
