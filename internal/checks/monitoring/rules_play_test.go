package monitoring

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/template"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
	"go.yaml.in/yaml/v3"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// What promtool does with prometheus-alerts_test.yaml, again, on Prometheus's own engine (of version 3, promtool here may be of 2): a hundred times as fast,
// because it evaluates only what a case asks for. The mutants need that. TestRulesPlay shows that both come to the same.

// play is one entry of the file of tests: series, and what alerts they raise.
type play struct {
	Name   string `yaml:"name"`
	Every  string `yaml:"interval"` // between samples
	Series []struct {
		Series string `yaml:"series"`
		Values string `yaml:"values"`
	} `yaml:"input_series"`
	Cases []playCase `yaml:"alert_rule_test"`
	Exprs []playExpr `yaml:"promql_expr_test"`
	input *memory    `yaml:"-"`
}

type playCase struct {
	At    string `yaml:"eval_time"`
	Alert string `yaml:"alertname"`
	Fires []struct {
		Labels      map[string]string `yaml:"exp_labels"`
		Annotations map[string]string `yaml:"exp_annotations"`
	} `yaml:"exp_alerts"`
}

// playExpr is what an expression gives at a time; recording rules are tested so.
type playExpr struct {
	Expr    string `yaml:"expr"`
	At      string `yaml:"eval_time"`
	Samples []struct {
		Labels string  `yaml:"labels"`
		Value  float64 `yaml:"value"`
	} `yaml:"exp_samples"`
}

// when is the case's time in milliseconds.
func (c *playCase) when(t *testing.T) int64 {
	d, err := model.ParseDuration(c.At)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(d).Milliseconds()
}

const playEvery = 15_000 // milliseconds between evaluations

func plays(t *testing.T) []*play {
	t.Helper()
	var file struct {
		Interval string  `yaml:"evaluation_interval"`
		Tests    []*play `yaml:"tests"`
	}
	if err := yaml.Unmarshal(product.Read(t, rulesTestFile), &file); err != nil {
		t.Fatal(err)
	}
	if file.Interval != "15s" {
		t.Fatalf("evaluation_interval %q: want 15s, as here", file.Interval)
	}
	for _, p := range file.Tests {
		p.input = &memory{}
		every := playDuration(t, p.Every)
		if every == 0 {
			t.Fatalf("%s: no interval", p.Name)
		}
		for _, s := range p.Series {
			of, values, err := parser.ParseSeriesDesc(s.Series + " " + s.Values)
			if err != nil {
				t.Fatalf("%s: %v", p.Name, err)
			}
			for i, v := range values {
				if !v.Omitted {
					p.input.add(of, int64(i)*every, v.Value)
				}
			}
		}
	}
	return file.Tests
}

// memory is a storage of series; what was added last is the newest of its series.
type memory struct {
	series []*memorySeries
	over   *memory // looked at too, if not nil
}

type memorySeries struct {
	labels  labels.Labels
	samples []chunks.Sample
}

type memorySample struct {
	at    int64
	value float64
}

func (s memorySample) T() int64                      { return s.at }
func (s memorySample) ST() int64                     { return 0 }
func (s memorySample) F() float64                    { return s.value }
func (s memorySample) H() *histogram.Histogram       { return nil }
func (s memorySample) FH() *histogram.FloatHistogram { return nil }
func (s memorySample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s memorySample) Copy() chunks.Sample           { return s }

func (m *memory) add(of labels.Labels, at int64, value float64) {
	for _, s := range m.series {
		if labels.Equal(s.labels, of) {
			s.samples = append(s.samples, memorySample{at, value})
			return
		}
	}
	m.series = append(m.series, &memorySeries{of, []chunks.Sample{memorySample{at, value}}})
}

// Querier implements storage.Queryable.
func (m *memory) Querier(from, to int64) (storage.Querier, error) {
	return memoryQuerier{m, from, to}, nil
}

type memoryQuerier struct {
	m        *memory
	from, to int64
}

