package main

import "strings"

// The part of Grafana's dashboard schema (classic, version 39 on) that our dashboards use.
type (
	dashboard struct {
		Annotations   list[annotation] `json:"annotations"`
		Description   string           `json:"description"`
		Editable      bool             `json:"editable"`
		GraphTooltip  int              `json:"graphTooltip"`
		Links         []dashboardLink  `json:"links"`
		Panels        []panel          `json:"panels"`
		Refresh       string           `json:"refresh"`
		SchemaVersion int              `json:"schemaVersion"`
		Tags          []string         `json:"tags"`
		Templating    list[variable]   `json:"templating"`
		Time          timeRange        `json:"time"`
		Timezone      string           `json:"timezone"`
		Title         string           `json:"title"`
		UID           string           `json:"uid"`
		Version       int              `json:"version"`
	}
	list[T any] struct {
		List []T `json:"list"`
	}
	timeRange struct {
		From string `json:"from"`
		To   string `json:"to"`
	}
	annotation struct {
		Name       string     `json:"name"`
		Datasource datasource `json:"datasource"`
		Enable     bool       `json:"enable"`
		Expr       string     `json:"expr"`
		IconColor  string     `json:"iconColor"`
		TitleFmt   string     `json:"titleFormat"`
	}
	dashboardLink struct {
		Title       string   `json:"title"`
		Type        string   `json:"type"` // dashboards, link
		Tags        []string `json:"tags"`
		URL         string   `json:"url"`
		Tooltip     string   `json:"tooltip"`
		Icon        string   `json:"icon"`
		AsDropdown  bool     `json:"asDropdown"`
		IncludeVars bool     `json:"includeVars"`
		KeepTime    bool     `json:"keepTime"`
		TargetBlank bool     `json:"targetBlank"`
	}
	variable struct {
		Name       string      `json:"name"`
		Label      string      `json:"label"`
		Type       string      `json:"type"` // datasource, query, custom, textbox
		Datasource *datasource `json:"datasource,omitempty"`
		Query      any         `json:"query"`
		Definition string      `json:"definition,omitempty"`
		Regex      string      `json:"regex,omitempty"`
		Multi      bool        `json:"multi,omitempty"`
		IncludeAll bool        `json:"includeAll,omitempty"`
		AllValue   string      `json:"allValue,omitempty"`
		// 1 when opened, 2 when the time range changes
		Refresh int            `json:"refresh,omitempty"`
		Sort    int            `json:"sort,omitempty"`
		Hide    int            `json:"hide,omitempty"`
		Current *currentValue  `json:"current,omitempty"`
		Options []optionOfVars `json:"options,omitempty"`
	}
	currentValue struct {
		Text  string `json:"text"`
		Value string `json:"value"`
	}
	optionOfVars struct {
		Text     string `json:"text"`
		Value    string `json:"value"`
		Selected bool   `json:"selected"`
	}
	datasource struct {
		Type string `json:"type"`
		UID  string `json:"uid"`
	}
	gridPos struct {
		H int `json:"h"`
		W int `json:"w"`
		X int `json:"x"`
		Y int `json:"y"`
	}
	panel struct {
		ID              int              `json:"id"`
		Type            string           `json:"type"`
		Title           string           `json:"title"`
		Description     string           `json:"description,omitempty"`
		Datasource      *datasource      `json:"datasource,omitempty"`
		GridPos         gridPos          `json:"gridPos"`
		Collapsed       *bool            `json:"collapsed,omitempty"` // rows only
		Panels          []panel          `json:"panels,omitempty"`
		FieldConfig     *fieldConfig     `json:"fieldConfig,omitempty"`
		Options         map[string]any   `json:"options,omitempty"`
		Targets         []target         `json:"targets,omitempty"`
		Transformations []transformation `json:"transformations,omitempty"`
	}
	transformation struct {
		ID      string         `json:"id"`
		Options map[string]any `json:"options"`
	}
	target struct {
		RefID        string     `json:"refId"`
		Datasource   datasource `json:"datasource"`
		Expr         string     `json:"expr"`
		LegendFormat string     `json:"legendFormat,omitempty"`
		Format       string     `json:"format,omitempty"` // table, heatmap
		Instant      bool       `json:"instant,omitempty"`
		Range        bool       `json:"range,omitempty"`
		Exemplar     bool       `json:"exemplar,omitempty"`
		QueryType    string     `json:"queryType,omitempty"` // Loki: range, instant
		MaxLines     int        `json:"maxLines,omitempty"`
		EditorMode   string     `json:"editorMode,omitempty"`
	}
	fieldConfig struct {
		Defaults  fieldDefaults `json:"defaults"`
		Overrides []override    `json:"overrides"`
	}
	fieldDefaults struct {
		Unit       string         `json:"unit"`
		Decimals   *int           `json:"decimals,omitempty"`
		Min        *float64       `json:"min,omitempty"`
		Max        *float64       `json:"max,omitempty"`
		NoValue    string         `json:"noValue,omitempty"`
		Color      map[string]any `json:"color,omitempty"`
		Custom     map[string]any `json:"custom,omitempty"`
		Links      []dataLink     `json:"links,omitempty"`
		Mappings   []mapping      `json:"mappings,omitempty"`
		Thresholds *thresholds    `json:"thresholds,omitempty"`
	}
	override struct {
		Matcher    map[string]any   `json:"matcher"`
		Properties []map[string]any `json:"properties"`
	}
	dataLink struct {
		Title       string `json:"title"`
		URL         string `json:"url"`
		TargetBlank bool   `json:"targetBlank"`
	}
	mapping struct {
		Type    string                  `json:"type"`
		Options map[string]mappedResult `json:"options"`
	}
	mappedResult struct {
		Text  string `json:"text"`
		Color string `json:"color"`
		Index int    `json:"index"`
	}
	thresholds struct {
		Mode  string `json:"mode"`
		Steps []step `json:"steps"`
	}
	step struct {
		Color string   `json:"color"`
		Value *float64 `json:"value"` // null is from the bottom
	}
)

