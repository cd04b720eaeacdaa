package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay/watch"
	"github.com/sagaz-relay/relay/sinks/file"
)

// What users of BROKER_TYPE see of their sinks is in testdata/broker_type.golden: in metrics, ledger,
// log, /status.json and the commands a sink of BROKER_TYPE is called as its kind is, for ever. Their
// dashboards, alerts, queries and scripts say so, and their ledgers have entries under these names.
// A change of that file breaks what they have.
func TestSinksOfBrokerTypeAreCalledAsEver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	k := newTopic(t, brokertest.Kafka(t).Plaintext, 2)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, k.name)
	later := filepath.Join(t.TempDir(), "later")
	env := q.env().with(settings{
		"BROKER_TYPE": "kafka,rabbitmq,file", "KAFKA_BOOTSTRAP_SERVERS": brokertest.Kafka(t).Plaintext, "RELAY_FILE_PATH": filepath.Join(later, "events.jsonl"),
		"MAX_RETRIES": "1", "INITIAL_RETRY_DELAY_SECONDS": "0.2", "RELAY_SINK_ISOLATION": "1s", "RELAY_BACKOFF_MAX": "500ms", "MAX_RETRY_DELAY_SECONDS": "0.5",
	})
	p := w.relay("relay", env)
	p.waitStreaming()
	// The second one's topic is none for Kafka, and no queue takes it; the file cannot be written.
	good, bad := row{key: "a", topic: k.name}, row{key: "b", topic: "no such topic!"}
	w.insert(good, bad)
	w.db.Until(t, `SELECT count(*) FILTER (WHERE state = 'dead') = 2 AND count(*) = 4 FROM saga_outbox_delivery`)
	p.waitLog("sink isolated")

	name := filepath.Join("testdata", "broker_type.golden")
	want, err := os.ReadFile(name)
	if err != nil {
		t.Error(err)
	}
	var got strings.Builder
	section := func(title string, lines []string) {
		fmt.Fprintf(&got, "# %s\n%s\n\n", title, strings.Join(lines, "\n"))
	}
	section("saga_outbox_delivery", lines(w, `SELECT DISTINCT sink || ' ' || state || coalesce(' ' || reason, '') FROM saga_outbox_delivery ORDER BY 1`))
	section("saga_outbox_relay.sinks", lines(w, `SELECT sinks FROM saga_outbox_relay`))
	section("saga_outbox.last_error", lines(w, `SELECT DISTINCT regexp_replace(part, '^([a-z]+: [a-z_]+).*', '\1') FROM saga_outbox, regexp_split_to_table(last_error, '; ') part WHERE part ~ '^[a-z]+: ' ORDER BY 1`))
	section("metrics", sinksByMetric(p, string(want)))
	section("/status.json while the file cannot be written", sinksInStatus(t, p))
	out, code := w.command(env, "status")
	if code != 0 {
		t.Fatalf("status: exit code %d", code)
	}
	_, ledger, _ := strings.Cut(out, "\n\n")
	ledger, _, _ = strings.Cut(ledger, "\n\n")
	section("status", columns(ledger, 4))
	if out, code = w.command(env, "sinks"); code != 0 {
		t.Fatalf("sinks: exit code %d", code)
	}
	section("sinks", columns(out, 5))

	if err := os.Mkdir(later, 0o700); err != nil {
		t.Fatal(err)
	}
	w.db.Until(t, `SELECT count(*) = 2 FROM saga_outbox_delivery`)
	p.waitLog("sink is back")
	section("log", sinkLines(p))
	p.stop()
	if n := len(lineEvents(t, func(f func(file.Line) error) error { return file.Read(env["RELAY_FILE_PATH"], f) })); n != 2 {
		t.Errorf("the file has %d events, want 2", n)
	}

	if got := strings.TrimSpace(got.String()) + "\n"; got != string(want) {
		t.Errorf("what users of BROKER_TYPE see is not what %s has:\n%s", name, got)
	}
}

