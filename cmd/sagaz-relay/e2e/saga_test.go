package e2e

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// sagaRows are the rows that the library's OutboxSagaListener writes for a saga: its event types,
// with the headers of a traced one.
func sagaRows(saga, id string, types ...string) (rows []row) {
	for _, t := range types {
		rows = append(rows, row{
			saga: id, aggregate: "saga", key: id, topic: saga + "." + t, headers: fmt.Sprintf(`{"correlation_id": %q, "secret_header": "not for logs", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`, "corr-"+id),
		})
	}
	return rows
}

// family is one family of /metrics: its type, and the names of its labels, without those of
// buckets.
type family struct{ kind, labels string }

// families reads /metrics.
func (p *process) families() map[string]family {
	p.t.Helper()
	_, text := p.get("/metrics")
	all := make(map[string]family)
	name := ""
	labels := regexp.MustCompile(`([a-z_]+)="`)
	for l := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(l, "# TYPE "); ok {
			var kind string
			name, kind, _ = strings.Cut(strings.TrimSpace(rest), " ")
			all[name] = family{kind: kind}
			continue
		}
		if strings.HasPrefix(l, "#") || name == "" {
			continue
		}
		var names []string
		for _, m := range labels.FindAllStringSubmatch(l, -1) {
			if m[1] != "le" {
				names = append(names, m[1])
			}
		}
		slices.Sort(names)
		f := all[name]
		f.labels = strings.Join(names, " ")
		all[name] = f
	}
	return all
}

// documentedFamilies are those that docs/metrics.md lists.
func documentedFamilies(t testing.TB) map[string]family {
	t.Helper()
	document, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]family)
	for _, m := range regexp.MustCompile("(?m)^\\| `(outbox_[a-z_]+)` \\| ([a-z]+) \\| ([^|]*) \\|").FindAllStringSubmatch(string(document), -1) {
		all[m[1]] = family{kind: m[2], labels: strings.ReplaceAll(strings.Trim(strings.TrimSpace(m[3]), "`"), "`, `", " ")}
	}
	if len(all) < 50 {
		t.Fatalf("docs/metrics.md lists %d metrics", len(all))
	}
	return all
}