// q is a query: PromQL or LogQL, and the name of what it shows. In PromQL, @ is replaced by the
// selector that every query has.
func q(expr, legend string) target { return target{Expr: expr, LegendFormat: legend} }

const selector = `job=~"$job", namespace=~"$namespace", pod=~"$pod"`

// row is a heading and the panels under it, from left to right and on.
type row struct {
	title  string
	panels []panel
}

// change is something to be different from what a panel of its kind is.
type change func(*panel)

func width(columns int) change   { return func(p *panel) { p.GridPos.W = columns } }
func height(rows int) change     { return func(p *panel) { p.GridPos.H = rows } }
func maximum(max float64) change { return func(p *panel) { p.FieldConfig.Defaults.Max = &max } }
func decimals(n int) change      { return func(p *panel) { p.FieldConfig.Defaults.Decimals = &n } }

func stacked(p *panel) {
	p.FieldConfig.Defaults.Custom["stacking"] = map[string]any{"mode": "normal", "group": "A"}
	p.FieldConfig.Defaults.Custom["fillOpacity"] = 40
}

// stackedBut stacks all but the lines of these names.
func stackedBut(lines ...string) change {
	return func(p *panel) {
		stacked(p)
		for _, line := range lines {
			p.FieldConfig.Overrides = append(p.FieldConfig.Overrides, override{
				Matcher:    map[string]any{"id": "byName", "options": line},
				Properties: []map[string]any{{"id": "custom.stacking", "value": map[string]any{"mode": "none", "group": "A"}}, {"id": "custom.fillOpacity", "value": 0}},
			})
		}
	}
}

// exemplars shows single measurements with their traces, where the relay sends traces.
func exemplars(p *panel) {
	for i := range p.Targets {
		p.Targets[i].Exemplar = true
	}
}

