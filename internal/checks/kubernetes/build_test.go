package kubernetes

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// components are those of k8s/components. Each must fit over the base.
var components = []string{
	"cloudnative-pg", "default-deny", "external-broker", "external-database", "external-secrets", "image-pull-secret", "keda", "priority-class", "prometheus-adapter",
	"prometheus-operator", "tls",
}

// builds are all kustomizations: the base, the overlays, and each component over the base.
func builds() []string {
	all := []string{"k8s", "overlays/dev", "overlays/production"}
	for _, c := range components {
		all = append(all, "k8s/components/"+c)
	}
	return all
}

var built struct {
	sync.Mutex
	text map[string][]byte
}

// build runs kustomize on a directory of the repository. A component is built over the base, as a user's overlay would.
func build(t testing.TB, dir string) []byte {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if text, ok := built.text[dir]; ok {
		return text
	}
	at := filepath.Join(product.Root(), dir)
	if filepath.Base(filepath.Dir(at)) == "components" {
		overlay := t.TempDir()
		relative := func(path string) string {
			real, err := filepath.EvalSymlinks(overlay)
			if err != nil {
				t.Fatal(err)
			}
			rel, err := filepath.Rel(real, path)
			if err != nil {
				t.Fatal(err)
			}
			return rel
		}
		text := "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [" + relative(filepath.Join(product.Root(), "k8s")) + "]\ncomponents: [" + relative(at) + "]\n"
		if err := os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
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
	if built.text == nil {
		built.text = make(map[string][]byte)
	}
	built.text[dir] = text
	return text
}

// pod is a pod that an object makes.
type pod struct {
	name   string // of the object, with its kind
	object object
	meta   metav1.ObjectMeta
	spec   corev1.PodSpec
}

// pods are those that the objects make.
func pods(all []object) []pod {
	var found []pod
	for _, o := range all {
		var template corev1.PodTemplateSpec
		switch x := o.Object.(type) {
		case *appsv1.Deployment:
			template = x.Spec.Template
		case *appsv1.StatefulSet:
			template = x.Spec.Template
		case *batchv1.Job:
			template = x.Spec.Template
		default:
			continue
		}
		found = append(found, pod{name: o.String(), object: o, meta: template.ObjectMeta, spec: template.Spec})
	}
	return found
}

// everyBuild runs a check on each kustomization.
func everyBuild(t *testing.T, check func(t *testing.T, all []object)) {
	for _, dir := range builds() {
		t.Run(dir, func(t *testing.T) { check(t, decode(t, dir, build(t, dir))) })
	}
}

func TestBuild(t *testing.T) {
	want, err := os.ReadDir(filepath.Join(product.Root(), "k8s", "components"))
	if err != nil {
		t.Fatal(err)
	}
	if len(want) != len(components) {
		t.Errorf("k8s/components has %v, this test knows %v", want, components)
	}
	everyBuild(t, func(t *testing.T, all []object) {
		seen := make(map[string]bool)
		for _, o := range all {
			if seen[o.String()] {
				t.Errorf("%s is there twice", o)
			}
			seen[o.String()] = true
			if o.kind == "v1/Secret" && t.Name() != "TestBuild/overlays/dev" {
				t.Errorf("%s: an apply would overwrite the user's own", o)
			}
		}
		// `kubectl delete -k` would take a namespace with all that is in it, so only the overlay that has one of its own brings it.
		namespace := "sagaz"
		if dev := t.Name() == "TestBuild/overlays/dev"; dev {
			namespace = "sagaz-dev"
		}
		for _, o := range all {
			if o.kind == "v1/Namespace" && o.GetName() != "sagaz-dev" {
				t.Errorf("%s: a removal would take everybody's objects", o)
			}
			if ns := o.GetNamespace(); namespace == "sagaz-dev" && ns != namespace && !clusterWide[o.kind] {
				t.Errorf("%s: it would meet an installation there", o)
			}
		}
		if !seen["apps/v1/Deployment "+namespace+"/outbox-worker"] {
			t.Error("no worker")
		}
	})
}

// TestOverlaysLink: kustomize refuses a base that holds its own overlay, so the overlays lie beside k8s/, and k8s/overlays leads there.
func TestOverlaysLink(t *testing.T) {
	for _, overlay := range []string{"dev", "production"} {
		if string(build(t, "k8s/overlays/"+overlay)) != string(build(t, "overlays/"+overlay)) {
			t.Errorf("k8s/overlays/%s differs from overlays/%s", overlay, overlay)
		}
	}
}
