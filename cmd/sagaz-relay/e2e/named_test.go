package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
	"github.com/sagaz-relay/relay/sinks/file"
)

// Two sinks of one kind, each with its own settings. One of them cannot write: its events wait in
// the ledger under its name, the other one's go on. Then it is renamed while they wait, not before
// the relay is stopped, and they arrive, in order and once, at the sink of the new name.
func TestNamedSinks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rnd := newRand(t)
	dir := t.TempDir()
	later := filepath.Join(dir, "later")
	paths := map[string]string{"lines-a": filepath.Join(dir, "a.jsonl"), "lines-b": filepath.Join(later, "b.jsonl")}
	common := settings{"INITIAL_RETRY_DELAY_SECONDS": "0.1", "MAX_RETRY_DELAY_SECONDS": "0.3", "RELAY_SINK_ISOLATION": "1s", "RELAY_BACKOFF_MAX": "500ms"}
	env := common.with(settings{
		"RELAY_SINKS":             "lines-a,lines-b",
		"RELAY_SINK_LINES_A_KIND": "file", "RELAY_SINK_LINES_A_PATH": paths["lines-a"], "RELAY_SINK_LINES_A_FSYNC": "false",
		"RELAY_SINK_LINES_B_KIND": "file", "RELAY_SINK_LINES_B_PATH": paths["lines-b"],
	})
	const rows = 200
	p := w.relay("two-files", env)
	p.waitStreaming()
	committed := w.randomKeys(rnd, rows, "T")
	ids := w.insert(committed...)
	isolated := p.waitLog("sink isolated: its events go to the ledger until it is back")
	if isolated.text("logger") != "relay.sink.lines-b" {
		t.Errorf("isolated is %v", isolated)
	}
	w.waitLedger(p, "lines-b", rows)
	p.waitSink("lines-b", "0")
	p.waitSink("lines-a", "1")
	for _, s := range p.status().Sinks {
		if s.Kind != "file" || s.Isolated != (s.Sink == "lines-b") {
			t.Errorf("/status.json has %s as a sink of kind %q, isolated: %t", s.Sink, s.Kind, s.Isolated)
		}
	}
	if out, code := w.command(env, "status"); code != 0 || !regexp.MustCompile(fmt.Sprintf(`(?m)^SINK +KIND .*\nlines-b +file +retry +sink_down +%d `, rows)).MatchString(out) {
		t.Errorf("status: exit code %d, %s", code, out)
	}
	if out, code := w.command(env, "status", "--json"); code != 0 || !regexp.MustCompile(`"sink_kinds": \{\s*"lines-a": "file",\s*"lines-b": "file"`).MatchString(out) {
		t.Errorf("status --json: exit code %d, %s", code, out)
	}
	// By these locks "sinks rename" sees standbys, too (relay/store/renamesink.go).
	if n := value[int](w, `SELECT count(*) FROM pg_locks, unnest(ARRAY['lines-a', 'lines-b']) sink WHERE locktype = 'advisory' AND classid = x'53414744'::int::oid AND objid = (hashtext(sink)::bigint & 4294967295)::oid
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); n != 2 {
		t.Errorf("the relay shows %d of its 2 sinks", n)
	}
	out, code := w.command(env, "sinks", "rename", "lines-b", "archive")
	if code == 0 || out != "" || w.ledger("lines-b", "") != rows {
		t.Errorf("renamed under a relay that delivers to it: exit code %d, %s", code, out)
	}
	p.stop()

	if out, code = w.command(env, "sinks", "rename", "lines-b", "archive"); code != 0 || !strings.Contains(out, fmt.Sprintf("renamed lines-b to archive: %d ledger entries, noted by 1 slots", rows)) {
		t.Errorf("exit code %d, %s", code, out)
	}
	if old, renamed := w.ledger("lines-b", ""), w.ledger("archive", ""); old != 0 || renamed != rows {
		t.Errorf("the ledger has %d entries of the old name and %d of the new one, want 0 and %d", old, renamed, rows)
	}
	if err := os.Mkdir(later, 0o700); err != nil {
		t.Fatal(err)
	}
	env = common.with(settings{
		"RELAY_SINKS":             "lines-a,archive",
		"RELAY_SINK_LINES_A_KIND": "file", "RELAY_SINK_LINES_A_PATH": paths["lines-a"],
		"RELAY_SINK_ARCHIVE_KIND": "file", "RELAY_SINK_ARCHIVE_PATH": paths["lines-b"],
	})
	p = w.relay("renamed", env)
	p.waitStreaming()
	more := w.randomKeys(rnd, rows, "T")
	committed, ids = append(committed, more...), append(ids, w.insert(more...)...)
	w.waitNonePending(p)
	w.waitLedger(p, "archive", 0)
	for _, message := range []string{"a sink was added", "a sink was removed", "the ledger has events for a sink that is not configured"} {
		for _, line := range p.log() {
			if strings.HasPrefix(line.text("message"), message) {
				t.Errorf("after the rename the relay logs %v", line)
			}
		}
	}
	if out, code = w.command(env, "verify", "--since", "1h"); code != 0 || !strings.Contains(out, "archive") || !strings.Contains(out, "lines-a") {
		t.Errorf("verify: exit code %d, %s", code, out)
	}
	p.stop()
	var events []verify.Event
	for i, id := range ids {
		events = append(events, verify.Event{ID: id, Key: committed[i].key})
	}
	for name, path := range paths {
		check := verify.New(verify.Options{}, name)
		check.Commit(events...)
		check.Deliver(name, lineEvents(t, func(f func(file.Line) error) error { return file.Read(path, f) })...)
		if err := check.Report().Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Two sinks of Kafka, beside the one of BROKER_TYPE, into one topic: every event is there once for
// each, and each sink's metrics have its name.
func TestNamedKafkaSinks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := brokertest.Kafka(t).Plaintext
	k := newTopic(t, addr, 2)
	p := w.relay("three-kafkas", settings{
		"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": addr, "RELAY_SINKS": "orders-kafka,audit-kafka",
		"RELAY_SINK_ORDERS_KAFKA_KIND": "kafka", "RELAY_SINK_ORDERS_KAFKA_BOOTSTRAP_SERVERS": addr, "RELAY_SINK_ORDERS_KAFKA_COMPRESSION": "gzip",
		"RELAY_SINK_AUDIT_KAFKA_KIND": "kafka", "RELAY_SINK_AUDIT_KAFKA_BOOTSTRAP_SERVERS": addr,
	})
	p.waitStreaming()
	ids := w.insert(w.randomKeys(newRand(t), 100, k.name)...)
	w.waitNonePending(p)
	arrived := make(map[relay.UUID]int)
	for _, e := range events(t, k.read()) {
		arrived[e.ID]++
	}
	for _, id := range ids {
		if arrived[id] != 3 {
			t.Errorf("event %s is there %d times, want 3", id, arrived[id])
		}
	}
	for _, sink := range []string{"kafka", "orders-kafka", "audit-kafka"} {
		p.waitSink(sink, "1")
	}
	p.stop()
}

// What cannot be is a clear error at the start, with exit code 2.
func TestNamedSinksThatCannotBe(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "x.jsonl")
	for _, c := range []struct {
		env   settings
		words []string
	}{
		{settings{"RELAY_SINKS": "a,a", "RELAY_SINK_A_KIND": "file"}, []string{"RELAY_SINKS: a occurs twice"}},
		{settings{"RELAY_SINKS": "a", "RELAY_SINK_A_KIND": "pigeon"}, []string{"RELAY_SINK_A_KIND=pigeon: want kafka"}},
		{settings{"RELAY_SINKS": "a,b", "RELAY_SINK_A_KIND": "file", "RELAY_SINK_A_PATH": path, "RELAY_SINK_B_KIND": "file", "RELAY_SINK_B_PATH": path}, []string{"sinks a and b both write to"}},
		{settings{"RELAY_SINKS": "a", "RELAY_SINK_A_KIND": "stdout", "RELAY_SINK_B_KIND": "stdout"}, []string{"RELAY_SINK_B_KIND: no such setting"}},
	} {
		w.fails(t, c.env, c.words...)
	}
}
