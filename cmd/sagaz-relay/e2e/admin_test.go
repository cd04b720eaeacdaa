package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/child"
	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/relay"
)

// metric returns the value of a series as /metrics has it; empty when it is not there.
func (p *process) metric(series string) string {
	p.t.Helper()
	_, text := p.get("/metrics")
	for l := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(l, series+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

func (p *process) waitMetric(series, want string) {
	p.t.Helper()
	eventually(p.t, patience, fmt.Sprintf("%s of %s is %s", series, p.name, want), func() string {
		if got := p.metric(series); got != want {
			return p.mustRun("it is " + strconv.Quote(got))
		}
		return ""
	})
}

// An owner and a standby as Prometheus, the autoscaler and the probes of Kubernetes see them: the
// names are those of docs/contract.md, and a standby has nothing pending, so that the sum over pods
// is the backlog.
func TestMetrics(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := toFile(t)
	owner := w.relay("relay-a", d.env.with(settings{"MAX_RETRIES": "1"}))
	owner.waitStreaming()
	standby := w.relay("relay-b", d.env)
	standby.waitReady()
	if got := standby.role(); got != relay.Standby {
		t.Fatalf("the second relay is %s, want standby", got)
	}
	for i := range 30 {
		w.insert(row{key: fmt.Sprint("k", i%3), topic: []string{"OrderCreated", "OrderPaid", "OrderShipped"}[i%3]})
	}
	w.insert(row{key: "k", topic: "OrderCreated", headers: "[]"}) // refused by the encoder
	if got := w.waitNonePending(owner); got["sent"] != 30 || got["dead_letter"] != 1 {
		t.Errorf("rows by status: %v", got)
	}

	worker := func(name string) string { return fmt.Sprintf(`{worker_id=%q}`, name) }
	of := func(eventType, name string) string {
		return fmt.Sprintf(`{event_type=%q,worker_id=%q}`, eventType, name)
	}
	for series, want := range map[string]string{
		"outbox_published_events_total" + of("OrderCreated", "relay-a"):      "10",
		"outbox_published_events_total" + of("OrderPaid", "relay-a"):         "10",
		"outbox_failed_events_total" + of("OrderCreated", "relay-a"):         "1",
		"outbox_dead_letter_events_total" + of("OrderCreated", "relay-a"):    "1",
		"outbox_retry_attempts_total" + worker("relay-a"):                    "0",
		"outbox_pending_events_total":                                        "0",
		"outbox_pending_events":                                              "0",
		"outbox_processing_events_total" + worker("relay-a"):                 "0",
		`outbox_sink_up{sink="file"}`:                                        "1",
		"outbox_shards_owned":                                                "1",
		`outbox_replication_lag_seconds{slot="` + w.slot + `"}`:              "0",
		`outbox_publish_duration_seconds_count` + of("OrderPaid", "relay-a"): "10",
		`outbox_commit_to_ack_seconds_count{sink="file"}`:                    "30",
	} {
		owner.waitMetric(series, want)
	}
	for series, want := range map[string]string{
		"outbox_pending_events_total":                        "0",
		"outbox_pending_events":                              "0",
		"outbox_processing_events_total" + worker("relay-b"): "0",
		"outbox_shards_owned":                                "0",
		"outbox_batch_processed_total" + worker("relay-b"):   "0",
	} {
		standby.waitMetric(series, want)
	}
	_, text := owner.get("/metrics")
	for _, family := range []string{
		"outbox_batch_processed_total", "outbox_published_events_total", "outbox_failed_events_total", "outbox_dead_letter_events_total", "outbox_retry_attempts_total",
		"outbox_pending_events_total", "outbox_processing_events_total", "outbox_batch_size", "outbox_publish_duration_seconds",
		"outbox_pending_events", "outbox_replication_lag_seconds", "outbox_commit_to_ack_seconds", "outbox_sink_up", "outbox_shards_owned", "outbox_lease_changes_total", "outbox_build_info",
	} {
		if !strings.Contains(string(text), "\n# TYPE "+family+" ") && !strings.HasPrefix(string(text), "# TYPE "+family+" ") {
			t.Errorf("/metrics of the owner has no family %s", family)
		}
	}
	for _, bucket := range []string{"0.001", "5"} {
		if !strings.Contains(string(text), `outbox_publish_duration_seconds_bucket{event_type="OrderPaid",worker_id="relay-a",le="`+bucket+`"}`) &&
			!strings.Contains(string(text), `outbox_publish_duration_seconds_bucket{event_type="OrderPaid",worker_id="relay-a",le="`+bucket+`.0"}`) {
			t.Errorf("outbox_publish_duration_seconds has no bucket of %s s", bucket)
		}
	}
	owner.stop()
	standby.waitMetric("outbox_shards_owned", "1")
	standby.stop()
}

// A backlog shows, whatever holds it up, and so does the sink that does.
func TestBacklogShows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.relay("relay", settings{"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "RELAY_DRAIN_TIMEOUT": "10s"})
	p.waitStreaming()
	for i := range 25 {
		w.insert(row{key: fmt.Sprint("k", i), topic: "T"})
	}
	p.waitMetric("outbox_pending_events_total", "25")
	p.waitMetric(`outbox_processing_events_total{worker_id="relay"}`, "25")
	p.waitSink("kafka", "0")
	eventually(t, patience, "the lag grows", func() string {
		lag, err := strconv.ParseFloat(p.metric(`outbox_replication_lag_seconds{slot="`+w.slot+`"}`), 64)
		if err == nil && lag > 0.5 {
			return ""
		}
		return p.mustRun(fmt.Sprintf("it is %g s (%v)", lag, err))
	})
	p.healthy("with a broker away")
	// A stop does not wait for the broker: the events go to the ledger, for the next owner.
	p.stop()
	if got := value[int](w, `SELECT count(*) FROM saga_outbox_delivery WHERE state = 'retry' AND next_attempt_at IS NULL AND reason = 'sink_down'`); got != 25 {
		t.Errorf("%d events are in the ledger, want 25", got)
	}
}

// /status.json, and the status command, show an operator the state of the relay.
func TestStatus(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := toFile(t)
	ports, err := child.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	// The library's ConfigMap as it is: each of these names means something to it, and none may
	// stop us.
	p := w.relay("relay", d.env.with(settings{
		"RELAY_HTTP_ADDR": "", "METRICS_PORT": strconv.Itoa(ports[0]), "LOG_LEVEL": "WARNING", "WORKER_BATCH_SIZE": "100", "WORKER_POLL_INTERVAL_SECONDS": "1.0",
		"MAX_RETRY_ATTEMPTS": "10", "INITIAL_RETRY_DELAY_SECONDS": "1.0", "MAX_RETRY_DELAY_SECONDS": "300", "STUCK_CLAIM_TIMEOUT_SECONDS": "300",
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SERVICE_NAME": "outbox-worker", "POLL_INTERVAL": "1.0",
	}))
	p.addr = fmt.Sprintf("127.0.0.1:%d", ports[0]) // at WARNING it is not in the log
	eventually(t, patience, "the port answers", func() string {
		if code, body := p.get("/health/live"); code != http.StatusOK {
			return p.mustRun(string(body))
		}
		return ""
	})
	p.waitStreaming()
	w.insert(row{key: "k", topic: "T"}, row{key: "k", topic: "T"})
	w.waitNonePending(p)
	eventually(t, patience, "the status has both events", func() string {
		st := p.status()
		s := st.Slots[0]
		if st.WorkerID == "relay" && s.Slot == w.slot && s.Role == relay.Owner && s.Epoch == 1 && s.Marked == 2 && s.Inflight == 0 && len(st.Sinks) == 1 && st.Sinks[0].Up {
			return ""
		}
		return p.mustRun(fmt.Sprintf("%+v", st))
	})
	if code, _ := p.get("/nothing"); code != http.StatusNotFound {
		t.Errorf("/nothing: %d", code)
	}
	look := launch(t, program.Path(t), "status", w.env().with(settings{"RELAY_HTTP_ADDR": ""}), w.secrets(), "status", "--json")
	if code := look.end(patience); code != 0 {
		t.Fatalf("status: exit code %d: %s", code, look.stderr.String())
	}
	var out map[string]any
	if err := json.Unmarshal([]byte(look.stdout.String()), &out); err != nil {
		t.Errorf("status --json: %v: %s", err, look.stdout.String())
	}
	for _, word := range []string{w.slot, "relay", "sent"} {
		if !strings.Contains(look.stdout.String(), word) {
			t.Errorf("status does not show %q: %s", word, look.stdout.String())
		}
	}
	p.stop()
}
