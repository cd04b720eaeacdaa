package proof

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

func TestMain(m *testing.M) { os.Exit(brokertest.Run(pgtest.Closing(m))) }

func TestEveryExpression(t *testing.T) {
	s := setTheScene(t)
	s.play()

	known := documented(t)
	t.Run("metrics", func(t *testing.T) { s.metrics(t, known) })
	t.Run("formats", s.formats)
	t.Run("dashboards", s.dashboards)
	t.Run("rules", s.rules)
	t.Run("exemplars", s.exemplars)
}

// documented are the labels of each series in the table of docs/metrics.md, by name.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	known := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `((?:outbox|go|process)_[a-z_]+)` \\| (counter|gauge|histogram) \\| ([^|]*)\\|").FindAllStringSubmatch(string(product.Read(t, "docs/metrics.md")), -1) {
		labels := []string{}
		for _, l := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(m[3], -1) {
			labels = append(labels, l[1])
		}
		name := m[1]
		if m[2] == "histogram" {
			name, labels = name+"_bucket", append(labels, "le")
		}
		slices.Sort(labels)
		known[name] = labels
	}
	if len(known) < 60 {
		t.Fatalf("the table of docs/metrics.md has %d series: the test looks in the wrong place", len(known))
	}
	return known
}

// formats: both forms of /metrics are what they say; Prometheus reads OpenMetrics.
func (s *scene) formats(t *testing.T) {
	for accept, want := range map[string]string{"application/openmetrics-text; version=1.0.0": "application/openmetrics-text", "text/plain": "text/plain"} {
		for pod, env := range s.env {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+env["RELAY_HTTP_ADDR"]+"/metrics", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Accept", accept)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			text := body(t, resp)
			if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, want) {
				t.Errorf("%s: asked for %s, got %s", pod, accept, got)
			}
			if ends := strings.HasSuffix(text, "# EOF\n"); ends != (want != "text/plain") {
				t.Errorf("%s: %s ends with # EOF: %v", pod, want, ends)
			}
		}
	}
}

// body reads an answer whole, and closes it.
func body(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// metrics: Prometheus has stored every series of the table of docs/metrics.md, with its labels and no others.
func (s *scene) metrics(t *testing.T, known map[string][]string) {
	for _, name := range slices.Sorted(maps.Keys(known)) {
		found, _, err := s.prometheus.ask(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(found) == 0 {
			t.Errorf("%s was never there", name)
		}
		for _, f := range found {
			labels := []string{}
			for label := range f.Metric {
				if !slices.Contains([]string{"__name__", "job", "instance", "namespace", "pod"}, label) {
					labels = append(labels, label)
				}
			}
			if name == "outbox_build_info" && f.Metric["revision"] == "" {
				labels = append(labels, "revision") // empty, and so no label, in what was not built from a commit
			}
			slices.Sort(labels)
			if !slices.Equal(labels, known[name]) {
				t.Errorf("%s has the labels %v, and docs/metrics.md says %v", name, labels, known[name])
			}
		}
	}
}

// dashboards: each query and variable gives something.
func (s *scene) dashboards(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(product.Root(), "monitoring", "grafana-dashboard-*.json"))
	if err != nil || len(files) < 4 {
		t.Fatalf("%d dashboards: %v", len(files), err)
	}
	asked := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d struct {
			Annotations struct{ List []struct{ Name, Expr string } }
			Templating  struct {
				List []struct {
					Name, Definition string
					Datasource       struct{ Type string }
				}
			}
			Panels []struct {
				Title   string
				Targets []struct {
					Expr       string
					Datasource struct{ Type string }
				}
			}
		}
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(file)
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				if q.Datasource.Type == "prometheus" {
					s.hasData(t, name+", "+p.Title, q.Expr)
					asked++
				}
			}
		}
		for _, a := range d.Annotations.List {
			s.hasData(t, name+", "+a.Name, a.Expr)
		}
		for _, v := range d.Templating.List {
			if v.Datasource.Type != "prometheus" {
				continue
			}
			m := regexp.MustCompile(`^label_values\((.*), ([a-z_]+)\)$`).FindStringSubmatch(v.Definition)
			if m == nil {
				t.Errorf("%s: variable %s is %q", name, v.Name, v.Definition)
				continue
			}
			var values []string
			if err := s.prometheus.get("/api/v1/label/"+m[2]+"/values", url.Values{"match[]": {filled(m[1])}}, &values); err != nil || len(values) == 0 {
				t.Errorf("%s: variable %s has no values: %v", name, v.Name, err)
			}
		}
	}
	if asked < 80 {
		t.Errorf("only %d queries were found", asked)
	}
}

// filled puts values in place of Grafana's variables: all of everything.
func filled(expr string) string {
	expr = strings.NewReplacer("$__rate_interval", "30s", "$__range", "5m").Replace(expr)
	return regexp.MustCompile(`\$[a-z_]+`).ReplaceAllString(expr, ".+")
}

func (s *scene) hasData(t *testing.T, where, expr string) {
	t.Helper()
	_, data, err := s.prometheus.ask(filled(expr))
	if err != nil {
		t.Errorf("%s: %s: %v", where, expr, err)
	}
	if err == nil && !data {
		t.Errorf("%s: no data: %s", where, expr)
	}
}

// rules: each was evaluated without an error, each recording rule gave something, and what was done here has raised the alerts it should.
func (s *scene) rules(t *testing.T) {
	var found struct {
		Groups []struct {
			Rules []struct{ Name, Query, Health, LastError, Type string }
		}
	}
	if err := s.prometheus.get("/api/v1/rules", nil, &found); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range found.Groups {
		for _, r := range g.Rules {
			n++
			if r.Health != "ok" {
				t.Errorf("%s: %s %s", r.Name, r.Health, r.LastError)
			}
			if r.Type == "recording" {
				s.hasData(t, r.Name, r.Name)
			}
		}
	}
	if want := strings.Count(s.alerts, "- alert:") + strings.Count(s.alerts, "- record:"); n != want || n < 10 {
		t.Errorf("Prometheus has %d rules, and the file %d", n, want)
	}
	for _, alert := range []string{"OutboxDeadLetters", "OutboxSinkIsolated"} {
		s.hasData(t, alert, fmt.Sprintf(`ALERTS{alertname=%q}`, alert))
	}
}

// rulesOf reads the rule file, which must be YAML of groups.
func rulesOf(t *testing.T) string {
	t.Helper()
	text := product.Read(t, "monitoring/prometheus-alerts.yaml")
	var file struct{ Groups []any }
	if err := yaml.Unmarshal(text, &file); err != nil || len(file.Groups) == 0 {
		t.Fatalf("prometheus-alerts.yaml: %d groups, %v", len(file.Groups), err)
	}
	return string(text)
}

func relayCommand(t *testing.T, env map[string]string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(product.Binary(t), args...)
	cmd.Env = []string{"HOME=/nonexistent"}
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return cmd
}
