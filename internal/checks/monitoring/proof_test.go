package monitoring

import (
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

func TestMain(m *testing.M) { os.Exit(brokertest.Run(pgtest.Closing(m))) }

func TestEveryExpression(t *testing.T) {
	t.Parallel()
	s := setTheScene(t)
	s.play()

	t.Run("metrics", s.metrics)
	t.Run("dashboards", s.dashboards)
	t.Run("rules", s.rules)
}

// metrics: Prometheus has stored every series of the table of docs/metrics.md, with its labels and
// no others.
func (s *scene) metrics(t *testing.T) {
	known := product.Series(t)
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
	for name, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				if q.Datasource.Type == "prometheus" {
					s.hasData(t, name+", "+p.Title, q.Expr)
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

// rules: each was evaluated without an error, each recording rule gave something, and what was done
// here has raised the alerts it should.
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

func relayCommand(t *testing.T, env map[string]string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(product.Binary(t), args...)
	cmd.Env = []string{"HOME=/nonexistent"}
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return cmd
}
