package proof

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/otlptest"
)

// exemplars: for an event with a trace that is recorded, /metrics names the trace, Prometheus keeps it, and each panel that shows exemplars gets it,
// under the label by which Grafana goes to the trace. And the collector has that trace.
func (s *scene) exemplars(t *testing.T) {
	const trace, span = "5eaf0000000000000000000000000e01", "00f067aa0ba902b7"
	_, err := s.db.Pool.Exec(t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, headers)
		VALUES (gen_random_uuid(), 'traced', 'traced', 'order.traced', '{}', jsonb_build_object('traceparent', $1::text))`, "00-"+trace+"-"+span+"-01")
	if err != nil {
		t.Fatal(err)
	}
	sent := s.spans.Wait(patience, "spans of both brokers", func(all []otlptest.Span) bool { return len(ofTrace(all, trace)) >= 2 })
	for _, one := range ofTrace(sent, trace) {
		if one.Parent != span && !slices.ContainsFunc(one.Links, func(l otlptest.Link) bool { return l.TraceID == trace && l.SpanID == span }) {
			t.Errorf("span %q neither belongs to the row's span nor links to it: %+v", one.Name, one)
		}
	}

	owner, line := s.env[s.owner()]["RELAY_HTTP_ADDR"], regexp.MustCompile(`(?m)^outbox_commit_to_ack_seconds_bucket\{.* # \{.*trace_id="`+trace+`"`)
	eventually(t, "/metrics has an exemplar of the trace", func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+owner+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return line.MatchString(body(t, resp))
	})

	label := regexp.MustCompile(`exemplarTraceIdDestinations:\s+- name: (\w+)`).FindStringSubmatch(string(product.Read(t, "monitoring/config/datasources.yaml")))
	if label == nil {
		t.Fatal("datasources.yaml names no label of exemplars")
	}
	panels := exemplarPanels(t)
	if len(panels) < 2 {
		t.Fatalf("only %d queries show exemplars", len(panels))
	}
	for _, expr := range panels {
		eventually(t, "the trace is an exemplar of "+expr, func() bool {
			var series []struct {
				Exemplars []struct{ Labels map[string]string }
			}
			if err := s.prometheus.get("/api/v1/query_exemplars", url.Values{
				"query": {filled(expr)}, "start": {fmt.Sprint(s.prometheus.began.Unix())}, "end": {fmt.Sprint(s.prometheus.began.Unix() + 3600)},
			}, &series); err != nil {
				t.Fatalf("%s: %v", expr, err)
			}
			for _, one := range series {
				for _, e := range one.Exemplars {
					if e.Labels[label[1]] == trace {
						return true
					}
				}
			}
			return false
		})
	}
}

func ofTrace(all []otlptest.Span, trace string) (found []otlptest.Span) {
	for _, s := range all {
		if s.TraceID == trace && strings.HasPrefix(s.Name, "send ") {
			found = append(found, s)
		}
	}
	return found
}

// exemplarPanels are the queries of dashboards that ask for exemplars, too.
func exemplarPanels(t *testing.T) (exprs []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(product.Root(), "monitoring", "grafana-dashboard-*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		var d struct {
			Panels []struct {
				Targets []struct {
					Expr     string
					Exemplar bool
				}
			}
		}
		text, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(text, &d)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				if q.Exemplar {
					exprs = append(exprs, q.Expr)
				}
			}
		}
	}
	return exprs
}
