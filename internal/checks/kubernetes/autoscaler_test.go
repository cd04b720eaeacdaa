package kubernetes

import (
	"encoding/json"
	"math"
	"reflect"
	"slices"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// autoscaler does what the HorizontalPodAutoscaler's controller does with a Pods metric and a
// target AverageValue, by the published algorithm, while every pod is ready and reports:
// https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/
//
// It looks every 15 s. A ratio within 10 % of 1 changes nothing. What comes out is stabilised (the
// least wish of a window when scaling up, the greatest when scaling down) and then limited by the
// policies.
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

// desired is the number of pods that the metric alone asks for, by what each pod reports.
func (a *autoscaler) desired(pods []float64) int {
	sum := 0.0
	for _, v := range pods {
		sum += v
	}
	wish := sum / a.spec.Metrics[0].Pods.Target.AverageValue.AsApproximateFloat64()
	if math.Abs(wish/float64(len(pods))-1) <= tolerance {
		return a.replicas
	}
	return int(math.Ceil(wish))
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
func (a *autoscaler) look(pods []float64) {
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

// run lets n pods report something for a while.
func (a *autoscaler) run(lasting time.Duration, report func(n int) []float64) (steps []step) {
	for end := a.now + lasting; a.now < end; {
		before, at := a.replicas, a.now
		a.look(report(a.replicas))
		if a.replicas != before {
			steps = append(steps, step{at, a.replicas})
		}
	}
	return steps
}

// owners is what docs/contract.md says: the pods that own slots report what waits on them, the
// others 0.
func owners(k int, backlog float64) func(int) []float64 {
	return func(n int) []float64 {
		pods := make([]float64, n)
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
	for _, k := range []int{1, 3, 8} {
		a := newAutoscaler(t)
		if got := sizes(a.run(time.Minute, owners(k, 0))); !slices.Equal(got, []int{3}) {
			t.Fatalf("%d owners: a new Deployment: %v, want 3 at once", k, got)
		}
		for _, quiet := range []float64{0, 900, 1100, 3000} {
			if got := a.run(time.Hour, owners(k, quiet)); got != nil {
				t.Errorf("%d owners, %v waiting: %v, want 3 and no change", k, quiet, got)
			}
		}
		for _, change := range []struct {
			backlog            float64
			sizes              []int
			first, then, slack time.Duration
		}{
			{50000, []int{5, 7, 9, 10}, 15 * time.Second, time.Minute, time.Minute}, // the window of 30 s lets the old wish go
			{0, []int{9, 8, 7, 6, 5, 4, 3}, 285 * time.Second, 2 * time.Minute, 30 * time.Second},
			{3500, []int{4}, 15 * time.Second, time.Minute, time.Minute},
			{0, []int{3}, 285 * time.Second, 2 * time.Minute, 30 * time.Second},
		} {
			last, least := a.now, change.first
			steps := a.run(2*time.Hour, owners(k, change.backlog))
			if got := sizes(steps); !slices.Equal(got, change.sizes) {
				t.Errorf("%d owners, %v waiting: %v, want %v", k, change.backlog, got, change.sizes)
			}
			for _, s := range steps {
				if since := s.at - last; since < least || since > least+change.slack {
					t.Errorf("%d owners: to %d after %s, want %s or a little more", k, s.replicas, since, least)
				}
				last, least = s.at, change.then
			}
		}
	}
}

// TestAutoscalerAsMeasured holds the computation against what a real controller did (Kubernetes
// 1.37, prometheus-adapter 0.12, this same object), and shows why each pod reports what its own
// slots hold.
func TestAutoscalerAsMeasured(t *testing.T) {
	a := newAutoscaler(t)
	for _, m := range []struct {
		what   string
		report func(int) []float64
		want   int
	}{
		{"everybody reports 1500, as the library's workers do", func(n int) []float64 { return slices.Repeat([]float64{1500}, n) }, 10},
		{"one reports 1500", owners(1, 1500), 3},
		{"one reports 6500", owners(1, 6500), 7},
		{"zeros", owners(1, 0), 3},
	} {
		if a.run(4*time.Hour, m.report); a.replicas != m.want {
			t.Errorf("%s: %d pods; measured %d", m.what, a.replicas, m.want)
		}
	}
}

// TestKEDAScalesTheSame: the component makes the same autoscaler out of the sum.
func TestKEDAScalesTheSame(t *testing.T) {
	hpa := newAutoscaler(t).spec
	var keda struct {
		MinReplicaCount, MaxReplicaCount int32
		Advanced                         struct {
			HorizontalPodAutoscalerConfig struct {
				Name     string
				Behavior *autoscalingv2.HorizontalPodAutoscalerBehavior
			}
		}
		Triggers []struct {
			MetricType string
			Metadata   map[string]string
		}
	}
	spec, err := json.Marshal(find[*unstructured.Unstructured](t, decode(t, "keda", build(t, "k8s/components/keda")), "outbox-worker").Object["spec"])
	if err == nil {
		err = json.Unmarshal(spec, &keda)
	}
	if err != nil {
		t.Fatal(err)
	}
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
