//go:build stack

package stack

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"github.com/sagaz-relay/relay/internal/checks/beside"
	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// patience bounds what must come in the end, on a machine that runs other tests too.
const patience = 2 * time.Minute

// program is one that `make test-stack` has built.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("there is no %s: make test-stack builds it", name)
	}
	return path
}

// The programs are those of the images: module v0.314.0 is Prometheus v3.14.0.
func TestVersion(t *testing.T) {
	built := regexp.MustCompile(`github.com/prometheus/prometheus v0\.(\d)(\d\d)\.(\d+)\b`).FindStringSubmatch(string(product.Read(t, "internal/checks/stack/prometheus/go.mod")))
	if built == nil {
		t.Fatal("prometheus/go.mod requires no Prometheus")
	}
	image := fmt.Sprintf("image: prom/prometheus:v%s.%s.%s", built[1], strings.TrimPrefix(built[2], "0"), built[3])
	for _, name := range []string{"monitoring/monitoring-stack.yaml", "docker-compose.yml"} {
		if !regexp.MustCompile(regexp.QuoteMeta(image) + `\b`).Match(product.Read(t, name)) {
			t.Errorf("%s has no %q: go.mod in prometheus/ and the image are to be changed together", name, image)
		}
	}
	// Debian's would do for all that follows, and say nothing about Prometheus 3.
	for _, name := range []string{"prometheus", "promtool"} {
		out, err := exec.Command("go", "version", "-m", program(t, name)).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "\tv0."+built[1]+built[2]+"."+built[3]) {
			t.Errorf("%s is not of that version: %v\n%.300s", program(t, name), err, out)
		}
	}
}

// promtool 3 accepts the configurations, each beside the rules that it names, and has nothing to say about either.
func TestPromtool(t *testing.T) {
	for _, name := range []string{"monitoring/config/prometheus.yml", "testdata/compose/prometheus.yml"} {
		dir := t.TempDir()
		put(t, filepath.Join(dir, "prometheus.yml"), string(product.Read(t, name)))
		put(t, filepath.Join(dir, "prometheus-alerts.yaml"), string(product.Read(t, "monitoring/prometheus-alerts.yaml")))
		out, err := exec.Command(program(t, "promtool"), "check", "config", "--lint=all", "--lint-fatal", filepath.Join(dir, "prometheus.yml")).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "1 rule files found") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	out, err := exec.Command(program(t, "promtool"), "check", "rules", "--lint=all", "--lint-fatal", filepath.Join(product.Root(), "monitoring", "prometheus-alerts.yaml")).CombinedOutput()
	if err != nil {
		t.Errorf("prometheus-alerts.yaml: %v\n%s", err, out)
	}
}

