package monitoring

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// survivors are mutants that no case tells from the rule, and why that is no gap: by the rule's name and a part of what was changed.
var survivors = []struct{ rule, change, reason string }{
	{"OutboxWorkerDown", "max for sum", "of numbers that are 0 or 1, both are 0 when all are"},
	{"OutboxSlotWALUnbounded", "min for max in max by (namespace, slot) (last_over_time(outbox_slot_wal_keep_size_bytes[1m]))", "only whether it is there counts"},
	{"OutboxPolling", "min for max", "what is left of the condition is always 1"},
	{"OutboxInflightFull", "max for sum in sum without (worker_id)", "a relay has one worker_id: only the label goes"},
	{"OutboxLatencyHigh", ">= for >", "a quantile of rates is not exactly its limit, and if it were, Prometheus 2 and 3 would not agree"},
	{"OutboxPublishSlow", ">= for >", "the same"},
	{"OutboxCPUSaturated", ">= for >", "the same for a rate"},
	{"OutboxMemoryHigh", `no job="outbox-worker" in go_memstats_sys_bytes`, "the others name the job, and all must have the same labels"},
	{"OutboxMemoryHigh", `no job="outbox-worker" in go_memstats_heap_released_bytes`, "the same"},
	{"OutboxMemoryHigh", `no job="outbox-worker" in go_gc_gomemlimit_bytes`, "the same"},
	{"OutboxCPUSaturated", `no job="outbox-worker" in process_cpu_seconds_total`, "the same"},
	{"OutboxCPUSaturated", `no job="outbox-worker" in go_sched_gomaxprocs_threads`, "the same"},
}

// A rule that is changed a little is another rule, and some case must tell: comparisons turned and moved to their edge, limits doubled and halved, times
// doubled, halved and dropped, labels left out of groupings and matchers, and for or, minimum for maximum. What no case tells is a rule that nobody has tried.
// Windows are left as they are: half of one mostly does as well.
func TestRulesMutants(t *testing.T) {
	recorded, alerts := rules(t)
	all := plays(t)
	record := cachedRecords()
	var mutants []mutant
	for i := range recorded {
		mutants = append(mutants, mutantsOf(t, recorded[i])...)
	}
	for i := range alerts {
		mutants = append(mutants, mutantsOf(t, alerts[i])...)
	}
	if len(mutants) < 300 {
		t.Fatalf("%d mutants: it makes too few", len(mutants))
	}
	told := make([]bool, len(mutants))
	var workers sync.WaitGroup
	next := make(chan int)
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for i := range next {
				told[i] = mutants[i].told(t, recorded, alerts, all, record)
			}
		})
	}
	for i := range mutants {
		next <- i
	}
	close(next)
	workers.Wait()

	used := make([]bool, len(survivors))
	for i, m := range mutants {
		if told[i] {
			continue
		}
		at := slices.IndexFunc(survivors, func(s struct{ rule, change, reason string }) bool {
			return s.rule == m.name() && strings.Contains(m.change, s.change)
		})
		if at < 0 {
			t.Errorf("%s: no case tells it from the one with %s", m.name(), m.change)
		} else {
			used[at] = true
		}
	}
	for i, s := range survivors {
		if !used[i] {
			t.Errorf("%s: a case tells it from the one with %s: take it off the list", s.rule, s.change)
		}
	}
	t.Logf("%d mutants, %d of them justified survivors", len(mutants), len(survivors))
}

// mutant is a rule with one change.
type mutant struct {
	rule
	change string
}

func (m *mutant) name() string { return m.Alert + m.Record }

// told reports whether a case comes out differently.
func (m *mutant) told(t *testing.T, recorded, alerts []rule, all []*play, record func(*testing.T, *play, []rule, int64) (*memory, error)) bool {
	changed := m.Record != ""
	if changed {
		recorded = slices.Clone(recorded)
		recorded[slices.IndexFunc(recorded, func(r rule) bool { return r.Record == m.Record })] = m.rule
		record = func(_ *testing.T, p *play, need []rule, until int64) (*memory, error) { return p.record(need, until) }
	}
	for _, p := range all {
		if changed && p.wrongExpr(t, recorded, m.Record) != "" {
			return true
		}
		for _, r := range alerts {
			until := p.until(t, r.Alert)
			switch {
			case until < 0:
				continue
			case !changed && r.Alert != m.Alert:
				continue
			case !changed:
				r = m.rule
			}
			need := recordedFor(recorded, r)
			if changed && !slices.ContainsFunc(need, func(r rule) bool { return r.Record == m.Record }) {
				continue
			}
			memory, err := record(t, p, need, until)
			if err != nil || p.wrong(t, r, memory) != "" {
				return true
			}
		}
	}
	return false
}