func (q memoryQuerier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	set := &memorySet{next: -1}
	for m := q.m; m != nil; m = m.over {
		for _, s := range m.series {
			if slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.labels.Get(m.Name)) }) {
				continue
			}
			after := func(at int64) int {
				i, _ := slices.BinarySearchFunc(s.samples, at, func(s chunks.Sample, at int64) int { return int(s.T() - at) })
				return i
			}
			if samples := s.samples[after(q.from):after(q.to+1)]; len(samples) > 0 {
				set.series = append(set.series, storage.NewListSeries(s.labels, samples))
			}
		}
	}
	return set
}

func (memoryQuerier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (memoryQuerier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}
func (memoryQuerier) Close() error { return nil }

type memorySet struct {
	series []storage.Series
	next   int
}

func (s *memorySet) Next() bool                        { s.next++; return s.next < len(s.series) }
func (s *memorySet) At() storage.Series                { return s.series[s.next] }
func (s *memorySet) Err() error                        { return nil }
func (s *memorySet) Warnings() annotations.Annotations { return nil }

var engine = promql.NewEngine(promql.EngineOpts{MaxSamples: 1e7, Timeout: time.Minute, EnableAtModifier: true, EnableNegativeOffset: true})

// steps evaluates an expression at each step until a time, and returns what it gives at each. All of it in one query: an expression does not see what its
// own rule has made of it before.
func (m *memory) steps(expr string, until int64) ([]promql.Vector, error) {
	q, err := engine.NewRangeQuery(context.Background(), m, nil, expr, time.UnixMilli(0), time.UnixMilli(until), playEvery*time.Millisecond)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	result := q.Exec(context.Background())
	if result.Err != nil {
		return nil, result.Err
	}
	matrix, err := result.Matrix()
	if err != nil {
		return nil, err
	}
	steps := make([]promql.Vector, until/playEvery+1)
	for _, s := range matrix {
		for _, p := range s.Floats {
			steps[p.T/playEvery] = append(steps[p.T/playEvery], promql.Sample{T: p.T, F: p.F, Metric: s.Metric})
		}
	}
	return steps, nil
}

// record evaluates recording rules in their order, and returns what they give on top of the play's own series.
func (p *play) record(recorded []rule, until int64) (*memory, error) {
	m := &memory{over: p.input}
	for _, r := range recorded {
		steps, err := m.steps(r.Expr, until)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.Record, err)
		}
		var last promql.Vector
		for i, result := range steps {
			for j := range result {
				result[j].Metric = labels.NewBuilder(result[j].Metric).Set("__name__", r.Record).Labels()
				m.add(result[j].Metric, int64(i)*playEvery, result[j].F)
			}
			for _, old := range last { // what is not there any more ends at once, not after five minutes
				if !slices.ContainsFunc(result, func(s promql.Sample) bool { return labels.Equal(s.Metric, old.Metric) }) {
					m.add(old.Metric, int64(i)*playEvery, math.Float64frombits(value.StaleNaN))
				}
			}
			last = result
		}
	}
	return m, nil
}

// firing is an alert's life: pending for so long, firing, and for a while still firing though its condition has gone.
type firing struct {
	labels, annotations map[string]string
	since, gone         int64 // gone: since when the condition has not been true; -1 while it is
	fires               bool
}

// wrong plays the cases of one alert and says which is the first that does not come out as it should; "" when all do.
func (p *play) wrong(t *testing.T, r rule, m *memory) string {
	t.Helper()
	wait, stay := playDuration(t, r.For), playDuration(t, r.KeepFiringFor)
	until := p.until(t, r.Alert)
	steps, err := m.steps(r.Expr, until)
	if err != nil {
		return err.Error()
	}
	active := map[string]*firing{}
	for i, result := range steps {
		at := int64(i) * playEvery
		seen := map[string]bool{}
		for _, s := range result {
			own := s.Metric.Map()
			delete(own, "__name__")
			f := &firing{labels: own, annotations: map[string]string{}, since: at, gone: -1}
			expand := func(text string) string {
				data := template.AlertTemplateData(own, nil, "", s)
				defs := "{{$labels := .Labels}}{{$externalLabels := .ExternalLabels}}{{$externalURL := .ExternalURL}}{{$value := .Value}}"
				out, err := template.NewTemplateExpander(context.Background(), defs+text, r.Alert, data, model.Time(at), nil, &url.URL{}, nil).Expand()
				if err != nil {
					return err.Error()
				}
				return out
			}
			for name, text := range r.Annotations {
				f.annotations[name] = expand(text)
			}
			f.labels = maps.Clone(own)
			for name, text := range r.Labels {
				f.labels[name] = expand(text)
			}
			key := fmt.Sprint(f.labels)
			if seen[key] {
				return fmt.Sprintf("two alerts of the labels %v", f.labels)
			}
			seen[key] = true
			if old := active[key]; old != nil {
				f.since, f.fires = old.since, old.fires
			}
			f.fires = f.fires || at-f.since >= wait
			active[key] = f
		}
		for key, f := range active {
			if seen[key] {
				continue
			}
			if f.gone < 0 {
				f.gone = at
			}
			if !f.fires || at-f.gone >= stay {
				delete(active, key)
			}
		}
		for i := range p.Cases {
			if c := &p.Cases[i]; c.Alert == r.Alert && c.when(t) == at {
				if got, want := fired(active), c.want(); got != want {
					return fmt.Sprintf("%s, at %s: got %s, want %s", p.Name, c.At, got, want)
				}
			}
		}
	}
	return ""
}

