package monitoring

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

const (
	rulesFile     = "monitoring/prometheus-alerts.yaml"
	rulesTestFile = "monitoring/prometheus-alerts_test.yaml"
	runbookBase   = "https://github.com/sagaz-relay/relay/blob/main/monitoring/RUNBOOKS.md#"
)

type rule struct {
	Alert         string            `json:"alert"`
	Record        string            `json:"record"`
	Expr          string            `json:"expr"`
	For           string            `json:"for"`
	KeepFiringFor string            `json:"keep_firing_for"`
	Labels        map[string]string `json:"labels"`
	Annotations   map[string]string `json:"annotations"`
}

// rules are those of the rule file, recording rules and alerts.
func rules(t *testing.T) (recorded, alerts []rule) {
	t.Helper()
	var file struct {
		Groups []struct {
			Name     string `json:"name"`
			Interval string `json:"interval"`
			Rules    []rule `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.UnmarshalStrict(product.Read(t, rulesFile), &file); err != nil {
		t.Fatalf("%s: %v", rulesFile, err)
	}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if r.Alert != "" {
				alerts = append(alerts, r)
			} else {
				recorded = append(recorded, r)
			}
		}
	}
	if len(alerts) < 20 || len(recorded) < 5 {
		t.Fatalf("%d alerts and %d recording rules found: the test looks in the wrong place", len(alerts), len(recorded))
	}
	return recorded, alerts
}

func rulesPromtool(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("promtool", args...)
	cmd.Dir = product.Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v (it is of the Debian package prometheus, which make test-files brings)\n%s", strings.Join(args, " "), err, out)
	}
}

func TestRulesByPromtool(t *testing.T) {
	rulesPromtool(t, "check", "rules", rulesFile)
	rulesPromtool(t, "test", "rules", rulesTestFile)
}

// That promtool's answer is heard: without its `for`, an alert fires too soon. It gets one test of all, because all of them take a minute.
func TestRulesByPromtoolFails(t *testing.T) {
	const only = `2 % of the offers fail`
	head, rest, ok := strings.Cut(string(product.Read(t, rulesTestFile)), "\ntests:\n")
	_, rest, found := strings.Cut(rest, "  - name: \""+only+"\"\n")
	one, _, _ := strings.Cut(rest, "\n  - name: ")
	if !ok || !found {
		t.Fatalf("%s has no test named %q", rulesTestFile, only)
	}
	tests := head + "\ntests:\n  - name: only\n" + one + "\n"
	for wait, wrong := range map[string]bool{"for: 10m": false, "for: 0s": true} {
		dir := t.TempDir()
		for name, text := range map[string]string{rulesFile: strings.Replace(string(product.Read(t, rulesFile)), "for: 10m", wait, 1), rulesTestFile: tests} {
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command("promtool", "test", "rules", filepath.Join(dir, filepath.Base(rulesTestFile))).CombinedOutput()
		if failed := err != nil && strings.Contains(string(out), "FAILED"); failed != wrong {
			t.Errorf("%s: got %v, want a failed test: %v\n%s", wait, err, wrong, out)
		}
	}
}

// Each alert is tried as it fires and as it does not.
func TestRulesAreTested(t *testing.T) {
	var file struct {
		Tests []struct {
			Cases []struct {
				Alert string           `json:"alertname"`
				Fires []map[string]any `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		} `json:"tests"`
	}
	if err := yaml.Unmarshal(product.Read(t, rulesTestFile), &file); err != nil {
		t.Fatal(err)
	}
	firing, silent := map[string]int{}, map[string]int{}
	for _, test := range file.Tests {
		for _, c := range test.Cases {
			if len(c.Fires) > 0 {
				firing[c.Alert]++
			} else {
				silent[c.Alert]++
			}
		}
	}
	_, alerts := rules(t)
	for _, r := range alerts {
		if firing[r.Alert] == 0 || silent[r.Alert] == 0 {
			t.Errorf("%s: %d cases in which it fires and %d in which it does not; want some of each", r.Alert, firing[r.Alert], silent[r.Alert])
		}
		delete(firing, r.Alert)
		delete(silent, r.Alert)
	}
	for name := range firing {
		t.Errorf("%s is tested and is no alert", name)
	}
	for name := range silent { // it would never fire
		t.Errorf("%s is tested and is no alert", name)
	}
}

func TestRulesAreComplete(t *testing.T) {
	recorded, alerts := rules(t)
	seen := map[string]bool{}
	for _, r := range alerts {
		if seen[r.Alert] {
			t.Errorf("%s is there twice", r.Alert)
		}
		seen[r.Alert] = true
		if !regexp.MustCompile(`^Outbox[A-Z]\w+$`).MatchString(r.Alert) {
			t.Errorf("%s: want a name in CamelCase that begins with Outbox", r.Alert)
		}
		if d, err := time.ParseDuration(r.For); err != nil || d < 30*time.Second {
			t.Errorf("%s: for is %q, want two scrapes (30s) at least", r.Alert, r.For)
		}
		if len(r.Labels) != 1 || !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s: labels %v, want severity critical, warning or info alone", r.Alert, r.Labels)
		}
		if s := r.Annotations["summary"]; s == "" || strings.Contains(s, "{{") || !strings.HasSuffix(s, ".") {
			t.Errorf("%s: summary %q, want a sentence that is always the same", r.Alert, s)
		}
		if !strings.Contains(r.Annotations["description"], "{{") {
			t.Errorf("%s: the description names nothing of what fires", r.Alert)
		}
		if want := runbookBase + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url %q, want %q", r.Alert, r.Annotations["runbook_url"], want)
		}
	}
	for _, r := range recorded {
		if !regexp.MustCompile(`^namespace[a-z_]*:outbox_[a-z_]+:[a-z0-9_]+$`).MatchString(r.Record) {
			t.Errorf("%s: want level:series:operation", r.Record)
		}
	}
}