// cachedRecords returns what records a play once for each set of recording rules.
func cachedRecords() func(*testing.T, *play, []rule, int64) (*memory, error) {
	var mu sync.Mutex // guards known
	known := map[string]*memory{}
	return func(_ *testing.T, p *play, need []rule, until int64) (*memory, error) {
		key := fmt.Sprint(p.Name, until)
		for _, r := range need {
			key += " " + r.Record
		}
		mu.Lock()
		m := known[key]
		mu.Unlock()
		if m != nil {
			return m, nil
		}
		m, err := p.record(need, until)
		if err == nil {
			mu.Lock()
			known[key] = m
			mu.Unlock()
		}
		return m, err
	}
}

// mutantsOf makes all of a rule's mutants.
func mutantsOf(t *testing.T, r rule) (mutants []mutant) {
	t.Helper()
	expr, err := parser.ParseExpr(r.Expr)
	if err != nil {
		t.Fatal(err)
	}
	add := func(format string, args ...any) {
		m := mutant{r, fmt.Sprintf(format, args...)}
		m.Expr = expr.String()
		mutants = append(mutants, m)
	}
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.BinaryExpr:
			was, text := n.Op, n.String()
			for _, op := range otherOperators[was] {
				n.Op = op
				add("%s for %s in %s", op, was, text)
			}
			n.Op = was
			for _, side := range []parser.Expr{n.LHS, n.RHS} {
				number, ok := side.(*parser.NumberLiteral)
				if !ok {
					continue
				}
				value := number.Val
				for _, other := range []float64{value * 2, value / 2, value + 1} {
					if number.Val = other; other != value && (other != value+1 || value == 0) {
						add("%g for %g in %s", other, value, text)
					}
				}
				number.Val = value
			}
			if m := n.VectorMatching; m != nil && m.On {
				was := m.MatchingLabels
				for i, label := range was {
					m.MatchingLabels = slices.Delete(slices.Clone(was), i, i+1)
					add("on without %s in %s", label, text)
				}
				m.MatchingLabels = was
			}
		case *parser.AggregateExpr:
			was, text := n.Grouping, n.String()
			for i, label := range was {
				n.Grouping = slices.Delete(slices.Clone(was), i, i+1)
				add("by without %s in %s", label, text)
			}
			n.Grouping = was
			op := n.Op
			for _, other := range map[parser.ItemType][]parser.ItemType{parser.MAX: {parser.MIN}, parser.MIN: {parser.MAX}, parser.SUM: {parser.MAX}, parser.COUNT: {parser.MAX}}[op] {
				n.Op = other
				add("%s for %s in %s", other, op, text)
			}
			n.Op = op
		case *parser.VectorSelector:
			was, text := n.LabelMatchers, n.String()
			for i, m := range was {
				if m.Name == labels.MetricName {
					continue
				}
				n.LabelMatchers = slices.Delete(slices.Clone(was), i, i+1)
				add("no %s in %s", m, text)
			}
			n.LabelMatchers = was
			if was := n.OriginalOffset; was != 0 {
				n.OriginalOffset = was / 3
				add("offset of a third in %s", text)
				n.OriginalOffset = was
			}
		}
		return nil
	})
	for _, field := range []struct {
		name   string
		value  *string
		others func(d model.Duration) []model.Duration
	}{
		{"for", &r.For, func(d model.Duration) []model.Duration { return []model.Duration{d * 2, d / 2, 0} }},
		{"keep_firing_for", &r.KeepFiringFor, func(model.Duration) []model.Duration { return []model.Duration{0} }},
	} {
		was := *field.value
		if was == "" {
			continue
		}
		d, err := model.ParseDuration(was)
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range field.others(d) {
			*field.value = other.String()
			add("%s %s for %s", field.name, other, was)
		}
		*field.value = was
	}
	return mutants
}

// otherOperators are what an operator might have been.
var otherOperators = map[parser.ItemType][]parser.ItemType{
	parser.GTR: {parser.GTE, parser.LSS}, parser.LSS: {parser.LTE, parser.GTR}, parser.GTE: {parser.GTR, parser.LSS}, parser.LTE: {parser.LSS, parser.GTR},
	parser.EQLC: {parser.NEQ}, parser.NEQ: {parser.EQLC},
	parser.LAND: {parser.LOR, parser.LUNLESS}, parser.LOR: {parser.LAND, parser.LUNLESS}, parser.LUNLESS: {parser.LAND, parser.LOR},
	parser.ADD: {parser.SUB}, parser.SUB: {parser.ADD}, parser.MUL: {parser.DIV}, parser.DIV: {parser.MUL},
}
