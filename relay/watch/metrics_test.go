package watch

import (
	"flag"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
)

var update = flag.Bool("update", false, "write the tables of docs/metrics.md (make docs)")

// contractMetrics are the names in docs/contract.md, with the labels that the library, or we, gave
// them. docs/metrics.md lists all others.
var contractMetrics = map[string]string{
	"outbox_batch_processed_total":          "worker_id",
	"outbox_published_events_total":         "event_type worker_id",
	"outbox_failed_events_total":            "event_type worker_id",
	"outbox_dead_letter_events_total":       "event_type worker_id",
	"outbox_retry_attempts_total":           "worker_id",
	"outbox_pending_events_total":           "",
	"outbox_pending_events":                 "",
	"outbox_processing_events_total":        "worker_id",
	"outbox_batch_size":                     "worker_id",
	"outbox_events_by_state":                "state",
	"outbox_publish_duration_seconds":       "event_type worker_id",
	"outbox_slot_confirmed_flush_lag_bytes": "slot",
	"outbox_slot_retained_wal_bytes":        "slot",
	"outbox_slot_safe_wal_size_bytes":       "slot",
	"outbox_slot_active":                    "slot",
	"outbox_slot_inactive_seconds":          "slot",
	"outbox_slot_spill_bytes_total":         "slot",
	"outbox_slot_wal_status":                "slot status",
	"outbox_replication_lag_seconds":        "slot",
	"outbox_commit_to_ack_seconds":          "sink",
	"outbox_sink_up":                        "sink",
	"outbox_ledger_events":                  "sink state",
	"outbox_unmarked_events":                "slot",
	"outbox_shards_owned":                   "",
	"outbox_lease_changes_total":            "worker_id",
	"outbox_recovered_events_total":         "cause",
	"outbox_marks_hot_ratio":                "",
	"outbox_build_info":                     "goversion revision version",
}

// busyMetrics are the metrics of a relay that has seen everything, so that every series is there.
func busyMetrics() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg, "worker-1", DefaultConfig())
	const slot = "sagaz_outbox"
	m.configure(&relay.About{})
	m.slots.divided(relay.Alone(slot, slot).Set)
	m.Build("1.0", "abc")
	m.MemoryLimit(1 << 29)
	s := m.sink("kafka")
	f := &relay.Flight{Record: relay.Record{EventType: "order.pay.failed"}, AggregateType: "saga", Parked: []relay.Parked{{Sink: "kafka", State: relay.StateDead, Reason: relay.ReasonTooLarge}}}
	s.acked([]*relay.Flight{f}, time.Millisecond)
	m.marked(slot, []*relay.Flight{f})
	safe := int64(1 << 30)
	m.slots.begin(func() relay.Snapshot {
		return relay.Snapshot{Slots: []relay.SlotSnapshot{{Slot: slot, Moved: time.Now(), Work: &relay.WorkSnapshot{}}}}
	})
	m.slots.set(slot, &slotSample{
		since: time.Now(), looked: true, budget: 1 << 29, rows: map[string]int64{"sent": 1}, sinks: []string{"kafka"},
		info: relay.SlotInfo{Exists: true, KeepSize: 1 << 30, SafeWALSize: &safe, Relays: 3, Stats: &relay.SlotStats{}},
	})
	return reg
}

