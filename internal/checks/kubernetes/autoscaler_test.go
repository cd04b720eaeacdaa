package kubernetes

import (
	"math"
	"reflect"
	"slices"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
)

// autoscaler does what the HorizontalPodAutoscaler's controller does with a Pods metric and a target AverageValue, by the published algorithm:
// https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/
//
// It looks every 15 s. A pod that is not ready counts 0 when scaling up; a ready pod without a value counts 0 when scaling up and as at
// its target when scaling down; a ratio within 10 % of 1 changes nothing. What comes out is stabilised (the least wish of a window when
// scaling up, the greatest when scaling down) and then limited by the policies.
type autoscaler struct {
	spec     autoscalingv2.HorizontalPodAutoscalerSpec
	replicas int
	now      time.Duration
	wishes   []wish
	scalings []scaling
}

type wish struct {
	at       time.Duration
	replicas int
}

// scaling is a change that was made.
type scaling struct {
	at     time.Duration
	change int
}

const (
	syncPeriod = 15 * time.Second
	tolerance  = 0.1
)

// values are what the pods report, one each: a number, missing (ready, but no value) or pending (not ready yet).
type values []float64

var missing, pending = math.Inf(1), math.Inf(-1)

// desired is the number of pods that the metric alone asks for.
func (a *autoscaler) desired(pods values) int {
	target := a.spec.Metrics[0].Pods.Target.AverageValue.AsApproximateFloat64()
	var reported []float64
	lacking, waiting := 0, 0
	for _, v := range pods {
		switch v {
		case missing:
			lacking++
		case pending:
			waiting++
		default:
			reported = append(reported, v)
		}
	}
	if len(reported) == 0 {
		return a.replicas // "unable to get metrics": nothing changes
	}
	mean := func() float64 {
		sum := 0.0
		for _, v := range reported {
			sum += v
		}
		return sum / float64(len(reported)) / target
	}
	ratio := mean()
	if lacking == 0 && (waiting == 0 || ratio <= 1) {
		if math.Abs(ratio-1) <= tolerance {
			return a.replicas
		}
		return int(math.Ceil(ratio * float64(len(reported))))
	}
	for range lacking {
		if ratio < 1 {
			reported = append(reported, target)
		} else {
			reported = append(reported, 0)
		}
	}
	if ratio > 1 {
		for range waiting {
			reported = append(reported, 0)
		}
	}
	again := mean()
	if math.Abs(again-1) <= tolerance || (ratio < 1) != (again < 1) {
		return a.replicas
	}
	n := int(math.Ceil(again * float64(len(reported))))
	if again < 1 && n > a.replicas || again > 1 && n < a.replicas {
		return a.replicas
	}
	return n
}

// changed sums up what was changed within the last seconds, up or down.
func (a *autoscaler) changed(seconds int32, up bool) (n int) {
	for _, s := range a.scalings {
		if s.at > a.now-time.Duration(seconds)*time.Second && (s.change > 0) == up {
			n += max(s.change, -s.change)
		}
	}
	return n
}

// look is one period of the controller.
func (a *autoscaler) look(pods values) {
	defer func() { a.now += syncPeriod }()
	least, most := int(*a.spec.MinReplicas), int(a.spec.MaxReplicas)
	if a.replicas < least || a.replicas > most {
		a.scale(min(max(a.replicas, least), most))
		return
	}
	want := a.desired(pods)

	// Stabilise.
	up, down := want, want
	for _, w := range a.wishes {
		if w.at > a.now-time.Duration(*a.spec.Behavior.ScaleUp.StabilizationWindowSeconds)*time.Second {
			up = min(up, w.replicas)
		}
		if w.at > a.now-time.Duration(*a.spec.Behavior.ScaleDown.StabilizationWindowSeconds)*time.Second {
			down = max(down, w.replicas)
		}
	}
	a.wishes = append(a.wishes, wish{a.now, want})
	n := min(max(a.replicas, up), down)

	// Limit.
	switch {
	case n > a.replicas:
		limit := a.replicas
		for _, p := range a.spec.Behavior.ScaleUp.Policies {
			limit = max(limit, a.replicas-a.changed(p.PeriodSeconds, true)+a.changed(p.PeriodSeconds, false)+int(p.Value))
		}
		n = min(n, limit, most)
	case n < a.replicas:
		limit := a.replicas
		for _, p := range a.spec.Behavior.ScaleDown.Policies {
			limit = min(limit, a.replicas+a.changed(p.PeriodSeconds, false)-a.changed(p.PeriodSeconds, true)-int(p.Value))
		}
		n = max(n, limit, least)
	}
	a.scale(n)
}

