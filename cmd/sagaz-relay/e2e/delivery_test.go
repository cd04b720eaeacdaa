package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
	"github.com/sagaz-relay/relay/sinks/file"
)

// body is a message's body, as in docs/contract.md.
type body struct {
	EventID       string          `json:"event_id"`
	SagaID        string          `json:"saga_id"`
	AggregateType string          `json:"aggregate_type"`
	AggregateID   string          `json:"aggregate_id"`
	EventType     string          `json:"event_type"`
	Payload       json.RawMessage `json:"payload"`
	Timestamp     string          `json:"timestamp"`
}

// bodyKeys is their order.
var bodyKeys = []string{"event_id", "saga_id", "aggregate_type", "aggregate_id", "event_type", "payload", "timestamp"}

func decodeBody(t testing.TB, text []byte) body {
	t.Helper()
	var b body
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b); err != nil {
		t.Fatalf("body: %v: %.200s", err, text)
	}
	return b
}

// keyOrder returns the keys of a JSON object in their order.
func keyOrder(t testing.TB, text []byte) []string {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(text))
	var keys []string
	if _, err := dec.Token(); err != nil {
		t.Fatal(err)
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key.(string))
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			t.Fatal(err)
		}
	}
	return keys
}

// lineEvents reads what the sink file or stdout wrote.
func lineEvents(t testing.TB, read func(func(file.Line) error) error) []verify.Event {
	t.Helper()
	var got []verify.Event
	if err := read(func(l file.Line) error {
		got = append(got, verify.Event{ID: l.EventID, Key: l.Key})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

// destination is where a relay publishes to, and how to look at what came.
type destination struct {
	env   settings
	topic string
	got   func(runs ...*process) map[string][]verify.Event // by sink
}

func toKafka(t testing.TB) destination {
	broker := brokertest.Kafka(t)
	k := newTopic(t, broker.Plaintext, 4)
	return destination{
		env: settings{"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext}, topic: k.name,
		got: func(...*process) map[string][]verify.Event {
			return map[string][]verify.Event{"kafka": events(t, k.read())}
		},
	}
}

func toRabbitMQ(t testing.TB) destination {
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "#")
	return destination{env: q.env(), topic: "order.created", got: func(...*process) map[string][]verify.Event {
		return map[string][]verify.Event{"rabbitmq": messageEvents(t, q.drain())}
	}}
}

func toBoth(t testing.TB) destination {
	k, q := toKafka(t), toRabbitMQ(t)
	return destination{
		env: k.env.with(q.env).with(settings{"BROKER_TYPE": "kafka,rabbitmq"}), topic: k.topic,
		got: func(...*process) map[string][]verify.Event {
			return map[string][]verify.Event{"kafka": k.got()["kafka"], "rabbitmq": q.got()["rabbitmq"]}
		},
	}
}

func toFile(t testing.TB) destination {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	return destination{
		env: settings{"BROKER_TYPE": "file", "RELAY_FILE_PATH": path}, topic: "OrderCreated",
		got: func(...*process) map[string][]verify.Event {
			return map[string][]verify.Event{"file": lineEvents(t, func(f func(file.Line) error) error { return file.Read(path, f) })}
		},
	}
}

func toStdout(t testing.TB) destination {
	return destination{
		env: settings{"BROKER_TYPE": "stdout"}, topic: "OrderCreated",
		got: func(runs ...*process) map[string][]verify.Event {
			var all []verify.Event
			for _, p := range runs {
				for text := range strings.Lines(p.stdout.String()) {
					var l struct {
						Key     string `json:"key"`
						EventID string `json:"event_id"`
					}
					if err := json.Unmarshal([]byte(text), &l); err != nil {
						t.Fatalf("stdout: %v: %.100s", err, text)
					}
					id, err := relay.ParseUUID(l.EventID)
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, verify.Event{ID: id, Key: l.Key})
				}
			}
			return map[string][]verify.Event{"stdout": all}
		},
	}
}

// Every sink gets every event once, in order, also when the relay is stopped in the middle of it: a
// stop drains, and what it has delivered its successor does not deliver again.
func TestDelivery(t *testing.T) {
	t.Parallel()
	for name, to := range map[string]func(testing.TB) destination{
		"kafka": toKafka, "rabbitmq": toRabbitMQ, "kafka and rabbitmq": toBoth, "file": toFile, "stdout": toStdout,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			d := to(t)
			l := w.load(loadOptions{topic: d.topic})
			var runs []*process
			for i := range 3 {
				p := w.relay(fmt.Sprintf("relay-%d", i), d.env)
				runs = append(runs, p)
				p.waitStreaming()
				l.waitCommitted(200)
				if i < 2 {
					stopped := time.Now()
					p.stop()
					t.Logf("%s stopped under load within %s", p.name, time.Since(stopped).Round(time.Millisecond))
					if len(p.logged("stopped")) != 1 || len(p.logged("drain timed out")) != 0 {
						t.Errorf("%s did not log that it has stopped, or that it drained", p.name)
					}
				}
			}
			l.finish(runs[2])
			runs[2].stop()
			for sink, got := range d.got(runs...) {
				l.judge(sink, got, 0)
			}
			if n := value[int](w, `SELECT count(*) FROM saga_outbox WHERE sent_at IS NULL OR retry_count <> 0 OR last_error IS NOT NULL`); n != 0 {
				t.Errorf("%d rows without sent_at, or with a retry", n)
			}
			// A clean stop leaves nothing behind on the server but the slot.
			w.waitGone()
		})
	}
}

