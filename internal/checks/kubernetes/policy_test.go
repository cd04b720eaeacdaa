package kubernetes

import (
	"bytes"
	"encoding/json"
	"maps"
	"os/exec"
	"strings"
	"testing"

	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// TestRestricted asks the code that a cluster asks: may these pods run in a namespace that enforces "restricted"?
func TestRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	everyBuild(t, func(t *testing.T, all []object) {
		found := pods(all)
		if len(found) < 2 {
			t.Fatalf("%d pods", len(found))
		}
		for _, p := range found {
			if result := policy.AggregateCheckResults(evaluator.EvaluatePod(level, &p.meta, &p.spec)); !result.Allowed {
				t.Errorf("%s: %s", p.name, result.ForbiddenDetail())
			}
			// Beyond the policy: docs/contract.md.
			s := p.spec.SecurityContext
			if s.RunAsUser == nil || *s.RunAsUser != 1000 || s.RunAsGroup == nil || *s.RunAsGroup != 1000 {
				t.Errorf("%s does not run as 1000:1000", p.name)
			}
			if p.spec.AutomountServiceAccountToken == nil || (*p.spec.AutomountServiceAccountToken && !strings.Contains(p.name, "prometheus-adapter")) {
				t.Errorf("%s gets a token of the API server", p.name)
			}
			if p.spec.EnableServiceLinks == nil || *p.spec.EnableServiceLinks {
				t.Errorf("%s gets variables of every Service", p.name)
			}
			for _, c := range p.spec.Containers {
				if c.SecurityContext.ReadOnlyRootFilesystem == nil || !*c.SecurityContext.ReadOnlyRootFilesystem {
					t.Errorf("%s: container %s may write to its root", p.name, c.Name)
				}
			}
		}
	})
}

const kubeScore = "github.com/zegl/kube-score/cmd/kube-score@v1.20.0"

// notAsked are kube-score's tests that do not hold here.
var notAsked = map[string]string{
	"container-security-context-user-group-id": "it wants ids above 10000; 1000 is that of the library's manifests (docs/contract.md)",
	"container-image-pull-policy":              "it wants Always; tags and digests do not move here, and a pull at every start makes the registry a part that can fail",
}

// accepted is what else kube-score finds, by build: object and test, with the reason.
var accepted = map[string]map[string]string{
	"overlays/dev": {
		"outbox-worker deployment-has-poddisruptionbudget":   "one pod, which a budget would nail to its node",
		"outbox-worker-hpa horizontalpodautoscaler-replicas": "one pod is enough for a look",
	},
	"k8s/components/cloudnative-pg": {
		"postgresql networkpolicy-targets-pod":     "the operator makes the pods",
		"cloudnative-pg networkpolicy-targets-pod": "the operator makes the pods",
		"postgres service-targets-pod":             "the operator makes the pods",
		"postgresql service-targets-pod":           "the operator makes the pods",
	},
	"k8s/components/keda":               {"outbox-worker deployment-replicas": "KEDA makes the autoscaler, at least 3"},
	"k8s/components/prometheus-adapter": {"prometheus-adapter deployment-replicas": "without it the autoscaler keeps what there is"},
}

// TestScore runs kube-score. Its program, not its package: that one needs versions of the API types of its own.
func TestScore(t *testing.T) {
	var ignore []string
	for test := range notAsked {
		ignore = append(ignore, "--ignore-test="+test)
	}
	for _, dir := range builds() {
		t.Run(dir, func(t *testing.T) {
			cmd := exec.Command("go", append(append([]string{"run", kubeScore, "score", "--output-format=json"}, ignore...), "-")...)
			cmd.Dir = t.TempDir() // no module of ours
			cmd.Stdin = bytes.NewReader(build(t, dir))
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, runErr := cmd.Output() // not 0 when it finds something
			var scored []struct {
				ObjectName string `json:"object_name"`
				Checks     []struct {
					Check struct {
						ID string `json:"id"`
					} `json:"check"`
					Grade    int  `json:"grade"` // 1 critical, 5 warning, 7 almost, 10 ok
					Skipped  bool `json:"skipped"`
					Comments []struct {
						Path, Summary, Description string
					} `json:"comments"`
				} `json:"checks"`
			}
			if err := json.Unmarshal(out, &scored); err != nil || len(scored) == 0 {
				t.Fatalf("kube-score: %v, %v\n%s%s", runErr, err, out, stderr.String())
			}
			accepted := maps.Clone(accepted[dir])
			for _, o := range scored {
				name := o.ObjectName[strings.LastIndex(o.ObjectName, "/")+1:]
				for _, c := range o.Checks {
					if c.Skipped || c.Grade >= 7 {
						continue
					}
					if _, ok := accepted[name+" "+c.Check.ID]; ok {
						delete(accepted, name+" "+c.Check.ID)
						continue
					}
					t.Errorf("%s: %s: %v", o.ObjectName, c.Check.ID, c.Comments)
				}
			}
			for finding := range accepted {
				t.Errorf("%s is not found any more: take it from the list", finding)
			}
		})
	}
}
