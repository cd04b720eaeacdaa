package monitoring

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// Every query asks for series and labels that a relay exports, of the relays that the dashboard's
// variables choose; every link within leads to a dashboard.
func TestDashboardsAskForWhatIsExported(t *testing.T) {
	series := product.Series(t)
	filled := strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h")
	uids := map[string]bool{}
	for _, d := range dashboards(t) {
		if d.UID == "" || uids[d.UID] {
			t.Errorf("%s: uid %q: want one of its own", d.Title, d.UID)
		}
		uids[d.UID] = true
	}
	asked := 0
	for name, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, link := range p.FieldConfig.Defaults.Links {
				if m := regexp.MustCompile(`^/d/([\w-]+)`).FindStringSubmatch(link.URL); m == nil || !uids[m[1]] {
					t.Errorf("%s, %q: %s leads to no dashboard", name, p.Title, link.URL)
				}
			}
			for _, q := range p.Targets {
				if q.Datasource.Type != "prometheus" {
					continue
				}
				asked++
				text := filled.Replace(q.Expr)
				for _, wrong := range rulesUnknown(t, text, series) {
					t.Errorf("%s, %q: %s", name, p.Title, wrong)
				}
				expr, err := parser.ParseExpr(text)
				if err != nil {
					continue // said above
				}
				for _, selected := range parser.ExtractSelectors(expr) {
					if slices.ContainsFunc(selected, func(m *labels.Matcher) bool { return m.Name == "sink" }) {
						t.Errorf("%s, %q: asks for sinks by name: with RELAY_SINKS they have others", name, p.Title)
					}
					for _, variable := range []string{"job", "namespace", "pod"} {
						if !slices.ContainsFunc(selected, func(m *labels.Matcher) bool { return m.Name == variable && m.Value == "$"+variable }) {
							t.Errorf("%s, %q: a selector without $%s", name, p.Title, variable)
						}
					}
				}
			}
		}
	}
	if asked < 80 {
		t.Errorf("only %d queries were found", asked)
	}
}

// What is coloured on a dashboard is what an alert says: a panel, its limit, and the alert with the
// comparison.
var limits = []struct {
	uid, panel string
	limit      float64
	alert      string
	comparison string
}{
	{"sagaz-outbox", "Oldest event waiting", 60, "OutboxLagElevated", "> 60"},
	{"sagaz-outbox", "Oldest event waiting", 300, "OutboxHighLag", "> 300"},
	{"sagaz-outbox", "Error ratio", 0.01, "OutboxHighErrorRate", "> 0.01"},
	{"sagaz-outbox", "Error ratio, by sink", 0.01, "OutboxHighErrorRate", "> 0.01"},
	{"sagaz-outbox", "Error rate, by event type", 0.01, "OutboxHighErrorRate", "> 0.01"},
	{"sagaz-outbox", "Dead letters", 1, "OutboxDeadLetters", "> 0"},
	{"sagaz-outbox", "Backlog", 1000, "OutboxLowThroughput", "> 1000"},
	{"sagaz-outbox", "Commit to acknowledgement", 5, "OutboxLatencyHigh", "> 5"},
	{"sagaz-outbox", "Relays", 2, "OutboxStandbyMissing", "< 2"},
	{"sagaz-outbox", "Memory, of the limit", 0.9, "OutboxMemoryHigh", "> 0.9"},
	{"sagaz-outbox", "CPU, of GOMAXPROCS", 0.9, "OutboxCPUSaturated", "> 0.9"},
	{"sagaz-outbox", "Marks that are HOT", 0.9, "OutboxMarksNotHot", "< 0.9"},
	{"sagaz-replication", "Oldest event waiting", 60, "OutboxLagElevated", "> 60"},
	{"sagaz-replication", "Oldest event waiting", 300, "OutboxHighLag", "> 300"},
	{"sagaz-replication", "WAL kept, of the cap", 0.75, "OutboxSlotWALAtRisk", "< 0.25"},
	{"sagaz-replication", "WAL kept, of the cap", 0.9, "OutboxSlotWALCritical", "< 0.1"},
	{"sagaz-replication", "Not read for", 300, "OutboxSlotInactive", "> 300"},
	{"sagaz-replication", "Not moved for", 120, "OutboxSlotStalled", "> 120"},
	{"sagaz-replication", "Change under way for", 600, "OutboxShardsChanging", "> 600"},
	{"sagaz-replication", "Relays", 2, "OutboxStandbyMissing", "< 2"},
	{"sagaz-saga", "Failure ratio", 0.05, "OutboxSagaFailureRateHigh", "> 0.05"},
	{"sagaz-saga", "Oldest in progress", 3600, "OutboxSagaStuck", "> 3600"},
	{"sagaz-saga", "Oldest in progress, by saga", 3600, "OutboxSagaStuck", "> 3600"},
}

func TestLimitsAreThoseOfTheAlerts(t *testing.T) {
	_, rules := rules(t)
	alerts := map[string]string{}
	for _, r := range rules {
		alerts[r.Alert] = strings.ReplaceAll(r.Expr, "\n", " ") + " "
	}
	for _, l := range limits {
		if !strings.Contains(alerts[l.alert], l.comparison+" ") {
			t.Errorf("alert %s has no %q: %s", l.alert, l.comparison, alerts[l.alert])
		}
		found := false
		for _, d := range dashboards(t) {
			for _, p := range d.Panels {
				for _, s := range p.FieldConfig.Defaults.Thresholds.Steps {
					found = found || d.UID == l.uid && p.Title == l.panel && s.Value != nil && *s.Value == l.limit
				}
			}
		}
		if !found {
			t.Errorf("%s, %q: there is no limit of %g", l.uid, l.panel, l.limit)
		}
	}
}

// dashboard is what is checked of Grafana's schema. Package dashboards of internal/ makes the
// files.
type dashboard struct {
	UID, Title  string
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
		FieldConfig struct {
			Defaults struct {
				Links      []struct{ URL string }
				Thresholds struct {
					Steps []struct{ Value *float64 }
				}
			}
		}
	}
}

// dashboards are those of the directory, by the names of their files.
func dashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(product.Root(), "monitoring", "grafana-dashboard-*.json"))
	if err != nil || len(files) < 4 {
		t.Fatalf("%d dashboards: %v", len(files), err)
	}
	all := map[string]dashboard{}
	for _, file := range files {
		var d dashboard
		if err := json.Unmarshal(product.Read(t, filepath.Join("monitoring", filepath.Base(file))), &d); err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(file)] = d
	}
	return all
}
