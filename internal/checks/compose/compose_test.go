package compose

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"sigs.k8s.io/yaml"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/migrations/pgtest"
	"github.com/sagaz-relay/relay/sinks/brokertest"
)

func TestMain(m *testing.M) { os.Exit(brokertest.Run(pgtest.Closing(m))) }

// load reads the file as `docker compose` does, with all profiles. What Compose does not know is an error.
func load(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions(nil, cli.WithWorkingDirectory(product.Root()), cli.WithConfigFileEnv, cli.WithDefaultConfigPath, cli.WithProfiles([]string{"*"}))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatalf("docker-compose.yml: %v", err)
	}
	return project
}

// ours are the services that run the binary.
func ours(p *types.Project) (services []types.ServiceConfig) {
	for _, s := range p.Services {
		if strings.HasPrefix(s.Image, "sagaz-relay:") {
			services = append(services, s)
		}
	}
	return services
}

func TestServices(t *testing.T) {
	p := load(t)
	for _, name := range []string{"postgres", "kafka", "rabbitmq", "migrate", "relay", "load", "consumer"} {
		if _, ok := p.Services[name]; !ok {
			t.Errorf("there is no service %s", name)
		}
	}
	tag := regexp.MustCompile(`:[\w.-]+$`)
	for _, s := range p.Services {
		if !tag.MatchString(s.Image) || strings.HasSuffix(s.Image, ":latest") {
			t.Errorf("%s: image %q: want a tag that stays what it is", s.Name, s.Image)
		}
		for on, dependency := range s.DependsOn {
			needed := p.Services[on]
			switch dependency.Condition {
			case types.ServiceConditionHealthy:
				if needed.HealthCheck == nil || len(needed.HealthCheck.Test) == 0 {
					t.Errorf("%s waits until %s is healthy, which has no health check", s.Name, on)
				}
			case types.ServiceConditionCompletedSuccessfully:
				if needed.Restart != "" || needed.HealthCheck != nil {
					t.Errorf("%s waits for the end of %s, which is a service that stays", s.Name, on)
				}
			default:
				t.Errorf("%s depends on %s by %s: want what it must be", s.Name, on, dependency.Condition)
			}
			if len(s.Profiles) == 0 && len(needed.Profiles) > 0 {
				t.Errorf("%s depends on %s, which is only there with a profile", s.Name, on)
			}
		}
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to the network, with passwords that everybody can read", s.Name, port.Published)
			}
		}
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeBind && v.Source != "/var/run/docker.sock" {
				if _, err := os.Stat(v.Source); err != nil {
					t.Errorf("%s mounts what is not there: %v", s.Name, err)
				}
			}
		}
	}
	for service, profile := range map[string]string{"load": "load", "consumer": "load"} {
		if got := p.Services[service].Profiles; !slices.Equal(got, []string{profile}) {
			t.Errorf("%s has profiles %v, want %s alone", service, got, profile)
		}
	}
}

// Every variable of our services is a setting, every command is one, and what the image promises (user, root that cannot be written) is asked for.
func TestRelay(t *testing.T) {
	p := load(t)
	settings := product.Settings(t)
	if n := len(ours(p)); n != 3 {
		t.Fatalf("%d services run sagaz-relay, want migrate, relay and load", n)
	}
	for _, s := range ours(p) {
		for name := range s.Environment {
			if _, ok := settings[strings.TrimSuffix(name, "_FILE")]; !ok {
				t.Errorf("%s sets %s, which is no setting", s.Name, name)
			}
		}
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) {
			t.Errorf("%s: want read_only and cap_drop: [ALL]", s.Name)
		}
		if s.Build == nil || s.Build.Context != p.WorkingDir {
			t.Errorf("%s is not built from here", s.Name)
		}
	}
	relay := p.Services["relay"]
	port := settings["METRICS_PORT"].Default
	if len(relay.Ports) != 1 || relay.Ports[0].Published != port {
		t.Errorf("relay publishes %v, want %s", relay.Ports, port)
	}
	drain, err := time.ParseDuration(settings["RELAY_DRAIN_TIMEOUT"].Default)
	if err != nil {
		t.Fatal(err)
	}
	if grace := time.Duration(*relay.StopGracePeriod); grace < drain+10*time.Second {
		t.Errorf("relay has %s to stop, and drains for %s", grace, drain)
	}
}

// Prometheus scrapes the relay, and Grafana asks Prometheus, each at the address that it has in the file.
func TestMonitoring(t *testing.T) {
	p := load(t)
	address := func(host string) bool {
		name, port, _ := strings.Cut(host, ":")
		s, ok := p.Services[name]
		return ok && slices.ContainsFunc(s.Ports, func(c types.ServicePortConfig) bool { return strconv.Itoa(int(c.Target)) == port })
	}
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
		if !address(target) {
			t.Errorf("Prometheus scrapes %s, which is nowhere", target)
		}
	}
	mounted := func(service, target string) bool {
		return slices.ContainsFunc(p.Services[service].Volumes, func(v types.ServiceVolumeConfig) bool { return v.Target == target })
	}
	if len(prometheus.Rules) == 0 {
		t.Error("Prometheus has no rules")
	}
	for _, file := range prometheus.Rules {
		if !mounted("prometheus", "/etc/prometheus/"+file) {
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
	for _, name := range []string{"outbox", "replication", "saga"} { // the dashboard of the logs needs Loki
		if target := providers.Providers[0].Options.Path + "/" + name + ".json"; !mounted("grafana", target) {
			t.Errorf("nothing is mounted at Grafana's %s", target)
		}
	}
	var grafana struct {
		Version int `json:"apiVersion"`
		Sources []struct {
			Name, UID, Type, Access, URL string
			Default                      bool `json:"isDefault"`
		} `json:"datasources"`
	}
	if err := yaml.UnmarshalStrict(product.Read(t, "testdata/compose/grafana/datasources.yml"), &grafana); err != nil {
		t.Fatal(err)
	}
	for _, s := range grafana.Sources {
		if host, ok := strings.CutPrefix(s.URL, "http://"); !ok || !address(host) {
			t.Errorf("Grafana's %s is at %s, which is nowhere", s.Name, s.URL)
		}
	}
	for _, name := range []string{"prometheus", "grafana"} {
		if got := p.Services[name].Profiles; !slices.Equal(got, []string{"monitoring"}) {
			t.Errorf("%s has profiles %v, want monitoring alone", name, got)
		}
	}
}
