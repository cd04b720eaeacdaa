package monitoring

import (
	"bytes"
	"flag"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// strictly decodes a file of monitoring/; a key that the type does not have is an error.
func strictly(t *testing.T, name string, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict(product.Read(t, filepath.Join("monitoring", name)), into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// prometheusConfig is what of Prometheus' configuration is used here; promtool knows the whole.
type prometheusConfig struct {
	Global        map[string]string `json:"global"`
	RuleFiles     []string          `json:"rule_files"`
	ScrapeConfigs []scrapeConfig    `json:"scrape_configs"`
}

type scrapeConfig struct {
	Name    string        `json:"job_name"`
	SD      []podSD       `json:"kubernetes_sd_configs"`
	Relabel []relabelRule `json:"relabel_configs"`
}

type podSD struct {
	Role       string `json:"role"`
	Namespaces struct {
		Names []string `json:"names"`
	} `json:"namespaces"`
}

type relabelRule struct {
	Source      []string `json:"source_labels"`
	Separator   *string  `json:"separator"`
	Regex       string   `json:"regex"`
	Action      string   `json:"action"`
	Target      string   `json:"target_label"`
	Replacement string   `json:"replacement"`
}

// relabel does to labels what Prometheus would; false means that the target is dropped.
func relabel(t *testing.T, rules []relabelRule, labels map[string]string) bool {
	t.Helper()
	for _, r := range rules {
		separator := ";"
		if r.Separator != nil {
			separator = *r.Separator
		}
		var values []string
		for _, name := range r.Source {
			values = append(values, labels[name])
		}
		value, text, replacement := strings.Join(values, separator), r.Regex, r.Replacement
		if text == "" {
			text = "(.*)"
		}
		if replacement == "" {
			replacement = "$1"
		}
		regex := regexp.MustCompile("^(?:" + text + ")$")
		switch r.Action {
		case "keep":
			if !regex.MatchString(value) {
				return false
			}
		case "drop":
			if regex.MatchString(value) {
				return false
			}
		case "keepequal":
			if labels[r.Target] != value {
				return false
			}
		case "", "replace":
			if m := regex.FindStringSubmatchIndex(value); m != nil {
				labels[r.Target] = string(regex.ExpandString(nil, replacement, value, m))
			}
		default:
			t.Fatalf("action %s", r.Action)
		}
	}
	return true
}

// podLabels are what discovery knows of a pod's port.
func podLabels(namespace, name string, template *corev1.PodTemplateSpec, port corev1.ContainerPort) map[string]string {
	unsafe := regexp.MustCompile(`[^\w]`)
	labels := map[string]string{
		"__address__": "10.0.0.7:" + strconv.Itoa(int(port.ContainerPort)), "__metrics_path__": "/metrics",
		"__meta_kubernetes_namespace": namespace, "__meta_kubernetes_pod_name": name, "__meta_kubernetes_pod_phase": "Running",
		"__meta_kubernetes_pod_uid": "0-1", "__meta_kubernetes_pod_node_name": "node", "__meta_kubernetes_pod_container_name": template.Spec.Containers[0].Name,
		"__meta_kubernetes_pod_container_port_number": strconv.Itoa(int(port.ContainerPort)),
	}
	for k, v := range template.Labels {
		labels["__meta_kubernetes_pod_label_"+unsafe.ReplaceAllString(k, "_")] = v
	}
	for k, v := range template.Annotations {
		labels["__meta_kubernetes_pod_annotation_"+unsafe.ReplaceAllString(k, "_")] = v
	}
	return labels
}

// workerTemplate is the relay's pod, as k8s/ makes it.
func workerTemplate(t *testing.T) *corev1.PodTemplateSpec {
	t.Helper()
	for _, doc := range bytes.Split(product.Read(t, "k8s/outbox-worker.yaml"), []byte("\n---\n")) {
		var d appsv1.Deployment
		if err := yaml.Unmarshal(doc, &d); err == nil && d.Kind == "Deployment" {
			return &d.Spec.Template
		}
	}
	t.Fatal("no Deployment in k8s/outbox-worker.yaml")
	return nil
}

// Prometheus scrapes the relay and each part of the stack, once, under the labels that alerts and dashboards ask for.
func TestScrape(t *testing.T) {
	var config prometheusConfig
	strictly(t, "config/prometheus.yml", &config)
	scrape := config.ScrapeConfigs[0]
	if len(config.ScrapeConfigs) != 1 || !slices.Equal(scrape.SD[0].Namespaces.Names, []string{"sagaz", "monitoring"}) {
		t.Errorf("scrapes %+v", config.ScrapeConfigs)
	}
	targets := func(namespace, name string, template *corev1.PodTemplateSpec) (found []map[string]string) {
		for _, c := range template.Spec.Containers {
			for _, port := range c.Ports {
				if labels := podLabels(namespace, name, template, port); relabel(t, scrape.Relabel, labels) {
					found = append(found, labels)
				}
			}
		}
		return found
	}
	worker := targets("sagaz", "outbox-worker-x", workerTemplate(t))
	if len(worker) != 1 {
		t.Fatalf("%d targets of the relay's pod", len(worker))
	}
	for name, want := range map[string]string{"__address__": "10.0.0.7:8000", "__metrics_path__": "/metrics", "job": "outbox-worker", "namespace": "sagaz", "pod": "outbox-worker-x"} {
		if worker[0][name] != want {
			t.Errorf("%s is %q, want %q", name, worker[0][name], want)
		}
	}
	for _, p := range stackPods(stackBuild(t, false)) {
		name := p.object.GetName()
		if found := targets("monitoring", name+"-0", &p.PodTemplateSpec); len(found) != 1 || found[0]["job"] != name {
			t.Errorf("targets of %s: %v", name, found)
		}
	}
	foreign := workerTemplate(t)
	delete(foreign.Annotations, "prometheus.io/scrape")
	if len(targets("sagaz", "x", foreign)) != 0 {
		t.Error("a pod that does not ask for it is scraped")
	}
}

// The configuration and the rules, laid out as in the pod. Debian's promtool is built without discovery by Kubernetes, so that part is taken out
// before; TestScrape decodes it strictly.
func TestPrometheusConfig(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatal("no promtool: `make test-files FILES=./monitoring` brings it, and so does Debian's package prometheus")
	}
	dir := t.TempDir()
	p := stackFind[*appsv1.StatefulSet](t, stackBuild(t, false), "prometheus")
	for _, source := range p.Spec.Template.Spec.Volumes[0].Projected.Sources {
		for name, text := range stackFind[*corev1.ConfigMap](t, stackBuild(t, false), source.ConfigMap.Name).Data {
			if name == "prometheus.yml" {
				text = withoutDiscovery(t, text)
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if out, err := exec.Command(promtool, "check", "config", filepath.Join(dir, "prometheus.yml")).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("1 rule file")) {
		t.Errorf("promtool check config: %v\n%s", err, out)
	}
}

func withoutDiscovery(t *testing.T, text string) string {
	t.Helper()
	var config map[string]any
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		t.Fatal(err)
	}
	for _, s := range config["scrape_configs"].([]any) {
		s := s.(map[string]any)
		if s["kubernetes_sd_configs"] == nil {
			t.Fatalf("no discovery: %v", s)
		}
		delete(s, "kubernetes_sd_configs")
		s["static_configs"] = []any{map[string]any{"targets": []string{"localhost:1"}}}
	}
	changed, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return string(changed)
}

// prometheusRule is the operator's kind.
type prometheusRule struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              ruleFile `json:"spec"`
}

type ruleFile struct {
	Groups []struct {
		Name     string `json:"name"`
		Interval string `json:"interval,omitempty"`
		Rules    []struct {
			Record        string            `json:"record,omitempty"`
			Alert         string            `json:"alert,omitempty"`
			Expr          string            `json:"expr"`
			For           string            `json:"for,omitempty"`
			KeepFiringFor string            `json:"keep_firing_for,omitempty"`
			Labels        map[string]string `json:"labels,omitempty"`
			Annotations   map[string]string `json:"annotations,omitempty"`
		} `json:"rules"`
	} `json:"groups"`
}

var update = flag.Bool("update", false, "write monitoring/components/prometheus-operator/prometheus-rule.yaml from monitoring/prometheus-alerts.yaml")

const ruleHead = `# Made from prometheus-alerts.yaml: cd internal/checks && go test ./monitoring -run OperatorRules -update
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: outbox-worker
  namespace: sagaz
  labels:
    app: outbox-worker
    app.kubernetes.io/name: outbox-worker
    app.kubernetes.io/part-of: sagaz
    # kube-prometheus-stack looks only at what carries its release's name; kube-prometheus at these two.
    release: kube-prometheus-stack
    prometheus: k8s
    role: alert-rules
spec:
`

// The operator's rules are those of the plain file, indented below spec.
func TestOperatorRules(t *testing.T) {
	var plain ruleFile
	strictly(t, "prometheus-alerts.yaml", &plain)
	text := ruleHead
	for line := range strings.Lines(string(product.Read(t, "monitoring/prometheus-alerts.yaml"))) {
		if line != "\n" {
			line = "  " + line
		}
		text += line
	}
	path := filepath.Join(product.Root(), "monitoring", "components", "prometheus-operator", "prometheus-rule.yaml")
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := product.Read(t, "monitoring/components/prometheus-operator/prometheus-rule.yaml"); string(got) != text {
		t.Error("prometheus-rule.yaml is not prometheus-alerts.yaml: cd internal/checks && go test ./monitoring -run OperatorRules -update")
	}
	var rule prometheusRule
	strictly(t, "components/prometheus-operator/prometheus-rule.yaml", &rule)
	a, err := yaml.Marshal(plain)
	if err != nil {
		t.Fatal(err)
	}
	b, err := yaml.Marshal(rule.Spec)
	if err != nil {
		t.Fatal(err)
	}
	if len(plain.Groups) == 0 || !bytes.Equal(a, b) {
		t.Error("the rules below spec differ from the plain ones")
	}
}

// lokiConfig has the keys of Loki 3.7 that are used, and no other: limits_config.enforce_metric_name, for one, ended with 3.0.
type lokiConfig struct {
	AuthEnabled *bool `json:"auth_enabled"`
	Server      struct {
		HTTPListenPort int32 `json:"http_listen_port"`
	} `json:"server"`
	Common struct {
		PathPrefix        string `json:"path_prefix"`
		ReplicationFactor int    `json:"replication_factor"`
		Ring              struct {
			InstanceAddr string `json:"instance_addr"`
			KVStore      struct {
				Store string `json:"store"`
			} `json:"kvstore"`
		} `json:"ring"`
		Storage struct {
			Filesystem struct {
				Chunks string `json:"chunks_directory"`
				Rules  string `json:"rules_directory"`
			} `json:"filesystem"`
		} `json:"storage"`
	} `json:"common"`
	Schema struct {
		Configs []struct {
			From        string `json:"from"`
			Store       string `json:"store"`
			ObjectStore string `json:"object_store"`
			Schema      string `json:"schema"`
			Index       struct {
				Prefix string `json:"prefix"`
				Period string `json:"period"`
			} `json:"index"`
		} `json:"configs"`
	} `json:"schema_config"`
	Limits struct {
		RetentionPeriod    string `json:"retention_period"`
		StructuredMetadata bool   `json:"allow_structured_metadata"`
		VolumeEnabled      bool   `json:"volume_enabled"`
		MaxStreams         int    `json:"max_global_streams_per_user"`
		RejectOld          bool   `json:"reject_old_samples"`
		RejectOldAge       string `json:"reject_old_samples_max_age"`
	} `json:"limits_config"`
	Compactor struct {
		WorkingDirectory   string `json:"working_directory"`
		RetentionEnabled   bool   `json:"retention_enabled"`
		DeleteDelay        string `json:"retention_delete_delay"`
		DeleteRequestStore string `json:"delete_request_store"`
	} `json:"compactor"`
	Analytics struct {
		ReportingEnabled *bool `json:"reporting_enabled"`
	} `json:"analytics"`
}

// Loki keeps logs for 31 days and then deletes them, and what it must not lose lies on its volume.
func TestLokiConfig(t *testing.T) {
	var c lokiConfig
	strictly(t, "config/loki.yml", &c)
	if d, err := time.ParseDuration(c.Limits.RetentionPeriod); err != nil || d != 31*24*time.Hour {
		t.Errorf("retention_period %q: want 31 days", c.Limits.RetentionPeriod)
	}
	s := c.Schema.Configs[0]
	if !c.Compactor.RetentionEnabled || c.Compactor.DeleteRequestStore != s.ObjectStore || s.Index.Period != "24h" {
		t.Error("nothing would be deleted: retention_enabled, delete_request_store as the object store, and an index of a day belong together")
	}
	if s.Schema != "v13" || s.Store != "tsdb" || !c.Limits.StructuredMetadata {
		t.Error("structured metadata needs schema v13 on tsdb")
	}
	if c.AuthEnabled == nil || *c.AuthEnabled || c.Common.ReplicationFactor != 1 || c.Common.Ring.KVStore.Store != "inmemory" {
		t.Error("that is not one process")
	}
	loki := stackFind[*appsv1.StatefulSet](t, stackBuild(t, false), "loki").Spec.Template.Spec.Containers[0]
	data := ""
	for _, m := range loki.VolumeMounts {
		if m.Name == "data" {
			data = m.MountPath
		}
	}
	for _, path := range []string{c.Common.PathPrefix, c.Common.Storage.Filesystem.Chunks, c.Compactor.WorkingDirectory} {
		if path != data && !strings.HasPrefix(path, data+"/") {
			t.Errorf("%s is not on the volume, which is at %s", path, data)
		}
	}
	if c.Server.HTTPListenPort != loki.Ports[0].ContainerPort {
		t.Errorf("Loki listens on %d", c.Server.HTTPListenPort)
	}
}

// tempoConfig has the keys of Tempo 3 that are used: ingester and compactor, for two, ended with 2.
type tempoConfig struct {
	Server struct {
		HTTPListenPort int32 `json:"http_listen_port"`
	} `json:"server"`
	Distributor struct {
		Receivers map[string]struct {
			Protocols map[string]struct {
				Endpoint string `json:"endpoint"`
			} `json:"protocols"`
		} `json:"receivers"`
	} `json:"distributor"`
	Storage struct {
		Trace struct {
			Backend string `json:"backend"`
			Local   struct {
				Path string `json:"path"`
			} `json:"local"`
			WAL struct {
				Path string `json:"path"`
			} `json:"wal"`
		} `json:"trace"`
	} `json:"storage"`
	Overrides struct {
		Defaults struct {
			Compaction struct {
				BlockRetention string `json:"block_retention"`
			} `json:"compaction"`
		} `json:"defaults"`
	} `json:"overrides"`
	Usage map[string]bool `json:"usage_report"`
}

func TestTempoConfig(t *testing.T) {
	var c tempoConfig
	strictly(t, "config/tempo.yml", &c)
	tempo := stackFind[*appsv1.StatefulSet](t, stackBuild(t, false), "tempo").Spec.Template.Spec.Containers[0]
	ports := make(map[string]int32)
	for _, p := range tempo.Ports {
		ports[p.Name] = p.ContainerPort
	}
	protocols := c.Distributor.Receivers["otlp"].Protocols
	for name, listens := range map[string]string{"http": ":" + strconv.Itoa(int(c.Server.HTTPListenPort)), "otlp-grpc": protocols["grpc"].Endpoint, "otlp-http": protocols["http"].Endpoint} {
		if !strings.HasSuffix(listens, ":"+strconv.Itoa(int(ports[name]))) {
			t.Errorf("port %s is %d, and Tempo listens at %q", name, ports[name], listens)
		}
	}
	for _, path := range []string{c.Storage.Trace.Local.Path, c.Storage.Trace.WAL.Path} {
		if !strings.HasPrefix(path, tempo.VolumeMounts[1].MountPath+"/") {
			t.Errorf("%s is not on the volume", path)
		}
	}
}

// datasources is Grafana's provisioning.
type datasources struct {
	APIVersion  int `json:"apiVersion"`
	Datasources []struct {
		Name      string         `json:"name"`
		UID       string         `json:"uid"`
		Type      string         `json:"type"`
		Access    string         `json:"access"`
		URL       string         `json:"url"`
		IsDefault bool           `json:"isDefault"`
		Editable  *bool          `json:"editable"`
		JSONData  map[string]any `json:"jsonData"`
	} `json:"datasources"`
}

// The data sources have the uids that the dashboards know, lead to Services of the stack, and to each other.
func TestGrafanaProvisioning(t *testing.T) {
	var d datasources
	strictly(t, "config/datasources.yaml", &d)
	all := stackBuild(t, false)
	var uids []string
	for _, s := range d.Datasources {
		uids = append(uids, s.UID)
		if s.UID != s.Type || s.Access != "proxy" || s.Editable == nil || *s.Editable {
			t.Errorf("%s: %+v", s.Name, s)
		}
		stackReaches(t, all, s.URL)
	}
	if !slices.Equal(uids, []string{"prometheus", "loki", "tempo"}) {
		t.Errorf("uids %v", uids)
	}
	text := string(product.Read(t, "monitoring/config/datasources.yaml"))
	for _, m := range regexp.MustCompile(`(?m)(\$+)(\{|\w)`).FindAllStringSubmatch(regexp.MustCompile(`(?m)^ *#.*`).ReplaceAllString(text, ""), -1) {
		if len(m[1]) != 2 {
			t.Errorf("Grafana would replace %q by the environment", m[0])
		}
	}
	for _, m := range regexp.MustCompile(`datasourceUid: (\S+)`).FindAllStringSubmatch(text, -1) {
		if !slices.Contains(uids, m[1]) {
			t.Errorf("no data source %s", m[1])
		}
	}
	for _, known := range []string{"derivedFields:", "matcherType: label", "matcherRegex: trace_id", "tracesToLogsV2:", "exemplarTraceIdDestinations:"} {
		if !strings.Contains(text, known) {
			t.Errorf("no %s", known)
		}
	}

	var providers struct {
		APIVersion int `json:"apiVersion"`
		Providers  []struct {
			Name           string `json:"name"`
			Type           string `json:"type"`
			Folder         string `json:"folder"`
			AllowUIUpdates *bool  `json:"allowUiUpdates"`
			Interval       int    `json:"updateIntervalSeconds"`
			Options        struct {
				Path string `json:"path"`
			} `json:"options"`
		} `json:"providers"`
	}
	strictly(t, "config/dashboards.yaml", &providers)
	grafana := stackFind[*appsv1.StatefulSet](t, all, "grafana").Spec.Template.Spec
	mounted := ""
	for _, m := range grafana.Containers[0].VolumeMounts {
		if m.Name == "dashboards" {
			mounted = m.MountPath
		}
	}
	if p := providers.Providers[0]; p.Type != "file" || p.Options.Path != mounted || p.AllowUIUpdates == nil || *p.AllowUIUpdates {
		t.Errorf("dashboards at %s, provider %+v", mounted, p)
	}
	// Each dashboard of the directory is in a ConfigMap of its own that Grafana mounts.
	files, err := filepath.Glob(filepath.Join(product.Root(), "monitoring", "grafana-dashboard-*.json"))
	if err != nil || len(files) != 4 {
		t.Errorf("%d dashboards (%v)", len(files), err)
	}
	var sources []string
	for _, v := range grafana.Volumes {
		if v.Name == "dashboards" {
			for _, s := range v.Projected.Sources {
				sources = append(sources, s.ConfigMap.Name)
			}
		}
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		m := stackFind[*corev1.ConfigMap](t, all, name)
		if m.Name != name || m.Labels["grafana_dashboard"] != "1" || m.Data[name+".json"] == "" || !slices.Contains(sources, name) {
			t.Errorf("ConfigMap %s: labels %v, mounted: %v", m.Name, m.Labels, sources)
		}
	}
}

// stackReaches fails unless a URL leads to a port of a Service whose pod listens there.
func stackReaches(t *testing.T, all []stackObject, address string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(u.Hostname(), ".")
	service := stackFind[*corev1.Service](t, all, name)
	for _, p := range service.Spec.Ports {
		if strconv.Itoa(int(p.Port)) != u.Port() {
			continue
		}
		for _, pod := range stackPods(all) {
			if pod.Labels["app.kubernetes.io/name"] != service.Spec.Selector["app.kubernetes.io/name"] {
				continue
			}
			for _, port := range pod.Spec.Containers[0].Ports {
				if port.Name == p.TargetPort.StrVal {
					return
				}
			}
		}
	}
	t.Errorf("%s leads to no pod", address)
}
