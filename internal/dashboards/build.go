package main

import "strings"

// build lays the panels out and fills in what is the same everywhere.
func build(uid, title, description, source string, variables []variable, rows []row) dashboard {
	d := dashboard{
		UID: uid, Title: title, Description: description, SchemaVersion: 39, Version: 1, GraphTooltip: 1, Refresh: "30s", Timezone: "browser",
		Tags: []string{"sagaz"}, Time: timeRange{"now-1h", "now"}, Annotations: list[annotation]{[]annotation{}},
		Links: []dashboardLink{
			{Title: "sagaz", Type: "dashboards", Tags: []string{"sagaz"}, Icon: "external link", IncludeVars: true, KeepTime: true},
			{
				Title: "Traces", Type: "link", Tags: []string{}, Icon: "external link", TargetBlank: true, Tooltip: "The relay's traces in Tempo",
				URL: `/explore?schemaVersion=1&panes=%7B%22t%22:%7B%22datasource%22:%22tempo%22,%22queries%22:%5B%7B%22refId%22:%22A%22,%22datasource%22:%7B%22type%22:%22tempo%22,%22uid%22:%22tempo%22%7D,` +
					`%22queryType%22:%22traceql%22,%22query%22:%22%7Bresource.service.name%3D%5C%22outbox-worker%5C%22%7D%22%7D%5D,%22range%22:%7B%22from%22:%22now-1h%22,%22to%22:%22now%22%7D%7D%7D`,
			},
		},
	}
	templated := datasource{source, "${datasource}"}
	d.Templating.List = append([]variable{{
		Name: "datasource", Label: "Data source", Type: "datasource", Query: source, Current: &currentValue{source, source}, Refresh: 1,
	}}, variables...)
	for i := range d.Templating.List {
		if v := &d.Templating.List[i]; v.Type == "query" {
			v.Datasource = &templated
		}
	}
	if source == "prometheus" {
		d.Annotations.List = append(d.Annotations.List, annotation{
			Name: "Handovers", Datasource: templated, Enable: true, IconColor: "blue", TitleFmt: "Handover of {{slot}}",
			Expr: promql(`max by (slot) (outbox_slot_epoch{@}) > min by (slot) (min_over_time(outbox_slot_epoch{@}[1m]))`),
		})
	}
	id, y := 0, 0
	for _, r := range rows {
		open := false
		id++
		d.Panels = append(d.Panels, panel{ID: id, Type: "row", Title: r.title, Collapsed: &open, GridPos: gridPos{1, 24, 0, y}})
		y++
		x, line := 0, 0
		for _, p := range r.panels {
			if x+p.GridPos.W > 24 {
				x, y, line = 0, y+line, 0
			}
			id++
			p.ID, p.GridPos.X, p.GridPos.Y, p.Datasource = id, x, y, &templated
			for i := range p.Targets {
				q := &p.Targets[i]
				q.RefID, q.Datasource = string(rune('A'+i)), templated
				switch source {
				case "prometheus":
					q.Expr, q.Range, q.EditorMode = promql(q.Expr), !q.Instant, "code"
				default:
					q.QueryType, q.EditorMode = "range", "code"
					if q.Instant {
						q.QueryType, q.Instant = "instant", false
					}
				}
			}
			d.Panels = append(d.Panels, p)
			x, line = x+p.GridPos.W, max(line, p.GridPos.H)
		}
		y += line
	}
	return d
}

func promql(expr string) string { return strings.ReplaceAll(expr, "@", selector) }

// labelValues is a variable with the values that a label has.
func labelValues(name, label, series, of string) variable {
	query := "label_values(" + series + ", " + of + ")"
	return variable{
		Name: name, Label: label, Type: "query", Query: map[string]any{"query": query, "refId": "StandardVariableQuery"}, Definition: query,
		Multi: true, IncludeAll: true, AllValue: ".+", Refresh: 2, Sort: 1, Current: &currentValue{"All", "$__all"},
	}
}

// which relay the numbers are of.
func where() []variable {
	return []variable{
		labelValues("job", "Job", "outbox_build_info", "job"),
		labelValues("namespace", "Namespace", `outbox_build_info{job=~"$job"}`, "namespace"),
		labelValues("pod", "Pod", `outbox_build_info{job=~"$job", namespace=~"$namespace"}`, "pod"),
	}
}

// quantiles are the percentiles of a histogram, by the labels given (", sink" for instance) and
// shown under the legend given.
func quantiles(histogram, by, legend string) []target {
	var targets []target
	for _, p := range []struct{ q, name string }{{"0.5", "p50"}, {"0.95", "p95"}, {"0.99", "p99"}} {
		targets = append(targets, q(`histogram_quantile(`+p.q+`, sum by (le`+by+`) (rate(`+histogram+`_bucket{@}[$__rate_interval])))`, p.name+legend))
	}
	return targets
}