// The second signal of an impatient person ends a relay that drains for long. The broker does not
// answer: of one that refuses, the event would be in the ledger as soon as the relay is to stop.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.relay("relay", settings{"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": mute(t), "RELAY_DRAIN_TIMEOUT": "1h"})
	p.waitStreaming()
	w.insert(row{key: "k", topic: "T"})
	eventually(t, patience, "the event is in flight", func() string {
		if p.status().Slots[0].Inflight == 1 {
			return ""
		}
		return p.mustRun("nothing in flight")
	})
	p.signal(syscall.SIGTERM)
	eventually(t, patience, "the relay drains", func() string {
		if code, _ := p.get("/health/ready"); code == 503 {
			return ""
		}
		return p.mustRun("it is ready")
	})
	p.signal(syscall.SIGTERM)
	if code := p.end(patience); code == 0 {
		t.Errorf("exit code 0, though one event was not delivered")
	}
}

// wireRows are rows each of which has another form on the wire.
func wireRows(w *world, topic string) []row {
	return []row{
		{
			key: "order-1", topic: topic, saga: "saga-1", payload: `{"note": "` + w.marker + `", "amount": 12345678901234567890.10}`,
			created: "2026-11-23T07:46:59.123456+00:00",
		},
		{
			key: "order-1", topic: topic, saga: `quotes " and \ backslashes`, created: "2026-11-23T09:46:59+02:00",
			headers: `{"traceparent": "00-abc-def-01", "content_type": "application/vnd.order+json", "attempt": 3, "nested": {"a": [1, null]}, "flag": true, "none": null}`,
		},
		{key: "größe-日本", topic: topic, aggregate: "Bestellung", payload: `["an array", {"note": "` + w.marker + `"}]`},
		{key: "order-2", topic: topic, payload: `"` + w.marker + `"`},
	}
}

// wantHeaders are those of wireRows, for the row's id.
func wantHeaders(topic string, id relay.UUID, i int) []relay.Header {
	saga := []string{"saga-1", `quotes " and \ backslashes`, "saga-1", "saga-1"}[i]
	own := []relay.Header{{Key: "event_id", Value: id.String()}, {Key: "saga_id", Value: saga}, {Key: "event_type", Value: topic}, {Key: "content_type", Value: "application/json"}}
	if i == 1 {
		own[3].Value = "application/vnd.order+json"
		own = append(own, relay.Header{Key: "traceparent", Value: "00-abc-def-01"}, relay.Header{Key: "attempt", Value: "3"},
			relay.Header{Key: "nested", Value: `{"a": [1, null]}`}, relay.Header{Key: "flag", Value: "true"}, relay.Header{Key: "none", Value: "null"})
	}
	return own
}

