package logql

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/grafana/loki/v3/pkg/logql/syntax"
)

// files are those of monitoring/ with names like that.
func files(t *testing.T, pattern string) map[string]string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	paths, err := filepath.Glob(filepath.Join(filepath.Dir(here), "..", "..", "..", "monitoring", pattern))
	if err != nil {
		t.Fatal(err)
	}
	texts := make(map[string]string)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(path)] = string(text)
	}
	return texts
}

func TestParserIsStrict(t *testing.T) {
	for _, expr := range []string{`{namespace="sagaz"`, `{namespace="sagaz"} | json |`, `rate({namespace="sagaz"})`, `sum by level (rate({namespace="sagaz"}[5m]))`} {
		if _, err := syntax.ParseExpr(expr); err == nil {
			t.Errorf("%s parses", expr)
		}
	}
}

// The blocks of the documents, an expression a line.
func TestDocuments(t *testing.T) {
	n := 0
	for name, text := range files(t, "*.md") {
		inside := false
		for i, line := range strings.Split(text, "\n") {
			if strings.HasPrefix(line, "```") {
				inside = line == "```logql"
				continue
			}
			if !inside || line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			n++
			if _, err := syntax.ParseExpr(line); err != nil {
				t.Errorf("%s:%d: %s: %v", name, i+1, line, err)
			}
		}
	}
	if n < 8 {
		t.Errorf("%d expressions", n)
	}
}

// What a dashboard asks of Loki, with something in the place of Grafana's variables.
func TestDashboards(t *testing.T) {
	n := 0
	for name, text := range files(t, "grafana-dashboard-*.json") {
		var dashboard any
		if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, asked := range expressions(dashboard) {
			n++
			if _, err := syntax.ParseExpr(filled(asked)); err != nil {
				t.Errorf("%s: %s: %v", name, asked, err)
			}
		}
	}
	if n == 0 {
		t.Error("no expression")
	}
}

var inRange, variable = regexp.MustCompile(`\[\$\{?\w+\}?\]`), regexp.MustCompile(`\$\{?\w+(?::\w+)?\}?`)

func filled(expr string) string {
	return variable.ReplaceAllString(inRange.ReplaceAllString(expr, "[5m]"), "x")
}

// expressions are those whose data source is Loki, by type.
func expressions(v any) (all []string) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			all = append(all, expressions(e)...)
		}
	case map[string]any:
		if source, ok := v["datasource"].(map[string]any); ok && source["type"] == "loki" {
			if expr, ok := v["expr"].(string); ok {
				all = append(all, expr)
			}
		}
		for _, e := range v {
			all = append(all, expressions(e)...)
		}
	}
	return all
}
