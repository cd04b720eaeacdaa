package kubernetes

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// Every file under k8s/ that holds objects. Each can be applied alone: every object says where it
// belongs, and a pod's account is in its file.
func TestFiles(t *testing.T) {
	root := filepath.Join(product.Root(), "k8s")
	n := 0
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".yaml" || entry.Name() == "kustomization.yaml" {
			return err
		}
		name, _ := filepath.Rel(root, path)
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		objects := decode(t, name, text)
		if len(objects) == 0 {
			t.Errorf("%s: no object", name)
		}
		n++
		for _, o := range objects {
			if (o.GetNamespace() == "") != o.clusterWide() {
				t.Errorf("%s: %s: namespace %q", name, o, o.GetNamespace())
			}
		}
		for _, p := range pods(objects) {
			find[*corev1.ServiceAccount](t, objects, p.Spec.ServiceAccountName)
		}
		return nil
	})
	if err != nil || n < 7 {
		t.Fatalf("%d files: %v", n, err)
	}
	// So is what the README has for users to write themselves.
	n = 0
	for _, m := range regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllStringSubmatch(string(product.Read(t, "k8s/README.md")), -1) {
		n += len(decode(t, "k8s/README.md", []byte(m[1])))
	}
	if n == 0 {
		t.Error("k8s/README.md has no object")
	}
}

// The names that users of the library's manifests know (docs/contract.md), and the selectors, which
// an apply over what is there cannot change.
func TestNames(t *testing.T) {
	there := make(map[string]bool)
	for _, o := range decode(t, "k8s", build(t, "k8s")) {
		there[o.kind[strings.LastIndex(o.kind, "/")+1:]+" "+o.GetNamespace()+"/"+o.GetName()] = true
	}
	for _, want := range []string{
		"StatefulSet sagaz/postgresql", "Service sagaz/postgresql", "Service sagaz/postgres", "Job sagaz/sagaz-migration",
		"ConfigMap sagaz/outbox-worker-config", "Deployment sagaz/outbox-worker", "HorizontalPodAutoscaler sagaz/outbox-worker-hpa",
		"PodDisruptionBudget sagaz/outbox-worker-pdb", "ServiceAccount sagaz/outbox-worker", "Service sagaz/outbox-worker-metrics",
		"NetworkPolicy sagaz/allow-prometheus-scrape",
	} {
		if !there[want] {
			t.Errorf("no %s", want)
		}
	}
	everyBuild(t, "k8s", func(t *testing.T, all []object) {
		selectors := map[string]*metav1.LabelSelector{"outbox-worker": find[*appsv1.Deployment](t, all, "outbox-worker").Spec.Selector}
		for _, s := range each[*appsv1.StatefulSet](all) {
			selectors[s.Name] = s.Spec.Selector
		}
		for name, s := range selectors {
			if got := metav1.FormatLabelSelector(s); got != "app="+name {
				t.Errorf("%s selects %s", name, got)
			}
		}
	})
}

// What `kubectl apply -k` would overwrite, and `kubectl delete -k` take with it: nothing of others.
// The overlay dev has a namespace of its own, and brings it.
func TestBuild(t *testing.T) {
	for _, base := range []string{"k8s", "monitoring"} {
		everyBuild(t, base, func(t *testing.T, all []object) {
			dev, promtail := strings.HasSuffix(t.Name(), "overlays/dev"), strings.HasSuffix(t.Name(), "promtail")
			accounts, maps := make(map[string]bool), make(map[string]bool)
			seen := make(map[string]bool)
			for _, o := range all {
				if seen[o.String()] {
					t.Errorf("%s is there twice", o)
				}
				seen[o.String()] = true
				for _, name := range []string{"name", "component", "part-of"} { // that Kubernetes recommends
					if _, secret := o.Object.(*corev1.Secret); base == "k8s" && !secret && o.kind != "v1/Namespace" && o.GetLabels()["app.kubernetes.io/"+name] == "" {
						t.Errorf("%s has no label app.kubernetes.io/%s", o, name)
					}
				}
				switch o.Object.(type) {
				case *corev1.Namespace:
					if !(dev && o.GetName() == "sagaz-dev") && !(promtail && o.GetName() == "promtail") {
						t.Errorf("%s: a removal would take everybody's objects", o)
					}
				case *corev1.Secret:
					if !dev && o.GetName() != "grafana-secrets" {
						t.Errorf("%s: an apply would overwrite the user's own", o)
					}
				case *corev1.ServiceAccount:
					accounts[o.GetNamespace()+"/"+o.GetName()] = true
				case *corev1.ConfigMap:
					maps[o.GetNamespace()+"/"+o.GetName()] = true
				}
				if ns := o.GetNamespace(); dev && ns != "sagaz-dev" && !o.clusterWide() {
					t.Errorf("%s: it would meet an installation there", o)
				}
				// kubectl apply keeps the object in an annotation, all of which together may have
				// this size.
				if text, err := json.Marshal(o.Object); err != nil || len(text) > 262144-4096 {
					t.Errorf("%s: %d bytes, too large for kubectl apply (%v)", o, len(text), err)
				}
			}
			if seen["v1/Secret monitoring/grafana-secrets"] != (base == "monitoring" && !strings.HasSuffix(t.Name(), "own-password")) {
				t.Error("Secret grafana-secrets")
			}
			if seen["apps/v1/StatefulSet monitoring/alloy"] != (base == "monitoring" && !promtail) {
				t.Error("one collector, not none and not two")
			}
			for _, p := range pods(all) {
				ns := p.object.GetNamespace() + "/"
				if !accounts[ns+p.Spec.ServiceAccountName] {
					t.Errorf("%s: no ServiceAccount %q", p.name, p.Spec.ServiceAccountName)
				}
				for _, v := range p.Spec.Volumes {
					var needed []string
					if v.ConfigMap != nil {
						needed = append(needed, v.ConfigMap.Name)
					}
					if v.Projected != nil {
						for _, s := range v.Projected.Sources {
							if s.ConfigMap != nil {
								needed = append(needed, s.ConfigMap.Name)
							}
						}
					}
					for _, name := range needed {
						if !maps[ns+name] {
							t.Errorf("%s: no ConfigMap %s", p.name, name)
						}
					}
				}
			}
		})
	}
	// A namespace may be in use, by pods that "restricted" would refuse: ours only warns.
	for _, name := range []string{"k8s/namespace.yaml", "monitoring/namespace.yaml"} {
		for _, ns := range each[*corev1.Namespace](decode(t, name, product.Read(t, name))) {
			if level := ns.Labels["pod-security.kubernetes.io/enforce"]; level != "" {
				t.Errorf("%s enforces %s over whoever is there", name, level)
			}
		}
	}
	// kustomize refuses a base that holds its own overlay, so they are next to k8s/, which leads
	// there.
	for _, overlay := range []string{"dev", "production"} {
		if string(build(t, "k8s/overlays/"+overlay)) != string(build(t, "overlays/"+overlay)) {
			t.Errorf("k8s/overlays/%s differs from overlays/%s", overlay, overlay)
		}
	}
}
