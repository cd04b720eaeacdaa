package kubernetes

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// kinds makes an empty object of every kind that the manifests use. An unknown kind, or a field that it does not have, is an error.
var kinds = map[string]func() metav1.Object{
	"v1/Namespace":      func() metav1.Object { return new(corev1.Namespace) },
	"v1/ConfigMap":      func() metav1.Object { return new(corev1.ConfigMap) },
	"v1/Secret":         func() metav1.Object { return new(corev1.Secret) },
	"v1/Service":        func() metav1.Object { return new(corev1.Service) },
	"v1/ServiceAccount": func() metav1.Object { return new(corev1.ServiceAccount) },

	"apps/v1/Deployment":                              func() metav1.Object { return new(appsv1.Deployment) },
	"apps/v1/StatefulSet":                             func() metav1.Object { return new(appsv1.StatefulSet) },
	"batch/v1/Job":                                    func() metav1.Object { return new(batchv1.Job) },
	"autoscaling/v2/HorizontalPodAutoscaler":          func() metav1.Object { return new(autoscalingv2.HorizontalPodAutoscaler) },
	"policy/v1/PodDisruptionBudget":                   func() metav1.Object { return new(policyv1.PodDisruptionBudget) },
	"networking.k8s.io/v1/NetworkPolicy":              func() metav1.Object { return new(networkingv1.NetworkPolicy) },
	"rbac.authorization.k8s.io/v1/Role":               func() metav1.Object { return new(rbacv1.Role) },
	"rbac.authorization.k8s.io/v1/RoleBinding":        func() metav1.Object { return new(rbacv1.RoleBinding) },
	"rbac.authorization.k8s.io/v1/ClusterRole":        func() metav1.Object { return new(rbacv1.ClusterRole) },
	"rbac.authorization.k8s.io/v1/ClusterRoleBinding": func() metav1.Object { return new(rbacv1.ClusterRoleBinding) },
	"scheduling.k8s.io/v1/PriorityClass":              func() metav1.Object { return new(schedulingv1.PriorityClass) },

	"apiregistration.k8s.io/v1/APIService":  func() metav1.Object { return new(apiService) },
	"keda.sh/v1alpha1/ScaledObject":         func() metav1.Object { return new(scaledObject) },
	"monitoring.coreos.com/v1/PodMonitor":   func() metav1.Object { return new(podMonitor) },
	"external-secrets.io/v1/SecretStore":    func() metav1.Object { return new(secretStore) },
	"external-secrets.io/v1/ExternalSecret": func() metav1.Object { return new(externalSecret) },
	"postgresql.cnpg.io/v1/Cluster":         func() metav1.Object { return new(cnpgCluster) },
}

// clusterWide are the kinds without a namespace.
var clusterWide = map[string]bool{
	"v1/Namespace": true, "scheduling.k8s.io/v1/PriorityClass": true, "apiregistration.k8s.io/v1/APIService": true,
	"rbac.authorization.k8s.io/v1/ClusterRole": true, "rbac.authorization.k8s.io/v1/ClusterRoleBinding": true,
}

// object is one document of a manifest.
type object struct {
	kind string // with its group and version
	text []byte
	metav1.Object
}

func (o object) String() string { return o.kind + " " + o.GetNamespace() + "/" + o.GetName() }

// decode takes apart a manifest.
func decode(t testing.TB, from string, text []byte) []object {
	t.Helper()
	var all []object
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &meta); err != nil {
			t.Fatalf("%s: %v", from, err)
		}
		kind := meta.APIVersion + "/" + meta.Kind
		if kind == "/" {
			continue // a comment
		}
		empty, ok := kinds[kind]
		if !ok {
			t.Errorf("%s: no kind %s here", from, kind)
			continue
		}
		o := object{kind: kind, text: doc, Object: empty()}
		if err := yaml.UnmarshalStrict(doc, o.Object); err != nil {
			t.Errorf("%s: %s: %v", from, kind, err)
			continue
		}
		if o.GetName() == "" {
			t.Errorf("%s: %s without a name", from, kind)
		}
		all = append(all, o)
	}
	return all
}

// find returns the one object of that type and name.
func find[T metav1.Object](t testing.TB, all []object, name string) T {
	t.Helper()
	for _, o := range all {
		if x, ok := o.Object.(T); ok && o.GetName() == name {
			return x
		}
	}
	var none T
	t.Fatalf("no %T %s", none, name)
	return none
}

// each returns all objects of that type.
func each[T metav1.Object](all []object) []T {
	var found []T
	for _, o := range all {
		if x, ok := o.Object.(T); ok {
			found = append(found, x)
		}
	}
	return found
}

