package monitoring

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/alloy/syntax/ast"
	"github.com/grafana/alloy/syntax/parser"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// lineKeys are the keys of the relay's log lines that the collectors read. docs/observability.md, "Logs", has them all.
var lineKeys = []string{"timestamp", "level", "saga_id", "saga_name", "step_name", "correlation_id", "event_id", "event_type", "trace_id", "span_id"}

// collected is what a collector makes of a line.
type collected struct {
	read     map[string]string // name in the pipeline to key of the line
	labels   []string          // of the stream
	metadata []string          // structured
}

// alloyBlocks calls visit with each block of the files, the outer ones first.
func alloyBlocks(t *testing.T, names []string, visit func(file, name string, b *ast.BlockStmt)) {
	t.Helper()
	var walk func(file string, body ast.Body)
	walk = func(file string, body ast.Body) {
		for _, s := range body {
			if b, ok := s.(*ast.BlockStmt); ok {
				visit(file, strings.Join(b.Name, "."), b)
				walk(file, b.Body)
			}
		}
	}
	for _, name := range names {
		f, err := parser.ParseFile(name, product.Read(t, filepath.Join("monitoring", name)))
		if err != nil {
			t.Fatal(err)
		}
		walk(name, f.Body)
	}
}

// attribute returns a block's attribute, or nil.
func attribute(b *ast.BlockStmt, name string) ast.Expr {
	for _, s := range b.Body {
		if a, ok := s.(*ast.AttributeStmt); ok && a.Name.Name == name {
			return a.Value
		}
	}
	return nil
}

// fields returns an object's, with what each is; "" means the name itself.
func fields(e ast.Expr) map[string]string {
	all := make(map[string]string)
	if object, ok := e.(*ast.ObjectExpr); ok {
		for _, f := range object.Fields {
			value := strings.Trim(f.Value.(*ast.LiteralExpr).Value, `"`)
			if value == "" {
				value = f.Name.Name
			}
			all[f.Name.Name] = value
		}
	}
	return all
}

// alloyMakes reads Alloy's configuration.
func alloyMakes(t *testing.T, names ...string) collected {
	t.Helper()
	var c collected
	alloyBlocks(t, names, func(_, name string, b *ast.BlockStmt) {
		switch name {
		case "rule":
			if target, ok := attribute(b, "target_label").(*ast.LiteralExpr); ok {
				c.labels = append(c.labels, strings.Trim(target.Value, `"`))
			}
		case "stage.json":
			c.read = fields(attribute(b, "expressions"))
		case "stage.labels":
			c.labels = append(c.labels, slices.Collect(maps.Keys(fields(attribute(b, "values"))))...)
		case "stage.structured_metadata":
			c.metadata = slices.Sorted(maps.Keys(fields(attribute(b, "values"))))
		}
	})
	slices.Sort(c.labels)
	return c
}

// The files that make up a configuration: of the cluster, with the component, and of docker-compose.yml.
var (
	base        = []string{"config/config.alloy", "config/labels.alloy"}
	withSagaIDs = []string{"config/config.alloy", "components/saga-id-labels/labels.alloy"}
	inCompose   = []string{"../testdata/compose/config.alloy", "config/labels.alloy"}
)

