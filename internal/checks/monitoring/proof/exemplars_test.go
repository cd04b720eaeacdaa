package proof

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// exemplars: the load's events have traces that are recorded. /metrics names such traces, Prometheus keeps them, and each panel that shows exemplars
// gets some, under the label by which Grafana goes to the trace; and that is one which the collector has. Which one cannot be said before: a bucket
// tells the newest, and events go on.
func (s *scene) exemplars(t *testing.T) {
	owner, named := s.env[s.owner()]["RELAY_HTTP_ADDR"], regexp.MustCompile(`(?m)^outbox_commit_to_ack_seconds_bucket\{.* # \{.*trace_id="(\w+)"`)
	eventually(t, "/metrics has an exemplar of a trace that the collector has", func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+owner+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		m := named.FindStringSubmatch(body(t, resp))
		return m != nil && s.traces()[m[1]]
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
		eventually(t, "exemplars of "+expr, func() bool {
			var series []struct {
				Exemplars []struct{ Labels map[string]string }
			}
			if err := s.prometheus.get("/api/v1/query_exemplars", url.Values{
				"query": {filled(expr)}, "start": {fmt.Sprint(s.prometheus.began.Unix())}, "end": {fmt.Sprint(s.prometheus.began.Unix() + 3600)},
			}, &series); err != nil {
				t.Fatalf("%s: %v", expr, err)
			}
			has := s.traces()
			for _, one := range series {
				for _, e := range one.Exemplars {
					if has[e.Labels[label[1]]] {
						return true
					}
				}
			}
			return false
		})
	}
}

// traces are those that the collector has spans of, or links to.
func (s *scene) traces() map[string]bool {
	has := map[string]bool{}
	for _, span := range s.spans.Spans() {
		has[span.TraceID] = true
		for _, l := range span.Links {
			has[l.TraceID] = true
		}
	}
	return has
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