// TestMetricsOfTheContract looks at names and labels, and at docs/metrics.md, whose table of
// metrics is made of what is exported (make docs).
func TestMetricsOfTheContract(t *testing.T) {
	families, err := busyMetrics().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	exported := make(map[string]string)
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		exported[f.GetName()] = strings.Join(labels, " ")
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", f.GetName())
		}
		if strings.HasSuffix(f.GetName(), "_total") && f.GetType().String() != "COUNTER" && !strings.Contains(f.GetHelp(), "despite its name") {
			t.Errorf("%s is a %s", f.GetName(), f.GetType())
		}
		shown := ""
		if len(labels) > 0 {
			shown = "`" + strings.Join(labels, "`, `") + "`"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), shown, f.GetHelp())
	}
	for name, labels := range contractMetrics {
		if got, ok := exported[name]; !ok {
			t.Errorf("%s is not exported", name)
		} else if got != labels {
			t.Errorf("%s has the labels %q, want %q", name, got, labels)
		}
	}

	const begin, end = "<!-- metrics: made by make docs, a test compares this with the code -->\n", "<!-- end of metrics -->"
	const document = "../../docs/metrics.md"
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	old, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatal("docs/metrics.md has no table of metrics between its two comments")
	}
	want := "| name | type | labels | meaning |\n|---|---|---|---|\n" + table.String()
	switch {
	case old == want:
	case *update:
		if err := os.WriteFile(document, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Error("docs/metrics.md does not list what is exported: run make docs")
	}
}

// A histogram that is ours shows what the client library's would.
func TestHistogramAsTheLibrarys(t *testing.T) {
	bounds := []float64{0.1, 1, 10}
	ours := newHistograms("h", "help", bounds, prometheus.Labels{"worker_id": "w"}, "kind")
	theirs := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "h", Help: "help", Buckets: bounds, ConstLabels: prometheus.Labels{"worker_id": "w"}}, []string{"kind"})
	for _, o := range []struct {
		kind  string
		value float64
		n     int
	}{{"a", 0, 1}, {"a", 0.1, 3}, {"a", 0.100001, 2}, {"a", 5, 4}, {"b", 11, 2}, {"b", 10, 1}} {
		ours.with(o.kind).observe(o.value, o.n)
		for range o.n {
			theirs.WithLabelValues(o.kind).Observe(o.value)
		}
	}
	shown := func(c prometheus.Collector) string {
		reg := prometheus.NewRegistry()
		reg.MustRegister(c)
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range families[0].GetMetric() {
			m.Histogram.CreatedTimestamp = nil
			// It is added up in another order.
			*m.Histogram.SampleSum = math.Round(m.GetHistogram().GetSampleSum()*1e6) / 1e6
		}
		return fmt.Sprint(families)
	}
	if got, want := shown(ours), shown(theirs); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func metricSum(t *testing.T, reg prometheus.Gatherer, name, label string) (byLabel map[string]float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	byLabel = make(map[string]float64)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == label {
					byLabel[l.GetValue()] += m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
				}
			}
		}
	}
	return byLabel
}

// event_type comes from rows: past 200 of them, the others share one value.
func TestMetricsCapEventTypes(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg, "worker-1", Config{})
	s := m.sink("kafka")
	var batch []*relay.Flight
	for i := range 260 {
		for range 2 {
			batch = append(batch, &relay.Flight{Record: relay.Record{EventType: fmt.Sprint("Type", i)}})
		}
	}
	s.acked(batch, time.Millisecond)
	for i := range 3 {
		s.refused(relay.Refusal{Flight: &relay.Flight{Record: relay.Record{EventType: fmt.Sprint("Type", 300+i)}}})
	}
	s.refused(relay.Refusal{Flight: &relay.Flight{Record: relay.Record{EventType: "Type0"}}})
	for _, name := range []string{"outbox_published_events_total", "outbox_publish_duration_seconds"} {
		got := metricSum(t, reg, name, "event_type")
		if len(got) != 201 || got["Type0"] != 2 || got["Type199"] != 2 || got["other"] != 120 {
			t.Errorf("%s: %d values of event_type, Type0 %v, Type199 %v, other %v; want 201, 2, 2, 120", name, len(got), got["Type0"], got["Type199"], got["other"])
		}
	}
	if got := metricSum(t, reg, "outbox_failed_events_total", "event_type"); got["other"] != 3 || got["Type0"] != 1 {
		t.Errorf("outbox_failed_events_total: got %v of other and %v of Type0, want 3 and 1", got["other"], got["Type0"])
	}
}
