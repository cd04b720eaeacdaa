package interop

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// Both modes of CloudEvents as others read them: the SDK of CloudEvents for Python, which sees by
// itself what mode a message is in, takes what came from Kafka and from RabbitMQ for events, with
// the attributes of their rows, and the payload for their data.
func TestCloudEvents(t *testing.T) {
	for _, envelope := range []string{"cloudevents", "cloudevents-structured"} {
		t.Run(envelope, func(t *testing.T) { testCloudEvents(t, envelope) })
	}
}

func testCloudEvents(t *testing.T, envelope string) {
	f := newFixture(t, pgtest.Version())
	f.settings["RELAY_ENVELOPE"], f.settings["RELAY_CLOUDEVENTS_SOURCE"] = envelope, "/shop/orders"
	runRelay(t, f.settings, "migrate", "--slot")
	consumers := map[string]*consumer{
		"kafka":    f.consume(t, "consume_kafka", f.kafka.Plaintext, f.topics),
		"rabbitmq": f.consume(t, "consume_rabbitmq", f.rabbit.URL, f.prefix),
	}
	relay := startRelay(t, f.settings)
	rows := map[string]written{}
	for _, w := range call[written](t, f.library, "insert", f.db.DSN, f.prefix, "0", "60", "0") {
		rows[w.EventID] = w
	}
	for name, c := range consumers {
		c.wait(t, "every event", func(d []delivery) bool { return len(d) >= len(rows) })
		t.Run(name, func(t *testing.T) { checkCloudEvents(t, f, c.close(), rows, envelope == "cloudevents-structured") })
	}
	relay.stop(t)
}

func checkCloudEvents(t *testing.T, f *fixture, received []delivery, rows map[string]written, structured bool) {
	path := filepath.Join(t.TempDir(), "deliveries.jsonl")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(file)
	for _, d := range received {
		if err := json.NewEncoder(w).Encode(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for i, e := range call[struct {
		Attributes map[string]string
		Structured bool
		Time       string
		Data       json.RawMessage
	}](t, f.library, "cloudevents", path) {
		row, ok := rows[e.Attributes["id"]]
		if !ok || seen[e.Attributes["id"]] {
			t.Fatalf("event %d with attributes %v is none of the rows, or came before", i, e.Attributes)
		}
		seen[row.EventID] = true
		if e.Structured != structured {
			t.Errorf("event %d is structured: %t, want %t", i, e.Structured, structured)
		}
		want := map[string]string{
			"id": row.EventID, "specversion": "1.0", "source": "/shop/orders", "type": row.EventType, "datacontenttype": "application/json",
			"subject": row.AggregateID, "partitionkey": row.AggregateID, "sagaid": row.SagaID,
		}
		for name, value := range want {
			if got := e.Attributes[name]; got != value {
				t.Errorf("event %d: attribute %s is %q, want %q", i, name, got, value)
			}
		}
		var payload, created string
		if err := f.db.Pool.QueryRow(t.Context(), `SELECT payload::text, CASE WHEN isfinite(created_at) THEN to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS') ELSE '' END
			FROM saga_outbox WHERE event_id = $1`, row.EventID).Scan(&payload, &created); err != nil {
			t.Fatal(err)
		}
		// the SDK itself fills in a time that is missing
		if created != "" && (len(e.Time) < 19 || e.Time[:19] != created) {
			t.Errorf("event %d has the time %q, want %s", i, e.Time, created)
		}
		if d := differenceJSON(string(e.Data), payload); d != "" {
			t.Errorf("event %d: data: %s", i, d)
		}
	}
	if len(seen) != len(rows) {
		t.Errorf("%d events, want %d", len(seen), len(rows))
	}
}
