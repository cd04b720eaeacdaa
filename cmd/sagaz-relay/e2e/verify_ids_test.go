package e2e

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/relay/verify"
)

// Rows whose own headers override the one that carries the event_id are found, whatever they put
// there.
func TestVerifyFindsOverriddenIDs(t *testing.T) {
	broker, mq := brokertest.Kafka(t).Plaintext, brokertest.RabbitMQ(t).URL
	for envelope, header := range map[string]string{"sagaz": "event_id", "raw": "event_id", "debezium": "id", "cloudevents": "ce_id", "cloudevents-structured": "event_id"} {
		t.Run(envelope, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			since := time.Now().Add(-time.Minute).Format(time.RFC3339Nano)
			k, q := newTopic(t, broker, 2), newQueue(t, mq, "#")
			env := q.env().with(settings{"KAFKA_BOOTSTRAP_SERVERS": broker, "BROKER_TYPE": "kafka,rabbitmq", "RELAY_ENVELOPE": envelope})
			p := w.relay("relay-a", env)
			p.waitStreaming()
			plain := newID()
			for _, value := range []string{"", "order-17", "order-17", newID().String(), plain.String()} {
				r := row{key: "k", topic: k.name}
				if value == "" {
					r.id = plain
				} else {
					r.headers = `{"` + header + `": "` + value + `"}`
				}
				w.insert(r)
			}
			if got := w.waitNonePending(p); got["sent"] != 5 {
				t.Fatalf("rows by status: %v", got)
			}
			run := launch(t, program.Path(t), "verify", w.env().with(env), nil, "verify", "--json", "--since", since, "--queue", q.name)
			if code := run.end(patience); code != 0 {
				t.Errorf("exit code %d: %s", code, run.stderr.String())
			}
			var r verify.AuditReport
			if err := json.Unmarshal([]byte(run.stdout.String()), &r); err != nil {
				t.Fatal(err)
			}
			for _, s := range r.Sinks {
				if s.Missing.Count != 0 || s.Events != 5 || s.Duplicates.Count != 0 || s.NoID != 0 || s.Unknown.Count != 0 {
					t.Errorf("%s: %d missing, %d there, %d duplicates, %d without an id, %d unknown", s.Sink, s.Missing.Count, s.Events, s.Duplicates.Count, s.NoID, s.Unknown.Count)
				}
			}
		})
	}
}
