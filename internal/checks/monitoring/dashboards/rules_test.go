package dashboards

import (
	"regexp"
	"slices"
	"strings"
)

// What the scrape adds to a series.
var targetLabels = []string{"job", "namespace", "pod", "instance"}

// Labels and structured metadata that a log line has by monitoring/'s collector, and what is in the line itself.
var (
	streamLabels = []string{"namespace", "pod", "container", "app", "level", "saga_name"}
	metadata     = []string{"saga_id", "correlation_id", "step_name", "event_id", "event_type", "trace_id", "span_id"}
	lineKeys     = []string{"message", "error_type", "logger", "sink", "slot"}
)

var (
	kinds = []string{"timeseries", "stat", "table", "heatmap", "logs", "bargauge", "state-timeline"}

	selectors = regexp.MustCompile(`\b([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^}]*\})`)
	matchers  = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
	ourNames  = regexp.MustCompile(`\b(?:outbox|go|process)_[a-z_]+`)
	grouping  = regexp.MustCompile(`\b(?:by|on|without|ignoring) \(([^)]*)\)`)
	legends   = regexp.MustCompile(`\{\{\s*([a-z_]+)\s*\}\}`)
	rated     = regexp.MustCompile(`\b(i?rate|increase)\(\s*[a-zA-Z_:]+(?:\{[^}]*\})?\[([^\]]*)\]`)
	ranges    = regexp.MustCompile(`\[([^\]]*)\]`)
	variables = regexp.MustCompile(`\$\{?([a-z_]+)`)
)

func rules(known map[string]exported) []rule {
	return []rule{
		{"template-datasource-rule", templateDatasource},
		{"template-job-rule", templateOf("job", "Job", "prometheus")},
		{"template-namespace-rule", templateOf("namespace", "Namespace", "")},
		{"template-pod-rule", templateOf("pod", "Pod", "")},
		{"template-on-time-change-reload-rule", func(d dashboard, report func(string, string, ...any)) {
			for _, v := range d.Templating.List {
				if v.Type == "query" && v.Refresh != 2 {
					report("", "variable %s is not read again when the time range changes", v.Name)
				}
			}
		}},
		{"uneditable-dashboard", func(d dashboard, report func(string, string, ...any)) {
			if d.Editable {
				report("", "it can be edited, and the edit would be lost")
			}
		}},
		{"dashboard-rule", func(d dashboard, report func(string, string, ...any)) {
			if d.SchemaVersion < 39 || d.UID == "" || d.Title == "" || d.Description == "" || !slices.Contains(d.Tags, "sagaz") || len(d.Links) < 2 {
				report("", "want schemaVersion 39 or later, uid, title, description, the tag sagaz, and links to the others and to traces")
			}
		}},
		{"layout-rule", layout},
		{"unknown-variable-rule", unknownVariables},
		eachPanel("panel-type-rule", func(_ dashboard, p panel, report func(string, ...any)) {
			if !slices.Contains(kinds, p.Type) {
				report("a %s panel: want one of %v", p.Type, kinds)
			}
		}),
		eachPanel("panel-datasource-rule", func(_ dashboard, p panel, report func(string, ...any)) {
			if p.Datasource == nil || p.Datasource.UID != "${datasource}" {
				report("want the data source ${datasource}")
			}
			for _, q := range p.Targets {
				if q.Datasource.UID != "${datasource}" || p.Datasource != nil && q.Datasource.Type != p.Datasource.Type {
					report("query %s: want the data source ${datasource}", q.RefID)
				}
			}
		}),
		eachPanel("panel-title-description-rule", func(_ dashboard, p panel, report func(string, ...any)) {
			if p.Title == "" || p.Description == "" {
				report("want title and description")
			}
		}),
		eachPanel("panel-units-rule", func(_ dashboard, p panel, report func(string, ...any)) {
			if p.FieldConfig == nil || p.FieldConfig.Defaults.Unit == "" {
				report("want a unit")
			}
		}),
		eachPanel("panel-no-targets-rule", func(_ dashboard, p panel, report func(string, ...any)) {
			if len(p.Targets) == 0 {
				report("shows nothing")
			}
			for i, q := range p.Targets {
				if q.Expr == "" || q.RefID != string(rune('A'+i)) {
					report("query %d: want an expression, and a letter of its own", i)
				}
			}
		}),
		eachPromQL("target-job-rule", matcherOf("job")),
		eachPromQL("target-namespace-rule", matcherOf("namespace")),
		eachPromQL("target-pod-rule", matcherOf("pod")),
		eachPromQL("target-rate-interval-rule", func(q target, report func(string, ...any)) {
			for _, m := range rated.FindAllStringSubmatch(q.Expr, -1) {
				if m[2] != "$__rate_interval" && !(m[1] == "increase" && m[2] == "$__range" && q.Instant) {
					report("%s over [%s]: want $__rate_interval (or increase over $__range at one instant)", m[1], m[2])
				}
			}
		}),
		eachPromQL("target-counter-agg-rule", func(q target, report func(string, ...any)) {
			counted := rated.ReplaceAllString(q.Expr, "")
			for _, m := range selectors.FindAllStringSubmatch(counted, -1) {
				if known[m[1]].kind == "counter" {
					report("%s is a counter: want its rate or increase", m[1])
				}
			}
		}),
		eachPromQL("target-series-rule", func(q target, report func(string, ...any)) { knownSeries(known, q, report) }),
		eachLogQL("target-logql-rule", logql),
		eachLogQL("target-logql-auto-rule", func(q target, report func(string, ...any)) {
			for _, m := range ranges.FindAllStringSubmatch(q.Expr, -1) {
				if m[1] != "$__auto" {
					report("[%s]: want [$__auto]", m[1])
				}
			}
		}),
	}
}

