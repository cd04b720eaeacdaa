package kubernetes

import (
	"encoding/json"
	"maps"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// secretsDir is where the pods of the product have their secrets, by the manifests.
const secretsDir = "/etc/sagaz/secrets"

// ours is a container that runs the product's image.
func ours(c corev1.Container) bool { return strings.Contains(c.Image, "sagaz-relay") }

// TestSettings compares what the manifests set with what the binary knows: a variable that is renamed turns it red.
func TestSettings(t *testing.T) {
	known := product.Settings(t)
	everyBuild(t, func(t *testing.T, all []object) {
		containers := 0
		for _, p := range pods(all) {
			for _, c := range p.spec.Containers {
				if !ours(c) {
					continue
				}
				containers++
				for _, e := range c.Env {
					if _, ok := known[e.Name]; !ok && e.Name != "GOMEMLIMIT" { // the Go runtime's
						t.Errorf("%s: %s: the binary knows no such setting", p.name, e.Name)
					}
					if known[e.Name].Secret && e.Value != "" {
						t.Errorf("%s: %s is a secret, and has a value here", p.name, e.Name)
					}
				}
				for name := range secretFiles(p.spec) {
					if _, ok := known[name]; !ok {
						t.Errorf("%s: file %s: the binary knows no such setting", p.name, name)
					}
				}
				if dir := variable(c, "RELAY_SECRETS_DIR"); dir != secretsDir || mountOf(c, "secrets") != secretsDir {
					t.Errorf("%s: RELAY_SECRETS_DIR=%s, secrets are mounted at %s, want %s", p.name, dir, mountOf(c, "secrets"), secretsDir)
				}
			}
		}
		if containers < 2 {
			t.Errorf("%d containers of the product, want the worker's and the migration's", containers)
		}
		for name := range find[*corev1.ConfigMap](t, all, "outbox-worker-config").Data {
			if s, ok := known[name]; !ok || s.Secret {
				t.Errorf("ConfigMap: %s: no such setting, or a secret", name)
			}
		}
	})
}

// TestConfigMapIsTheDefault: with it and without it, the worker is the same.
func TestConfigMapIsTheDefault(t *testing.T) {
	config := find[*corev1.ConfigMap](t, file(t, "configmap.yaml"), "outbox-worker-config")
	cmd := exec.Command(product.Binary(t), "settings", "--json")
	cmd.Env = nil
	for name, value := range config.Data {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var settings []struct {
		Names                  []string
		Default, Value, Source string
	}
	if err := json.Unmarshal(out, &settings); err != nil {
		t.Fatal(err)
	}
	set := 0
	for _, s := range settings {
		if s.Source == "" {
			continue
		}
		set++
		if s.Value != s.Default {
			t.Errorf("%s is %s, the default %s", s.Source, s.Value, s.Default)
		}
	}
	if set != len(config.Data) {
		t.Errorf("%d settings come from it, it has %d", set, len(config.Data))
	}
}

// variable is the value of a container's variable.
func variable(c corev1.Container, name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

func mountOf(c corev1.Container, volume string) string {
	for _, m := range c.VolumeMounts {
		if m.Name == volume {
			return m.MountPath
		}
	}
	return ""
}

// fromSecret says where a file comes from.
type fromSecret struct {
	secret, key string
	optional    bool
}

// secretFiles are the files of the volume "secrets", by name.
func secretFiles(spec corev1.PodSpec) map[string]fromSecret {
	files := make(map[string]fromSecret)
	for _, v := range spec.Volumes {
		if v.Name != "secrets" || v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			for _, item := range s.Secret.Items {
				files[item.Path] = fromSecret{s.Secret.Name, item.Key, s.Secret.Optional != nil && *s.Secret.Optional}
			}
		}
	}
	return files
}

// TestSecretKeys: what is read is in the example, by the same name; what is required is there uncommented, and nothing is there for nobody.
func TestSecretKeys(t *testing.T) {
	example := make(map[string]bool)  // "secret key"
	optional := make(map[string]bool) // in the example as a comment
	secret := ""
	for _, line := range strings.Split(string(product.Read(t, "k8s/secrets-example.yaml")), "\n") {
		if m := regexp.MustCompile(`^  name: (\S+)$`).FindStringSubmatch(line); m != nil {
			secret = m[1]
		}
		if m := regexp.MustCompile(`^  (# )?([a-z-]+): "`).FindStringSubmatch(line); m != nil {
			example[secret+" "+m[2]] = true
			optional[secret+" "+m[2]] = m[1] != ""
		}
	}
	read := make(map[string]bool)
	for _, p := range pods(decode(t, "k8s", build(t, "k8s"))) {
		files := secretFiles(p.spec)
		if len(files) == 0 {
			t.Errorf("%s reads no secret", p.name)
		}
		for path, f := range files {
			name := f.secret + " " + f.key
			read[name] = true
			if !example[name] || optional[name] && !f.optional {
				t.Errorf("%s reads %s as %s, which secrets-example.yaml does not have", p.name, name, path)
			}
			if required := f.key == "connection-string"; required == f.optional {
				t.Errorf("%s: %s: optional %v", p.name, name, f.optional)
			}
		}
	}
	for name := range example {
		if !read[name] {
			t.Errorf("secrets-example.yaml has %s, which nothing reads", name)
		}
	}
	for _, e := range each[*externalSecret](decode(t, "external-secrets", build(t, "k8s/components/external-secrets"))) {
		if e.Name != e.Spec.Target.Name || e.Spec.SecretStoreRef.Name != "vault" {
			t.Errorf("ExternalSecret %s makes %s from %s", e.Name, e.Spec.Target.Name, e.Spec.SecretStoreRef.Name)
		}
		for _, d := range e.Spec.Data {
			if name := e.Spec.Target.Name + " " + d.SecretKey; !read[name] {
				t.Errorf("ExternalSecret makes %s, which nothing reads", name)
			}
		}
	}
}

// TestReferences: selectors find pods, and targets exist.
func TestReferences(t *testing.T) {
	everyBuild(t, func(t *testing.T, all []object) {
		here := pods(all)
		cnpg := each[*cnpgCluster](all)
		for _, c := range cnpg { // the operator makes its pods
			ls := labels.Set{"cnpg.io/cluster": c.Name, "cnpg.io/instanceRole": "primary"}
			maps.Copy(ls, c.Spec.InheritedMetadata.Labels)
			here = append(here, pod{
				name: "Cluster", meta: metav1.ObjectMeta{Labels: ls, Namespace: c.Namespace}, object: object{Object: c},
				spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "postgres", Ports: []corev1.ContainerPort{{Name: "postgresql", ContainerPort: 5432}, {ContainerPort: 8000}}}}},
			})
		}
		selected := func(what, namespace string, selector labels.Selector) (found []pod) {
			for _, p := range here {
				if p.object.GetNamespace() == namespace && selector.Matches(labels.Set(p.meta.Labels)) {
					found = append(found, p)
				}
			}
			if len(found) == 0 {
				t.Errorf("%s: no pod is like %s", what, selector)
			}
			return found
		}
		deployments := make(map[string]bool)
		for _, o := range all {
			var selector *metav1.LabelSelector
			var template metav1.ObjectMeta
			switch x := o.Object.(type) {
			case *appsv1.Deployment:
				selector, template = x.Spec.Selector, x.Spec.Template.ObjectMeta
				deployments[x.Name] = true
			case *appsv1.StatefulSet:
				selector, template = x.Spec.Selector, x.Spec.Template.ObjectMeta
				if governing := find[*corev1.Service](t, all, x.Spec.ServiceName); governing.Spec.ClusterIP != corev1.ClusterIPNone {
					t.Errorf("%s: its Service has an address of its own", o)
				}
			default:
				continue
			}
			if s, err := metav1.LabelSelectorAsSelector(selector); err != nil || !s.Matches(labels.Set(template.Labels)) {
				t.Errorf("%s: its selector %v does not find its own pods %v", o, selector, template.Labels)
			}
		}
		for _, s := range each[*corev1.Service](all) {
			for _, p := range selected("Service "+s.Name, s.Namespace, labels.SelectorFromSet(s.Spec.Selector)) {
				for _, port := range s.Spec.Ports {
					if !hasPort(p.spec, port.TargetPort) {
						t.Errorf("Service %s: %s has no port %v", s.Name, p.name, port.TargetPort.String())
					}
				}
			}
		}
		for _, x := range each[*policyv1.PodDisruptionBudget](all) {
			s, err := metav1.LabelSelectorAsSelector(x.Spec.Selector)
			if err != nil {
				t.Fatal(err)
			}
			selected("PodDisruptionBudget "+x.Name, x.Namespace, s)
		}
		for _, x := range each[*podMonitor](all) {
			s, err := metav1.LabelSelectorAsSelector(&x.Spec.Selector)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range selected("PodMonitor "+x.Name, x.Namespace, s) {
				if !hasPort(p.spec, intstr.FromString(x.Spec.PodMetricsEndpoints[0].Port)) {
					t.Errorf("PodMonitor %s: no such port", x.Name)
				}
			}
		}
		for _, x := range each[*networkingv1.NetworkPolicy](all) {
			s, err := metav1.LabelSelectorAsSelector(&x.Spec.PodSelector)
			if err != nil {
				t.Fatal(err)
			}
			if x.Name == "outbox-client" { // the user's own pods
				continue
			}
			for _, p := range selected("NetworkPolicy "+x.Name, x.Namespace, s) {
				for _, rule := range x.Spec.Ingress {
					for _, port := range rule.Ports {
						if !hasPort(p.spec, *port.Port) {
							t.Errorf("NetworkPolicy %s: %s has no port %s", x.Name, p.name, port.Port)
						}
					}
				}
			}
			// Peers within the namespace exist, too.
			for _, peer := range peers(x) {
				if peer.NamespaceSelector != nil || peer.PodSelector == nil || peer.PodSelector.MatchLabels["outbox-client"] != "" {
					continue
				}
				if strings.HasSuffix(t.Name(), "external-database") && peer.PodSelector.MatchLabels["app"] == "postgresql" {
					continue // it is elsewhere, and the base's policy lets nobody there
				}
				s, err := metav1.LabelSelectorAsSelector(peer.PodSelector)
				if err != nil {
					t.Fatal(err)
				}
				selected("NetworkPolicy "+x.Name, x.Namespace, s)
			}
		}
		// One autoscaler, for a Deployment that is there.
		scalers := 0
		for _, x := range each[*autoscalingv2.HorizontalPodAutoscaler](all) {
			scalers++
			if x.Spec.ScaleTargetRef.Kind != "Deployment" || x.Spec.ScaleTargetRef.APIVersion != "apps/v1" || !deployments[x.Spec.ScaleTargetRef.Name] {
				t.Errorf("%s scales %+v", x.Name, x.Spec.ScaleTargetRef)
			}
		}
		for _, x := range each[*scaledObject](all) {
			scalers++
			if !deployments[x.Spec.ScaleTargetRef.Name] {
				t.Errorf("%s scales %+v", x.Name, x.Spec.ScaleTargetRef)
			}
		}
		if scalers != 1 {
			t.Errorf("%d autoscalers, want one", scalers)
		}
	})
}

