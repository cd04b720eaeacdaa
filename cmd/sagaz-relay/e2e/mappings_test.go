package e2e

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/file"
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

// Bytes, and NULL as a tombstone, arrive as they are at every sink, streamed and polled. A key that a
// tombstone is of, and what is refused of another key, change nothing of that.
func TestBytesAndTombstones(t *testing.T) {
	for _, mode := range []string{"cdc", "polling"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.exec(`DROP PUBLICATION sagaz_outbox`) // it holds on to the types of its columns
			w.exec(`ALTER TABLE saga_outbox ALTER COLUMN payload DROP NOT NULL, ALTER COLUMN payload TYPE bytea USING convert_to(payload::text, 'UTF8')`)
			w.migrate()
			broker := brokertest.Kafka(t).Plaintext
			k, q := newTopic(t, broker, 1), newQueue(t, brokertest.RabbitMQ(t).URL, "#")
			path := filepath.Join(t.TempDir(), "events.jsonl")
			env := q.env().with(settings{
				"BROKER_TYPE": "kafka,rabbitmq,file", "KAFKA_BOOTSTRAP_SERVERS": broker, "RELAY_FILE_PATH": path, "RELAY_TOPIC": k.name, "RELAY_MODE": mode,
				"RELAY_ENVELOPE": "debezium", "RELAY_PAYLOAD": "bytes", "RELAY_CONTENT_TYPE": "application/avro", "RELAY_NULL_PAYLOAD": "tombstone",
			})
			p := w.relay("relay", env)
			if mode == "cdc" {
				p.waitStreaming()
			}
			want := [][]byte{[]byte("\x00\xff\r\n\\x"), {}, nil, []byte("{}"), []byte(strings.Repeat("\\", 300_000))}
			for _, payload := range want {
				w.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 's', 'k', 'Changed', $1)`, payload)
			}
			if got := w.waitNonePending(p); got["sent"] != len(want) {
				t.Fatalf("rows by status: %v", got)
			}
			p.stop()
			check := func(where string, i int, value []byte, tombstone bool) {
				if !bytes.Equal(value, want[i]) || tombstone != (want[i] == nil) {
					t.Errorf("%s, record %d: %d bytes, %.20q, tombstone %t", where, i, len(value), value, tombstone)
				}
			}
			records, messages := k.read(), q.drain()
			lines := 0
			err := file.Read(path, func(l file.Line) error {
				check("file", lines, l.Value, l.Headers[relay.TombstoneHeader] == "true")
				if (l.Value == nil) != (want[lines] == nil) {
					t.Errorf("file, record %d: no value: %t", lines, l.Value == nil)
				}
				lines++
				return nil
			})
			if err != nil || lines != len(want) || len(records) != len(want) || len(messages) != len(want) {
				t.Fatalf("%d lines (%v), %d records, %d messages, want %d of each", lines, err, len(records), len(messages), len(want))
			}
			for i := range want {
				r, m := records[i], messages[i]
				marked := slices.Contains(r.headers, relay.Header{Key: relay.TombstoneHeader, Value: "true"})
				check("kafka", i, r.value, marked)
				if (r.value == nil) != (want[i] == nil) {
					t.Errorf("kafka, record %d: value null: %t", i, r.value == nil)
				}
				check("rabbitmq", i, m.Body, m.Headers[relay.TombstoneHeader] == "true")
				if m.ContentType != "application/avro" {
					t.Errorf("rabbitmq, message %d: content type %q", i, m.ContentType)
				}
			}
			env["BROKER_TYPE"] = "kafka,file"
			if out, code := w.command(env, "verify", "--since", "1h"); code != 0 {
				t.Errorf("verify: exit code %d: %s", code, out)
			}
		})
	}
}

// A column becomes a header, and that header names the partition.
func TestPartitionFromColumn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker := brokertest.Kafka(t).Plaintext
	k := newTopic(t, broker, 4)
	p := w.relay("relay", settings{
		"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker, "RELAY_TOPIC": k.name, "MAX_RETRIES": "1",
		"RELAY_HEADER_COLUMNS": "shard=saga_id,kind=aggregate_type", "RELAY_KAFKA_PARTITION_HEADER": "shard",
	})
	p.waitStreaming()
	var rows []row
	for i := range 12 {
		rows = append(rows, row{key: fmt.Sprint("k", i%4), saga: fmt.Sprint(i % 4), topic: "T"})
	}
	bad := w.insert(append(rows, row{key: "bad", saga: "order-7", topic: "T"})...)[12]
	if got := w.waitNonePending(p); got["sent"] != 12 || got["dead_letter"] != 1 {
		t.Fatalf("rows by status: %v", got)
	}
	p.stop()
	if _, why := w.fate(bad); !strings.Contains(why, "header shard: want the number of a partition") {
		t.Errorf("the refused event has %q", why)
	}
	records := k.read()
	if len(records) != 12 {
		t.Errorf("%d records", len(records))
	}
	for _, r := range records {
		if r.key != fmt.Sprint("k", r.partition) || !slices.Contains(r.headers, relay.Header{Key: "kind", Value: "order"}) {
			t.Errorf("key %s in partition %d with headers %v", r.key, r.partition, r.headers)
		}
	}
}
