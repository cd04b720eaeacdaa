//go:build stack

package stack

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

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

// promtool 3 accepts the configurations, each next to the rules that it names, and has nothing to
// say about either.
func TestPromtool(t *testing.T) {
	for _, name := range []string{"monitoring/config/prometheus.yml", "testdata/compose/prometheus.yml"} {
		dir := t.TempDir()
		for as, from := range map[string]string{"prometheus.yml": name, "prometheus-alerts.yaml": "monitoring/prometheus-alerts.yaml"} {
			if err := os.WriteFile(filepath.Join(dir, as), product.Read(t, from), 0o600); err != nil {
				t.Fatal(err)
			}
		}
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