// above colours a value from a limit on; the limits are those of the alerts.
func above(limits ...float64) change { return colours([]string{"green", "yellow", "red"}, limits) }

// alarm is red from the limit on, without a warning before.
func alarm(limit float64) change { return colours([]string{"green", "red"}, []float64{limit}) }

// warn is yellow from the limit on.
func warn(limit float64) change { return colours([]string{"green", "yellow"}, []float64{limit}) }

// below is red under the first limit, yellow under the second.
func below(limits ...float64) change { return colours([]string{"red", "yellow", "green"}, limits) }

// wanted is red under the limit.
func wanted(limit float64) change { return colours([]string{"red", "green"}, []float64{limit}) }

func colours(names []string, limits []float64) change {
	return func(p *panel) {
		t := &thresholds{Mode: "absolute", Steps: []step{{Color: names[0]}}}
		for i, limit := range limits {
			t.Steps = append(t.Steps, step{names[i+1], &limit})
		}
		p.FieldConfig.Defaults.Thresholds = t
		if p.Type == "timeseries" {
			p.FieldConfig.Defaults.Custom["thresholdsStyle"] = map[string]any{"mode": "dashed"}
		}
	}
}

// state names the values 0, 1, 2 … of a panel: "name colour" each, "" for a value that does not
// occur.
func states(names ...string) change {
	return func(p *panel) {
		m := mapping{Type: "value", Options: map[string]mappedResult{}}
		for i, name := range names {
			if text, colour, ok := strings.Cut(name, ","); ok {
				m.Options[string(rune('0'+i))] = mappedResult{text, colour, i}
			}
		}
		p.FieldConfig.Defaults.Mappings = []mapping{m}
		if p.Type == "stat" {
			p.FieldConfig.Defaults.Thresholds = &thresholds{Mode: "absolute", Steps: []step{{Color: "text"}}}
		}
	}
}

// toLogs links what was clicked to the relay's log at that time.
func toLogs(search string) change {
	return func(p *panel) {
		p.FieldConfig.Defaults.Links = append(p.FieldConfig.Defaults.Links, dataLink{
			Title: "Log lines of this time", URL: "/d/sagaz-logs?${__url_time_range}&${namespace:queryparam}&var-search=" + search,
		})
	}
}

func newPanel(kind, title, description, unit string, w, h int, targets []target) panel {
	p := panel{
		Type: kind, Title: title, Description: description, GridPos: gridPos{W: w, H: h}, Targets: targets, Options: map[string]any{},
		FieldConfig: &fieldConfig{Defaults: fieldDefaults{Unit: unit}, Overrides: []override{}},
	}
	return p
}

func apply(p panel, changes []change) panel {
	for _, c := range changes {
		c(&p)
	}
	return p
}

func timeseries(title, description, unit string, targets []target, changes ...change) panel {
	p := newPanel("timeseries", title, description, unit, 8, 8, targets)
	zero := 0.0
	p.FieldConfig.Defaults.Min = &zero
	p.FieldConfig.Defaults.Color = map[string]any{"mode": "palette-classic"}
	p.FieldConfig.Defaults.Custom = map[string]any{"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": false}
	p.Options["legend"] = map[string]any{"displayMode": "list", "placement": "bottom", "showLegend": true}
	p.Options["tooltip"] = map[string]any{"mode": "multi", "sort": "desc"}
	return apply(p, changes)
}

func stat(title, description, unit, expr string, changes ...change) panel {
	p := newPanel("stat", title, description, unit, 4, 4, []target{q(expr, "")})
	p.FieldConfig.Defaults.NoValue = "–"
	p.FieldConfig.Defaults.Thresholds = &thresholds{Mode: "absolute", Steps: []step{{Color: "text"}}}
	p.Options = map[string]any{
		"colorMode": "value", "graphMode": "area", "justifyMode": "auto", "orientation": "auto", "textMode": "auto",
		"reduceOptions": map[string]any{"calcs": []any{"lastNotNull"}, "fields": "", "values": false},
	}
	return apply(p, changes)
}

