package compose

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
	"sigs.k8s.io/yaml"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// parts are the services of the monitoring stack.
var parts = []string{"prometheus", "loki", "tempo", "alloy", "docker-api", "grafana"}

// listens says whether a service of the name has the port, as host:port.
func listens(p *types.Project, host string) bool {
	name, port, _ := strings.Cut(host, ":")
	s, ok := p.Services[name]
	return ok && (slices.Contains(s.Expose, port) || slices.ContainsFunc(s.Ports, func(c types.ServicePortConfig) bool { return strconv.Itoa(int(c.Target)) == port }))
}

// source is the file that a service mounts at a path, relative to the repository; "" if there is none.
func source(p *types.Project, service, target string) string {
	for _, v := range p.Services[service].Volumes {
		if v.Target == target {
			path, err := filepath.Rel(p.WorkingDir, v.Source)
			if err != nil {
				return v.Source
			}
			return path
		}
	}
	return ""
}

// The parts are those of the cluster, with its versions and its configurations: what internal/checks/monitoring finds out about these is true here, too.
func TestMonitoringIsTheClusters(t *testing.T) {
	p := load(t)
	stack := string(product.Read(t, "monitoring/monitoring-stack.yaml"))
	for _, name := range parts {
		s := p.Services[name]
		if !slices.Equal(s.Profiles, []string{"monitoring"}) {
			t.Errorf("%s has profiles %v, want monitoring alone", name, s.Profiles)
		}
		if name != "docker-api" && !regexp.MustCompile(`(?m)^ *image: `+regexp.QuoteMeta(s.Image)+`\b`).MatchString(stack) {
			t.Errorf("%s: monitoring-stack.yaml does not use %s", name, s.Image)
		}
	}
	for _, m := range []struct{ service, target, want string }{
		{"prometheus", "/etc/prometheus/prometheus-alerts.yaml", "monitoring/prometheus-alerts.yaml"},
		{"loki", "/etc/loki/loki.yml", "monitoring/config/loki.yml"},
		{"tempo", "/etc/tempo/tempo.yml", "monitoring/config/tempo.yml"},
		{"alloy", "/etc/alloy/labels.alloy", "monitoring/config/labels.alloy"},
		{"grafana", "/etc/grafana/provisioning/datasources/sagaz.yaml", "monitoring/config/datasources.yaml"},
		{"grafana", "/etc/grafana/provisioning/dashboards/sagaz.yaml", "monitoring/config/dashboards.yaml"},
	} {
		if got := source(p, m.service, m.target); got != m.want {
			t.Errorf("%s has %q at %s, want %s", m.service, got, m.target, m.want)
		}
	}
	for service, flags := range map[string][]string{
		"prometheus": {"--config.file=/etc/prometheus/prometheus.yml", "--enable-feature=exemplar-storage"},
		"loki":       {"-config.file=/etc/loki/loki.yml"},
		"tempo":      {"-config.file=/etc/tempo/tempo.yml"},
	} {
		for _, flag := range flags {
			if !slices.Contains(p.Services[service].Command, flag) || !strings.Contains(stack, "- "+flag) {
				t.Errorf("%s is to have %s, here and in the cluster", service, flag)
			}
		}
	}
	// What they write lies where their configurations say.
	for service, dir := range map[string]string{"prometheus": "/prometheus", "loki": "/loki", "tempo": "/var/tempo"} {
		if !slices.ContainsFunc(p.Services[service].Volumes, func(v types.ServiceVolumeConfig) bool { return v.Type == types.VolumeTypeVolume && v.Target == dir }) {
			t.Errorf("%s has no volume at %s", service, dir)
		}
	}
}

