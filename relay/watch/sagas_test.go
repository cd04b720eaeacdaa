package watch

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
)

// sagaRig counts sagas by the rules given.
type sagaRig struct {
	*sagas
	t   testing.TB
	reg *prometheus.Registry
}

func newSagaRig(t testing.TB, rules ...string) *sagaRig {
	reg := prometheus.NewRegistry()
	cfg := DefaultConfig()
	if len(rules) > 0 {
		cfg.SagaRules = rules
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	m := NewMetrics(reg, "worker-1", cfg)
	return &sagaRig{sagas: m.sagas, t: t, reg: reg}
}

var sagaEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// see has events of a saga marked, each a second after the one before.
func (r *sagaRig) see(saga string, types ...string) {
	for i, eventType := range types {
		r.marked("slot", []*relay.Flight{{
			Record: relay.Record{EventType: eventType, Timestamp: sagaEpoch.Add(time.Duration(i) * time.Second), Headers: []relay.Header{{Key: "saga_id", Value: saga}}},
			SagaID: saga, AggregateType: "aggregate",
		}})
	}
}

// want compares the values of a metric, as "name=value" in the order of the labels' values.
func (r *sagaRig) want(metric, want string) {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		if f.GetName() != "outbox_saga_"+metric {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			if value != 0 {
				got = append(got, fmt.Sprintf("%s=%g", strings.Join(labels, "/"), value))
			}
		}
	}
	if got := strings.Join(got, " "); got != want {
		r.t.Errorf("%s: got %q, want %q", metric, got, want)
	}
}

// What is wrong with the settings is reported by the variable's name, once.
func TestConfigValidate(t *testing.T) {
	cfg := Config{SagaRules: []string{"{saga}.done=over"}}
	name := reflect.TypeOf(cfg).Field(0).Tag.Get("env")
	err := cfg.Validate()
	if err == nil || !strings.HasPrefix(err.Error(), name+"=") || strings.Count(err.Error(), "\n") > 0 {
		t.Errorf("got %v, want one line about %s", err, name)
	}
}

func TestSagaRules(t *testing.T) {
	for _, tt := range []struct{ rules, eventType, want string }{
		{"", "order.completed", "completed order "},
		{"", "order.failed", "failed order "},
		{"", "order.pay.success", "step order pay"},
		{"", "order.pay.failed", "step_failed order pay"},
		{"", "order.pay.compensated", "compensated order pay"},
		{"", "order.pay.compensation_failed", "compensation_failed order pay"},
		{"", "order-processing.create_order.success", "step order-processing create_order"},
		{"", "OrderCreated", "  "},
		{"", "a.b.c.failed", "  "}, // {saga} and {step} have no dots
		{"", ".completed", "  "},
		{"Order*=step,OrderPlaced=started", "OrderPlaced", "step  "}, // the first counts
		{"OrderPlaced=started,Order*=step", "OrderPlaced", "started  "},
		{"*.{saga}.done=completed", "eu.west.order.done", "completed order "},
		{"a+b=failed", "a+b", "failed  "}, // no expression
		{"a+b=failed", "aab", "  "},
	} {
		var texts []string
		if tt.rules == "" {
			texts = DefaultSagaRules()
		} else {
			texts = strings.Split(tt.rules, ",")
		}
		rules, err := parseSagaRules(texts)
		if err != nil {
			t.Fatal(err)
		}
		m := meaning(rules, tt.eventType)
		if got := fmt.Sprintf("%s %s %s", m.outcome, m.saga, m.step); got != tt.want {
			t.Errorf("%s by %q: got %q, want %q", tt.eventType, tt.rules, got, tt.want)
		}
	}
	for rule, says := range map[string]string{
		"order.done":                "want EVENT_TYPE=OUTCOME",
		"=failed":                   "want EVENT_TYPE=OUTCOME",
		"a=over":                    `no such outcome "over"`,
		"{name}.done=failed":        "want {saga} or {step}",
		"{saga}.{saga}=failed":      "{saga} occurs twice",
		"{saga.done=completed":      "want {saga} or {step}",
		"{step}{saga}{step}=failed": "{step} occurs twice",
	} {
		_, err := parseSagaRules([]string{rule, "fine=failed"})
		if err == nil || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "RELAY_SAGA_RULES="+rule+": ") {
			t.Errorf("%s: got %v, want that it says %q", rule, err, says)
		}
	}
	if rules, err := parseSagaRules([]string{"none"}); len(rules) != 0 || err != nil {
		t.Errorf("none: got %v, %v", rules, err)
	}
}

