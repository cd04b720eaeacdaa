package monitoring

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// stackKinds makes an empty object of every kind that the stack uses. Any other kind, or a field that it does not have, is an error.
var stackKinds = map[string]func() metav1.Object{
	"v1/Namespace":                             func() metav1.Object { return new(corev1.Namespace) },
	"v1/ConfigMap":                             func() metav1.Object { return new(corev1.ConfigMap) },
	"v1/Secret":                                func() metav1.Object { return new(corev1.Secret) },
	"v1/Service":                               func() metav1.Object { return new(corev1.Service) },
	"v1/ServiceAccount":                        func() metav1.Object { return new(corev1.ServiceAccount) },
	"apps/v1/StatefulSet":                      func() metav1.Object { return new(appsv1.StatefulSet) },
	"apps/v1/DaemonSet":                        func() metav1.Object { return new(appsv1.DaemonSet) },
	"networking.k8s.io/v1/NetworkPolicy":       func() metav1.Object { return new(networkingv1.NetworkPolicy) },
	"rbac.authorization.k8s.io/v1/Role":        func() metav1.Object { return new(rbacv1.Role) },
	"rbac.authorization.k8s.io/v1/RoleBinding": func() metav1.Object { return new(rbacv1.RoleBinding) },
	"monitoring.coreos.com/v1/PrometheusRule":  func() metav1.Object { return new(prometheusRule) },
}

// stackObject is an object with its kind, group and version.
type stackObject struct {
	kind string
	metav1.Object
}

func (o stackObject) String() string { return o.kind + " " + o.GetNamespace() + "/" + o.GetName() }

// stackDecode takes apart a manifest, strictly.
func stackDecode(t *testing.T, from string, text []byte) (all []stackObject) {
	t.Helper()
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &meta); err != nil {
			t.Fatalf("%s: %v", from, err)
		}
		empty, ok := stackKinds[meta.APIVersion+"/"+meta.Kind]
		if !ok {
			t.Fatalf("%s: no kind %s/%s here", from, meta.APIVersion, meta.Kind)
		}
		o := stackObject{meta.APIVersion + "/" + meta.Kind, empty()}
		if err := yaml.UnmarshalStrict(doc, o.Object); err != nil {
			t.Fatalf("%s: %s: %v", from, o.kind, err)
		}
		all = append(all, o)
	}
	return all
}

// stackComponents are those of monitoring/components.
var stackComponents = []string{"own-password", "prometheus-operator", "promtail", "saga-id-labels"}

// stackBuild runs kustomize on monitoring/ with some of its components over it; alone builds components without monitoring/.
func stackBuild(t *testing.T, alone bool, components ...string) []stackObject {
	t.Helper()
	overlay, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.EvalSymlinks(product.Root())
	if err != nil {
		t.Fatal(err)
	}
	relative := func(parts ...string) string {
		path, err := filepath.Rel(overlay, filepath.Join(append([]string{root, "monitoring"}, parts...)...))
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	k := map[string]any{"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
	if !alone {
		k["resources"] = []string{relative()}
	}
	var paths []string
	for _, c := range components {
		paths = append(paths, relative("components", c))
	}
	k["components"] = paths
	text, err := yaml.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	result, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), overlay)
	if err != nil {
		t.Fatalf("kustomize build with %v: %v", components, err)
	}
	if text, err = result.AsYaml(); err != nil {
		t.Fatal(err)
	}
	return stackDecode(t, strings.Join(components, "+"), text)
}

// everyStack runs a check on monitoring/ and on each component over it.
func everyStack(t *testing.T, check func(t *testing.T, component string, all []stackObject)) {
	t.Run("alone", func(t *testing.T) { check(t, "", stackBuild(t, false)) })
	for _, c := range stackComponents {
		t.Run(c, func(t *testing.T) { check(t, c, stackBuild(t, false, c)) })
	}
}

// stackFind returns the one object of a type whose name is this, or this with a hash.
func stackFind[T metav1.Object](t *testing.T, all []stackObject, name string) T {
	t.Helper()
	for _, o := range all {
		if x, ok := o.Object.(T); ok && (o.GetName() == name || strings.HasPrefix(o.GetName(), name+"-") && len(o.GetName()) == len(name)+11) {
			return x
		}
	}
	var none T
	t.Fatalf("no %T %s", none, name)
	return none
}

// stackPod is a pod that an object makes.
type stackPod struct {
	object stackObject
	corev1.PodTemplateSpec
}

func stackPods(all []stackObject) (found []stackPod) {
	for _, o := range all {
		switch x := o.Object.(type) {
		case *appsv1.StatefulSet:
			found = append(found, stackPod{o, x.Spec.Template})
		case *appsv1.DaemonSet:
			found = append(found, stackPod{o, x.Spec.Template})
		}
	}
	return found
}