func (a *autoscaler) scale(n int) {
	if n != a.replicas {
		a.scalings = append(a.scalings, scaling{a.now, n - a.replicas})
		a.replicas = n
	}
}

// newAutoscaler takes the published object, and pods as the Deployment makes them at first.
func newAutoscaler(t *testing.T) *autoscaler {
	t.Helper()
	hpa := find[*autoscalingv2.HorizontalPodAutoscaler](t, file(t, "outbox-worker.yaml"), "outbox-worker-hpa")
	for _, rules := range []*autoscalingv2.HPAScalingRules{hpa.Spec.Behavior.ScaleUp, hpa.Spec.Behavior.ScaleDown} {
		if *rules.SelectPolicy != autoscalingv2.MaxChangePolicySelect || len(rules.Policies) != 1 || rules.Policies[0].Type != autoscalingv2.PodsScalingPolicy {
			t.Fatalf("%+v: this test does not know that", rules)
		}
	}
	return &autoscaler{spec: hpa.Spec, replicas: 1}
}

// step is a change of the number of pods.
type step struct {
	at       time.Duration
	replicas int
}

// run lets the backlog stand for a while; report says what n pods report of it, and a pod that is new is pending for half a minute.
func (a *autoscaler) run(backlog float64, lasting time.Duration, report func(backlog float64, n int) values) (steps []step) {
	for end := a.now + lasting; a.now < end; {
		pods := report(backlog, a.replicas)
		fresh := 0
		for _, s := range a.scalings {
			if s.change > 0 && s.at > a.now-30*time.Second {
				fresh += s.change
			}
		}
		for i := range pods {
			if i >= len(pods)-fresh {
				pods[i] = pending
			}
		}
		before, at := a.replicas, a.now
		a.look(pods)
		if a.replicas != before {
			steps = append(steps, step{at, a.replicas})
		}
	}
	return steps
}

// owners is what docs/contract.md says: the pods that own slots report what waits on them, the others 0.
func owners(k int) func(float64, int) values {
	return func(backlog float64, n int) values {
		pods := make(values, n)
		for i := range min(k, n) {
			pods[i] = backlog / float64(min(k, n))
		}
		return pods
	}
}

func sizes(steps []step) (n []int) {
	for _, s := range steps {
		n = append(n, s.replicas)
	}
	return n
}

// TestAutoscalerFollowsTheBacklog: replicas at each step, for one owner and for several.
func TestAutoscalerFollowsTheBacklog(t *testing.T) {
	for _, k := range []int{1, 2, 3} {
		report := owners(k)
		a := newAutoscaler(t)
		if got := sizes(a.run(0, time.Minute, report)); !slices.Equal(got, []int{3}) {
			t.Fatalf("%d owners: a new Deployment: %v, want 3 at once", k, got)
		}
		for _, quiet := range []float64{0, 900, 1100, 3000} {
			if got := a.run(quiet, time.Hour, report); got != nil {
				t.Errorf("%d owners, %v waiting: %v, want 3 and no change", k, quiet, got)
			}
		}

		begin := a.now
		up := a.run(50000, time.Hour, report)
		if got := sizes(up); !slices.Equal(got, []int{5, 7, 9, 10}) {
			t.Errorf("%d owners, 50000 waiting: %v, want 5, 7, 9, 10", k, got)
		}
		for i, s := range up {
			since, least := s.at-begin, 15*time.Second // the window of 30 s lets the old wish go
			if i > 0 {
				since, least = s.at-up[i-1].at, time.Minute
			}
			if since < least || since > least+time.Minute {
				t.Errorf("%d owners: to %d after %s, want %s or a little more", k, s.replicas, since, least)
			}
		}

		begin = a.now
		down := a.run(0, 2*time.Hour, report)
		if got := sizes(down); !slices.Equal(got, []int{9, 8, 7, 6, 5, 4, 3}) {
			t.Errorf("%d owners, nothing waiting: %v, want one less at a time, down to 3", k, got)
		}
		for i, s := range down {
			since, least := s.at-begin, 285*time.Second
			if i > 0 {
				since, least = s.at-down[i-1].at, 2*time.Minute
			}
			if since < least || since > least+30*time.Second {
				t.Errorf("%d owners: to %d after %s, want %s", k, s.replicas, since, least)
			}
		}

		// A burst that is over before the window is.
		if got := a.run(50000, 15*time.Second, report); got != nil {
			t.Errorf("%d owners: a burst of 15 s: %v", k, got)
		}
		a.run(0, time.Hour, report)

		// In the long run: a thousandth of the backlog, within 3 and 10, and 10 % are no reason to move.
		for _, backlog := range []float64{3200, 3400, 6500, 9999, 10500, 1e6, 6500, 4000, 3900, 1500, 0} {
			a.run(backlog, 2*time.Hour, report)
			exact := min(max(int(math.Ceil(backlog/1000)), 3), 10)
			within := math.Abs(backlog/1000/float64(a.replicas)-1) <= tolerance
			if a.replicas != exact && !within {
				t.Errorf("%d owners, %v waiting: %d pods, want %d", k, backlog, a.replicas, exact)
			}
		}
		if a.replicas != 3 {
			t.Errorf("%d owners: %d pods in the end", k, a.replicas)
		}
	}
}