// A relay with Kafka and RabbitMQ, after events that were delivered, refused and given up: every
// metric that docs/metrics.md lists is exported, with its type and its labels; sagas are counted;
// and the log has a saga's whole way, by saga_id and by correlation_id, without the rest of its
// headers.
func TestSagasInMetricsAndLogs(t *testing.T) {
	t.Parallel()
	// without it there are no series of what is left
	server := pgtest.OwnServer(t, pgtest.Version(), map[string]string{"max_slot_wal_keep_size": "1GB"})
	w := newWorldAt(t, server.DSN("postgres"))
	broker := brokertest.Kafka(t)
	k := newTopic(t, broker.Plaintext, 4)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "shop.#")
	p := w.relay("relay", twoTries.with(q.env()).with(settings{
		"BROKER_TYPE": "kafka,rabbitmq", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext, "RELAY_TOPIC": k.name, "LOG_LEVEL": "DEBUG",
	}))
	p.waitStreaming()
	w.insert(sagaRows("shop", "saga-good", "reserve.success", "pay.success")...)
	w.insert(sagaRows("shop", "saga-good", "completed")...)
	w.insert(sagaRows("shop", "saga-bad", "reserve.success", "pay.failed", "reserve.compensated")...)
	w.insert(sagaRows("shop", "saga-bad", "failed")...)
	w.insert(sagaRows("shop", "saga-open", "reserve.success")...)
	// RabbitMQ has no queue for it
	lost := w.insert(sagaRows("lost", "saga-lost", "pay.success")...)[0]
	w.waitFinal(p)
	if status, text := w.fate(lost); status != "dead_letter" || !strings.Contains(text, "unroutable") {
		t.Fatalf("the unroutable event is %s: %s", status, text)
	}

	for series, want := range map[string]string{
		`outbox_saga_started_total{saga_name="shop"}`:                                                "3",
		`outbox_saga_completed_total{saga_name="shop"}`:                                              "1",
		`outbox_saga_failed_total{saga_name="shop"}`:                                                 "1",
		`outbox_saga_compensated_total{saga_name="shop"}`:                                            "1",
		`outbox_saga_active{saga_name="shop"}`:                                                       "1",
		`outbox_saga_active{saga_name="lost"}`:                                                       "1",
		`outbox_saga_steps_total{outcome="failed",saga_name="shop",step_name="pay"}`:                 "1",
		`outbox_saga_steps_total{outcome="success",saga_name="shop",step_name="reserve"}`:            "3",
		`outbox_saga_steps_total{outcome="success",saga_name="lost",step_name="pay"}`:                "1",
		`outbox_saga_duration_seconds_count{saga_name="shop",status="completed"}`:                    "1",
		`outbox_saga_unmatched_events_total`:                                                         "0",
		`outbox_dead_letter_events_total{event_type="lost.pay.success",worker_id="relay"}`:           "1",
		`outbox_dead_letter_events_total{event_type="shop.completed",worker_id="relay"}`:             "0",
		`outbox_failed_events_total{event_type="lost.pay.success",worker_id="relay"}`:                "2",
		`outbox_publish_errors_total{reason="unroutable",sink="rabbitmq"}`:                           "2",
		`outbox_publish_errors_total{reason="unroutable",sink="kafka"}`:                              "0",
		`outbox_acknowledged_events_total{sink="kafka"}`:                                             "9",
		`outbox_acknowledged_events_total{sink="rabbitmq"}`:                                          "8",
		`outbox_parked_events_total{reason="unroutable",sink="rabbitmq"}`:                            "1",
		`outbox_ledger_events{sink="rabbitmq",state="dead"}`:                                         "1",
		`outbox_ledger_events{sink="kafka",state="dead"}`:                                            "0",
		`outbox_marked_events_total{worker_id="relay"}`:                                              "9",
		`outbox_retry_attempts_total{worker_id="relay"}`:                                             "1",
		`outbox_events_by_state{state="dead_letter"}`:                                                "1",
		`outbox_events_by_state{state="pending"}`:                                                    "0",
		`outbox_relays{slot="` + w.slot + `"}`:                                                       "1",
		`outbox_slot_active{slot="` + w.slot + `"}`:                                                  "1",
		`outbox_slot_inactive_seconds{slot="` + w.slot + `"}`:                                        "0",
		`outbox_slot_wal_status{slot="` + w.slot + `",status="reserved"}`:                            "1",
		`outbox_slot_wal_status{slot="` + w.slot + `",status="lost"}`:                                "0",
		`outbox_slot_wal_keep_size_bytes{slot="` + w.slot + `"}`:                                     "1.073741824e+09",
		`outbox_slot_wal_budget_bytes{slot="` + w.slot + `"}`:                                        "5.36870912e+08",
		`outbox_slot_epoch{slot="` + w.slot + `"}`:                                                   "1",
		`outbox_mode{mode="cdc",slot="` + w.slot + `"}`:                                              "1",
		`outbox_mode{mode="polling",slot="` + w.slot + `"}`:                                          "0",
		`outbox_oldest_pending_seconds{slot="` + w.slot + `"}`:                                       "0",
		`outbox_lease_changes_total{worker_id="relay"}`:                                              "1",
		`outbox_publish_duration_seconds_count{event_type="shop.reserve.success",worker_id="relay"}`: "6",
	} {
		p.waitMetric(series, want)
	}
	// The ratio of HOT updates is there when the server has reported updates twice.
	eventually(t, patience, "every metric of docs/metrics.md is exported", func() string {
		got, want := p.families(), documentedFamilies(t)
		var wrong []string
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if f, ok := got[name]; !ok {
				wrong = append(wrong, name+" is missing")
			} else if f != want[name] {
				wrong = append(wrong, fmt.Sprintf("%s is a %s with the labels %q, want %+v", name, f.kind, f.labels, want[name]))
			}
		}
		for name := range got {
			if strings.HasPrefix(name, "outbox_") && want[name] == (family{}) {
				wrong = append(wrong, name+" is not listed")
			}
		}
		if len(wrong) > 0 {
			w.insert(sagaRows("shop", "saga-open", "reserve.success")...)
			return p.mustRun(strings.Join(wrong, "; "))
		}
		return ""
	})

	// A saga's way, by either of its names.
	way := func(key, value string) (stages []string) {
		for _, l := range p.log() {
			if l[key] == value {
				stages = append(stages, l.text("level")+" "+l.text("message"))
			}
		}
		return stages
	}
	for saga, want := range map[string]map[string]int{
		"saga-good": {"DEBUG event received": 3, "DEBUG event published": 6, "DEBUG event marked": 3},
		"saga-lost": {
			"DEBUG event received": 1, "DEBUG event published": 1, "WARNING event refused": 2, "DEBUG event parked": 1, "DEBUG event marked": 1,
			"DEBUG event retried": 1, "ERROR event given up: it is a dead letter": 1, "DEBUG event resolved": 1,
		},
	} {
		for key, value := range map[string]string{"saga_id": saga, "correlation_id": "corr-" + saga} {
			got := make(map[string]int)
			for _, stage := range way(key, value) {
				got[stage]++
			}
			if !maps.Equal(got, want) {
				t.Errorf("%s=%s:\n got %v\nwant %v", key, value, got, want)
			}
		}
	}
	for _, l := range p.log() {
		if l["saga_id"] != "saga-good" {
			continue
		}
		var keys []string
		for key := range l {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		want := map[string]string{
			"event received":  "correlation_id epoch event_id event_type from key level logger lsn message saga_id slot span_id timestamp trace_id",
			"event published": "attempt correlation_id duration_ms event_id event_type key level logger message saga_id sink span_id timestamp trace_id",
			"event marked":    "correlation_id epoch event_id event_type key level logger message saga_id slot span_id status timestamp trace_id",
		}[l.text("message")]
		if got := strings.Join(keys, " "); got != want {
			t.Errorf("%s has the keys %s, want %s", l.text("message"), got, want)
		}
	}
	if strings.Contains(p.stderr.String(), "not for logs") {
		t.Error("the log has headers that do not belong there")
	}
	if l := p.logged("event refused")[0]; l.text("error_type") != string(relay.ReasonUnroutable) || l.text("sink") != "rabbitmq" || l.text("event_id") != lost.String() {
		t.Errorf("the refusal is logged as %v", l)
	}
	p.stop()
}