// Alloy's files parse, use components that are there, and what they name leads to the next.
func TestAlloyConfig(t *testing.T) {
	known := strings.Fields("logging discovery.kubernetes discovery.docker discovery.relabel loki.source.kubernetes loki.source.docker loki.process loki.write " +
		"namespaces filter rule endpoint " +
		"stage.json stage.timestamp stage.labels stage.structured_metadata")
	for _, files := range [][]string{base, withSagaIDs, inCompose} {
		there := make(map[string]bool)
		alloyBlocks(t, files, func(file, name string, b *ast.BlockStmt) {
			if !slices.Contains(known, name) {
				t.Errorf("%s: what is %s?", file, name)
			}
			if b.Label != "" {
				if there[name+"."+b.Label] {
					t.Errorf("%s: %s %q is there twice", file, name, b.Label)
				}
				there[name+"."+b.Label] = true
			}
		})
		used := make(map[string]bool)
		for _, file := range files {
			for _, m := range regexp.MustCompile(`((?:discovery|loki)\.[\w.]+)\.(targets|output|receiver)\b`).FindAllStringSubmatch(string(product.Read(t, filepath.Join("monitoring", file))), -1) {
				used[m[1]] = true
				if !there[m[1]] {
					t.Errorf("%s: no %s", file, m[0])
				}
			}
		}
		if len(used) != 4 {
			t.Errorf("the way of a line has %v", used)
		}
	}
	text := string(product.Read(t, "monitoring/config/config.alloy"))
	stackReaches(t, stackBuild(t, false), regexp.MustCompile(`url = "([^"]+)"`).FindStringSubmatch(text)[1])

	// The component puts its file in the place of the base's, and nothing else.
	plain := stackFind[*corev1.ConfigMap](t, stackBuild(t, false), "alloy-config").Data
	ids := stackFind[*corev1.ConfigMap](t, stackBuild(t, false, "saga-id-labels"), "alloy-config").Data
	if len(plain) != 2 || len(ids) != 2 || plain["config.alloy"] != ids["config.alloy"] || plain["labels.alloy"] == ids["labels.alloy"] {
		t.Errorf("files %v and %v", slices.Collect(maps.Keys(plain)), slices.Collect(maps.Keys(ids)))
	}
	args := stackFind[*appsv1.StatefulSet](t, stackBuild(t, false, "saga-id-labels"), "loki").Spec.Template.Spec.Containers[0].Args
	if !slices.Contains(args, "-ingester.max-global-streams-per-user=50000") {
		t.Errorf("Loki's arguments: %v", args)
	}
}

// What has as many values as there are sagas is a label only where somebody asked for that.
func TestLabels(t *testing.T) {
	plain, ids := alloyMakes(t, base...), alloyMakes(t, withSagaIDs...)
	bounded := []string{"app", "container", "level", "namespace", "pod", "saga_name"}
	if !slices.Equal(plain.labels, bounded) {
		t.Errorf("labels %v, want %v", plain.labels, bounded)
	}
	if want := slices.Sorted(slices.Values(append([]string{"saga_id", "correlation_id", "step_name"}, bounded...))); !slices.Equal(ids.labels, want) {
		t.Errorf("component: labels %v, want %v", ids.labels, want)
	}
	if compose := alloyMakes(t, inCompose...); !slices.Equal(compose.labels, bounded) || !slices.Equal(compose.metadata, plain.metadata) {
		t.Errorf("docker-compose.yml: %+v, want what the cluster has: %+v", compose, plain)
	}
	document := string(product.Read(t, "docs/observability.md"))
	for _, c := range []collected{plain, ids} {
		if !maps.Equal(c.read, plain.read) {
			t.Errorf("the component reads %v, the base %v", c.read, plain.read)
		}
		for name, key := range c.read {
			if !slices.Contains(lineKeys, key) || !strings.Contains(document, "`"+key+"`") {
				t.Errorf("%s: a line has no key %q", name, key)
			}
			if name != "ts" && slices.Contains(c.labels, name) == slices.Contains(c.metadata, name) {
				t.Errorf("%s is neither a label nor metadata, or both", name)
			}
		}
		if len(c.read) != len(lineKeys) {
			t.Errorf("%v are read", c.read)
		}
	}
}