func checkBody(t *testing.T, text []byte, id relay.UUID, r row) {
	t.Helper()
	b := decodeBody(t, text)
	if got := keyOrder(t, text); !slices.Equal(got, bodyKeys) {
		t.Errorf("keys %v, want %v", got, bodyKeys)
	}
	want := body{EventID: id.String(), SagaID: r.saga, AggregateType: r.aggregate, AggregateID: r.key, EventType: r.topic}
	if want.SagaID == "" {
		want.SagaID = "saga-1"
	}
	if want.AggregateType == "" {
		want.AggregateType = "order"
	}
	payload, stamp := string(b.Payload), b.Timestamp
	b.Payload, b.Timestamp = nil, ""
	if fmt.Sprint(b) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", b, want)
	}
	if r.payload != "" && payload != r.payload { // the texts are written as PostgreSQL renders them
		t.Errorf("payload %s, want %s", payload, r.payload)
	}
	for created, want := range map[string]string{
		"2026-11-23T07:46:59.123456+00:00": "2026-11-23T07:46:59.123456+00:00",
		"2026-11-23T09:46:59+02:00":        "2026-11-23T07:46:59+00:00",
	} {
		if r.created == created && stamp != want {
			t.Errorf("timestamp %s, want %s", stamp, want)
		}
	}
	if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || !strings.HasSuffix(stamp, "+00:00") {
		t.Errorf("timestamp %s, want Python's isoformat in UTC", stamp)
	}
}

func headersEqual(got, want []relay.Header) bool {
	order := func(a, b relay.Header) int { return strings.Compare(a.Key, b.Key) }
	got, want = slices.Clone(got), slices.Clone(want)
	slices.SortFunc(got, order)
	slices.SortFunc(want, order)
	return slices.Equal(got, want)
}

func TestWireKafka(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker := brokertest.Kafka(t)
	k := newTopic(t, broker.Plaintext, 4)
	rows := wireRows(w, k.name)
	// BROKER_URL is the fallback of both brokers' variables.
	p := w.relay("relay", settings{"BROKER_TYPE": "kafka", "BROKER_URL": broker.Plaintext, "KAFKA_CLIENT_ID": "wire"})
	p.waitStreaming()
	ids := w.insert(rows...)
	if got := w.waitNonePending(p); got["sent"] != len(rows) || len(got) != 1 {
		t.Fatalf("rows by status: %v", got)
	}
	p.stop()
	found := 0
	balancer := kafkago.Murmur2Balancer{Consistent: true}
	for _, a := range k.read() {
		i := slices.Index(ids, a.id(t))
		if i < 0 {
			t.Fatalf("an event that was not inserted: %v", a.headers)
		}
		found++
		if a.key != rows[i].key || a.noKey {
			t.Errorf("row %d: key %q, want %q", i, a.key, rows[i].key)
		}
		if want := balancer.Balance(kafkago.Message{Key: []byte(rows[i].key)}, 0, 1, 2, 3); a.partition != want {
			t.Errorf("row %d: partition %d, want %d", i, a.partition, want)
		}
		if want := wantHeaders(k.name, ids[i], i); !headersEqual(a.headers, want) {
			t.Errorf("row %d: headers %v, want %v", i, a.headers, want)
		}
		checkBody(t, a.value, ids[i], rows[i])
	}
	if found != len(rows) {
		t.Errorf("%d records, want %d", found, len(rows))
	}
}

