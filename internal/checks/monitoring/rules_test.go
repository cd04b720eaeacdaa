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
	"go.yaml.in/yaml/v3"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

const (
	rulesFile     = "monitoring/prometheus-alerts.yaml"
	rulesTestFile = "monitoring/prometheus-alerts_test.yaml"
	runbookBase   = "https://github.com/sagaz-relay/relay/blob/main/monitoring/RUNBOOKS.md#"
)

type rule struct {
	Alert         string            `yaml:"alert,omitempty"`
	Record        string            `yaml:"record,omitempty"`
	Expr          string            `yaml:"expr,omitempty"`
	For           string            `yaml:"for,omitempty"`
	KeepFiringFor string            `yaml:"keep_firing_for,omitempty"`
	Labels        map[string]string `yaml:"labels,omitempty"`
	Annotations   map[string]string `yaml:"annotations,omitempty"`
}

// rules are those of the rule file, recording rules and alerts.
func rules(t *testing.T) (recorded, alerts []rule) {
	t.Helper()
	var file struct {
		Groups []struct {
			Name     string `yaml:"name"`
			Interval string `yaml:"interval"`
			Rules    []rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(product.Read(t, rulesFile), &file); err != nil {
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

// ruleTests is a file of promtool's unit tests. Values are text: 0x40 is forty zeros, and no number.
type ruleTests struct {
	Rules []string   `yaml:"rule_files"`
	Every string     `yaml:"evaluation_interval"`
	Tests []ruleTest `yaml:"tests"`
}

type ruleTest struct {
	Name   string              `yaml:"name"`
	Every  string              `yaml:"interval"`
	Series []map[string]string `yaml:"input_series"`
	Cases  []ruleCase          `yaml:"alert_rule_test,omitempty"`
	Exprs  []any               `yaml:"promql_expr_test,omitempty"`
}

type ruleCase struct {
	At    string `yaml:"eval_time"`
	Alert string `yaml:"alertname"`
	Fires []any  `yaml:"exp_alerts,omitempty"`
}

// Each alert is tried as it fires and as it does not, by promtool: by itself, with the recording
// rules that it names, because all rules at each step of each test take most of a minute. In the end
// the recording rules are.
func TestRulesByPromtool(t *testing.T) {
	t.Parallel()
	rulesPromtool(t, "check", "rules", rulesFile)
	var all ruleTests
	if err := yaml.Unmarshal(product.Read(t, rulesTestFile), &all); err != nil {
		t.Fatal(err)
	}
	dir, args := t.TempDir(), []string{"test", "rules"}
	recorded, alerts := rules(t)
	tried := 0
	for _, r := range append(alerts, rule{}) {
		need, tests := recorded, ruleTests{Rules: []string{r.Alert + ".rules"}, Every: all.Every}
		fires, silent := 0, 0
		if r.Alert != "" {
			need = append(recordedFor(recorded, r), r)
		}
		for _, test := range all.Tests {
			test.Cases = slices.DeleteFunc(slices.Clone(test.Cases), func(c ruleCase) bool { return c.Alert != r.Alert })
			if r.Alert != "" {
				test.Exprs = nil
			}
			if len(test.Cases)+len(test.Exprs) > 0 {
				tests.Tests = append(tests.Tests, test)
			}
			for _, c := range test.Cases {
				if tried++; len(c.Fires) > 0 {
					fires++
				} else {
					silent++
				}
			}
		}
		if r.Alert != "" && (fires == 0 || silent == 0) {
			t.Errorf("%s: %d cases in which it fires and %d in which it does not; want some of each", r.Alert, fires, silent)
		}
		for name, content := range map[string]any{".test": tests, ".rules": map[string]any{"groups": []any{map[string]any{"name": "only", "rules": need}}}} {
			text, err := yaml.Marshal(content)
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, r.Alert+name), text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		args = append(args, filepath.Join(dir, r.Alert+".test"))
	}
	if want := strings.Count(string(product.Read(t, rulesTestFile)), "alertname:"); tried != want {
		t.Errorf("%d cases were tried, of %d: the others are of no alert, and would never fire", tried, want)
	}
	rulesPromtool(t, args...)
}

// recordedFor are the recording rules that an alert needs, in their order: they may need each other.
func recordedFor(recorded []rule, r rule) (found []rule) {
	needed := r.Expr
	for _, rec := range slices.Backward(recorded) {
		if strings.Contains(needed, rec.Record) {
			needed += rec.Expr
			found = append(found, rec)
		}
	}
	slices.Reverse(found)
	return found
}

func TestRulesAreComplete(t *testing.T) {
	_, alerts := rules(t)
	for _, r := range alerts {
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
}

// targetLabels are what a scrape configuration adds to every series.
var targetLabels = []string{"job", "instance", "namespace", "pod", "__name__"}

// rulesUnknown says what of an expression no relay exports: series, labels to match, labels to group
// or join by.
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
			if !ok && n.Name != "up" {
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

// rulesUnknownLabels says which labels none of the series within an expression has. Prometheus takes
// such a label as empty, and sums up what should be apart.
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
	series := product.Series(t)
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
}

// Every alert has a runbook that says all that it should, and every runbook of that kind is of an
// alert. What is at the end is for no alert.
func TestRulesHaveRunbooks(t *testing.T) {
	_, alerts := rules(t)
	var names []string
	for _, r := range alerts {
		names = append(names, r.Alert)
	}
	for _, entry := range regexp.MustCompile(`(?m)^## `).Split(string(product.Read(t, "monitoring/RUNBOOKS.md")), -1)[1:] {
		name, text, _ := strings.Cut(entry, "\n")
		if !strings.HasPrefix(name, "Outbox") {
			continue
		}
		i := slices.Index(names, name)
		if i < 0 {
			t.Errorf("%s is the name of no alert, or is there twice", name)
			continue
		}
		names = slices.Delete(names, i, i+1)
		for _, part := range []string{"**Symptom.**", "**What it means.**", "**What to run.**\n\n```sh\n", "**How to fix it.**", "**How to know it is fixed.**"} {
			if !strings.Contains(text, part) {
				t.Errorf("%s: no %q", name, part)
			}
		}
	}
	for _, name := range names {
		t.Errorf("%s has no runbook", name)
	}
}