// Promtail makes the same of a line as Alloy, and finds the files where the kubelet puts them.
func TestPromtailConfig(t *testing.T) {
	var config struct {
		Server    map[string]int `json:"server"`
		Positions struct {
			Filename string `json:"filename"`
		} `json:"positions"`
		Clients []struct {
			URL string `json:"url"`
		} `json:"clients"`
		ScrapeConfigs []struct {
			Name     string        `json:"job_name"`
			SD       []podSD       `json:"kubernetes_sd_configs"`
			Relabel  []relabelRule `json:"relabel_configs"`
			Pipeline []struct {
				CRI  *struct{} `json:"cri"`
				JSON struct {
					Expressions map[string]string `json:"expressions"`
				} `json:"json"`
				Timestamp struct {
					Source string `json:"source"`
					Format string `json:"format"`
				} `json:"timestamp"`
				Labels   map[string]any `json:"labels"`
				Metadata map[string]any `json:"structured_metadata"`
			} `json:"pipeline_stages"`
		} `json:"scrape_configs"`
	}
	strictly(t, "components/promtail/promtail.yml", &config)
	scrape := config.ScrapeConfigs[0]
	template := workerTemplate(t)
	labels := podLabels("sagaz", "outbox-worker-x", template, template.Spec.Containers[0].Ports[0])
	if !relabel(t, scrape.Relabel, labels) {
		t.Fatal("the relay's pod is dropped")
	}
	if want := "/var/log/pods/*0-1/" + template.Spec.Containers[0].Name + "/*.log"; labels["__path__"] != want || labels["__host__"] != "node" {
		t.Errorf("path %q on %q, want %q", labels["__path__"], labels["__host__"], want)
	}
	want := alloyMakes(t, base...)
	var got collected
	for name := range labels {
		if !strings.HasPrefix(name, "__") {
			got.labels = append(got.labels, name)
		}
	}
	if scrape.Pipeline[0].CRI == nil {
		t.Error("the runtime's prefix is not taken off first")
	}
	for _, s := range scrape.Pipeline {
		if len(s.JSON.Expressions) > 0 {
			got.read = s.JSON.Expressions
		}
		got.labels = append(got.labels, slices.Collect(maps.Keys(s.Labels))...)
		got.metadata = append(got.metadata, slices.Collect(maps.Keys(s.Metadata))...)
	}
	slices.Sort(got.labels)
	slices.Sort(got.metadata)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("Promtail: %v\nAlloy:    %v", got, want)
	}
	all := stackBuild(t, false, "promtail")
	stackReaches(t, all, config.Clients[0].URL)
	pod := stackFind[*appsv1.DaemonSet](t, all, "promtail").Spec.Template.Spec
	if port := pod.Containers[0].Ports[0].ContainerPort; int(port) != config.Server["http_listen_port"] {
		t.Errorf("port %d", port)
	}
	if !slices.ContainsFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
		return strings.HasPrefix(config.Positions.Filename, m.MountPath+"/") && !m.ReadOnly
	}) {
		t.Errorf("%s is not on a volume", config.Positions.Filename)
	}
}

// logQL is the first part of a LogQL expression: its stream selector, and what follows each bar.
var (
	logSelector = regexp.MustCompile(`\{([^{}]*)\}([^{}]*)`)
	logMatcher  = regexp.MustCompile(`^\s*(\w+)\s*(?:=~|!~|!=|=)\s*(?:"(?:[^"\\]|\\.)*"|` + "`[^`]*`)$")
	logFilter   = regexp.MustCompile(`^\s*(\w+)\s*(?:=~|!~|!=|==|>=|<=|=|>|<)\s*\S`)
	logPiece    = regexp.MustCompile("\"(?:[^\"\\\\]|\\\\.)*\"|`[^`]*`")
)

// checkLogQL says what is wrong with an expression: a label in the selector that streams do not have, or a filter on a field that nothing makes.
// It is no parser: Loki's own takes minutes to build.
func checkLogQL(expr string, c collected) (wrong []string) {
	selectors := logSelector.FindAllStringSubmatch(logPiece.ReplaceAllStringFunc(expr, func(s string) string { return strings.NewReplacer("{", "(", "}", ")", "|", "/", ",", ";").Replace(s) }), -1)
	if len(selectors) == 0 {
		return []string{"no stream selector"}
	}
	if strings.Count(expr, "(") != strings.Count(expr, ")") {
		wrong = append(wrong, "a bracket is missing")
	}
	for _, s := range selectors {
		bounded := false
		for _, m := range strings.Split(s[1], ",") {
			name := logMatcher.FindStringSubmatch(m)
			if name == nil {
				wrong = append(wrong, fmt.Sprintf("%q is no matcher", m))
			} else if !slices.Contains(c.labels, name[1]) {
				wrong = append(wrong, fmt.Sprintf("streams have no label %s", name[1]))
			} else {
				bounded = bounded || name[1] == "namespace"
			}
		}
		if !bounded {
			wrong = append(wrong, "a selector without namespace")
		}
		parsed := false
		stages := strings.FieldsFunc(s[2], func(r rune) bool { return r == '|' })
		for i, stage := range stages {
			if i == 0 && !strings.HasPrefix(strings.TrimSpace(s[2]), "|") {
				continue // a range, or nothing
			}
			if stage = strings.TrimSpace(stage); stage == "" {
				continue
			}
			word, _, _ := strings.Cut(stage, " ")
			switch {
			case strings.HasPrefix(word, "json"):
				parsed = true
			case strings.HasPrefix(stage, "="), strings.HasPrefix(stage, "~"), word == "line_format", word == "label_format", word == "drop", word == "keep", word == "unwrap", word == "decolorize":
			default:
				name := logFilter.FindStringSubmatch(stage)
				if name == nil {
					wrong = append(wrong, fmt.Sprintf("what is %q?", stage))
				} else if !parsed && !slices.Contains(c.metadata, name[1]) && !slices.Contains(c.labels, name[1]) {
					wrong = append(wrong, fmt.Sprintf("%s is neither a label nor metadata, and nothing has parsed the line before", name[1]))
				}
			}
		}
	}
	return wrong
}

