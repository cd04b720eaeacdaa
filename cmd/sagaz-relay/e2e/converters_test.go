//go:build debezium

package e2e

import (
	"context"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/child"
	"github.com/sagaz-relay/relay/internal/testbed/peers"
	"github.com/sagaz-relay/relay/relay"
)

// oddPayloads are texts that applications may have in outboxevent; nil is NULL.
var oddPayloads = []any{
	`{"n": 1}`, "{\"b\":1.10,\n \"a\" : \"é\", \"a\": 2}", `hello "world"`, "tab\t nul-less \x01\b\f\x1f\r\n / \u2028 🙂 </script>", `[1, 2]`, `null`, nil,
}

// converted is a Connect converter, as Debezium Server and as the relay have it.
type converted struct {
	name     string
	debezium []string
	relay    settings
}

var convertedBy = []converted{
	{
		"StringConverter",
		[]string{"debezium.format.key=simplestring", "debezium.format.value=simplestring"},
		settings{},
	},
	{
		"JsonConverter",
		[]string{"debezium.format.key=json", "debezium.format.key.schemas.enable=false", "debezium.format.value=json", "debezium.format.value.schemas.enable=false"},
		settings{"RELAY_DEBEZIUM_KEY": "json", "RELAY_DEBEZIUM_VALUE": "json"},
	},
	{
		"JsonConverter with schemas",
		[]string{"debezium.format.key=json", "debezium.format.key.schemas.enable=true", "debezium.format.value=json", "debezium.format.value.schemas.enable=true"},
		settings{"RELAY_DEBEZIUM_KEY": "json-schemas", "RELAY_DEBEZIUM_VALUE": "json-schemas"},
	},
}

