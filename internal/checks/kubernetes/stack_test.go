package kubernetes

import (
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// Prometheus scrapes the relay and each part of the stack, once, under the labels that alerts and
// dashboards ask for. Its own code relabels what discovery knows of the pods.
func TestScrape(t *testing.T) {
	var config struct {
		Scrapes []struct {
			Discovery []struct {
				Namespaces struct{ Names []string }
			} `yaml:"kubernetes_sd_configs"`
			Relabel []*relabel.Config `yaml:"relabel_configs"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal(product.Read(t, "monitoring/config/prometheus.yml"), &config); err != nil {
		t.Fatal(err)
	}
	if len(config.Scrapes) != 1 || !slices.Equal(config.Scrapes[0].Discovery[0].Namespaces.Names, []string{"sagaz", "monitoring"}) {
		t.Fatalf("scrapes %+v", config)
	}
	for _, r := range config.Scrapes[0].Relabel {
		if err := r.Validate(model.UTF8Validation); err != nil {
			t.Fatal(err)
		}
	}
	targets := func(namespace, name string, template *corev1.PodTemplateSpec) (found []labels.Labels) {
		for _, port := range template.Spec.Containers[0].Ports {
			discovered := podLabels(namespace, name, template, port)
			if made, keep := relabel.Process(labels.FromMap(discovered), config.Scrapes[0].Relabel...); keep {
				found = append(found, made)
			}
		}
		return found
	}
	worker := targets("sagaz", "outbox-worker-x", &find[*appsv1.Deployment](t, file(t, "outbox-worker.yaml"), "outbox-worker").Spec.Template)
	if len(worker) != 1 {
		t.Fatalf("%d targets of the relay's pod", len(worker))
	}
	for name, want := range map[string]string{"__address__": "10.0.0.7:8000", "__metrics_path__": "/metrics", "job": "outbox-worker", "namespace": "sagaz", "pod": "outbox-worker-x"} {
		if got := worker[0].Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, p := range pods(decode(t, "monitoring", build(t, "monitoring"))) {
		name := p.object.GetName()
		if found := targets("monitoring", name+"-0", &p.PodTemplateSpec); len(found) != 1 || found[0].Get("job") != name {
			t.Errorf("targets of %s: %v", name, found)
		}
	}
}

// podLabels are what discovery knows of a pod's port.
func podLabels(namespace, name string, template *corev1.PodTemplateSpec, port corev1.ContainerPort) map[string]string {
	number := strconv.Itoa(int(port.ContainerPort))
	known := map[string]string{
		"__address__": "10.0.0.7:" + number, "__metrics_path__": "/metrics", "__meta_kubernetes_namespace": namespace,
		"__meta_kubernetes_pod_name": name, "__meta_kubernetes_pod_phase": "Running", "__meta_kubernetes_pod_container_port_number": number,
		"__meta_kubernetes_pod_container_name": template.Spec.Containers[0].Name,
	}
	for kind, all := range map[string]map[string]string{"label": template.Labels, "annotation": template.Annotations} {
		for k, v := range all {
			known["__meta_kubernetes_pod_"+kind+"_"+regexp.MustCompile(`\W`).ReplaceAllString(k, "_")] = v
		}
	}
	return known
}

// Grafana has every dashboard of the directory, each in a ConfigMap of its own.
func TestGrafana(t *testing.T) {
	all := decode(t, "monitoring", build(t, "monitoring"))
	var mounted []string
	for _, v := range find[*appsv1.StatefulSet](t, all, "grafana").Spec.Template.Spec.Volumes {
		if v.Name == "dashboards" {
			for _, s := range v.Projected.Sources {
				mounted = append(mounted, s.ConfigMap.Name)
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(product.Root(), "monitoring", "grafana-dashboard-*.json"))
	if err != nil || len(files) != 4 {
		t.Errorf("%d dashboards (%v)", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		m := find[*corev1.ConfigMap](t, all, name)
		if m.Labels["grafana_dashboard"] != "1" || m.Data[name+".json"] == "" || !slices.Contains(mounted, m.Name) {
			t.Errorf("ConfigMap %s: labels %v, mounted: %v", m.Name, m.Labels, mounted)
		}
	}
}

// TestAddresses: whom the configurations send something to or ask is a Service, of a pod that
// listens there; and a data source is named by a uid that there is.
func TestAddresses(t *testing.T) {
	all := decode(t, "monitoring", build(t, "monitoring"))
	address := regexp.MustCompile(`\burl\s*[:=] "?http://(\w+)(?:\.monitoring\.svc)?:(\d+)`)
	for name, n := range map[string]int{"config/datasources.yaml": 3, "config/config.alloy": 1, "components/promtail/promtail.yml": 1} {
		found := address.FindAllStringSubmatch(string(product.Read(t, filepath.Join("monitoring", name))), -1)
		if len(found) != n {
			t.Errorf("%s has %d addresses, want %d", name, len(found), n)
		}
		for _, m := range found {
			listens := false
			for _, p := range find[*corev1.Service](t, all, m[1]).Spec.Ports {
				for _, c := range find[*appsv1.StatefulSet](t, all, m[1]).Spec.Template.Spec.Containers[0].Ports {
					listens = listens || strconv.Itoa(int(p.Port)) == m[2] && p.TargetPort.StrVal == c.Name
				}
			}
			if !listens {
				t.Errorf("%s: nobody listens at %s:%s", name, m[1], m[2])
			}
		}
	}
	for _, name := range []string{"loki", "tempo"} { // each port of the pod is one that the configuration opens
		text := string(product.Read(t, "monitoring/config/"+name+".yml"))
		for _, p := range find[*appsv1.StatefulSet](t, all, name).Spec.Template.Spec.Containers[0].Ports {
			if !regexp.MustCompile(`:\s*` + strconv.Itoa(int(p.ContainerPort)) + `\b`).MatchString(text) {
				t.Errorf("%s.yml opens no port %d, which is the pod's %s", name, p.ContainerPort, p.Name)
			}
		}
	}
	sources := string(product.Read(t, "monitoring/config/datasources.yaml"))
	for _, m := range regexp.MustCompile(`datasourceUid: (\w+)`).FindAllStringSubmatch(sources, -1) {
		if !strings.Contains(sources, "\n    uid: "+m[1]+"\n") {
			t.Errorf("no data source has the uid %s", m[1])
		}
	}
	for _, dollars := range regexp.MustCompile(`(?m)^[^#\n]*?[^#\n$](\$+)[{\w]`).FindAllStringSubmatch(sources, -1) {
		if dollars[1] != "$$" {
			t.Errorf("Grafana would replace this by the environment: %s", dollars[0])
		}
	}
}

// With a stream a saga, Loki takes more of them: a patch whose target is nothing would be no error.
func TestSagaIDLabels(t *testing.T) {
	all := decode(t, "saga-id-labels", build(t, "monitoring/components/saga-id-labels"))
	if args := find[*appsv1.StatefulSet](t, all, "loki").Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "-ingester.max-global-streams-per-user=50000") {
		t.Errorf("Loki's arguments: %v", args)
	}
	config := find[*corev1.ConfigMap](t, all, "alloy-config").Data
	if want := string(product.Read(t, "monitoring/components/saga-id-labels/labels.alloy")); len(config) != 2 || config["labels.alloy"] != want {
		t.Errorf("Alloy has %d files, of which labels.alloy is the component's: %v", len(config), config["labels.alloy"] == want)
	}
}
