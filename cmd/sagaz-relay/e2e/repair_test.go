package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/relay"
)

// command runs the binary with the world's variables and returns its output and its exit code.
func (w *world) command(more settings, args ...string) (stdout string, code int) {
	w.t.Helper()
	p := launch(w.t, program.Path(w.t), args[0], w.env().with(settings{"RELAY_HTTP_ADDR": ""}).with(more), w.secrets(), args...)
	code = p.end(patience)
	// launch lets stdout pass, for the sink of that name
	if strings.Contains(p.stdout.String(), w.marker) {
		w.t.Errorf("%q shows a payload", args)
	}
	w.t.Logf("sagaz-relay %s: exit code %d\n%s%s", strings.Join(args, " "), code, p.stdout.String(), p.stderr.String())
	return p.stdout.String(), code
}

// letters runs "dead-letter list" and counts what it lists by state.
func (w *world) letters(more settings, args ...string) map[string]int {
	w.t.Helper()
	out, code := w.command(more, append([]string{"dead-letter", "list", "--json", "--limit", "0"}, args...)...)
	var list struct {
		Letters []struct{ State, Reason, Sink string }
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != 0 {
		w.t.Fatalf("dead-letter list: exit code %d, %v", code, err)
	}
	counts := make(map[string]int)
	for _, l := range list.Letters {
		counts[strings.TrimSpace(l.State+" "+l.Reason)]++
	}
	return counts
}

// hold makes the events of one key wait behind one that nobody's queue takes.
func hold(t *testing.T) (w *world, q *queue, env settings, p *process, ids []relay.UUID) {
	w = newWorld(t)
	q = newQueue(t, brokertest.RabbitMQ(t).URL, "order.*")
	env = q.env().with(settings{"RELAY_DEAD_LETTER": "hold", "MAX_RETRIES": "2", "INITIAL_RETRY_DELAY_SECONDS": "0.05", "MAX_RETRY_DELAY_SECONDS": "0.1"})
	p = w.relay("relay", env)
	p.waitStreaming()
	rows := []row{{key: "k", topic: "payment.due"}}
	for i := range 20 {
		rows = append(rows, row{key: "k", topic: []string{"order.created", "payment.due"}[i%4/3]})
	}
	ids = w.insert(rows...)
	w.db.Until(t, `SELECT status = 'dead_letter' FROM saga_outbox WHERE event_id = $1`, [16]byte(ids[0]))
	// Another key is not held up.
	other := w.insert(row{key: "x", topic: "order.created"})[0]
	w.db.Until(t, `SELECT status = 'sent' FROM saga_outbox WHERE event_id = $1`, [16]byte(other))
	if got := messageEvents(t, q.drain()); len(got) != 1 || got[0].ID != other {
		t.Fatalf("%d messages arrived, want that of the other key", len(got))
	}
	got := w.letters(env, "--state", "all")
	if got["dead unroutable"] != 1 || got["held"] != 20 {
		t.Fatalf("the ledger holds %v, want 1 dead and 20 held", got)
	}
	return w, q, env, p, ids
}

// An event that no queue takes becomes a dead letter and holds its key; the queue is bound, the
// event retried: it arrives, and all that waited behind it, in order and once.
func TestDeadLetterRetry(t *testing.T) {
	t.Parallel()
	w, q, env, p, ids := hold(t)
	if out, code := w.command(env, "doctor"); code != 1 || !strings.Contains(out, "1 dead letter of sink rabbitmq") {
		t.Errorf("doctor shows nothing of it, or exits with %d", code)
	}
	q.on(func(ch *amqp.Channel) error { return ch.QueueBind(q.name, "payment.*", q.name, false, nil) })
	if out, code := w.command(env, "dead-letter", "retry", "--reason", "unroutable"); code != 0 || !strings.Contains(out, "retried 1: rabbitmq 1") || !strings.Contains(out, "a relay is running and does the rest: relay") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	w.db.Until(t, `SELECT count(*) = 0 FROM saga_outbox_delivery`)
	if got := w.statuses(); got["sent"] != 22 {
		t.Errorf("rows are %v, want 22 sent", got)
	}
	p.stop()
	var got []relay.UUID
	for _, e := range messageEvents(t, q.drain()) {
		got = append(got, e.ID)
	}
	if !slices.Equal(got, ids) {
		t.Errorf("%d messages arrived, want the key's %d in order:\n%v\n%v", len(got), len(ids), got, ids)
	}
}

// A dead letter is given up while no relay runs; the next one takes it out, and what waited behind
// it goes on in order.
func TestDeadLetterDiscard(t *testing.T) {
	t.Parallel()
	w, q, env, p, ids := hold(t)
	p.stop()
	q.on(func(ch *amqp.Channel) error { return ch.QueueBind(q.name, "payment.*", q.name, false, nil) })
	if out, code := w.command(env, "dead-letter", "discard", "--event-id", ids[0].String()); code != 0 || !strings.Contains(out, "discarded 1: rabbitmq 1") || !strings.Contains(out, "no relay is running") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	p = w.relay("relay-2", env)
	p.waitStreaming()
	w.db.Until(t, `SELECT count(*) = 0 FROM saga_outbox_delivery`)
	if status, lastError := w.fate(ids[0]); status != "dead_letter" || !strings.HasPrefix(lastError, "discarded: ") {
		t.Errorf("the row is %s (%s), want a dead letter that was discarded", status, lastError)
	}
	if got := w.letters(env); len(got) > 0 {
		t.Errorf("what was discarded is still listed: %v", got)
	}
	p.stop()
	var got []relay.UUID
	for _, e := range messageEvents(t, q.drain()) {
		got = append(got, e.ID)
	}
	if !slices.Equal(got, ids[1:]) {
		t.Errorf("%d messages arrived, want %d in order", len(got), len(ids)-1)
	}
}

// A row that the Python library's worker gave up has no entry in the ledger: retried, it is found
// in the table, and delivered.
func TestDeadLetterOfTheLibrary(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "#")
	id := w.insert(row{key: "k", topic: "order.created", status: "dead_letter"})[0]
	w.exec(`UPDATE saga_outbox SET retry_count = 5, last_error = 'gone'`)
	if out, code := w.command(q.env(), "dead-letter", "retry", "--all"); code != 0 || !strings.Contains(out, "retried 1: - 1") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	p := w.relay("relay", q.env())
	w.db.Until(t, `SELECT status = 'sent' FROM saga_outbox WHERE event_id = $1`, [16]byte(id))
	p.stop()
	if got := messageEvents(t, q.drain()); len(got) != 1 || got[0].ID != id {
		t.Errorf("%d messages arrived, want 1", len(got))
	}
}

