package watch

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/encode"
)

// 60 rows with names of 1 MB leave /metrics small, and the process too.
func TestLongNamesAreNotKept(t *testing.T) {
	const mb = 1 << 20
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg, "relay-1", DefaultConfig())
	m.slots.divided(relay.Alone("outbox", "outbox").Set)
	before := resident()
	for i := range 60 {
		ev := relay.Event{
			ID: relay.UUID{15: byte(i)}, SagaID: fmt.Sprint("s", i), AggregateType: "order", AggregateID: fmt.Sprint("k", i), Payload: "{}", Status: "pending",
			EventType: "ty.st.success", Headers: fmt.Sprintf(`{"saga_name": "%s%d", "step_name": "%s%d"}`, strings.Repeat("n", mb), i, strings.Repeat("s", mb), i),
		}
		if i%2 == 1 {
			ev.EventType = strings.Repeat("t", mb) + fmt.Sprint(i) + ".st.success"
		}
		count(t, m, encoders(t)[encode.EnvelopeSagaz], &ev, hclog.NewNullLogger())
	}
	if grown := resident() - before; grown > 20*mb {
		t.Errorf("%d bytes stay in memory", grown)
	}
	if page := exposition(t, reg); len(page) > mb {
		t.Errorf("/metrics has %d bytes", len(page))
	}
	runtime.KeepAlive(m)
}

// encoders are those of each envelope, by its name.
func encoders(t testing.TB) map[string]relay.Encoder {
	t.Helper()
	all := make(map[string]relay.Encoder)
	for _, envelope := range []string{encode.EnvelopeSagaz, encode.EnvelopeCloudEvents, encode.EnvelopeStructured, encode.EnvelopeDebezium, encode.EnvelopeRaw} {
		cfg := encode.DefaultConfig()
		cfg.Envelope = envelope
		enc, err := encode.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		all[envelope] = enc
	}
	return all
}

func resident() int {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int(stats.HeapAlloc)
}

// count does with an event what the engine does on its way: encode, acknowledge or refuse, log,
// mark.
func count(t testing.TB, m *Metrics, enc relay.Encoder, ev *relay.Event, log hclog.Logger) {
	t.Helper()
	f := &relay.Flight{SagaID: ev.SagaID, AggregateType: ev.AggregateType}
	sink := m.sink("kafka")
	if err := enc.Encode(&f.Record, ev); err != nil {
		f.Unfit, _ = relay.Refused(err)
		f.Record.EventID, f.Record.EventType, f.Record.Key = ev.ID, ev.EventType, ev.AggregateID
		sink.refused(relay.Refusal{Flight: f, Err: err, Unoffered: true})
		logRefused(log, "kafka", f, 1, err)
		f.Parked = []relay.Parked{{Sink: "kafka", State: relay.StateDead, Reason: f.Unfit.Reason, Error: err.Error(), Attempts: 1}}
	} else {
		sink.acked([]*relay.Flight{f}, 1)
		logPublished(log, "kafka", []*relay.Flight{f}, 1, 1)
	}
	logReceived(log, []*relay.Flight{f})
	m.marked("outbox", []*relay.Flight{f})
	m.recovered("pending", 1)
	logMarked(log, []*relay.Flight{f})
	outcome := relay.Outcome{Entry: &relay.Entry{Event: *ev}, Fate: relay.FateDead, Reason: relay.ReasonEncode, Error: "x", Attempts: 1}
	m.resolved([]relay.Outcome{outcome})
	logResolved(log, enc, "kafka", []relay.Outcome{outcome})
}

// exposition is /metrics, checked by Prometheus' own parser.
func exposition(t testing.TB, reg *prometheus.Registry) string {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatalf("gather: %v", err)
	}
	var page bytes.Buffer
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&page, family); err != nil {
			t.Fatal(err)
		}
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	if _, err := parser.TextToMetricFamilies(bytes.NewReader(page.Bytes())); err != nil {
		t.Fatalf("/metrics is no valid exposition: %v", err)
	}
	return page.String()
}