// TestAutoscalerAsMeasured holds the computation against what a real controller did (Kubernetes 1.37, prometheus-adapter 0.12, this same
// object), and shows why each pod reports what its own slots hold, and 0 rather than nothing.
func TestAutoscalerAsMeasured(t *testing.T) {
	everybody := func(backlog float64, n int) values { // as the library's worker does
		pods := make(values, n)
		for i := range pods {
			pods[i] = backlog
		}
		return pods
	}
	a := newAutoscaler(t)
	a.run(0, time.Minute, everybody)
	if got := sizes(a.run(1500, time.Hour, everybody)); !slices.Equal(got, []int{5, 7, 9, 10}) {
		t.Errorf("everybody reports 1500: %v; measured 5, 7, 9, 10", got)
	}
	if a.run(1500, 2*time.Hour, owners(1)); a.replicas != 3 {
		t.Errorf("then one pod reports it and the others 0: %d; measured 3", a.replicas)
	}
	if a.run(6500, time.Hour, owners(1)); a.replicas != 7 {
		t.Errorf("one pod reports 6500: %d; measured 7", a.replicas)
	}

	silent := func(backlog float64, n int) values { // only the owner reports
		pods := make(values, n)
		for i := range pods {
			pods[i] = missing
		}
		pods[0] = backlog
		return pods
	}
	if a.run(6500, time.Hour, silent); a.replicas != 7 {
		t.Errorf("the others report nothing: %d; measured 7", a.replicas)
	}
	if a.run(1500, 4*time.Hour, silent); a.replicas != 7 {
		t.Errorf("then 1500: %d; measured 7, for good", a.replicas)
	}
	if a.run(0, 4*time.Hour, owners(1)); a.replicas != 3 {
		t.Errorf("zeros again: %d; measured 3", a.replicas)
	}
	// No values at all, such as without an adapter.
	none := func(_ float64, n int) values { return slices.Repeat(values{missing}, n) }
	if a.run(50000, time.Hour, none); a.replicas != 3 {
		t.Errorf("no metrics: %d", a.replicas)
	}
	// Then `kubectl scale` holds, within the limits; with a metric it does not.
	for by, want := range map[int]int{8: 8, 12: 10, 1: 3} {
		a.replicas = by
		if a.run(0, time.Hour, none); a.replicas != want {
			t.Errorf("no metrics, scaled to %d by hand: %d, want %d", by, a.replicas, want)
		}
	}
	a.replicas = 8
	if a.run(0, 4*time.Hour, owners(1)); a.replicas != 3 {
		t.Errorf("scaled to 8 by hand, nothing waits: %d, want 3", a.replicas)
	}
}

// TestKEDAScalesTheSame: the component makes the same autoscaler out of the sum.
func TestKEDAScalesTheSame(t *testing.T) {
	hpa := newAutoscaler(t).spec
	keda := find[*scaledObject](t, decode(t, "keda", build(t, "k8s/components/keda")), "outbox-worker").Spec
	if keda.MinReplicaCount != *hpa.MinReplicas || keda.MaxReplicaCount != hpa.MaxReplicas {
		t.Errorf("%d to %d pods", keda.MinReplicaCount, keda.MaxReplicaCount)
	}
	config := keda.Advanced.HorizontalPodAutoscalerConfig
	if config.Name != "outbox-worker-hpa" || !reflect.DeepEqual(config.Behavior, hpa.Behavior) {
		t.Errorf("%s: %+v", config.Name, config.Behavior)
	}
	metric := hpa.Metrics[0].Pods
	trigger := keda.Triggers[0]
	threshold, err := resource.ParseQuantity(trigger.Metadata["threshold"])
	if err != nil || len(hpa.Metrics) != 1 || trigger.MetricType != string(metric.Target.Type) || threshold.Cmp(*metric.Target.AverageValue) != 0 {
		t.Errorf("%+v, want %+v: %v", trigger, metric.Target, err)
	}
	if trigger.Metadata["query"] != "sum("+metric.Metric.Name+`{namespace="sagaz"})` || trigger.Metadata["ignoreNullValues"] != "false" {
		t.Errorf("%+v", trigger.Metadata)
	}
}