func TestSagas(t *testing.T) {
	r := newSagaRig(t)
	r.see("1", "order.reserve.success", "order.pay.success", "order.completed")
	r.see("2", "order.reserve.success", "order.pay.failed", "order.reserve.compensated", "order.bill.compensated", "order.failed")
	r.see("3", "trip.book.success")
	r.want("started_total", "order=2 trip=1")
	r.want("completed_total", "order=1")
	r.want("failed_total", "order=1")
	r.want("compensated_total", "order=1") // the saga, not its steps
	r.want("steps_total", "compensated/order/bill=1 compensated/order/reserve=1 failed/order/pay=1 success/order/pay=1 success/order/reserve=2 success/trip/book=1")
	r.want("duration_seconds", "order/completed=1 order/failed=1")
	r.want("active", "trip=1")
	if sum := r.duration.with("order", "failed").sum; sum != 4 {
		t.Errorf("the failed saga took %g s, want 4", sum)
	}
	families, _ := r.reg.Gather()
	for _, f := range families {
		if f.GetName() == "outbox_saga_oldest_active_seconds" {
			for _, m := range f.GetMetric() {
				if age, trip := m.GetGauge().GetValue(), m.GetLabel()[0].GetValue() == "trip"; trip != (age > 0) {
					t.Errorf("%v: the oldest is %g s old", m.GetLabel(), age)
				}
			}
		}
	}

	// Told again, nothing of a saga counts again; only its steps are what they are, events.
	r.see("1", "order.completed")
	r.see("2", "order.reserve.compensated", "order.failed")
	r.want("started_total", "order=2 trip=1")
	r.want("completed_total", "order=1")
	r.want("failed_total", "order=1")
	r.want("compensated_total", "order=1")
	// What the stream did not deliver was counted before.
	r.marked("slot", []*relay.Flight{{Record: relay.Record{EventType: "order.completed"}, SagaID: "4", WhileStreaming: true}})
	r.want("completed_total", "order=1")

	// The slot's next owner goes on with the third.
	r.drop("slot")
	r.want("active", "")
	r.want("tracking_dropped_total", "")
	r.see("3", "trip.completed")
	r.want("completed_total", "order=1 trip=1")
	r.want("duration_seconds", "order/completed=1 order/failed=1") // a lone event has none
	r.want("active", "")
}

func TestSagasByName(t *testing.T) {
	r := newSagaRig(t, "Placed=started", "Shipped=completed", "{saga}.off=failed")
	r.see("1", "Noted", "Placed", "Noted", "Shipped")
	r.see("2", "Shipped")
	r.see("3", "trip.off")
	// The second was not seen to start, and a rule names what starts one.
	r.want("started_total", "aggregate=1")
	r.want("completed_total", "aggregate=2")
	r.want("failed_total", "trip=1")
	r.want("unmatched_events_total", "=2")
	// The header goes before everything, and makes an event that no rule names part of its saga.
	headed := func(eventType string) {
		r.marked("slot", []*relay.Flight{{Record: relay.Record{EventType: eventType, Timestamp: sagaEpoch, Headers: []relay.Header{{Key: "saga_name", Value: "named"}, {Key: "step_name", Value: "one"}}}, SagaID: "4", AggregateType: "aggregate"}})
	}
	headed("Noted")
	r.want("active", "named=1")
	headed("trip.off")
	r.want("failed_total", "named=1 trip=1")
	r.want("unmatched_events_total", "=2")

	none := newSagaRig(t, "none")
	none.see("1", "order.completed")
	none.want("completed_total", "")
	none.want("unmatched_events_total", "")
}

// A step that could not be compensated is no compensated one, and makes its saga count once.
func TestSagasCompensationFailed(t *testing.T) {
	r := newSagaRig(t)
	r.see("1", "order.reserve.success", "order.bill.success", "order.pay.failed", "order.bill.compensation_failed", "order.failed", "order.reserve.compensation_failed")
	r.see("2", "order.reserve.success", "order.pay.failed", "order.reserve.compensated", "order.failed")
	r.want("compensation_failed_total", "order=1")
	r.want("compensated_total", "order=1")
	r.want("failed_total", "order=2")
	r.want("steps_total", "compensated/order/reserve=1 compensation_failed/order/bill=1 compensation_failed/order/reserve=1 failed/order/pay=2 success/order/bill=1 success/order/reserve=2")
}