func hasPort(spec corev1.PodSpec, port intstr.IntOrString) bool {
	for _, c := range spec.Containers {
		for _, p := range c.Ports {
			if port.Type == intstr.String && p.Name == port.StrVal || port.Type == intstr.Int && p.ContainerPort == port.IntVal {
				return true
			}
		}
	}
	return false
}

func peers(x *networkingv1.NetworkPolicy) (all []networkingv1.NetworkPolicyPeer) {
	for _, rule := range x.Spec.Ingress {
		all = append(all, rule.From...)
	}
	for _, rule := range x.Spec.Egress {
		all = append(all, rule.To...)
	}
	return all
}

// TestScrapeIsOneElement: namespace and label in one element are both asked; in two, either would do.
func TestScrapeIsOneElement(t *testing.T) {
	x := find[*networkingv1.NetworkPolicy](t, file(t, "network-policies.yaml"), "allow-prometheus-scrape")
	from := x.Spec.Ingress[0].From
	if len(from) != 1 || from[0].NamespaceSelector == nil || from[0].PodSelector == nil {
		t.Errorf("got %+v", from)
	}
	deny := find[*networkingv1.NetworkPolicy](t, file(t, "network-policies.yaml"), "default-deny")
	if len(deny.Spec.PolicyTypes) != 2 || len(deny.Spec.Ingress)+len(deny.Spec.Egress) != 0 {
		t.Errorf("default-deny: %+v", deny.Spec)
	}
}