// wrongExpr plays the cases of expressions that need a recording rule.
func (p *play) wrongExpr(t *testing.T, recorded []rule, name string) string {
	t.Helper()
	for i := range p.Exprs {
		e := &p.Exprs[i]
		if !strings.Contains(e.Expr, name) {
			continue
		}
		until := playDuration(t, e.At)
		m, err := p.record(recordedFor(recorded, rule{Expr: e.Expr}), until)
		if err != nil {
			return err.Error()
		}
		steps, err := m.steps(e.Expr, until)
		if err != nil {
			return err.Error()
		}
		var got, want []string
		for _, s := range steps[len(steps)-1] {
			got = append(got, fmt.Sprintf("%s %.6g", s.Metric, s.F))
		}
		for _, s := range e.Samples {
			of, err := parser.ParseMetric(s.Labels)
			if err != nil {
				return err.Error()
			}
			want = append(want, fmt.Sprintf("%s %.6g", of, s.Value))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			return fmt.Sprintf("%s, at %s: got %q, want %q", p.Name, e.At, got, want)
		}
	}
	return ""
}

// until is when the last case of an alert is, in milliseconds; -1 when there is none.
func (p *play) until(t *testing.T, alert string) int64 {
	last := int64(-1)
	for i := range p.Cases {
		if p.Cases[i].Alert == alert {
			last = max(last, p.Cases[i].when(t))
		}
	}
	return last
}

func (c *playCase) want() string {
	active := map[string]*firing{}
	for _, f := range c.Fires {
		active[fmt.Sprint(f.Labels)] = &firing{labels: f.Labels, annotations: f.Annotations, fires: true}
	}
	return fired(active)
}

func fired(active map[string]*firing) string {
	var all []string
	for _, f := range active {
		if f.fires {
			all = append(all, fmt.Sprint(f.labels, f.annotations))
		}
	}
	slices.Sort(all)
	return "[" + strings.Join(all, "; ") + "]"
}

func playDuration(t *testing.T, text string) int64 {
	if text == "" {
		return 0
	}
	d, err := model.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(d).Milliseconds()
}

// The tests of the rules come out on this engine, too.
func TestRulesPlay(t *testing.T) {
	recorded, alerts := rules(t)
	for _, p := range plays(t) {
		if wrong := p.wrongExpr(t, recorded, ""); wrong != "" {
			t.Error(wrong)
		}
		for _, r := range alerts {
			until := p.until(t, r.Alert)
			if until < 0 {
				continue
			}
			m, err := p.record(recordedFor(recorded, r), until)
			if err != nil {
				t.Fatal(err)
			}
			if wrong := p.wrong(t, r, m); wrong != "" {
				t.Errorf("%s: %s", r.Alert, wrong)
			}
		}
	}
}

// recordedFor are the recording rules that an alert needs, in their order: they may need each other.
func recordedFor(recorded []rule, r rule) []rule {
	needed := r.Expr
	var found []rule
	for i := len(recorded) - 1; i >= 0; i-- {
		if strings.Contains(needed, recorded[i].Record) {
			needed += recorded[i].Expr
			found = append(found, recorded[i])
		}
	}
	slices.Reverse(found)
	return found
}
