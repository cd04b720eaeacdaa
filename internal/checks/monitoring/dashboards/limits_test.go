package dashboards

import (
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// What is coloured on a dashboard is what an alert says: a panel, its limit, and the alert with the comparison.
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
	{"sagaz-outbox", "Relays, by slot", 2, "OutboxStandbyMissing", "< 2"},
	{"sagaz-outbox", "Memory, of the limit", 0.9, "OutboxMemoryHigh", "> 0.9"},
	{"sagaz-outbox", "CPU, of GOMAXPROCS", 0.9, "OutboxCPUSaturated", "> 0.9"},
	{"sagaz-outbox", "Marks that are HOT", 0.9, "OutboxMarksNotHot", "< 0.9"},
	{"sagaz-replication", "Oldest event waiting", 60, "OutboxLagElevated", "> 60"},
	{"sagaz-replication", "Oldest event waiting", 300, "OutboxHighLag", "> 300"},
	{"sagaz-replication", "WAL kept, of the cap", 0.75, "OutboxSlotWALAtRisk", "< 0.25"},
	{"sagaz-replication", "WAL kept, of the cap", 0.9, "OutboxSlotWALCritical", "< 0.1"},
	{"sagaz-replication", "Not read for", 300, "OutboxSlotInactive", "> 300"},
	{"sagaz-replication", "Relays, by slot", 2, "OutboxStandbyMissing", "< 2"},
	{"sagaz-saga", "Failure ratio", 0.05, "OutboxSagaFailureRateHigh", "> 0.05"},
	{"sagaz-saga", "Oldest in progress", 3600, "OutboxSagaStuck", "> 3600"},
	{"sagaz-saga", "Oldest in progress, by saga", 3600, "OutboxSagaStuck", "> 3600"},
}

func TestLimitsAreThoseOfTheAlerts(t *testing.T) {
	var file struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(product.Read(t, "monitoring/prometheus-alerts.yaml"), &file); err != nil {
		t.Fatal(err)
	}
	alerts := map[string]string{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			alerts[r.Alert] = r.Expr
		}
	}
	for _, l := range limits {
		if !strings.Contains(strings.ReplaceAll(alerts[l.alert], "\n", " ")+" ", l.comparison+" ") {
			t.Errorf("alert %s has no %q: %s", l.alert, l.comparison, alerts[l.alert])
		}
		found := false
		for name := range files() {
			d := decode(t, product.Read(t, "monitoring/"+name))
			for _, p := range d.Panels {
				if d.UID != l.uid || p.Title != l.panel || p.FieldConfig == nil || p.FieldConfig.Defaults.Thresholds == nil {
					continue
				}
				found = found || slices.ContainsFunc(p.FieldConfig.Defaults.Thresholds.Steps, func(s step) bool { return s.Value != nil && *s.Value == l.limit })
			}
		}
		if !found {
			t.Errorf("%s, %q: there is no limit of %g", l.uid, l.panel, l.limit)
		}
	}
}