// lines are the rows of a query for one text.
func lines(w *world, sql string) (all []string) {
	w.t.Helper()
	return value[[]string](w, `SELECT coalesce(array_agg(l), '{}') FROM (`+sql+`) q(l)`)
}

// sinksByMetric are the metrics of the golden text that have a sink as a label, and its values; and
// the values that it has in any metric.
func sinksByMetric(p *process, golden string) (all []string) {
	p.t.Helper()
	code, text := p.get("/metrics")
	if code != http.StatusOK {
		p.t.Fatalf("/metrics: %d", code)
	}
	series := regexp.MustCompile(`(?m)^([a-z_]+)\{(?:[^}]*,)?sink="([^"]*)"`)
	const any = "sink="
	sinks := make(map[string]map[string]bool)
	for _, m := range series.FindAllStringSubmatch(string(text), -1) {
		for _, metric := range []string{any, strings.TrimSuffix(m[1], "_bucket")} {
			if metric != any && !strings.Contains(golden, "\n"+metric+" ") {
				continue
			}
			if sinks[metric] == nil {
				sinks[metric] = make(map[string]bool)
			}
			sinks[metric][m[2]] = true
		}
	}
	for _, metric := range slices.Sorted(maps.Keys(sinks)) {
		all = append(all, metric+" "+strings.Join(slices.Sorted(maps.Keys(sinks[metric])), " "))
	}
	return all
}

// sinksInStatus are the places of /status.json, which the page shows, that name sinks.
func sinksInStatus(t *testing.T, p *process) (all []string) {
	t.Helper()
	var st struct {
		Sinks    []watch.SinkStatus
		Database struct {
			Ledger []struct{ Sink, State string }
		}
		History struct{ Sinks map[string]any }
		Verdict struct{ Reasons []string }
		Changes []struct{ Kind, Sink, Text string }
	}
	var changes []string
	eventually(t, patience, "/status.json has the ledger of all sinks, and what happened to them", func() string {
		_, body := p.get("/status.json")
		if err := json.Unmarshal(body, &st); err != nil {
			return p.mustRun(err.Error())
		}
		entries := make(map[string]bool)
		for _, l := range st.Database.Ledger {
			entries["database.ledger[] "+l.Sink+" "+l.State] = true
		}
		changes = changes[:0]
		for _, c := range st.Changes {
			if c.Kind == "dead_letter" || c.Kind == "sink_isolated" {
				changes = append(changes, fmt.Sprintf("changes[] %s %s: %s", c.Kind, c.Sink, c.Text))
			}
		}
		all = slices.Sorted(maps.Keys(entries))
		if len(entries) != 3 || len(changes) != 3 {
			return p.mustRun(fmt.Sprint(all, changes))
		}
		return ""
	})
	slices.Sort(changes)
	all = append(all, changes...)
	for _, s := range st.Sinks {
		all = append(all, fmt.Sprintf("sinks[] %s, isolated: %t", s.Sink, s.Isolated))
	}
	all = append(all, "history.sinks "+strings.Join(slices.Sorted(maps.Keys(st.History.Sinks)), " "))
	for _, reason := range st.Verdict.Reasons {
		if strings.Contains(reason, "sink") {
			all = append(all, "verdict.reasons[] "+reason)
		}
	}
	return all
}

// columns are the first n columns of a table.
func columns(table string, n int) (all []string) {
	for l := range strings.Lines(strings.TrimSpace(table)) {
		all = append(all, strings.Join(strings.Fields(l)[:n], " "))
	}
	return all
}

// sinkLines are lines of the log that name a sink: who logs them, what, and the sinks.
func sinkLines(p *process) (all []string) {
	p.t.Helper()
	for _, message := range []string{"starting", "connected", "event refused", "event given up", "sink isolated", "sink is back"} {
		for _, l := range p.logged(message) {
			text := l.text("logger") + ": " + l.text("message")
			for _, key := range []string{"sink", "sinks"} {
				if l[key] != nil {
					text += fmt.Sprintf(" %s=%v", key, l[key])
				}
			}
			all = append(all, strings.TrimPrefix(text, ": "))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
