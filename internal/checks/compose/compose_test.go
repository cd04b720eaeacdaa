package compose

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

func TestMain(m *testing.M) { os.Exit(brokertest.Run(pgtest.Closing(m))) }

// load reads the file as `docker compose` does, with all profiles and with variables (NAME=value)
// set. What Compose does not know is an error.
func load(t *testing.T, variables ...string) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions(nil, cli.WithWorkingDirectory(product.Root()), cli.WithEnv(variables), cli.WithConfigFileEnv, cli.WithDefaultConfigPath,
		cli.WithProfiles([]string{"*"}))
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

// Nothing is open to the network, with passwords that everybody can read; what is mounted is there;
// images stay what they are. What else the file may say wrong, Compose itself refuses.
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
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to the network", s.Name, port.Published)
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
}

// Every variable of our services is a setting, every command is one, and what the image promises
// (user, root that cannot be written) is asked for.
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
	}
	relay := p.Services["relay"]
	// With no variable of the user's set, too: some of the relay's are then empty.
	cmd := exec.Command(product.Binary(t), "settings")
	cmd.Env = []string{"HOME=/nonexistent"}
	for name, value := range relay.Environment {
		cmd.Env = append(cmd.Env, name+"="+*value)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the relay refuses its variables: %v\n%s", err, out)
	}
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
