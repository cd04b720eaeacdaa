package compose

import (
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
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

// source is the file that a service mounts at a path, relative to the repository; "" if there is
// none.
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

// The parts are those of the cluster, with its versions and its configurations: what
// internal/checks/monitoring finds out about these is true here, too.
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
}

// Grafana has every dashboard; and who is asked, by the configurations and by what the documents
// say of traces, is a service of the file that listens there.
func TestMonitoring(t *testing.T) {
	p := load(t)
	dashboards, err := filepath.Glob(filepath.Join(product.Root(), "monitoring", "grafana-dashboard-*.json"))
	if err != nil || len(dashboards) < 4 {
		t.Fatalf("%d dashboards: %v", len(dashboards), err)
	}
	for _, file := range dashboards {
		if !slices.ContainsFunc(p.Services["grafana"].Volumes, func(v types.ServiceVolumeConfig) bool { return filepath.Base(v.Source) == filepath.Base(file) }) {
			t.Errorf("Grafana does not have %s", filepath.Base(file))
		}
	}
	var asked []string
	for name, n := range map[string]int{"testdata/compose/prometheus.yml": 1, "testdata/compose/config.alloy": 3, "monitoring/config/datasources.yaml": 3, "docker-compose.yml": 1} {
		found := regexp.MustCompile(`(?:(?:url|host)\s*[:=] "?\w+://|OTLP_ENDPOINT=http://|targets: \["?)([\w-]+:\d+)`).FindAllStringSubmatch(string(product.Read(t, name)), -1)
		if len(found) != n {
			t.Errorf("%s has %d addresses, want %d", name, len(found), n)
		}
		for _, m := range found {
			asked = append(asked, m[1])
		}
	}
	for _, host := range asked {
		if !listens(p, host) {
			t.Errorf("%s is asked, and is nowhere", host)
		}
	}
}

// Alloy reads logs through a service that lets it ask and nothing more, and that nobody else can
// reach.
func TestDockerSocket(t *testing.T) {
	p := load(t)
	for _, s := range p.Services {
		socket := slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool { return strings.HasSuffix(v.Source, "docker.sock") })
		if socket != (s.Name == "docker-api") {
			t.Errorf("%s mounts Docker's socket: %v", s.Name, socket)
		}
		if _, reaches := s.Networks["docker-api"]; reaches != (socket || s.Name == "alloy") {
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