// needsCRD are the kinds that a bare cluster does not know.
var needsCRD = map[string]string{"monitoring.coreos.com/v1/PrometheusRule": "prometheus-operator"}

func TestStackBuilds(t *testing.T) {
	entries, err := os.ReadDir(filepath.Join(product.Root(), "monitoring", "components"))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(stackComponents) {
		t.Errorf("monitoring/components has %v, this test knows %v", entries, stackComponents)
	}
	stackBuild(t, true, "prometheus-operator") // for those who have the rest
	everyStack(t, func(t *testing.T, component string, all []stackObject) {
		seen := make(map[string]bool)
		for _, o := range all {
			if seen[o.String()] {
				t.Errorf("%s is there twice", o)
			}
			seen[o.String()] = true
			if c := needsCRD[o.kind]; c != "" && c != component {
				t.Errorf("%s: a bare cluster does not know it", o)
			}
			if o.kind == "v1/Namespace" && o.GetName() == "sagaz" {
				t.Error("kubectl delete -k monitoring/ would take the relay's namespace away, and the database with it")
			}
			if ns := o.GetNamespace(); ns == "sagaz" && !strings.Contains(o.kind, "/Role") && needsCRD[o.kind] == "" {
				t.Errorf("%s: in the relay's namespace", o)
			} else if ns != "sagaz" && ns != "monitoring" && component != "promtail" && o.kind != "v1/Namespace" {
				t.Errorf("%s: namespace %q", o, ns)
			}
			// kubectl apply keeps the object in an annotation, all of which together may have this size.
			if text, err := json.Marshal(o.Object); err != nil || len(text) > 262144-4096 {
				t.Errorf("%s: %d bytes, too large for kubectl apply (%v)", o, len(text), err)
			}
		}
		if seen["v1/Secret monitoring/grafana-secrets"] == (component == "own-password") {
			t.Error("Secret grafana-secrets")
		}
		if seen["apps/v1/StatefulSet monitoring/alloy"] == (component == "promtail") {
			t.Error("one collector, not none and not two")
		}
		for _, name := range []string{"grafana", "prometheus", "loki", "tempo"} {
			s := stackFind[*appsv1.StatefulSet](t, all, name)
			if len(s.Spec.VolumeClaimTemplates) != 1 {
				t.Errorf("%s has %d volumes that last", name, len(s.Spec.VolumeClaimTemplates))
			}
		}
	})
}

// mayPrivileged are the pods that may not run in a namespace that enforces "restricted", with the reason.
var mayPrivileged = map[string]string{
	"apps/v1/DaemonSet promtail/promtail": "it reads the log files of the node, which belong to root",
}

// TestStackRestricted asks the code that a cluster asks.
func TestStackRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	everyStack(t, func(t *testing.T, _ string, all []stackObject) {
		for _, p := range stackPods(all) {
			name, level := p.object.String(), api.LevelRestricted
			if mayPrivileged[name] != "" {
				level = api.LevelPrivileged
			}
			version := api.LevelVersion{Level: level, Version: api.LatestVersion()}
			if result := policy.AggregateCheckResults(evaluator.EvaluatePod(version, &p.ObjectMeta, &p.Spec)); !result.Allowed {
				t.Errorf("%s: %s", name, result.ForbiddenDetail())
			}
			// A namespace that others may use is not in here, or a removal would take what is theirs.
			if own := p.object.GetNamespace() == "promtail"; own != slices.ContainsFunc(all, func(o stackObject) bool {
				ns, ok := o.Object.(*corev1.Namespace)
				return ok && ns.Name == p.object.GetNamespace()
			}) {
				t.Errorf("%s: its namespace is in the kustomization: want that to be %v", name, own)
			}
			if p.Spec.EnableServiceLinks == nil || *p.Spec.EnableServiceLinks {
				t.Errorf("%s gets variables of every Service", name)
			}
			wantsToken := slices.Contains([]string{"prometheus", "alloy", "promtail"}, p.object.GetName())
			if p.Spec.AutomountServiceAccountToken == nil || *p.Spec.AutomountServiceAccountToken != wantsToken {
				t.Errorf("%s: token of the API server: want %v", name, wantsToken)
			}
			for _, c := range p.Spec.Containers {
				if c.SecurityContext.ReadOnlyRootFilesystem == nil || !*c.SecurityContext.ReadOnlyRootFilesystem {
					t.Errorf("%s may write to its root", name)
				}
				if _, tag, ok := strings.Cut(c.Image, ":"); !ok || tag == "latest" {
					t.Errorf("%s: image %s", name, c.Image)
				}
				if c.ReadinessProbe == nil || c.LivenessProbe == nil && p.object.GetNamespace() == "monitoring" {
					t.Errorf("%s: probes", name)
				}
				for _, r := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
					request, limit := c.Resources.Requests[r], c.Resources.Limits[r]
					if request.IsZero() || limit.IsZero() {
						t.Errorf("%s: no request or limit for %s", name, r)
					}
				}
			}
		}
	})
}

