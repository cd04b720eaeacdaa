package kubernetes

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// mayPrivileged are the pods that may not run in a namespace that enforces "restricted".
var mayPrivileged = []string{
	"apps/v1/DaemonSet promtail/promtail", // it reads the log files of the node, which belong to root
}

// needToken are the programs that ask the API server.
var needToken = []string{"prometheus-adapter", "prometheus", "alloy", "promtail"}

// TestRestricted asks the code that a cluster asks: may these pods run in a namespace that enforces
// "restricted"? And what docs/contract.md wants beyond that.
func TestRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for _, base := range []string{"k8s", "monitoring"} {
		everyBuild(t, base, func(t *testing.T, all []object) {
			found := pods(all)
			if len(found) < 2 {
				t.Fatalf("%d pods", len(found))
			}
			for _, p := range found {
				if result := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &p.ObjectMeta, &p.Spec)); !result.Allowed && !slices.Contains(mayPrivileged, p.name) {
					t.Errorf("%s: %s", p.name, result.ForbiddenDetail())
				}
				s := p.Spec.SecurityContext
				if base == "k8s" && (s.RunAsUser == nil || *s.RunAsUser != 1000 || s.RunAsGroup == nil || *s.RunAsGroup != 1000) {
					t.Errorf("%s does not run as 1000:1000", p.name)
				}
				token := slices.Contains(needToken, p.object.GetName())
				if p.Spec.AutomountServiceAccountToken == nil || *p.Spec.AutomountServiceAccountToken != token {
					t.Errorf("%s: a token of the API server: want %v", p.name, token)
				}
				if p.Spec.EnableServiceLinks == nil || *p.Spec.EnableServiceLinks {
					t.Errorf("%s gets variables of every Service", p.name)
				}
				for _, c := range p.Spec.Containers {
					if c.SecurityContext.ReadOnlyRootFilesystem == nil || !*c.SecurityContext.ReadOnlyRootFilesystem {
						t.Errorf("%s: container %s may write to its root", p.name, c.Name)
					}
				}
			}
		})
	}
}

// TestStackRights: the monitoring stack reads pods and their logs, in two namespaces, and no more;
// each binding has its role and its account; and no policy is for pods of others, too.
func TestStackRights(t *testing.T) {
	everyBuild(t, "monitoring", func(t *testing.T, all []object) {
		there := make(map[string]bool)
		for _, o := range all {
			there[o.String()] = true
			if o.clusterWide() && o.String() != "v1/Namespace /promtail" {
				t.Errorf("%s is of the whole cluster", o)
			}
		}
		for _, role := range each[*rbacv1.Role](all) {
			for _, rule := range role.Rules {
				if !slices.Equal(rule.Verbs, []string{"get", "list", "watch"}) || slices.ContainsFunc(rule.Resources, func(r string) bool { return r != "pods" && r != "pods/log" }) {
					t.Errorf("role %s/%s may more than read pods: %v", role.Namespace, role.Name, rule)
				}
			}
		}
		bindings := each[*rbacv1.RoleBinding](all)
		for _, b := range bindings {
			if !there["rbac.authorization.k8s.io/v1/Role "+b.Namespace+"/"+b.RoleRef.Name] {
				t.Errorf("binding %s/%s: no role %s", b.Namespace, b.Name, b.RoleRef.Name)
			}
			for _, s := range b.Subjects {
				if !there["v1/ServiceAccount "+s.Namespace+"/"+s.Name] {
					t.Errorf("binding %s/%s: no account %s/%s", b.Namespace, b.Name, s.Namespace, s.Name)
				}
			}
		}
		policies := each[*networkingv1.NetworkPolicy](all)
		for _, p := range policies {
			if len(p.Spec.PodSelector.MatchLabels)+len(p.Spec.PodSelector.MatchExpressions) == 0 {
				t.Errorf("policy %s is for pods of others, too", p.Name)
			}
		}
		if len(bindings) < 3 || len(policies) < 3 {
			t.Errorf("%d bindings and %d policies: the test looks in the wrong place", len(bindings), len(policies))
		}
	})
}

const kubeScore = "github.com/zegl/kube-score/cmd/kube-score@v1.20.0"

// notAsked are kube-score's tests that do not hold here.
var notAsked = map[string]string{
	"container-security-context-user-group-id": "it wants ids above 10000; 1000 is that of the library's manifests (docs/contract.md)",
	"container-image-pull-policy":              "it wants Always; tags and digests do not move here, and a pull at every start makes the registry a part that can fail",
}

// notAskedOfTheStack are those that, besides, do not hold in monitoring/.
var notAskedOfTheStack = map[string]string{
	"statefulset-has-servicename": "it wants one without an address; a part has one pod, and the others ask its Service",
	"pod-probes-identical":        "Alloy and Grafana answer one question about themselves",
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
	"monitoring/components/promtail":    {"promtail pod-networkpolicy": "it has a namespace of its own, and asks Loki and the API server alone"},
}

// TestScore runs kube-score, which also sees selectors and autoscalers that lead to nothing. Its
// program, not its package: that one needs versions of the API types of its own.
func TestScore(t *testing.T) {
	bin := t.TempDir()
	install := exec.Command("go", "install", kubeScore)
	install.Dir, install.Env = bin, append(os.Environ(), "GOBIN="+bin) // no module of ours
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("go install %s: %v\n%s", kubeScore, err, out)
	}
	args := []string{"score", "--output-format=json"}
	for test := range notAsked {
		args = append(args, "--ignore-test="+test)
	}
	for _, dir := range append(builds(t, "k8s"), builds(t, "monitoring")...) {
		t.Run(dir, func(t *testing.T) {
			args := append(slices.Clone(args), "-")
			if strings.HasPrefix(dir, "monitoring") {
				for test := range notAskedOfTheStack {
					args = append(args, "--ignore-test="+test)
				}
			}
			cmd := exec.Command(filepath.Join(bin, "kube-score"), args...)
			cmd.Stdin = bytes.NewReader(build(t, dir))
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, runErr := cmd.Output() // not 0 when it finds something
			var scored []struct {
				ObjectName string `json:"object_name"`
				Checks     []struct {
					Check    struct{ ID string }
					Grade    int // 1 critical, 5 warning, 7 almost, 10 ok
					Skipped  bool
					Comments []struct{ Path, Summary, Description string }
				}
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
					if _, ok := accepted[name+" "+c.Check.ID]; !ok {
						t.Errorf("%s: %s: %v", o.ObjectName, c.Check.ID, c.Comments)
					}
					delete(accepted, name+" "+c.Check.ID)
				}
			}
			for finding := range accepted {
				t.Errorf("%s is not found any more: take it from the list", finding)
			}
		})
	}
}