// file decodes one of the files of k8s/.
func file(t testing.TB, name string) []object {
	t.Helper()
	return decode(t, name, product.Read(t, filepath.Join("k8s", name)))
}

// theFiles are those that docs/contract.md names, in the quick start's order.
var theFiles = []string{"namespace.yaml", "secrets-example.yaml", "postgresql.yaml", "migration-job.yaml", "configmap.yaml", "outbox-worker.yaml", "network-policies.yaml"}

// TestFiles decodes every file under k8s/ that holds objects. Each can be applied alone: every object says where it belongs, and
// what a pod needs beside secrets is in its file or optional.
func TestFiles(t *testing.T) {
	root := filepath.Join(product.Root(), "k8s")
	seen := make(map[string]bool)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".yaml" || entry.Name() == "kustomization.yaml" {
			return err
		}
		name, _ := filepath.Rel(root, path)
		seen[name] = true
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Contains(text, []byte("\t")) {
			t.Errorf("%s: a tab", name)
		}
		accounts := make(map[string]bool)
		objects := decode(t, name, text)
		if len(objects) == 0 {
			t.Errorf("%s: no object", name)
		}
		for _, o := range objects {
			if (o.GetNamespace() == "") != clusterWide[o.kind] {
				t.Errorf("%s: %s: namespace %q", name, o, o.GetNamespace())
			}
			if o.kind == "v1/ServiceAccount" {
				accounts[o.GetName()] = true
			}
		}
		for _, p := range pods(objects) {
			if !accounts[p.spec.ServiceAccountName] {
				t.Errorf("%s: %s wants ServiceAccount %q, which another file makes", name, p.name, p.spec.ServiceAccountName)
			}
			for _, c := range p.spec.Containers {
				for _, from := range c.EnvFrom {
					if from.ConfigMapRef == nil || from.ConfigMapRef.Optional == nil || !*from.ConfigMapRef.Optional {
						t.Errorf("%s: %s needs %+v", name, p.name, from)
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range theFiles {
		if !seen[name] {
			t.Errorf("k8s/%s is not there", name)
		}
	}
}

// TestNames has the names that users of the library's manifests know (docs/contract.md).
func TestNames(t *testing.T) {
	all := make(map[string]bool)
	for _, name := range theFiles {
		for _, o := range file(t, name) {
			all[name+" "+o.kind[strings.LastIndex(o.kind, "/")+1:]+" "+o.GetName()] = true
			if ns := o.GetNamespace(); ns != "" && ns != "sagaz" {
				t.Errorf("%s: %s: want namespace sagaz", name, o)
			}
		}
	}
	for _, want := range []string{
		"namespace.yaml Namespace sagaz",
		"postgresql.yaml StatefulSet postgresql",
		"postgresql.yaml Service postgresql",
		"postgresql.yaml Service postgres",
		"migration-job.yaml Job sagaz-migration",
		"configmap.yaml ConfigMap outbox-worker-config",
		"outbox-worker.yaml Deployment outbox-worker",
		"outbox-worker.yaml HorizontalPodAutoscaler outbox-worker-hpa",
		"outbox-worker.yaml PodDisruptionBudget outbox-worker-pdb",
		"outbox-worker.yaml ServiceAccount outbox-worker",
		"outbox-worker.yaml Service outbox-worker-metrics",
		"secrets-example.yaml Secret sagaz-db-credentials",
		"secrets-example.yaml Secret sagaz-broker-credentials",
		"network-policies.yaml NetworkPolicy default-deny",
		"network-policies.yaml NetworkPolicy allow-prometheus-scrape",
	} {
		if !all[want] {
			t.Errorf("no %s", want)
		}
	}
	worker := find[*appsv1.Deployment](t, file(t, "outbox-worker.yaml"), "outbox-worker")
	if worker.Spec.Selector.MatchLabels["app"] != "outbox-worker" {
		t.Errorf("selector %v: want app=outbox-worker", worker.Spec.Selector.MatchLabels)
	}
	if worker.Spec.Replicas != nil {
		t.Error("the Deployment has replicas: every apply would overrule the autoscaler")
	}
	for _, want := range []string{"sagaz-db-credentials connection-string", "sagaz-broker-credentials bootstrap-servers"} {
		secret, key, _ := strings.Cut(want, " ")
		if _, ok := find[*corev1.Secret](t, file(t, "secrets-example.yaml"), secret).StringData[key]; !ok {
			t.Errorf("no key %s in the example of secret %s", key, secret)
		}
	}
}