// A real Debezium Server with each of its converters, then the guide, then the relay, on the same
// topic: the application inserts the same with the same statement, and what a consumer gets of it has
// the same key, the same value, the same partition and the same event in the header id, byte by byte.
func TestConverters(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	server, err := peers.DebeziumServer(ctx, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	broker := brokertest.Kafka(t).Plaintext
	for _, c := range convertedBy {
		t.Run(c.name, func(t *testing.T) { testConverter(t, server, broker, &c) })
	}
}

func testConverter(t *testing.T, server peers.Debezium, broker string, c *converted) {
	w := newWorld(t)
	doc := debeziumBlocks(t)
	w.exec(doc[0])
	w.migrate()
	w.exec(`CREATE TABLE outboxevent (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload text)`)
	w.exec(`ALTER TABLE outboxevent OWNER TO ` + w.role)
	w.exec(`CREATE PUBLICATION debezium FOR TABLE outboxevent`)
	prefix := newTopicName()
	k := newNamedTopic(t, broker, prefix+".order", 3)
	keys := []string{"order-1", `order "2"`, "Bestellung ü\n3"}
	insert := func() (ids []relay.UUID) {
		for _, payload := range oddPayloads {
			for _, key := range keys {
				id := newID()
				w.exec(`INSERT INTO outboxevent (id, aggregatetype, aggregateid, type, payload) VALUES ($1, 'order', $2, 'OrderPaid', $3)`, id.String(), key, payload)
				ids = append(ids, id)
			}
		}
		return ids
	}
	before, stop := w.debezium(server, prefix, broker, c.debezium)
	eventually(t, patience, "Debezium streams", before)
	first := insert()
	arrived := func(n int) func() string {
		return func() string { return atLeast(len(k.read()), n) }
	}
	eventually(t, patience, "Debezium has sent all", arrived(len(first)))
	stop()

	w.exec(strings.Replace(doc[1], "COMMIT;", doc[2]+"COMMIT;", 1))
	second := insert()
	p := w.relay("relay", settings{
		"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker, "RELAY_TOPIC": prefix + ".{aggregate_type}",
		"RELAY_ENVELOPE": "debezium", "RELAY_PAYLOAD": "text", "RELAY_NULL_PAYLOAD": "tombstone",
	}.with(c.relay))
	if got := w.waitNonePending(p); got["sent"] != len(second) {
		t.Fatalf("rows by status: %v", got)
	}
	p.stop()
	records := map[string]arrival{} // by id
	all := k.read()
	for _, r := range all {
		records[anyID.FindString(r.header("id"))] = r
	}
	if len(records) != len(first)+len(second) || len(all) != len(records) {
		t.Fatalf("%d records with %d ids, want %d", len(all), len(records), len(first)+len(second))
	}
	for i := range first {
		old, ours := records[first[i].String()], records[second[i].String()]
		if old.key != ours.key || old.partition != ours.partition || string(old.value) != string(ours.value) || (old.value == nil) != (ours.value == nil) {
			t.Errorf("row %d: Debezium sent key %s, value %q (NULL %t) to partition %d, the relay key %s, value %q (NULL %t) to %d",
				i, old.key, old.value, old.value == nil, old.partition, ours.key, ours.value, ours.value == nil, ours.partition)
		}
		if i%len(keys) == 0 {
			t.Logf("key %s, value %q, headers of Debezium %v, of the relay %v", old.key, old.value, old.headers, ours.headers)
		}
	}
}

var anyID = regexp.MustCompile(`[0-9a-f-]{36}`)

// debezium starts Debezium Server on the world's outboxevent. The first function returns why it does
// not stream yet; the other one stops it.
func (w *world) debezium(server peers.Debezium, prefix, broker string, more []string) (streams func() string, stop func()) {
	w.t.Helper()
	u, err := url.Parse(w.url)
	if err != nil {
		w.t.Fatal("the DSN is no URL")
	}
	dir := w.t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "config"), 0o755); err != nil {
		w.t.Fatal(err)
	}
	slot := "debezium_" + strings.ReplaceAll(prefix, "-", "_")
	lines := append([]string{
		"debezium.source.connector.class=io.debezium.connector.postgresql.PostgresConnector",
		"debezium.source.database.hostname=" + u.Hostname(), "debezium.source.database.port=" + u.Port(),
		"debezium.source.database.user=" + u.User.Username(), "debezium.source.database.password=" + w.password, "debezium.source.database.dbname=" + w.db.Name,
		"debezium.source.topic.prefix=" + prefix, "debezium.source.table.include.list=public.outboxevent", "debezium.source.plugin.name=pgoutput",
		"debezium.source.slot.name=" + slot, "debezium.source.slot.drop.on.stop=true", "debezium.source.publication.name=debezium", "debezium.source.publication.autocreate.mode=disabled",
		"debezium.source.snapshot.mode=no_data", "debezium.source.tombstones.on.delete=false", "debezium.source.poll.interval.ms=10",
		"debezium.source.offset.storage.file.filename=" + filepath.Join(dir, "offsets.dat"), "debezium.source.offset.flush.interval.ms=0",
		"debezium.transforms=outbox", "debezium.transforms.outbox.type=io.debezium.transforms.outbox.EventRouter",
		"debezium.transforms.outbox.route.topic.replacement=" + prefix + ".order", // Quarkus would expand a variable
		"debezium.transforms.outbox.route.tombstone.on.empty.payload=true",
		"debezium.transforms.outbox.table.fields.additional.placement=type:header:eventType",
		"debezium.sink.type=kafka", "debezium.sink.kafka.producer.bootstrap.servers=" + broker, "debezium.sink.kafka.producer.acks=all",
		"debezium.sink.kafka.producer.key.serializer=org.apache.kafka.common.serialization.StringSerializer",
		"debezium.sink.kafka.producer.value.serializer=org.apache.kafka.common.serialization.StringSerializer",
		"quarkus.http.port=0", "quarkus.http.host=127.0.0.1", "quarkus.log.level=WARN", "quarkus.log.console.json=false",
	}, more...)
	if err := os.WriteFile(filepath.Join(dir, "config", "application.properties"), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		w.t.Fatal(err)
	}
	runner, err := filepath.Glob(filepath.Join(server.Dir, "debezium-server-*runner.jar"))
	if err != nil || len(runner) != 1 {
		w.t.Fatalf("in %s are the runners %v, want one", server.Dir, runner)
	}
	cmd := exec.Command(server.Java, "-Xmx512m", "-cp", strings.Join([]string{runner[0], filepath.Join(server.Dir, "config", "lib"), filepath.Join(server.Dir, "lib", "*")}, ":"), "io.debezium.server.Main")
	cmd.Dir = dir
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		w.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	p, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		w.t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			p.Kill() //nolint:errcheck // it may have ended
		}
	}
	w.t.Cleanup(func() {
		stop()
		_ = out.Close()
		if w.t.Failed() {
			text, _ := os.ReadFile(out.Name())
			w.t.Logf("Debezium printed:\n%.6000s", strings.ReplaceAll(string(text), w.password, "…"))
		}
		eventually(w.t, patience, "the slot is dropped", func() string {
			_, err := w.db.Pool.Exec(context.Background(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, slot)
			return errText(err)
		})
	})
	return func() string {
		n := value[int](w, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active`, slot)
		return atLeast(n, 1)
	}, stop
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