// Memory and labels are bounded, whatever comes: the sagas heard of least recently are dropped, and
// counted if they were under way.
func TestSagasAreBounded(t *testing.T) {
	r := newSagaRig(t)
	r.see("done", "order.a.success", "order.completed")
	r.see("first", "order.a.success")
	for i := range maxSagas - 2 {
		r.see(fmt.Sprint("more", i), "order.a.success")
	}
	r.want("active", fmt.Sprintf("order=%d", maxSagas-1))
	r.see("first", "order.b.success") // heard of again
	r.see("new", "order.a.success")   // pushes out the one that is done
	r.want("tracking_dropped_total", "")
	r.see("newer", "order.a.success") // and the first of the others
	r.want("tracking_dropped_total", "=1")
	r.want("active", fmt.Sprintf("order=%d", maxSagas))
	r.see("first", "order.completed")
	r.want("duration_seconds", "order/completed=2")
	if len(r.tracked) != maxSagas {
		t.Errorf("%d sagas are tracked, want %d", len(r.tracked), maxSagas)
	}
	n := 0
	for e := r.order.next; e != &r.order; e = e.next {
		n++
	}
	if n != maxSagas {
		t.Errorf("%d sagas are in the ring, want %d", n, maxSagas)
	}

	r = newSagaRig(t)
	for i := range 2 * maxMeanings {
		r.see(fmt.Sprint(i), fmt.Sprintf("saga%d.step.success", i), fmt.Sprintf("saga%d.completed", i))
	}
	if len(r.names) != maxSagaTypes+1 || len(r.stepSets) > maxSagaSteps+1 || len(r.meanings) != maxMeanings {
		t.Errorf("%d names, %d steps, %d meanings", len(r.names), len(r.stepSets), len(r.meanings))
	}
	if got := metricSum(t, r.reg, "outbox_saga_completed_total", "saga_name")["other"]; got != 2*maxMeanings-maxSagaTypes {
		t.Errorf("%v sagas of other names have completed", got)
	}
}

// BenchmarkSagas is what the marker pays: for events that say nothing of sagas, and for those that
// do.
func BenchmarkSagas(b *testing.B) {
	for _, eventType := range []string{"OrderCreated", "order.pay.success"} {
		b.Run(eventType, func(b *testing.B) {
			r := newSagaRig(b)
			batch := make([]*relay.Flight, 1000)
			for i := range batch {
				batch[i] = &relay.Flight{Record: relay.Record{EventType: eventType, Timestamp: sagaEpoch, Headers: make([]relay.Header, 6)}, SagaID: fmt.Sprintf("%036d", i), AggregateType: "saga"}
			}
			b.ReportAllocs()
			for b.Loop() {
				r.marked("slot", batch)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(batch)), "ns/event")
		})
	}
}

// Two relays with a part of the slots each: a saga is counted once where its events have one key.
// Where they have several nothing is shown as stuck that has ended at the other relay.
func TestSagasOverSeveralSlots(t *testing.T) {
	here, there := newSagaRig(t), newSagaRig(t)
	both := []*sagaRig{here, there}
	see := func(r *sagaRig, saga, key, eventType string) {
		r.marked("slot", []*relay.Flight{{Record: relay.Record{EventType: eventType, Key: key, Timestamp: sagaEpoch}, SagaID: saga}})
	}
	total := func(metric string, want float64) {
		t.Helper()
		sum := 0.0
		for _, r := range both {
			families, err := r.reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() == "outbox_saga_"+metric {
					for _, m := range f.GetMetric() {
						sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
					}
				}
			}
		}
		if sum != want {
			t.Errorf("%s: %g over both relays, want %g", metric, sum, want)
		}
	}
	for _, r := range both {
		r.divided(4)
	}
	for i := range 10 { // of one key each
		r, saga := both[i%2], fmt.Sprint("alone-", i)
		see(r, saga, saga, "alone.pay.success")
		see(r, saga, saga, "alone.pay.compensated")
		if i < 8 {
			see(r, saga, saga, "alone.failed")
		}
	}
	total("started_total", 10)
	total("compensated_total", 10)
	total("failed_total", 8)
	total("duration_seconds", 8)
	total("active", 2)

	for i := range 10 { // of three keys each, one of them there
		saga := fmt.Sprint("spread-", i)
		see(here, saga, saga+"-a", "spread.pay.success")
		see(here, saga, saga+"-b", "spread.stock.success")
		see(there, saga, saga+"-c", "spread.completed")
	}
	total("completed_total", 10)
	total("failed_total", 8)
	total("started_total", 10+20) // what the help says
	total("active", 2)
	total("duration_seconds", 8)
	if page := exposition(t, here.reg); !strings.Contains(page, `outbox_saga_oldest_active_seconds{saga_name="alone"}`) || strings.Contains(page, `active{saga_name="spread"}`) || strings.Contains(page, `active_seconds{saga_name="spread"}`) {
		t.Errorf("what is active:\n%s", page)
	}

	for _, r := range both {
		r.drop("slot")
		r.divided(1)
	}
	see(here, "again", "a", "spread.pay.success")
	see(here, "again", "b", "spread.completed")
	see(here, "more", "c", "spread.pay.success")
	total("active", 1)
	total("duration_seconds", 9)
}