func timeline(title, description string, targets []target, changes ...change) panel {
	p := newPanel("state-timeline", title, description, "none", 12, 7, targets)
	p.FieldConfig.Defaults.Custom = map[string]any{"fillOpacity": 80, "lineWidth": 0}
	p.Options = map[string]any{
		"mergeValues": true, "showValue": "auto", "rowHeight": 0.8, "alignValue": "left",
		"legend": map[string]any{"displayMode": "list", "placement": "bottom", "showLegend": false}, "tooltip": map[string]any{"mode": "single", "sort": "none"},
	}
	return apply(p, changes)
}

func heatmap(title, description, unit, expr string, changes ...change) panel {
	p := newPanel("heatmap", title, description, unit, 12, 8, []target{q(expr, "{{le}}")})
	p.Targets[0].Format = "heatmap"
	p.Options = map[string]any{
		"calculate": false, "cellGap": 1, "color": map[string]any{"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "scale": "exponential", "reverse": false, "fill": "dark-orange"},
		"yAxis": map[string]any{"unit": unit, "axisPlacement": "left", "reverse": false}, "tooltip": map[string]any{"mode": "single", "yHistogram": true}, "legend": map[string]any{"show": true},
		"exemplars": map[string]any{"color": "rgba(255,0,255,0.7)"}, "filterValues": map[string]any{"le": 1e-9}, "rowsFrame": map[string]any{"layout": "auto"},
	}
	return apply(p, changes)
}

func bars(title, description, unit string, targets []target, changes ...change) panel {
	p := newPanel("bargauge", title, description, unit, 8, 8, targets)
	for i := range p.Targets {
		p.Targets[i].Instant = true
	}
	zero := 0.0
	p.FieldConfig.Defaults.Min = &zero
	p.FieldConfig.Defaults.Thresholds = &thresholds{Mode: "absolute", Steps: []step{{Color: "blue"}}}
	p.Options = map[string]any{
		"displayMode": "basic", "orientation": "horizontal", "showUnfilled": true, "valueMode": "color",
		"reduceOptions": map[string]any{"calcs": []any{"lastNotNull"}, "fields": "", "values": false},
	}
	return apply(p, changes)
}

// table shows instant queries side by side: each gets a column of the name in its legend.
func table(title, description, unit string, targets []target, changes ...change) panel {
	p := newPanel("table", title, description, unit, 24, 8, targets)
	names := map[string]any{}
	for i := range p.Targets {
		p.Targets[i].Instant, p.Targets[i].Format = true, "table"
		if name := p.Targets[i].LegendFormat; len(targets) > 1 {
			names["Value #"+string(rune('A'+i))] = name
		} else {
			names["Value"] = name
		}
		p.Targets[i].LegendFormat = ""
	}
	p.Transformations = []transformation{
		{"merge", map[string]any{}},
		{"organize", map[string]any{"excludeByName": map[string]any{"Time": true}, "renameByName": names, "indexByName": map[string]any{}}},
	}
	p.Options = map[string]any{"showHeader": true, "cellHeight": "sm", "footer": map[string]any{"show": false, "reducer": []any{"sum"}, "fields": ""}}
	return apply(p, changes)
}

func logs(title, description, expr string, changes ...change) panel {
	p := newPanel("logs", title, description, "none", 24, 12, []target{{Expr: expr, MaxLines: 1000}})
	p.Options = map[string]any{
		"dedupStrategy": "none", "enableLogDetails": true, "prettifyLogMessage": false, "showCommonLabels": false, "showLabels": false, "showTime": true,
		"sortOrder": "Descending", "wrapLogMessage": true,
	}
	return apply(p, changes)
}