// Prometheus scrapes the relay, and Grafana asks all three, each at the address that it has in the file.
func TestMonitoring(t *testing.T) {
	p := load(t)
	var prometheus struct {
		Global  map[string]string `json:"global"`
		Rules   []string          `json:"rule_files"`
		Scrapes []struct {
			Job     string `json:"job_name"`
			Targets []struct {
				Targets []string          `json:"targets"`
				Labels  map[string]string `json:"labels"`
			} `json:"static_configs"`
		} `json:"scrape_configs"`
	}
	if err := yaml.UnmarshalStrict(product.Read(t, "testdata/compose/prometheus.yml"), &prometheus); err != nil {
		t.Fatal(err)
	}
	if len(prometheus.Scrapes) != 1 || prometheus.Scrapes[0].Job != "outbox-worker" || len(prometheus.Scrapes[0].Targets) != 1 {
		t.Fatalf("Prometheus scrapes %+v, want the job outbox-worker", prometheus.Scrapes)
	}
	for _, target := range prometheus.Scrapes[0].Targets[0].Targets {
		if !listens(p, target) {
			t.Errorf("Prometheus scrapes %s, which is nowhere", target)
		}
	}
	if len(prometheus.Rules) == 0 {
		t.Error("Prometheus has no rules")
	}
	for _, file := range prometheus.Rules {
		if source(p, "prometheus", "/etc/prometheus/"+file) == "" {
			t.Errorf("Prometheus wants %s, which is not mounted", file)
		}
	}
	var providers struct {
		Providers []struct {
			Options struct{ Path string }
		}
	}
	if err := yaml.Unmarshal(product.Read(t, "monitoring/config/dashboards.yaml"), &providers); err != nil || len(providers.Providers) != 1 {
		t.Fatalf("monitoring/config/dashboards.yaml: %v, %+v", err, providers)
	}
	dashboards, err := filepath.Glob(filepath.Join(product.Root(), "monitoring", "grafana-dashboard-*.json"))
	if err != nil || len(dashboards) < 4 {
		t.Fatalf("%d dashboards: %v", len(dashboards), err)
	}
	for _, file := range dashboards {
		name := strings.TrimPrefix(filepath.Base(file), "grafana-dashboard-")
		if got := source(p, "grafana", providers.Providers[0].Options.Path+"/"+name); got != "monitoring/"+filepath.Base(file) {
			t.Errorf("Grafana has %q as %s", got, name)
		}
	}
	var grafana struct {
		Sources []struct{ Name, URL string } `json:"datasources"`
	}
	if err := yaml.Unmarshal(product.Read(t, "monitoring/config/datasources.yaml"), &grafana); err != nil || len(grafana.Sources) != 3 {
		t.Fatalf("%d data sources: %v", len(grafana.Sources), err)
	}
	for _, s := range grafana.Sources {
		if host, ok := strings.CutPrefix(s.URL, "http://"); !ok || !listens(p, host) {
			t.Errorf("Grafana's %s is at %s, which is nowhere", s.Name, s.URL)
		}
	}
	for _, endpoint := range traceEndpoints(t) {
		if !listens(p, endpoint) {
			t.Errorf("traces are to go to %s, which is nowhere", endpoint)
		}
	}
}

// traceEndpoints are the collectors that the file and docs/operating.md tell people to set.
func traceEndpoints(t *testing.T) (hosts []string) {
	t.Helper()
	for _, name := range []string{"docker-compose.yml", "docs/operating.md"} {
		for _, m := range regexp.MustCompile(`OTEL_EXPORTER_OTLP_ENDPOINT=http://(\S+) .*docker compose`).FindAllStringSubmatch(string(product.Read(t, name)), -1) {
			hosts = append(hosts, m[1])
		}
	}
	if len(hosts) != 2 {
		t.Errorf("docker-compose.yml and docs/operating.md tell of %v, want one of each", hosts)
	}
	return hosts
}

// Alloy finds the containers that have the label, through a service that lets it ask and nothing more, and which nobody else can reach.
func TestLogsOfContainers(t *testing.T) {
	p := load(t)
	text := string(product.Read(t, source(p, "alloy", "/etc/alloy/config.alloy")))
	addresses := regexp.MustCompile(`(?:tcp|http)://([^/"]+)`).FindAllStringSubmatch(text, -1)
	if len(addresses) != 3 {
		t.Errorf("%d addresses in Alloy's configuration, want Docker's twice and Loki's", len(addresses))
	}
	for _, m := range addresses {
		if !listens(p, m[1]) {
			t.Errorf("Alloy asks %s, which is nowhere", m[1])
		}
	}
	label := regexp.MustCompile(`values = \["([\w.]+)"\]`).FindStringSubmatch(text)
	if label == nil || !strings.Contains(text, "__meta_docker_container_label_"+strings.ReplaceAll(label[1], ".", "_")+`"`) {
		t.Fatalf("the label of containers is %v, or is not read", label)
	}
	worker, err := os.ReadFile(filepath.Join(product.Root(), "k8s", "outbox-worker.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if app := p.Services["relay"].Labels[label[1]]; app == "" || !strings.Contains(string(worker), "app: "+app+"\n") {
		t.Errorf("the relay's label %s is %q, and the pods of k8s/outbox-worker.yaml have another", label[1], app)
	}

	for _, s := range p.Services {
		socket := slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool { return strings.HasSuffix(v.Source, "docker.sock") })
		if socket != (s.Name == "docker-api") {
			t.Errorf("%s mounts Docker's socket: %v", s.Name, socket)
		}
		_, reaches := s.Networks["docker-api"]
		if want := s.Name == "docker-api" || s.Name == "alloy"; reaches != want {
			t.Errorf("%s is in the network docker-api: %v", s.Name, reaches)
		}
	}
	api := p.Services["docker-api"]
	if len(api.Ports) > 0 || len(api.Networks) != 1 || !p.Networks["docker-api"].Internal {
		t.Errorf("docker-api can be reached from elsewhere: ports %v, networks %v", api.Ports, api.Networks)
	}
	for name, value := range api.Environment {
		if allowed := *value != "0"; allowed != (name == "CONTAINERS" || name == "NETWORKS") {
			t.Errorf("docker-api: %s=%s", name, *value)
		}
	}
}
