package dashboards

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
)

// Each rule finds what it is there for: a good dashboard with one thing broken.
func TestDashboardRulesCanFail(t *testing.T) {
	known := series(t)
	at := func(d *dashboard) *panel { return &d.Panels[1] }
	query := func(expr string) func(*dashboard) { return func(d *dashboard) { at(d).Targets[0].Expr = promql(expr) } }
	on := map[string]map[string]func(*dashboard){
		"template-datasource-rule": {
			"other name":  func(d *dashboard) { d.Templating.List[0].Name = "prometheus" },
			"fixed":       func(d *dashboard) { d.Templating.List[1].Datasource = &datasource{"prometheus", "prometheus"} },
			"none at all": func(d *dashboard) { d.Templating.List = nil },
		},
		"template-job-rule":                   {"single": func(d *dashboard) { d.Templating.List[1].Multi = false }},
		"template-namespace-rule":             {"empty matches all": func(d *dashboard) { d.Templating.List[2].AllValue = ".*" }},
		"template-pod-rule":                   {"none": func(d *dashboard) { d.Templating.List = d.Templating.List[:3] }},
		"template-on-time-change-reload-rule": {"once": func(d *dashboard) { d.Templating.List[3].Refresh = 1 }},
		"uneditable-dashboard":                {"editable": func(d *dashboard) { d.Editable = true }},
		"dashboard-rule":                      {"old": func(d *dashboard) { d.SchemaVersion = 36 }, "no uid": func(d *dashboard) { d.UID = "" }},
		"layout-rule": {
			"overlap": func(d *dashboard) { d.Panels[2].GridPos.X-- }, "too wide": func(d *dashboard) { at(d).GridPos.W = 25 },
			"same id": func(d *dashboard) { at(d).ID = d.Panels[2].ID },
		},
		"unknown-variable-rule": {
			"in a query": query(`sum(up{@, pod="$shard"})`),
			"in a link":  func(d *dashboard) { at(d).FieldConfig.Defaults.Links = []dataLink{{URL: "/d/x?${shard:queryparam}"}} },
		},
		"panel-type-rule":              {"graph": func(d *dashboard) { at(d).Type = "graph" }},
		"panel-datasource-rule":        {"fixed": func(d *dashboard) { at(d).Datasource = &datasource{"prometheus", "prometheus"} }, "fixed in a query": func(d *dashboard) { at(d).Targets[0].Datasource.UID = "prometheus" }},
		"panel-title-description-rule": {"no description": func(d *dashboard) { at(d).Description = "" }},
		"panel-units-rule":             {"no unit": func(d *dashboard) { at(d).FieldConfig.Defaults.Unit = "" }},
		"panel-no-targets-rule":        {"none": func(d *dashboard) { at(d).Targets = nil }, "empty": query("")},
		"target-job-rule":              {"fixed": query(`sum(up{job="outbox-worker", namespace=~"$namespace", pod=~"$pod"})`), "no selector": query("vector(1)")},
		"target-namespace-rule":        {"none": query(`sum(up{job=~"$job", pod=~"$pod"})`)},
		"target-pod-rule":              {"one of two": query(`sum(up{@}) / sum(outbox_pending_events{job=~"$job", namespace=~"$namespace"})`)},
		"target-rate-interval-rule":    {"five minutes": query(`sum(rate(outbox_marked_events_total{@}[5m]))`), "range in a graph": query(`sum(increase(outbox_marked_events_total{@}[$__range]))`)},
		"target-counter-agg-rule":      {"bare": query(`sum(outbox_marked_events_total{@})`), "bare beside a rate": query(`sum(rate(outbox_marked_events_total{@}[$__rate_interval])) + sum(outbox_mark_seconds_count{@})`)},
		"target-series-rule": {
			"no such series": query(`sum(outbox_lag{@})`), "no such label": query(`sum(outbox_shards_owned{@, slot="a"})`), "no such group": query(`sum by (shard) (up{@})`),
			"a histogram's own name": query(`sum(outbox_mark_seconds{@})`), "no selector": query(`sum(outbox_shards) + sum(up{@})`),
			"legend": func(d *dashboard) { at(d).Targets[0].LegendFormat = "{{slot}}" },
		},
	}
	logsOn := map[string]map[string]func(*dashboard){
		"target-logql-rule": {
			"no stream": query("sum(1)"), "no pod": query(`{namespace=~"$namespace"}`), "an id as a label of the stream": query(`{namespace=~"$namespace", pod=~"$pod", saga_id="a"}`),
			"all keys": query(`{namespace=~"$namespace", pod=~"$pod"} | json `), "no such key": query(`{namespace=~"$namespace", pod=~"$pod"} | json msg="msg"`),
			"not parsed": query(`{namespace=~"$namespace", pod=~"$pod"} | message="lease taken"`), "grouped by what is not there": query(`sum by (host) (rate({namespace=~"$namespace", pod=~"$pod"} [$__auto]))`),
			"open": query(`sum(rate({namespace=~"$namespace", pod=~"$pod"} [$__auto])`),
		},
		"target-logql-auto-rule": {"five minutes": query(`sum(rate({namespace=~"$namespace", pod=~"$pod"} [5m]))`)},
	}
	if len(on)+len(logsOn) != len(rules(known)) {
		t.Errorf("%d rules are broken here, of %d", len(on)+len(logsOn), len(rules(known)))
	}
	for good, cases := range map[string]map[string]map[string]func(*dashboard){"grafana-dashboard-outbox.json": on, "grafana-dashboard-logs.json": logsOn} {
		for _, name := range slices.Sorted(maps.Keys(cases)) {
			for what, spoil := range cases[name] {
				d := files()[good]
				before := len(lint(known, d))
				spoil(&d)
				found := lint(known, d)
				if !slices.ContainsFunc(found, func(f finding) bool {
					return f.rule == name && (f.panel == "" || f.panel == d.Panels[1].Title || name == "layout-rule")
				}) {
					t.Errorf("%s, %s: not found (%d findings before, %d after)", name, what, before, len(found))
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(`{"panels": [{"fieldConfg": {}}]}`), new(dashboard)); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(`{"panels": [{"fieldConfg": {}}]}`))
	dec.DisallowUnknownFields()
	if dec.Decode(new(dashboard)) == nil {
		t.Error("a field with a typing error is taken")
	}
}
