package kubernetes

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// strict decodes the kinds that every cluster knows. A field that they do not have is an error.
var strict = func() runtime.Serializer {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, autoscalingv2.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme,
		policyv1.AddToScheme, rbacv1.AddToScheme, schedulingv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
}()

// brought are the groups whose kinds operators bring. Their fields are not checked here.
var brought = []string{"apiregistration.k8s.io", "external-secrets.io", "keda.sh", "monitoring.coreos.com", "postgresql.cnpg.io"}

// clusterWide are the kinds without a namespace.
var clusterWide = []string{"v1/Namespace", "PriorityClass", "APIService", "ClusterRole", "ClusterRoleBinding"}

// object is one document of a manifest.
type object struct {
	kind string // with its group and version
	metav1.Object
}

func (o object) String() string { return o.kind + " " + o.GetNamespace() + "/" + o.GetName() }

func (o object) clusterWide() bool {
	return slices.ContainsFunc(clusterWide, func(kind string) bool { return strings.HasSuffix("/"+o.kind, "/"+kind) })
}

// decode takes apart a manifest.
func decode(t testing.TB, from string, text []byte) (all []object) {
	t.Helper()
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &meta); err != nil {
			t.Fatalf("%s: %v", from, err)
		}
		if meta.Kind == "" {
			continue // a comment
		}
		group, _, _ := strings.Cut(meta.APIVersion, "/")
		var into runtime.Object
		if slices.Contains(brought, group) {
			into = new(unstructured.Unstructured)
			if err := yaml.Unmarshal(doc, into); err != nil {
				t.Fatalf("%s: %v", from, err)
			}
		} else {
			var err error
			if into, _, err = strict.Decode(doc, nil, nil); err != nil {
				t.Errorf("%s: %s: %v", from, meta.Kind, err)
				continue
			}
		}
		o := object{meta.APIVersion + "/" + meta.Kind, into.(metav1.Object)}
		if o.GetName() == "" {
			t.Errorf("%s: %s without a name", from, o.kind)
		}
		all = append(all, o)
	}
	return all
}

// find returns the one object of that type and name; kustomize may have added a hash to the name.
func find[T metav1.Object](t testing.TB, all []object, name string) T {
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

// each returns all objects of that type.
func each[T metav1.Object](all []object) (found []T) {
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

// builds are the kustomizations of k8s/ and monitoring/: the bases, the overlays, and each
// component over its base.
func builds(t testing.TB, base string) []string {
	t.Helper()
	all := []string{base}
	if base == "k8s" {
		all = append(all, "overlays/dev", "overlays/production")
	}
	components, err := os.ReadDir(filepath.Join(product.Root(), base, "components"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range components {
		all = append(all, base+"/components/"+c.Name())
	}
	return all
}

// everyBuild runs a check on each kustomization of a base.
func everyBuild(t *testing.T, base string, check func(t *testing.T, all []object)) {
	t.Helper()
	for _, dir := range builds(t, base) {
		t.Run(dir, func(t *testing.T) { check(t, decode(t, dir, build(t, dir))) })
	}
}

var built sync.Map // text by directory

// build runs kustomize on a directory of the repository. A component is built over its base, as a
// user's overlay would.
func build(t testing.TB, dir string) []byte {
	t.Helper()
	if text, ok := built.Load(dir); ok {
		return text.([]byte)
	}
	at := filepath.Join(product.Root(), dir)
	if filepath.Base(filepath.Dir(dir)) == "components" {
		overlay, err := filepath.EvalSymlinks(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		up, err := filepath.Rel(overlay, product.Root())
		if err != nil {
			t.Fatal(err)
		}
		text := "kind: Kustomization\nresources: [" + filepath.Join(up, filepath.Dir(filepath.Dir(dir))) + "]\ncomponents: [" + filepath.Join(up, dir) + "]\n"
		write(t, overlay, "kustomization.yaml", text)
		at = overlay
	}
	result, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), at)
	if err != nil {
		t.Fatalf("kustomize build %s: %v", dir, err)
	}
	text, err := result.AsYaml()
	if err != nil {
		t.Fatalf("kustomize build %s: %v", dir, err)
	}
	built.Store(dir, text)
	return text
}

// pod is a pod that an object makes.
type pod struct {
	name   string // of the object, with its kind
	object object
	corev1.PodTemplateSpec
}

// pods are those that the objects make.
func pods(all []object) (found []pod) {
	for _, o := range all {
		switch x := o.Object.(type) {
		case *appsv1.Deployment:
			found = append(found, pod{o.String(), o, x.Spec.Template})
		case *appsv1.StatefulSet:
			found = append(found, pod{o.String(), o, x.Spec.Template})
		case *appsv1.DaemonSet:
			found = append(found, pod{o.String(), o, x.Spec.Template})
		case *batchv1.Job:
			found = append(found, pod{o.String(), o, x.Spec.Template})
		}
	}
	return found
}
