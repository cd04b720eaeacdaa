package main

// logbook searches the relay's log, by words, by level, and by saga.
func logbook() dashboard {
	const stream = `namespace=~"$namespace", pod=~"$pod"`
	lokiValues := func(name, label, of, stream string) variable {
		return variable{
			Name: name, Label: label, Type: "query", Multi: true, IncludeAll: true, AllValue: ".+", Refresh: 2, Sort: 1, Current: &currentValue{"All", "$__all"},
			Query: map[string]any{"label": of, "refId": "LokiVariableQueryEditor-VariableQuery", "stream": stream, "type": 1}, Definition: "label_values(" + stream + ", " + of + ")",
		}
	}
	level := lokiValues("level", "Level", "level", `{namespace=~"$namespace"}`)
	level.AllValue = ".*" // lines of programs that log no JSON have none
	text := func(name, label, value string) variable {
		return variable{Name: name, Label: label, Type: "textbox", Query: value, Current: &currentValue{value, value}, Options: []optionOfVars{{value, value, true}}}
	}
	const found = `{` + stream + `, level=~"$level"} |~ ` + "`(?i)$search`"
	const trouble = `{` + stream + `, level=~"WARNING|ERROR|CRITICAL"}`
	byLevel := func(p *panel) {
		for _, c := range []struct{ level, colour string }{{"DEBUG", "blue"}, {"INFO", "green"}, {"WARNING", "yellow"}, {"ERROR", "red"}, {"CRITICAL", "purple"}} {
			p.FieldConfig.Overrides = append(p.FieldConfig.Overrides, override{
				map[string]any{"id": "byName", "options": c.level},
				[]map[string]any{{"id": "color", "value": map[string]any{"mode": "fixed", "fixedColor": c.colour}}},
			})
		}
		p.FieldConfig.Defaults.Custom["drawStyle"] = "bars"
	}
	return build("sagaz-logs", "Sagaz: logs",
		"What relay and applications log in the namespace, collected as JSON lines. saga_id, correlation_id, event_id and trace_id are structured metadata: a line's details link to its trace. LOG_LEVEL=DEBUG logs each event's way through the relay.",
		"loki", []variable{
			lokiValues("namespace", "Namespace", "namespace", ""),
			lokiValues("pod", "Pod", "pod", `{namespace=~"$namespace"}`),
			level,
			text("search", "Search", ""),
			text("saga_id", "Saga", ""),
			text("correlation_id", "Correlation", ""),
		}, []row{
			{"Search", []panel{
				timeseries("Lines, by level", "Lines that match the fields above.", "short", []target{
					q(`sum by (level) (count_over_time(`+found+` [$__auto]))`, "{{level}}"),
				}, width(16), height(7), stacked, byLevel),
				timeseries("Lines, by pod", "The same lines, by pod.", "short", []target{
					q(`sum by (pod) (count_over_time(`+found+` [$__auto]))`, "{{pod}}"),
				}, height(7), stacked),
				logs("Log", "Search takes a regular expression, upper and lower case alike. Open a line for its fields and the link to its trace.", found),
			}},
			{"Errors", []panel{
				timeseries("Warnings and errors, by message", "Messages are fixed, so equal ones can be counted.", "short", []target{
					q(`topk(10, sum by (message) (count_over_time(`+trouble+` | json message="message" [$__auto])))`, "{{message}}"),
				}, width(12), stacked),
				timeseries("Events not taken, by reason", "error_type of refused and given-up events; at LOG_LEVEL=DEBUG also of those offered again.", "short", []target{
					q(`sum by (error_type) (count_over_time({`+stream+`} |= "error_type" | json error_type="error_type" | error_type != "" [$__auto]))`, "{{error_type}}"),
				}, width(12), stacked),
				logs("Warnings and errors", "ERROR: somebody must act. WARNING: degraded and retrying. CRITICAL comes from the library: a compensation that failed.", trouble),
			}},
			{"A saga's way", []panel{
				logs("By saga", "Everything that was logged about the saga in the field above, oldest first: steps by the application, then each event's way through the relay.", `{`+stream+`} | saga_id!="" | saga_id=`+"`$saga_id`", func(p *panel) {
					p.Options["sortOrder"], p.Options["showLabels"] = "Ascending", true
				}),
				logs("By correlation", "Everything with the correlation_id in the field above, also of other sagas and services.", `{`+stream+`} | correlation_id!="" | correlation_id=`+"`$correlation_id`", func(p *panel) {
					p.Options["sortOrder"], p.Options["showLabels"] = "Ascending", true
				}),
				bars("Sagas with warnings or errors", "The ten with most lines in the time range shown.", "short", []target{
					q(`topk(10, sum by (saga_id) (count_over_time(`+trouble+` | saga_id!="" [$__range])))`, "{{saga_id}}"),
				}, width(24), func(p *panel) {
					p.FieldConfig.Defaults.Links = []dataLink{{Title: "This saga's way", URL: "/d/sagaz-logs?${__url_time_range}&${namespace:queryparam}&var-saga_id=${__field.labels.saga_id}"}}
				}),
			}},
		})
}
