package relay

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Whatever a text is, what is kept of it is valid, short, and tells two long texts apart.
func TestShort(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "",
		"OrderCreated":           "OrderCreated",
		"Café.ouvert":            "Café.ouvert",
		"Caf\xe9.ouvert":         "Caf\uFFFD.ouvert",
		"a\x00b\nc\x1b[2J\u0085": "a\uFFFDb\uFFFDc\uFFFD[2J\uFFFD",
	} {
		if got := label(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
	seen := make(map[string]bool)
	for _, filler := range []string{"x", "é", "🙂", "\xff", "\x00"} {
		for n := range 2 {
			got := label(strings.Repeat(filler, 1<<20) + fmt.Sprint(n))
			if len(got) > 3*labelBytes || utf8.RuneCountInString(got) > labelBytes || !utf8.ValidString(got) || seen[got] {
				t.Errorf("1 MB of %q: got %q, seen before: %t", filler, got, seen[got])
			}
			seen[got] = true
		}
	}
}

// 60 rows with names of 1 MB leave /metrics small, and the process too.
func TestLongNamesAreNotKept(t *testing.T) {
	const mb = 1 << 20
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg, "relay-1", DefaultWatchConfig())
	cfg := DefaultConfig()
	m.configure(&cfg)
	before := resident()
	for i := range 60 {
		ev := Event{
			ID: UUID{15: byte(i)}, SagaID: fmt.Sprint("s", i), AggregateType: "order", AggregateID: fmt.Sprint("k", i), Payload: "{}", Status: "pending",
			EventType: "ty.st.success", Headers: fmt.Sprintf(`{"saga_name": "%s%d", "step_name": "%s%d"}`, strings.Repeat("n", mb), i, strings.Repeat("s", mb), i),
		}
		if i%2 == 1 {
			ev.EventType = strings.Repeat("t", mb) + fmt.Sprint(i) + ".st.success"
		}
		count(t, m, Encoders["sagaz"], &ev, hclog.NewNullLogger())
	}
	if grown := resident() - before; grown > 20*mb {
		t.Errorf("%d bytes stay in memory", grown)
	}
	if page := exposition(t, reg); len(page) > mb {
		t.Errorf("/metrics has %d bytes", len(page))
	}
	runtime.KeepAlive(m)
}

func resident() int {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int(stats.HeapAlloc)
}

// count does with an event what the engine does on its way: encode, acknowledge or refuse, log, mark.
func count(t testing.TB, m *Metrics, enc Encoder, ev *Event, log hclog.Logger) {
	t.Helper()
	f := &flight{sagaID: ev.SagaID, aggregateType: ev.AggregateType, keyHash: KeyHash(ev.AggregateID)}
	sink := m.sink("kafka")
	if err := enc.Encode(&f.rec, ev); err != nil {
		f.unfit, _ = Refused(err)
		f.rec.EventID, f.rec.EventType, f.rec.Key = ev.ID, ev.EventType, ev.AggregateID
		sink.refused(f, err)
		logRefused(log, "kafka", f, 1, err)
		f.parked = []Parked{{Sink: "kafka", State: StateDead, Reason: f.unfit.Reason, Error: err.Error(), Attempts: 1}}
	} else {
		sink.acked([]*flight{f}, 1)
		logPublished(log, "kafka", []*flight{f}, 1, 1)
	}
	logReceived(log, []*flight{f})
	m.marked("outbox", []*flight{f})
	m.recovered("pending", 1)
	logMarked(log, []*flight{f})
	outcome := Outcome{Entry: &Entry{Event: *ev}, Fate: FateDead, Reason: ReasonEncode, Error: "x", Attempts: 1}
	m.resolved([]Outcome{outcome})
	logResolved(log, enc, "kafka", []Outcome{outcome})
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