func eachPanel(name string, check func(dashboard, panel, func(string, ...any))) rule {
	return rule{name, func(d dashboard, report func(string, string, ...any)) {
		for _, p := range d.Panels {
			if p.Type != "row" {
				check(d, p, func(format string, args ...any) { report(p.Title, format, args...) })
			}
		}
	}}
}

func eachQuery(name, of string, check func(target, func(string, ...any))) rule {
	return eachPanel(name, func(_ dashboard, p panel, report func(string, ...any)) {
		for _, q := range p.Targets {
			if q.Datasource.Type == of {
				check(q, func(format string, args ...any) { report(q.RefID+": "+format, args...) })
			}
		}
	})
}

func eachPromQL(name string, check func(target, func(string, ...any))) rule {
	return eachQuery(name, "prometheus", check)
}

func eachLogQL(name string, check func(target, func(string, ...any))) rule {
	return eachQuery(name, "loki", check)
}

func templateDatasource(d dashboard, report func(string, string, ...any)) {
	if len(d.Templating.List) == 0 {
		report("", "there are no variables")
		return
	}
	v := d.Templating.List[0]
	if kind, _ := v.Query.(string); v.Type != "datasource" || v.Name != "datasource" || v.Label != "Data source" || kind != "prometheus" && kind != "loki" {
		report("", "the first variable is %s %q of %v: want the datasource \"datasource\", labelled \"Data source\"", v.Type, v.Name, v.Query)
	}
	for _, v := range d.Templating.List {
		if v.Type == "query" && (v.Datasource == nil || v.Datasource.UID != "${datasource}") {
			report("", "variable %s does not ask ${datasource}", v.Name)
		}
	}
}

// templateOf wants a variable that chooses among the values of a label. only is a kind of data source, "" for all.
func templateOf(name, label, only string) func(dashboard, func(string, string, ...any)) {
	return func(d dashboard, report func(string, string, ...any)) {
		if len(d.Templating.List) > 0 && only != "" && d.Templating.List[0].Query != only {
			return
		}
		for _, v := range d.Templating.List {
			if v.Name == name && v.Type == "query" && v.Label == label && v.Multi && v.IncludeAll && v.AllValue == ".+" {
				return
			}
		}
		report("", "want a variable %q, labelled %q, of several values or all (.+)", name, label)
	}
}

// layout: 24 columns, nothing on top of anything else, no hole above a panel's row.
func layout(d dashboard, report func(string, string, ...any)) {
	ids := map[int]bool{}
	type cell struct{ x, y int }
	taken := map[cell]string{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID < 1 {
			report(p.Title, "id %d: want one of its own", p.ID)
		}
		ids[p.ID] = true
		g := p.GridPos
		if g.X < 0 || g.Y < 0 || g.W < 1 || g.H < 1 || g.X+g.W > 24 {
			report(p.Title, "it leaves the 24 columns: %+v", g)
			continue
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other, ok := taken[cell{x, y}]; ok {
					report(p.Title, "it lies on %q", other)
					return
				}
				taken[cell{x, y}] = p.Title
			}
		}
	}
}