func TestCheckLogQL(t *testing.T) {
	c := alloyMakes(t, base...)
	for expr, right := range map[string]bool{
		`{namespace="sagaz", level="ERROR"}`:                                                        true,
		`{namespace="sagaz"} | saga_id="abc-123"`:                                                   true,
		`{namespace="sagaz", saga_id="abc-123"}`:                                                    false,
		`{namespace="sagaz"} | json | retry_count > 3`:                                              true,
		`{namespace="sagaz"} | retry_count > 3`:                                                     false,
		"{namespace=\"sagaz\"} |= `a {thing} | b` | json | line_format \"{{.message}}\"":            true,
		`sum by (level) (count_over_time({namespace="sagaz", level=~"ERROR|WARNING"} | json [5m]))`: true,
		`sum by (level) (count_over_time({namespace="sagaz", level=~"ERROR|WARNING"} | json [5m])`:  false,
		`{app="outbox-worker"}`:                                                                     false,
		`{namespace="sagaz", level}`:                                                                false,
		`{namespace="sagaz"} | nothing`:                                                             false,
		`namespace`:                                                                                 false,
	} {
		if wrong := checkLogQL(expr, c); (len(wrong) == 0) != right {
			t.Errorf("%s: %v, want right: %v", expr, wrong, right)
		}
	}
}

// Every LogQL expression of README.md and of the dashboards finds what the collectors make.
func TestLogQL(t *testing.T) {
	plain, ids := alloyMakes(t, base...), alloyMakes(t, withSagaIDs...)
	section, n := "", 0
	fence := false
	for i, line := range strings.Split(string(product.Read(t, "monitoring/README.md")), "\n") {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = title
		}
		if strings.HasPrefix(line, "```") {
			fence = line == "```logql"
			continue
		}
		if !fence || strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		c := plain
		if section == "How many streams" {
			c = ids // the component is what it is about
		}
		n++
		for _, wrong := range checkLogQL(line, c) {
			t.Errorf("README.md:%d: %s: %s", i+1, line, wrong)
		}
	}
	if n < 8 {
		t.Errorf("%d expressions in README.md", n)
	}
	dashboards, err := filepath.Glob(filepath.Join(product.Root(), "monitoring", "grafana-dashboard-*.json"))
	if err != nil {
		t.Fatal(err)
	}
	n = 0
	for _, file := range dashboards {
		var d any
		name := filepath.Base(file)
		if err := json.Unmarshal(product.Read(t, filepath.Join("monitoring", name)), &d); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, expr := range lokiExpressions(d) {
			n++
			// Grafana puts in what its variables hold.
			expr = regexp.MustCompile(`\$\{?\w+(?::\w+)?\}?`).ReplaceAllString(expr, "x")
			for _, wrong := range checkLogQL(expr, plain) {
				t.Errorf("%s: %s: %s", name, expr, wrong)
			}
		}
	}
	if n == 0 {
		t.Error("no expression of Loki in any dashboard")
	}
}

// lokiExpressions are those of a dashboard's targets whose data source is Loki, by type.
func lokiExpressions(v any) (all []string) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			all = append(all, lokiExpressions(e)...)
		}
	case map[string]any:
		if source, ok := v["datasource"].(map[string]any); ok && source["type"] == "loki" {
			if expr, ok := v["expr"].(string); ok {
				all = append(all, expr)
			}
		}
		for _, e := range v {
			all = append(all, lokiExpressions(e)...)
		}
	}
	return all
}
