package monitoring

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// The grammar of LogQL as far as monitoring/ uses it. Loki's own parser is a module under the AGPL, which this project does not use. What stands around a log
// query (aggregations, ranges, comparisons) has the grammar of PromQL, whose parser checks it with a metric in the query's place. A selector is one of
// PromQL with a matcher that does not match the empty string. Its stages are few, and each is checked here.

var (
	logText  = "(?:\"(?:[^\"\\\\]|\\\\.)*\"|`[^`]*`)"
	logStart = regexp.MustCompile(`\{`)
	logEnd   = regexp.MustCompile("^(?:\\s*(?:\\|=|\\|~|!=|!~)\\s*" + logText + "|\\s*\\|\\s*" + logStep + ")*")
	logStep  = `(?:(?:json|logfmt)(?:\s+\w+\s*=\s*"[\w.]+"(?:\s*,\s*\w+\s*=\s*"[\w.]+")*)?|(?:line_format|regexp|pattern)\s+` + logText +
		`|label_format\s+\w+\s*=\s*(?:\w+|` + logText + `)|unwrap\s+\w+|(?:keep|drop)\s+\w+(?:\s*,\s*\w+)*|` + logCondition + `(?:\s+(?:and|or)\s+` + logCondition + `)*)`
	logCondition = `\w+\s*(?:(?:=~|!~|=|!=)\s*` + logText + `|(?:==|!=|>=|<=|>|<)\s*\d+(?:\.\d+)?(?:[a-z]+|[KMG]i?B)?)`
)

// parseLogQL says what is wrong with an expression.
func parseLogQL(expr string) error {
	skeleton, from := "", 0
	for {
		start := logStart.FindStringIndex(expr[from:])
		if start == nil {
			break
		}
		at := from + start[0]
		selector, rest, err := cutSelector(expr[at:])
		if err != nil {
			return err
		}
		stages := logEnd.FindString(rest)
		for _, text := range regexp.MustCompile(`(?:\|~|!~|=~)\s*(`+logText+`)`).FindAllStringSubmatch(stages, -1) {
			pattern, err := strconv.Unquote(text[1])
			if err == nil {
				_, err = regexp.Compile(pattern)
			}
			if err != nil {
				return fmt.Errorf("pattern %s: %w", text[1], err)
			}
		}
		matchers, err := parser.ParseMetricSelector(selector)
		if err != nil {
			return fmt.Errorf("selector %s: %w", selector, err)
		}
		if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches("") }) {
			return fmt.Errorf("selector %s takes every stream", selector)
		}
		if strings.TrimSpace(rest[len(stages):]) == "" && strings.TrimSpace(skeleton+expr[from:at]) == "" {
			return nil // lines, and no number of them
		}
		skeleton += expr[from:at] + "lines"
		from = at + len(selector) + len(stages)
	}
	skeleton += expr[from:]
	if !strings.Contains(skeleton, "lines") {
		return fmt.Errorf("no selector")
	}
	parsed, err := parser.ParseExpr(skeleton)
	if err != nil {
		return fmt.Errorf("around the selector: %s: %w", skeleton, err)
	}
	return parser.Walk(inRanges{}, parsed, nil)
}

// inRanges wants every log query of a metric expression inside a range.
type inRanges struct{}

func (v inRanges) Visit(n parser.Node, path []parser.Node) (parser.Visitor, error) {
	if _, ok := n.(*parser.VectorSelector); ok {
		if len(path) == 0 {
			return nil, fmt.Errorf("a log query without a range")
		}
		if _, ok := path[len(path)-1].(*parser.MatrixSelector); !ok {
			return nil, fmt.Errorf("a log query without a range")
		}
	}
	return v, nil
}

// cutSelector takes {…} off the front; a brace in a text does not end it.
func cutSelector(s string) (selector, rest string, err error) {
	m := regexp.MustCompile("^\\{(?:[^{}\"`]|" + logText + ")*\\}").FindString(s)
	if m == "" {
		return "", "", fmt.Errorf("a selector without its end: %.40s", s)
	}
	return m, s[len(m):], nil
}

func TestLogQLParser(t *testing.T) {
	for expr, right := range map[string]bool{
		`{namespace="sagaz"}`: true,
		"{namespace=\"sagaz\"} |= `a } b` | json | duration_ms > 10":                true,
		`sum by (level) (rate({namespace="sagaz"} | json [5m]))`:                    true,
		`topk(10, sum by (a) (count_over_time({n="s"} | a!="" [5m]))) > 3`:          true,
		`quantile_over_time(0.99, {n="s"} | json | unwrap duration_ms [5m])`:        true,
		`{namespace="sagaz"} | json message="message" | line_format "{{.message}}"`: true,
		`{namespace="sagaz"`:                           false,
		`{namespace="sagaz"} | json |`:                 false,
		`{namespace="sagaz"} | jsn`:                    false,
		`{namespace="sagaz"} |= unquoted`:              false,
		`{namespace="sagaz"} |~ "("`:                   false,
		`{namespace=sagaz}`:                            false,
		`{namespace=""}`:                               false,
		`rate({namespace="sagaz"})`:                    false,
		`sum by (level) ({namespace="sagaz"})`:         false,
		`sum by level (rate({namespace="sagaz"}[5m]))`: false,
		`rate({namespace="sagaz"}[5m`:                  false,
		`sum(up)`:                                      false,
	} {
		if err := parseLogQL(expr); (err == nil) != right {
			t.Errorf("%s: got %v, want right: %t", expr, err, right)
		}
	}
}

// Every expression of the documents and dashboards, with something in the place of Grafana's variables.
func TestLogQLParses(t *testing.T) {
	asked := documentedLogQL(t)
	files, err := filepath.Glob(filepath.Join(product.Root(), "monitoring", "grafana-dashboard-*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		var d any
		if err := json.Unmarshal(product.Read(t, filepath.Join("monitoring", filepath.Base(file))), &d); err != nil {
			t.Fatal(err)
		}
		for _, expr := range lokiExpressions(d) {
			asked = append(asked, logQuestion{where: filepath.Base(file), expr: expr})
		}
	}
	if len(asked) < 18 {
		t.Fatalf("only %d expressions", len(asked))
	}
	inRange, variable := regexp.MustCompile(`\[\$\{?\w+\}?\]`), regexp.MustCompile(`\$\{?\w+(?::\w+)?\}?`)
	for _, q := range asked {
		if err := parseLogQL(variable.ReplaceAllString(inRange.ReplaceAllString(q.expr, "[5m]"), "x")); err != nil {
			t.Errorf("%s: %s: %v", q.where, q.expr, err)
		}
	}
}