// TestWorkerNumbers are those that depend on each other or on the binary.
func TestWorkerNumbers(t *testing.T) {
	known := product.Settings(t)
	drain, err := time.ParseDuration(known["RELAY_DRAIN_TIMEOUT"].Default)
	if err != nil {
		t.Fatal(err)
	}
	port := known["METRICS_PORT"].Default
	everyBuild(t, func(t *testing.T, all []object) {
		worker := find[*appsv1.Deployment](t, all, "outbox-worker")
		spec := worker.Spec.Template.Spec
		if worker.Spec.Replicas != nil {
			t.Error("the Deployment has replicas: every apply would overrule the autoscaler")
		}
		c := spec.Containers[0]
		if grace := time.Duration(*spec.TerminationGracePeriodSeconds) * time.Second; grace < 2*drain {
			t.Errorf("killed after %s, and draining may take %s", grace, drain)
		}
		if c.Lifecycle != nil {
			t.Error("a hook: there is no shell, and no traffic to drain")
		}
		limit := c.Resources.Limits[corev1.ResourceMemory]
		gomem := resource.MustParse(strings.TrimSuffix(variable(c, "GOMEMLIMIT"), "B"))
		if share := float64(gomem.Value()) / float64(limit.Value()); share < 0.88 || share > 0.92 {
			t.Errorf("GOMEMLIMIT is %.2f of the memory limit", share)
		}
		if got := strconv.Itoa(int(c.Ports[0].ContainerPort)); got != port || worker.Spec.Template.Annotations["prometheus.io/port"] != port {
			t.Errorf("port %s and %v, the binary serves %s", got, worker.Spec.Template.Annotations, port)
		}
		if find[*corev1.ConfigMap](t, all, "outbox-worker-config").Data["METRICS_PORT"] != port {
			t.Error("METRICS_PORT of the ConfigMap is another one")
		}
		if start := c.StartupProbe.PeriodSeconds * c.StartupProbe.FailureThreshold; start < 60 {
			t.Errorf("killed %d s after the start", start)
		}
		for _, p := range pods(all) {
			for _, c := range p.spec.Containers {
				image, _, _ := strings.Cut(c.Image, "@")
				if !strings.Contains(c.Image, "@sha256:") && (!strings.Contains(image, ":") || strings.HasSuffix(image, ":latest")) {
					t.Errorf("%s: image %s has no tag", p.name, c.Image)
				}
			}
		}
	})
}