// Prometheus, with the pod's arguments and configuration, finds a relay's pod by the API server and scrapes a real relay there, under the labels that
// alerts and dashboards ask for; it finds neither the pod's other port nor a pod of another namespace; and it asks for nothing that its role refuses.
func TestDiscovery(t *testing.T) {
	relay := startRelay(t)
	api := newCluster(t, pod(t, "sagaz", "outbox-worker-7d4b", relay), pod(t, "elsewhere", "outbox-worker-0000", relay))
	p := startPrometheus(t, api.URL)

	var targets struct {
		ActiveTargets []struct {
			Labels            map[string]string
			ScrapeURL, Health string
		}
	}
	p.eventually(t, "one target is up", func() error {
		if err := p.get("/api/v1/targets", url.Values{"state": {"active"}}, &targets); err != nil {
			return err
		}
		if len(targets.ActiveTargets) != 1 || targets.ActiveTargets[0].Health != "up" {
			return fmt.Errorf("targets are %+v; refused was %q", targets.ActiveTargets, api.refused())
		}
		return nil
	})
	if got, want := targets.ActiveTargets[0].ScrapeURL, "http://"+relay+"/metrics"; got != want {
		t.Errorf("it scrapes %s, want %s", got, want)
	}
	for name, want := range map[string]string{"job": "outbox-worker", "namespace": "sagaz", "pod": "outbox-worker-7d4b", "container": "outbox-worker"} {
		if got := targets.ActiveTargets[0].Labels[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	p.eventually(t, "the relay's series are there", func() error {
		var found struct {
			Result []struct{ Metric map[string]string }
		}
		if err := p.get("/api/v1/query", url.Values{"query": {`outbox_build_info{job="outbox-worker", namespace="sagaz", pod="outbox-worker-7d4b"}`}}, &found); err != nil {
			return err
		}
		if len(found.Result) != 1 {
			return fmt.Errorf("%d series", len(found.Result))
		}
		return nil
	})
	if refused := api.refused(); len(refused) > 0 {
		t.Errorf("its role refuses %q", refused)
	}

	// All rules were loaded.
	var rules struct {
		Groups []struct{ Rules []struct{ Name string } }
	}
	if err := p.get("/api/v1/rules", nil, &rules); err != nil {
		t.Fatal(err)
	}
	n, text := 0, string(product.Read(t, "monitoring/prometheus-alerts.yaml"))
	for _, g := range rules.Groups {
		n += len(g.Rules)
	}
	if want := strings.Count(text, "- alert:") + strings.Count(text, "- record:"); n != want || n < 20 {
		t.Errorf("it has %d rules, and the file %d", n, want)
	}
	// It has room for exemplars.
	resp, err := http.Get(p.url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	own, err := io.ReadAll(resp.Body)
	if err != nil || !regexp.MustCompile(`(?m)^prometheus_tsdb_exemplar_max_exemplars [1-9]`).Match(own) {
		t.Errorf("it keeps no exemplars: %v", err)
	}
}

// startRelay runs one that has no database, which serves its metrics all the same.
func startRelay(t *testing.T) (address string) {
	t.Helper()
	ports, err := child.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	address = fmt.Sprintf("127.0.0.1:%d", ports[0])
	cmd := exec.Command(product.Binary(t), "run")
	cmd.Env = []string{"HOME=/nonexistent", "DATABASE_URL=postgresql://nobody@127.0.0.1:1/none", "BROKER_TYPE=stdout", "RELAY_HTTP_ADDR=" + address}
	beside.Start(t, filepath.Base(cmd.Path), cmd)
	return address
}

type server struct{ url string }

// startPrometheus runs it with the arguments of its pod. What is changed: where its files lie, the address at which it listens, how often it
// scrapes, and where the API server is, which in a cluster it knows by itself.
func startPrometheus(t *testing.T, api string) *server {
	t.Helper()
	var args []string
	for _, doc := range strings.Split(string(product.Read(t, "monitoring/monitoring-stack.yaml")), "\n---\n") {
		var s appsv1.StatefulSet
		if err := yaml.Unmarshal([]byte(doc), &s); err == nil && s.Kind == "StatefulSet" && s.Name == "prometheus" {
			args = s.Spec.Template.Spec.Containers[0].Args
		}
	}
	dir := t.TempDir()
	changed := 0
	for i, a := range args {
		for from, to := range map[string]string{"/etc/prometheus/": dir + "/", "=/prometheus": "=" + dir + "/data"} {
			if strings.Contains(a, from) {
				args[i] = strings.Replace(a, from, to, 1)
				changed++
			}
		}
	}
	text := string(product.Read(t, "monitoring/config/prometheus.yml"))
	config := strings.NewReplacer("- role: pod\n", "- role: pod\n        api_server: "+api+"\n", "_interval: 15s", "_interval: 1s").Replace(text)
	if changed != 2 || strings.Count(config, api) != 1 || strings.Count(config, "1s\n") != 2 {
		t.Fatalf("the files look otherwise than this test believes: %q\n%s", args, config)
	}
	put(t, filepath.Join(dir, "prometheus.yml"), config)
	put(t, filepath.Join(dir, "prometheus-alerts.yaml"), string(product.Read(t, "monitoring/prometheus-alerts.yaml")))
	ports, err := child.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	p := &server{url: fmt.Sprintf("http://127.0.0.1:%d", ports[0])}
	beside.Start(t, "prometheus", exec.Command(program(t, "prometheus"), append(args, "--web.listen-address="+strings.TrimPrefix(p.url, "http://"))...))
	p.eventually(t, "Prometheus is ready", func() error {
		resp, err := http.Get(p.url + "/-/ready")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	})
	return p
}

// get asks the API and returns what is in data.
func (p *server) get(path string, query url.Values, data any) error {
	resp, err := http.Get(p.url + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Status != "success" {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return json.Unmarshal(answer.Data, data)
}

func (p *server) eventually(t *testing.T, what string, look func() error) {
	t.Helper()
	product.Eventually(t, patience, what, func() string {
		if err := look(); err != nil {
			return err.Error()
		}
		return ""
	})
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
