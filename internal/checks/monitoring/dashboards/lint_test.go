package dashboards

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"testing"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// A rule says what it finds wrong with a dashboard. Most are those of Grafana's dashboard linter (grafana/dashboard-linter, docs/rules), under its names.
type rule struct {
	name  string
	check func(d dashboard, report func(panel, format string, args ...any))
}

// exceptions are findings that are meant, by rule, dashboard and panel ("" for what is no panel's).
var exceptions = []struct{ rule, uid, panel, reason string }{
	{"target-logql-auto-rule", "sagaz-logs", "Sagas with warnings or errors", "an instant query over the whole time range, as its description says"},
}

func TestDashboardsKeepTheRules(t *testing.T) {
	used := map[int]bool{}
	for name := range files() {
		d := decode(t, product.Read(t, "monitoring/"+name))
		for _, f := range lint(series(t), d) {
			i := slices.IndexFunc(exceptions, func(e struct{ rule, uid, panel, reason string }) bool {
				return e.rule == f.rule && e.uid == d.UID && e.panel == f.panel
			})
			if i < 0 {
				t.Errorf("%s: %s: panel %q: %s", name, f.rule, f.panel, f.text)
			}
			used[i] = true
		}
	}
	for i, e := range exceptions {
		if !used[i] {
			t.Errorf("nothing needs the exception from %s for %s, %q any more", e.rule, e.uid, e.panel)
		}
	}
}

// Two dashboards must not share what tells them apart, and docs/contract.md names their files.
func TestDashboardsAreDistinct(t *testing.T) {
	seen := map[string]string{}
	for name, d := range files() {
		for _, key := range []string{"uid " + d.UID, "title " + d.Title} {
			if other, ok := seen[key]; ok {
				t.Errorf("%s and %s have the same %s", name, other, key)
			}
			seen[key] = name
		}
		if !regexp.MustCompile(`^grafana-dashboard-[a-z]+\.json$`).MatchString(name) {
			t.Errorf("%s: want grafana-dashboard-NAME.json", name)
		}
	}
}

// decode refuses fields that no dashboard of ours has.
func decode(t *testing.T, text []byte) dashboard {
	t.Helper()
	var d dashboard
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		t.Fatal(err)
	}
	return d
}

type finding struct{ rule, panel, text string }

func lint(known map[string]exported, d dashboard) (findings []finding) {
	for _, r := range rules(known) {
		r.check(d, func(panel, format string, args ...any) {
			findings = append(findings, finding{r.name, panel, fmt.Sprintf(format, args...)})
		})
	}
	return findings
}

// exported is a series in the table of docs/metrics.md, which a test of package relay compares with what the relay exports.
type exported struct {
	kind   string
	labels []string
}

// series are all that a relay exports, by the names that queries use, and up.
func series(t *testing.T) map[string]exported {
	t.Helper()
	known := map[string]exported{"up": {"gauge", nil}}
	line := regexp.MustCompile("(?m)^\\| `((?:outbox|go|process)_[a-z_]+)` \\| (counter|gauge|histogram) \\| ([^|]*)\\|")
	name := regexp.MustCompile("`([a-z_]+)`")
	for _, m := range line.FindAllStringSubmatch(string(product.Read(t, "docs/metrics.md")), -1) {
		var labels []string
		for _, l := range name.FindAllStringSubmatch(m[3], -1) {
			labels = append(labels, l[1])
		}
		if m[2] != "histogram" {
			known[m[1]] = exported{m[2], labels}
			continue
		}
		for suffix, more := range map[string][]string{"_bucket": {"le"}, "_sum": nil, "_count": nil} {
			known[m[1]+suffix] = exported{"counter", append(slices.Clone(labels), more...)}
		}
	}
	if len(known) < 60 {
		t.Fatalf("the table of docs/metrics.md has %d series: the test looks in the wrong place", len(known))
	}
	return known
}