// The password of a broker is a secret like that of the database.
func TestKafkaSASL(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker := brokertest.Kafka(t)
	if broker.SASLSSL == "" {
		t.Fatal("the broker of SAGAZ_TEST_KAFKA has no SASL_SSL listener: set SAGAZ_TEST_KAFKA_STATE, or unset both")
	}
	k := newTopic(t, broker.Plaintext, 1)
	p := w.relay("relay", settings{
		"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker.SASLSSL, "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
		"KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA_SASL_USERNAME": broker.User, "KAFKA_SASL_PASSWORD": broker.Password, "RELAY_KAFKA_TLS_CA_FILE": broker.CAFile,
		"LOG_LEVEL": "TRACE",
	})
	wrong := settings{
		"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker.SASLSSL, "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
		"KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA_SASL_USERNAME": broker.User, "KAFKA_SASL_PASSWORD": "not-" + w.password, "RELAY_KAFKA_TLS_CA_FILE": broker.CAFile,
		"LOG_LEVEL": "TRACE",
	}
	p.waitStreaming()
	w.insert(row{key: "a", topic: k.name}, row{key: "b", topic: k.name})
	if got := w.waitNonePending(p); got["sent"] != 2 {
		t.Errorf("rows by status: %v", got)
	}
	p.stop()
	p = w.relay("relay-wrong", wrong)
	p.waitStreaming()
	w.insert(row{key: "a", topic: k.name})
	refused := p.waitLog("publish did not succeed, offering again")
	if text := refused.text("error"); !strings.Contains(text, "KAFKA_SASL_") {
		t.Errorf("a wrong password: %s, want the variable's name", text)
	}
	p.crash()
}

func TestWireRabbitMQ(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "order.*")
	rows := wireRows(w, "order.created")
	p := w.relay("relay", q.env())
	p.waitStreaming()
	before := time.Now().Add(-time.Minute)
	ids := w.insert(rows...)
	if got := w.waitNonePending(p); got["sent"] != len(rows) || len(got) != 1 {
		t.Fatalf("rows by status: %v", got)
	}
	p.stop()
	messages := q.drain()
	for _, m := range messages {
		i := slices.IndexFunc(ids, func(id relay.UUID) bool { return id.String() == m.MessageId })
		if i < 0 {
			t.Fatalf("message_id %q is none of the rows'", m.MessageId)
		}
		if m.RoutingKey != "order.created" || m.Exchange != q.name || m.ContentType != "application/json" || m.DeliveryMode != amqp.Persistent || m.Type != "order.created" {
			t.Errorf("row %d: routing key %q, exchange %q, content type %q, delivery mode %d, type %q", i, m.RoutingKey, m.Exchange, m.ContentType, m.DeliveryMode, m.Type)
		}
		if rows[i].created == "" && (m.Timestamp.Before(before) || m.Timestamp.After(time.Now().Add(time.Minute))) {
			t.Errorf("row %d: timestamp %s", i, m.Timestamp)
		}
		var got []relay.Header
		for key, value := range m.Headers {
			text, ok := value.(string)
			if !ok {
				t.Errorf("row %d: header %s is a %T", i, key, value)
			}
			got = append(got, relay.Header{Key: key, Value: text})
		}
		if want := wantHeaders("order.created", ids[i], i); !headersEqual(got, want) {
			t.Errorf("row %d: headers %v, want %v", i, got, want)
		}
		checkBody(t, m.Body, ids[i], rows[i])
	}
	if len(messages) != len(rows) {
		t.Errorf("%d messages, want %d", len(messages), len(rows))
	}
	// The exchange is as in docs/contract.md: another declaration of the same passes.
	q.on(func(ch *amqp.Channel) error {
		return ch.ExchangeDeclare(q.name, "topic", true, false, false, false, nil)
	})
}

// The exchange is made by the relay when it is not there: and what finds no queue there is refused,
// not lost.
func TestRabbitMQDeclares(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker := brokertest.RabbitMQ(t)
	exchange := newTopicName()
	p := w.relay("relay", settings{"BROKER_TYPE": "rabbitmq", "BROKER_URL": broker.URL, "RABBITMQ_URL": "", "RABBITMQ_EXCHANGE": exchange})
	p.waitStreaming()
	w.insert(row{key: "k", topic: "nobody"})
	if got := w.waitNonePending(p); got["failed"] != 1 {
		t.Errorf("rows by status: %v", got)
	}
	p.stop()
	q := &queue{t: t, url: broker.URL, name: exchange}
	q.on(func(ch *amqp.Channel) error {
		err := ch.ExchangeDeclarePassive(exchange, "topic", true, false, false, false, nil)
		return errors.Join(err, ch.ExchangeDelete(exchange, false, false))
	})
}
