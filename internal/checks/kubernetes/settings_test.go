package kubernetes

import (
	"cmp"
	"encoding/json"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// secretsDir is where the pods of the product have their secrets, by the manifests.
const secretsDir = "/etc/sagaz/secrets"

// ours is a container that runs the product's image.
func ours(c corev1.Container) bool { return strings.Contains(c.Image, "sagaz-relay") }

// TestSettings compares what the manifests set with what the binary knows: a variable that is
// renamed turns it red.
func TestSettings(t *testing.T) {
	known := product.Settings(t)
	everyBuild(t, "k8s", func(t *testing.T, all []object) {
		containers := 0
		for _, p := range pods(all) {
			for _, c := range p.Spec.Containers {
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
				for name := range secretFiles(p.Spec) {
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

// TestConfigMapIsTheDefault: with it and without it, the worker is the same, but for the number of
// slots.
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
		if s.Source == "RELAY_SHARDS" {
			continue // sizes_test.go
		}
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

// TestSecretKeys: what is read is in the example, by the same name, if only as a comment; what is
// required is not one; and nothing is there for nobody.
func TestSecretKeys(t *testing.T) {
	example, secret := make(map[string]string), "" // "secret key": "# " for a comment
	for _, m := range regexp.MustCompile(`(?m)^  name: (\S+)$|^  (# )?([a-z-]+): "`).FindAllStringSubmatch(string(product.Read(t, "k8s/secrets-example.yaml")), -1) {
		if secret = cmp.Or(m[1], secret); m[3] != "" {
			example[secret+" "+m[3]] = m[2]
		}
	}
	read := make(map[string]bool)
	for _, p := range pods(decode(t, "k8s", build(t, "k8s"))) {
		for path, f := range secretFiles(p.Spec) {
			name := f.secret + " " + f.key
			read[name] = true
			if comment, ok := example[name]; !ok || comment != "" && !f.optional || f.optional == (f.key == "connection-string") {
				t.Errorf("%s reads %s as %s (optional: %v), and secrets-example.yaml has %q", p.name, name, path, f.optional, comment)
			}
		}
	}
	for name := range example {
		if !read[name] {
			t.Errorf("secrets-example.yaml has %s, which nothing reads", name)
		}
	}
	if len(read) < 4 {
		t.Errorf("only %v are read", read)
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
	everyBuild(t, "k8s", func(t *testing.T, all []object) {
		worker := find[*appsv1.Deployment](t, all, "outbox-worker")
		spec := worker.Spec.Template.Spec
		if worker.Spec.Replicas != nil {
			t.Error("the Deployment has replicas: every apply would overrule the autoscaler")
		}
		c := spec.Containers[0]
		if grace := time.Duration(*spec.TerminationGracePeriodSeconds) * time.Second; grace < 2*drain {
			t.Errorf("killed after %s, and draining may take %s", grace, drain)
		}
		limit := c.Resources.Limits[corev1.ResourceMemory]
		gomem := resource.MustParse(strings.TrimSuffix(variable(c, "GOMEMLIMIT"), "B"))
		if share := float64(gomem.Value()) / float64(limit.Value()); share < 0.88 || share > 0.92 {
			t.Errorf("GOMEMLIMIT is %.2f of the memory limit", share)
		}
		if got := strconv.Itoa(int(c.Ports[0].ContainerPort)); got != port || worker.Spec.Template.Annotations["prometheus.io/port"] != port {
			t.Errorf("port %s and %v, the binary serves %s", got, worker.Spec.Template.Annotations, port)
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

// TestVolume: what a slot may hold back, and what WAL takes besides, leaves half of the volume to
// the data.
func TestVolume(t *testing.T) {
	for _, dir := range []string{"k8s", "overlays/dev", "overlays/production"} {
		all := decode(t, dir, build(t, dir))
		set := find[*appsv1.StatefulSet](t, all, "postgresql")
		p, volume := parameters(t, all), set.Spec.VolumeClaimTemplates[0].Spec.Resources.Requests[corev1.ResourceStorage]
		wal := int64(0)
		for _, name := range []string{"max_slot_wal_keep_size", "max_wal_size"} {
			q := resource.MustParse(strings.TrimSuffix(p[name], "B") + "i") // 8GB and 512MB, as PostgreSQL has them
			wal += q.Value()
		}
		if wal > volume.Value()/2 {
			t.Errorf("%s: WAL may take %d bytes of a volume of %s", dir, wal, volume.String())
		}
		if got := mountOf(set.Spec.Template.Spec.Containers[0], "data"); got != "/var/lib/postgresql" {
			t.Errorf("%s: the volume is mounted at %s; image 18 wants /var/lib/postgresql", dir, got)
		}
	}
}

// TestNobodysBrokerChanges: no file names a broker, so none is changed by applying it.
func TestNobodysBrokerChanges(t *testing.T) {
	everyBuild(t, "k8s", func(t *testing.T, all []object) {
		broker := find[*corev1.ConfigMap](t, all, "outbox-worker-config").Data["BROKER_TYPE"]
		if dev := strings.HasSuffix(t.Name(), "dev"); dev != (broker == "stdout") || !dev && broker != "" {
			t.Errorf("BROKER_TYPE is %q", broker)
		}
	})
}

// TestComponentsForFiles: a patch whose target is nothing is no error of kustomize's. Certificates
// are where the component's comment has them, and both accounts have the registry's secret.
func TestComponentsForFiles(t *testing.T) {
	mounted := 0
	for _, p := range pods(decode(t, "tls", build(t, "k8s/components/tls"))) {
		for _, c := range p.Spec.Containers {
			if ours(c) != (mountOf(c, "tls") == "/etc/sagaz/tls") {
				t.Errorf("%s has the certificates at %q", p.name, mountOf(c, "tls"))
			}
			if ours(c) {
				mounted++
			}
		}
	}
	if mounted != 2 {
		t.Errorf("%d containers of the product, want the worker's and the migration's", mounted)
	}
	known, text := product.Settings(t), string(product.Read(t, "k8s/components/tls/kustomization.yaml"))
	for _, name := range []string{"RELAY_KAFKA_TLS_CA_FILE", "RELAY_KAFKA_TLS_CERT_FILE", "RELAY_KAFKA_TLS_KEY_FILE"} {
		if _, ok := known[name]; !ok || !strings.Contains(text, name) {
			t.Errorf("%s: no such setting, or the comment does not have it", name)
		}
	}
	all := decode(t, "image-pull-secret", build(t, "k8s/components/image-pull-secret"))
	for _, name := range []string{"outbox-worker", "sagaz-migration"} {
		if s := find[*corev1.ServiceAccount](t, all, name).ImagePullSecrets; len(s) != 1 || s[0].Name != "sagaz-registry" {
			t.Errorf("%s pulls with %v", name, s)
		}
	}
}