// parameters are the settings that the StatefulSet starts PostgreSQL with.
func parameters(t testing.TB, all []object) map[string]string {
	t.Helper()
	args := find[*appsv1.StatefulSet](t, all, "postgresql").Spec.Template.Spec.Containers[0].Args
	if len(args) == 0 || args[0] != "postgres" || len(args)%2 != 1 {
		t.Fatalf("args %q: want postgres -c name=value …", args)
	}
	settings := make(map[string]string)
	for i := 1; i < len(args); i += 2 {
		name, value, ok := strings.Cut(args[i+1], "=")
		if args[i] != "-c" || !ok {
			t.Fatalf("args: %s %s", args[i], args[i+1])
		}
		settings[name] = value
	}
	return settings
}

// gigabytes reads 8GB and 512MB as PostgreSQL does.
func gigabytes(t testing.TB, value string) float64 {
	t.Helper()
	q, err := resource.ParseQuantity(strings.TrimSuffix(value, "B") + "i")
	if err != nil {
		t.Fatalf("%q: %v", value, err)
	}
	return float64(q.Value()) / (1 << 30)
}

// TestVolume: what a slot may hold back, and what WAL takes besides, leaves half of the volume to the data.
func TestVolume(t *testing.T) {
	for _, dir := range []string{"k8s", "overlays/dev", "overlays/production"} {
		all := decode(t, dir, build(t, dir))
		set := find[*appsv1.StatefulSet](t, all, "postgresql")
		volume := set.Spec.VolumeClaimTemplates[0].Spec.Resources.Requests[corev1.ResourceStorage]
		p := parameters(t, all)
		if p["wal_level"] != "logical" {
			t.Errorf("%s: wal_level=%s", dir, p["wal_level"])
		}
		wal, most := gigabytes(t, p["max_slot_wal_keep_size"])+gigabytes(t, p["max_wal_size"]), float64(volume.Value())/(1<<30)/2
		if wal > most {
			t.Errorf("%s: WAL may take %.1f GB of a volume of %s", dir, wal, volume.String())
		}
		spec := set.Spec.Template.Spec
		if set.Spec.VolumeClaimTemplates[0].Spec.StorageClassName != nil {
			t.Errorf("%s: a class of storage that the cluster may not have", dir)
		}
		if got := mountOf(spec.Containers[0], "data"); got != "/var/lib/postgresql" {
			t.Errorf("%s: the volume is mounted at %s; image 18 wants /var/lib/postgresql", dir, got)
		}
		if *spec.TerminationGracePeriodSeconds < 60 {
			t.Errorf("%s: %d s to stop", dir, *spec.TerminationGracePeriodSeconds)
		}
	}
}