// targetLabels are what a scrape configuration adds to every series.
var targetLabels = []string{"job", "instance", "namespace", "pod", "__name__"}

// rulesSeries are the labels of each series that a relay exports, by the table in docs/metrics.md, which a test of the relay compares with the code.
func rulesSeries(t *testing.T) map[string][]string {
	t.Helper()
	series := map[string][]string{"up": nil}
	row := regexp.MustCompile("(?m)^\\| `((?:outbox|go|process)_\\w+)` \\| (\\w+) \\| ([^|]*)\\|")
	name := regexp.MustCompile("`(\\w+)`")
	for _, m := range row.FindAllStringSubmatch(string(product.Read(t, "docs/metrics.md")), -1) {
		var own []string
		for _, l := range name.FindAllStringSubmatch(m[3], -1) {
			own = append(own, l[1])
		}
		if m[2] == "histogram" {
			series[m[1]+"_count"], series[m[1]+"_sum"], series[m[1]+"_bucket"] = own, own, append(slices.Clone(own), "le")
		} else {
			series[m[1]] = own
		}
	}
	if len(series) < 50 {
		t.Fatalf("%d series found in docs/metrics.md: the test looks in the wrong place", len(series))
	}
	return series
}

// rulesUnknown says what of an expression no relay exports: series, labels to match, labels to group or join by.
func rulesUnknown(t *testing.T, text string, series map[string][]string) (wrong []string) {
	t.Helper()
	expr, err := parser.ParseExpr(text)
	if err != nil {
		return []string{err.Error()}
	}
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			own, ok := series[n.Name]
			if !ok {
				wrong = append(wrong, "no relay exports "+n.Name)
				return nil
			}
			for _, m := range n.LabelMatchers {
				if !slices.Contains(own, m.Name) && !slices.Contains(targetLabels, m.Name) {
					wrong = append(wrong, n.Name+" has no label "+m.Name)
				}
				if m.Type == labels.MatchEqual && m.Name == "job" && m.Value != "outbox-worker" {
					wrong = append(wrong, "job is "+m.Value)
				}
			}
		case *parser.AggregateExpr:
			wrong = append(wrong, rulesUnknownLabels(n.Expr, n.Grouping, series)...)
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				wrong = append(wrong, rulesUnknownLabels(n.LHS, n.VectorMatching.MatchingLabels, series)...)
				wrong = append(wrong, rulesUnknownLabels(n.RHS, n.VectorMatching.MatchingLabels, series)...)
			}
		}
		return nil
	})
	return wrong
}

// rulesUnknownLabels says which labels none of the series within an expression has.
func rulesUnknownLabels(within parser.Expr, names []string, series map[string][]string) (wrong []string) {
	known := slices.Clone(targetLabels)
	parser.Inspect(within, func(n parser.Node, _ []parser.Node) error {
		if v, ok := n.(*parser.VectorSelector); ok {
			known = append(known, series[v.Name]...)
		}
		return nil
	})
	for _, name := range names {
		if !slices.Contains(known, name) {
			wrong = append(wrong, "nothing in "+within.String()+" has the label "+name)
		}
	}
	return wrong
}

// No rule names a series or a label that a running relay does not export.
func TestRulesNameWhatIsExported(t *testing.T) {
	recorded, alerts := rules(t)
	series := rulesSeries(t)
	for _, r := range recorded { // an alert may use them, and a rule those above it
		for _, wrong := range rulesUnknown(t, r.Expr, series) {
			t.Errorf("%s: %s", r.Record, wrong)
		}
		expr, err := parser.ParseExpr(r.Expr)
		if err != nil {
			continue
		}
		var by []string
		parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
			if a, ok := n.(*parser.AggregateExpr); ok {
				by = append(by, a.Grouping...)
			}
			return nil
		})
		series[r.Record] = by
	}
	for _, r := range alerts {
		for _, wrong := range rulesUnknown(t, r.Expr, series) {
			t.Errorf("%s: %s", r.Alert, wrong)
		}
	}
	for expr, right := range map[string]bool{
		`outbox_ledger_events{state="dead"} > 0`:                     true,
		`outbox_ledger_event > 0`:                                    false,
		`outbox_ledger_events{stat="dead"}`:                          false,
		`sum by (sinks) (outbox_ledger_events)`:                      false,
		`outbox_sink_up and on (slot) outbox_shards_owned`:           false,
		`up{job="outbox-wroker"}`:                                    false,
		`rate(outbox_commit_to_ack_seconds[5m])`:                     false,
		`sum by (le) (rate(outbox_commit_to_ack_seconds_count[5m]))`: false,
	} {
		if wrong := rulesUnknown(t, expr, series); (len(wrong) == 0) != right {
			t.Errorf("%s: got %q, want right: %v", expr, wrong, right)
		}
	}
}
