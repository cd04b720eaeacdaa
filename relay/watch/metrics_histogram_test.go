package watch

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sagaz-relay/relay/relay"
)

// Where events are traced, each bucket of the two latency histograms names the newest of its events
// whose trace is recorded, in OpenMetrics' form.
func TestExemplars(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg, "worker-1", Config{})
	s := m.sink("kafka")
	event := func(trace, flags byte, ago time.Duration) *relay.Flight {
		return &relay.Flight{
			Record:      relay.Record{EventType: "OrderCreated", Trace: relay.TraceContext{TraceID: [16]byte{trace}, SpanID: [8]byte{trace}, Flags: flags}},
			CommittedAt: relay.TimestampOf(time.Now().Add(-ago)),
		}
	}
	batch := []*relay.Flight{event(1, 1, 2*time.Second), event(2, 0, 20*time.Second), {Record: relay.Record{EventType: "OrderCreated"}}, event(3, 1, 200*time.Second)}
	exported := func() string {
		rec := httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
		promhttp.HandlerFor(reg, promhttp.HandlerOpts{EnableOpenMetrics: true}).ServeHTTP(rec, req)
		return rec.Body.String()
	}
	s.acked(batch, 3*time.Millisecond)
	if text := exported(); strings.Contains(text, "trace_id") {
		t.Errorf("exemplars without a tracer:\n%s", text)
	}
	m.exemplars = true
	s.acked(batch, 3*time.Millisecond)
	text := exported()
	label := func(n byte) string { return fmt.Sprintf(`trace_id="%032x"`, [16]byte{n}) }
	for line, want := range map[string]string{
		`outbox_commit_to_ack_seconds_bucket{sink="kafka",le="2.5"}`:                                        label(1),
		`outbox_commit_to_ack_seconds_bucket{sink="kafka",le="30.0"}`:                                       "",
		`outbox_commit_to_ack_seconds_bucket{sink="kafka",le="300.0"}`:                                      label(3),
		`outbox_publish_duration_seconds_bucket{event_type="OrderCreated",worker_id="worker-1",le="0.005"}`: "trace_id=",
	} {
		at := strings.Index(text, line)
		if at < 0 {
			t.Fatalf("no line %s in\n%s", line, text)
		}
		got, _, _ := strings.Cut(text[at:], "\n")
		if !strings.Contains(got, want) || want == "" && strings.Contains(got, "#") {
			t.Errorf("%s, want an exemplar with %q", got, want)
		}
	}
}
