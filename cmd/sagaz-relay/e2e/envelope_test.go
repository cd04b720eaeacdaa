package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/file"
)

// Every envelope arrives at every broker as its consumers know it, and verify finds the events in
// it, also those that were sent before the setting was changed.
func TestEnvelopes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker := brokertest.Kafka(t)
	k := newTopic(t, broker.Plaintext, 1)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "#")
	path := filepath.Join(t.TempDir(), "events.jsonl")
	env := q.env().with(settings{
		"BROKER_TYPE": "kafka,rabbitmq,file", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext, "RELAY_FILE_PATH": path,
		"RELAY_TOPIC": k.name, "RELAY_CLOUDEVENTS_SOURCE": "/shop/orders",
	})
	since := time.Now().Add(-time.Minute)
	seen := 0
	for _, c := range []struct {
		envelope      string
		kafka, rabbit map[string]string // headers; the value "ID" is the event's
		absent        []string
	}{
		{"sagaz", map[string]string{"event_id": "ID", "event_type": "Paid"}, map[string]string{"event_id": "ID"}, []string{"ce_id", "id"}},
		{
			"cloudevents",
			map[string]string{"ce_specversion": "1.0", "ce_id": "ID", "ce_source": "/shop/orders", "ce_type": "Paid", "ce_subject": "order-7", "ce_partitionkey": "order-7", "content-type": "application/json", "ce_dataschema": "/v2"},
			map[string]string{"cloudEvents_specversion": "1.0", "cloudEvents_id": "ID", "cloudEvents_source": "/shop/orders", "cloudEvents_type": "Paid", "cloudEvents_subject": "order-7", "cloudEvents_dataschema": "/v2"},
			[]string{"event_id", "id"},
		},
		{
			"cloudevents-structured",
			map[string]string{"event_id": "ID", "event_type": "Paid", "content-type": "application/cloudevents+json"},
			map[string]string{"event_id": "ID", "event_type": "Paid"},
			[]string{"ce_id", "ce_dataschema", "cloudEvents_id", "id"},
		},
		{"debezium", map[string]string{"id": "ID", "eventType": "Paid"}, map[string]string{"id": "ID", "eventType": "Paid"}, []string{"event_id", "ce_id"}},
		{"raw", map[string]string{"event_id": "ID", "event_type": "Paid"}, map[string]string{"event_id": "ID", "event_type": "Paid"}, []string{"ce_id", "id"}},
	} {
		p := w.relay(c.envelope, env.with(settings{"RELAY_ENVELOPE": c.envelope}))
		p.waitStreaming()
		id := w.insert(row{topic: "Paid", key: "order-7", payload: `{"amount": 12.50}`, headers: `{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "ce_dataschema": "/v2"}`})[0]
		w.waitNonePending(p)
		p.stop()

		records := k.read()
		if len(records) != seen+1 {
			t.Fatalf("%s: %d records in Kafka, want %d", c.envelope, len(records), seen+1)
		}
		r := records[seen]
		headers := map[string]string{}
		for _, h := range r.headers {
			headers[h.Key] = h.Value
		}
		wantEnvelope(t, c.envelope+" in Kafka", id, headers, c.kafka, c.absent)
		if r.key != "order-7" {
			t.Errorf("%s: key %q", c.envelope, r.key)
		}
		wantEnvelopeBody(t, c.envelope, r.value)

		messages := q.drain()
		if len(messages) != 1 {
			t.Fatalf("%s: %d messages in RabbitMQ", c.envelope, len(messages))
		}
		headers = map[string]string{}
		for name, value := range messages[0].Headers {
			headers[name] = fmt.Sprint(value)
		}
		wantEnvelope(t, c.envelope+" in RabbitMQ", id, headers, c.rabbit, append([]string{"content-type"}, c.absent...))
		contentType := "application/json"
		if c.envelope == "cloudevents-structured" {
			contentType = "application/cloudevents+json"
		}
		if m := messages[0]; m.ContentType != contentType || m.MessageId != id.String() || m.Type != "Paid" {
			t.Errorf("%s: message with content type %q, id %s, type %q", c.envelope, m.ContentType, m.MessageId, m.Type)
		}
		wantEnvelopeBody(t, c.envelope, messages[0].Body)
		seen++
	}

	if got := lineEvents(t, func(f func(file.Line) error) error { return file.Read(path, f) }); len(got) != seen {
		t.Errorf("%d lines in the file, want %d", len(got), seen)
	}
	// whatever it is now, all of them are found
	for _, envelope := range []string{"sagaz", "cloudevents", "cloudevents-structured", "debezium"} {
		run := launch(t, program.Path(t), "verify", w.env().with(env).with(settings{"RELAY_ENVELOPE": envelope, "BROKER_TYPE": "kafka,file"}), w.secrets(), "verify", "--since", since.Format(time.RFC3339Nano))
		if code := run.end(patience); code != 0 || strings.Contains(run.stdout.String(), "without an id") {
			t.Errorf("verify with %s: exit code %d: %s%s", envelope, code, run.stdout.String(), run.stderr.String())
		}
	}
}

func wantEnvelope(t testing.TB, where string, id relay.UUID, got, want map[string]string, absent []string) {
	t.Helper()
	for name, value := range want {
		if value == "ID" {
			value = id.String()
		}
		if got[name] != value {
			t.Errorf("%s: header %s is %q, want %q", where, name, got[name], value)
		}
	}
	for _, name := range absent {
		if value, ok := got[name]; ok {
			t.Errorf("%s: header %s = %q, want none", where, name, value)
		}
	}
	if got["traceparent"] == "" {
		t.Errorf("%s: the row's traceparent is gone", where)
	}
}

func wantEnvelopeBody(t testing.TB, envelope string, body []byte) {
	t.Helper()
	switch envelope {
	case "sagaz":
		body = decodeBody(t, body).Payload
	case "cloudevents-structured":
		var event struct {
			SpecVersion, Source, Subject, DataContentType, DataSchema string
			Data                                                      json.RawMessage
		}
		if err := json.Unmarshal(body, &event); err != nil {
			t.Fatal(err)
		}
		if event.SpecVersion != "1.0" || event.Source != "/shop/orders" || event.Subject != "order-7" || event.DataContentType != "application/json" || event.DataSchema != "/v2" {
			t.Errorf("attributes in %s", body)
		}
		body = event.Data
	}
	if string(body) != `{"amount": 12.50}` {
		t.Errorf("%s: body %s", envelope, body)
	}
}