// Events that were sent are delivered once more, in order, with a header that shows it.
func TestReplay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "#")
	p := w.relay("relay", q.env())
	p.waitStreaming()
	var rows []row
	for i := range 30 {
		rows = append(rows, row{saga: fmt.Sprint("saga-", i%2), key: "k", topic: "order.created", created: fmt.Sprintf("2026-11-23 07:00:%02d+00", i)})
	}
	ids := w.insert(rows...)
	w.waitNonePending(p)
	first := q.drain()
	w.exec(`WITH gone AS (DELETE FROM saga_outbox WHERE event_id = $1 RETURNING *) INSERT INTO saga_outbox_archive SELECT * FROM gone`, [16]byte(ids[4]))

	before := time.Now().Add(-2 * time.Second)
	out, code := w.command(q.env(), "replay", "--saga-id", "saga-0", "--since", "2026-11-23T07:00:04Z", "--until", "2026-11-23T07:00:20Z")
	if code != 0 || !strings.Contains(out, "to be delivered again: rabbitmq 8") || !strings.Contains(out, "copied back from saga_outbox_archive: 1") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	w.db.Until(t, `SELECT count(*) = 0 FROM saga_outbox_delivery`)
	if got := w.statuses(); got["sent"] != 30 {
		t.Errorf("rows are %v, want 30 sent", got)
	}
	p.stop()
	again := q.drain()
	var got []relay.UUID
	for i, e := range messageEvents(t, again) {
		got = append(got, e.ID)
		header, _ := again[i].Headers["relay-replayed-at"].(string)
		at, err := time.Parse(time.RFC3339, header)
		if err != nil || at.Before(before) || at.After(time.Now().Add(2*time.Second)) {
			t.Errorf("message %d: relay-replayed-at is %q, want the time of the replay", i, header)
		}
		delete(again[i].Headers, "relay-replayed-at")
		if was := first[slices.Index(ids, e.ID)]; string(was.Body) != string(again[i].Body) || fmt.Sprint(was.Headers) != fmt.Sprint(again[i].Headers) {
			t.Errorf("message %d differs beyond that header", i)
		}
	}
	var want []relay.UUID
	for i := 4; i < 20; i += 2 {
		want = append(want, ids[i])
	}
	if !slices.Equal(got, want) {
		t.Errorf("delivered again: %v, want %v", got, want)
	}
	for i := range first {
		if _, marked := first[i].Headers["relay-replayed-at"]; marked {
			t.Errorf("message %d was no replay, and has the header of one", i)
		}
	}
}

// doctor asks real brokers whether the events of the last day would arrive.
func TestDoctor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker := brokertest.Kafka(t)
	k := newTopic(t, broker.Plaintext, 1)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "#")
	env := q.env().with(settings{"BROKER_TYPE": "kafka,rabbitmq", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext})
	w.insert(row{key: "k", topic: k.name, status: "sent"})

	out, code := w.command(env, "doctor")
	if code != 0 || !strings.Contains(out, "1 destination of the last day's events: all there") || !strings.Contains(out, "ok        sink rabbitmq") {
		t.Errorf("a healthy system: exit code %d", code)
	}
	w.insert(row{key: "k", topic: "no topic", status: "sent"})
	t.Cleanup(func() { // doctor connects to RabbitMQ as the relay does, which declares the exchange
		q.on(func(ch *amqp.Channel) error { return ch.ExchangeDelete(q.name+"-other", false, false) })
	})
	out, code = w.command(env.with(settings{"RABBITMQ_EXCHANGE": q.name + "-other"}), "doctor")
	if code != 1 || !strings.Contains(out, "degraded  routes kafka") || !strings.Contains(out, "no topic: ") || !strings.Contains(out, "degraded  routes rabbitmq") || !strings.Contains(out, " declare exchange") {
		t.Errorf("destinations that are not there: exit code %d", code)
	}
	out, code = w.command(env.with(settings{"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}), "doctor")
	if code != 2 || !strings.Contains(out, "broken    sink kafka") || !strings.Contains(out, "ok        sink rabbitmq") {
		t.Errorf("a broker that is down: exit code %d", code)
	}
}
