package relay

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// described keeps what is registered, to be asked for every name, also those that have no series yet.
type described struct {
	*prometheus.Registry
	text []string
}

func (d *described) MustRegister(collectors ...prometheus.Collector) {
	for _, c := range collectors {
		descs := make(chan *prometheus.Desc, 10)
		c.Describe(descs)
		close(descs)
		for desc := range descs {
			d.text = append(d.text, desc.String())
		}
	}
	d.Registry.MustRegister(collectors...)
}

// contractMetrics are the names in CONTRACT.md that this version exports, with the labels that the library has.
var contractMetrics = map[string][]string{
	"outbox_batch_processed_total":    {"worker_id"},
	"outbox_published_events_total":   {"worker_id", "event_type"},
	"outbox_failed_events_total":      {"worker_id", "event_type"},
	"outbox_dead_letter_events_total": {"worker_id", "event_type"},
	"outbox_retry_attempts_total":     {"worker_id"},
	"outbox_pending_events_total":     nil,
	"outbox_pending_events":           nil,
	"outbox_processing_events_total":  {"worker_id"},
	"outbox_batch_size":               {"worker_id"},
	"outbox_publish_duration_seconds": {"worker_id", "event_type"},
	"outbox_replication_lag_seconds":  {"slot"},
	"outbox_commit_to_ack_seconds":    {"sink"},
	"outbox_sink_up":                  {"sink"},
	"outbox_shards_owned":             nil,
	"outbox_lease_changes_total":      {"worker_id"},
}

func TestMetricsOfTheContract(t *testing.T) {
	reg := &described{Registry: prometheus.NewRegistry()}
	NewMetrics(reg, "worker-1")
	for name, labels := range contractMetrics {
		i := slices.IndexFunc(reg.text, func(s string) bool { return strings.Contains(s, `fqName: "`+name+`"`) })
		if i < 0 {
			t.Errorf("%s is not exported", name)
			continue
		}
		_, constant, _ := strings.Cut(reg.text[i], "constLabels:")
		for _, label := range labels {
			if !strings.Contains(constant, label) {
				t.Errorf("%s has no label %s: %s", name, label, reg.text[i])
			}
		}
		if strings.Contains(reg.text[i], `help: ""`) {
			t.Errorf("%s has no help", name)
		}
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
	m := NewMetrics(reg, "worker-1")
	s := m.sink("kafka")
	var batch []*flight
	for i := range 260 {
		for range 2 {
			batch = append(batch, &flight{rec: Record{EventType: fmt.Sprint("Type", i)}})
		}
	}
	s.acked(batch, time.Millisecond)
	for i := range 3 {
		s.refused(&flight{rec: Record{EventType: fmt.Sprint("Type", 300+i)}}, nil)
	}
	s.refused(&flight{rec: Record{EventType: "Type0"}}, nil)
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