// What a pod mounts is there, and no mount point lies within another mount, where a runtime could not make it.
func TestStackMounts(t *testing.T) {
	everyStack(t, func(t *testing.T, _ string, all []stackObject) {
		there := make(map[string]bool)
		for _, o := range all {
			there[o.kind+" "+o.GetNamespace()+"/"+o.GetName()] = true
		}
		for _, p := range stackPods(all) {
			ns, volumes := p.object.GetNamespace(), make(map[string]bool)
			if !there["v1/ServiceAccount "+ns+"/"+p.Spec.ServiceAccountName] {
				t.Errorf("%s: no ServiceAccount %q", p.object, p.Spec.ServiceAccountName)
			}
			if s, ok := p.object.Object.(*appsv1.StatefulSet); ok {
				volumes[s.Spec.VolumeClaimTemplates[0].Name] = true
				if !there["v1/Service "+ns+"/"+s.Spec.ServiceName] {
					t.Errorf("%s: no Service %q", p.object, s.Spec.ServiceName)
				}
			}
			for _, v := range p.Spec.Volumes {
				volumes[v.Name] = true
				var maps []string
				if v.ConfigMap != nil {
					maps = append(maps, v.ConfigMap.Name)
				}
				if v.Projected != nil {
					for _, s := range v.Projected.Sources {
						maps = append(maps, s.ConfigMap.Name)
					}
				}
				for _, name := range maps {
					if !there["v1/ConfigMap "+ns+"/"+name] {
						t.Errorf("%s: no ConfigMap %s", p.object, name)
					}
				}
			}
			for _, c := range p.Spec.Containers {
				for _, m := range c.VolumeMounts {
					if !volumes[m.Name] {
						t.Errorf("%s: no volume %s", p.object, m.Name)
					}
					for _, outer := range c.VolumeMounts {
						if strings.HasPrefix(m.MountPath, outer.MountPath+"/") {
							t.Errorf("%s: %s is within %s", p.object, m.MountPath, outer.MountPath)
						}
					}
				}
			}
		}
	})
}

// Roles read, no more; each binding has its role and its account; and the policies name pods that are there.
func TestStackRights(t *testing.T) {
	everyStack(t, func(t *testing.T, _ string, all []stackObject) {
		there := make(map[string]bool)
		for _, o := range all {
			there[o.String()] = true
		}
		for _, o := range all {
			switch x := o.Object.(type) {
			case *rbacv1.Role:
				for _, rule := range x.Rules {
					if !slices.Equal(rule.Verbs, []string{"get", "list", "watch"}) || slices.ContainsFunc(rule.Resources, func(r string) bool { return r != "pods" && r != "pods/log" }) {
						t.Errorf("%s: %v", o, rule)
					}
				}
			case *rbacv1.RoleBinding:
				if !there["rbac.authorization.k8s.io/v1/Role "+x.Namespace+"/"+x.RoleRef.Name] {
					t.Errorf("%s: no role %s", o, x.RoleRef.Name)
				}
				for _, s := range x.Subjects {
					if !there["v1/ServiceAccount "+s.Namespace+"/"+s.Name] {
						t.Errorf("%s: no account %s/%s", o, s.Namespace, s.Name)
					}
				}
			case *networkingv1.NetworkPolicy:
				if len(x.Spec.PodSelector.MatchLabels)+len(x.Spec.PodSelector.MatchExpressions) == 0 {
					t.Errorf("%s: it is for pods of others too", o)
				}
				selector, err := metav1.LabelSelectorAsSelector(&x.Spec.PodSelector)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.ContainsFunc(stackPods(all), func(p stackPod) bool { return selector.Matches(labelSet(p.Labels)) }) {
					t.Errorf("%s: for no pod", o)
				}
			}
		}
	})
}

// labelSet is k8s.io/apimachinery's labels.Labels over a map.
type labelSet map[string]string

func (l labelSet) Has(name string) bool              { _, ok := l[name]; return ok }
func (l labelSet) Get(name string) string            { return l[name] }
func (l labelSet) Lookup(name string) (string, bool) { v, ok := l[name]; return v, ok }