// unknownVariables: every $name is one of the dashboard's or of Grafana's.
func unknownVariables(d dashboard, report func(string, string, ...any)) {
	names := []string{"__rate_interval", "__range", "__auto", "__url_time_range", "__field"}
	for _, v := range d.Templating.List {
		names = append(names, v.Name)
	}
	for _, p := range d.Panels {
		texts := []string{}
		for _, q := range p.Targets {
			texts = append(texts, q.Expr)
		}
		if p.FieldConfig != nil {
			for _, l := range p.FieldConfig.Defaults.Links {
				texts = append(texts, l.URL)
			}
		}
		for _, m := range variables.FindAllStringSubmatch(strings.Join(texts, " "), -1) {
			if !slices.Contains(names, m[1]) {
				report(p.Title, "there is no variable %s", m[1])
			}
		}
	}
}

func matcherOf(label string) func(target, func(string, ...any)) {
	want := label + `=~"$` + label + `"`
	return func(q target, report func(string, ...any)) {
		found := selectors.FindAllStringSubmatch(q.Expr, -1)
		if len(found) == 0 {
			report("no selector has %s", want)
		}
		for _, m := range found {
			if !strings.Contains(m[2], want) {
				report("%s has no %s", m[1], want)
			}
		}
	}
}

// knownSeries: series, and the labels in matchers, groupings and legends, are those that a relay exports.
func knownSeries(known map[string]exported, q target, report func(string, ...any)) {
	all := slices.Clone(targetLabels)
	for _, m := range selectors.FindAllStringSubmatch(q.Expr, -1) {
		s, ok := known[m[1]]
		if !ok {
			report("no relay exports %s", m[1])
			continue
		}
		own := append(slices.Clone(targetLabels), s.labels...)
		for _, l := range matchers.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(own, l[1]) {
				report("%s has no label %s", m[1], l[1])
			}
		}
		all = append(all, s.labels...)
	}
	for _, name := range ourNames.FindAllString(selectors.ReplaceAllString(q.Expr, ""), -1) {
		report("%s has no selector", name)
	}
	for _, m := range grouping.FindAllStringSubmatch(q.Expr, -1) {
		for _, l := range strings.Split(m[1], ",") {
			if !slices.Contains(all, strings.TrimSpace(l)) {
				report("no series here has the label %s", l)
			}
		}
	}
	for _, m := range legends.FindAllStringSubmatch(q.LegendFormat, -1) {
		kept := slices.ContainsFunc(grouping.FindAllStringSubmatch(q.Expr, -1), func(g []string) bool {
			return slices.Contains(strings.Split(strings.ReplaceAll(g[1], " ", ""), ","), m[1])
		})
		if !kept {
			report("the legend has {{%s}}, which the query does not keep", m[1])
		}
	}
}

// logql: a stream selector over labels that the collector sets, filters over what it adds or the line has, and no parser that makes labels of everything.
func logql(q target, report func(string, ...any)) {
	streams := regexp.MustCompile(`\{[^}]*\}`).FindAllString(q.Expr, -1)
	if len(streams) == 0 {
		report("there is no stream selector")
	}
	for _, s := range streams {
		if !strings.Contains(s, `namespace=~"$namespace"`) || !strings.Contains(s, `pod=~"$pod"`) {
			report("%s: want namespace and pod", s)
		}
		for _, m := range matchers.FindAllStringSubmatch(s, -1) {
			if !slices.Contains(streamLabels, m[1]) {
				report("%s is no label of a stream", m[1])
			}
		}
	}
	parsed := []string{}
	for _, m := range regexp.MustCompile(`\| json ([^|\[]*)`).FindAllStringSubmatch(q.Expr, -1) {
		for _, l := range regexp.MustCompile(`([a-z_]+)="([a-z_]+)"`).FindAllStringSubmatch(m[1], -1) {
			if !slices.Contains(lineKeys, l[2]) {
				report("no line has the key %s", l[2])
			}
			parsed = append(parsed, l[1])
		}
		if !strings.Contains(m[1], "=") {
			report("json without names makes a label of every key")
		}
	}
	for _, m := range regexp.MustCompile("\\| ([a-z_]+)\\s*(?:=~|!=|=)\\s*[\"`]").FindAllStringSubmatch(q.Expr, -1) {
		if !slices.Contains(slices.Concat(streamLabels, metadata, parsed), m[1]) {
			report("no line has %s without a parser", m[1])
		}
	}
	for _, m := range grouping.FindAllStringSubmatch(q.Expr, -1) {
		if !slices.Contains(slices.Concat(streamLabels, metadata, parsed), m[1]) {
			report("no line has %s without a parser", m[1])
		}
	}
	if strings.Count(q.Expr, "(") != strings.Count(q.Expr, ")") || strings.Count(q.Expr, "`")%2 != 0 || strings.Count(q.Expr, `"`)%2 != 0 {
		report("brackets or quotes do not match")
	}
}
