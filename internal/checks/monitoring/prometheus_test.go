package monitoring

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// prometheus is a server of its own, which scrapes every second.
type prometheus struct {
	t     *testing.T
	url   string
	began time.Time
}

// scraped is a relay as monitoring/'s configuration would label it in a cluster.
type scraped struct{ pod, address string }

// startPrometheus has the rules evaluated as often as it scrapes.
func startPrometheus(t *testing.T, rules string, targets []scraped) *prometheus {
	t.Helper()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		t.Fatal("there is no prometheus here: make test brings it where it may, else install it (Debian: apt-get install prometheus)")
	}
	ports, err := child.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("rules.yaml", strings.ReplaceAll(rules, "interval: 15s", "interval: 1s"))
	config := "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [rules.yaml]\n"
	config += "scrape_configs:\n  - job_name: outbox-worker\n    static_configs:\n"
	for _, s := range targets {
		config += fmt.Sprintf("      - {targets: [%q], labels: {namespace: sagaz, pod: %s}}\n", s.address, s.pod)
	}
	write("prometheus.yml", config)
	p := &prometheus{t: t, url: fmt.Sprintf("http://127.0.0.1:%d", ports[0]), began: time.Now()}
	product.Start(t, "prometheus", exec.Command(program, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+strings.TrimPrefix(p.url, "http://"), "--log.level=warn",
		"--enable-feature=exemplar-storage")) // as monitoring-stack.yaml has it
	product.Until(t, "Prometheus answers", func() bool {
		resp, err := http.Get(p.url + "/-/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

// get asks the API and returns what is in data.
func (p *prometheus) get(path string, query url.Values, data any) error {
	resp, err := http.PostForm(p.url+path, query)
	if strings.Contains(path, "/label/") || strings.HasSuffix(path, "/rules") {
		resp, err = http.Get(p.url + path + "?" + query.Encode())
	}
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
		Warnings      []string
		Data          json.RawMessage
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	if answer.Status != "success" || len(answer.Warnings) > 0 {
		return fmt.Errorf("%s %v", answer.Error, answer.Warnings)
	}
	return json.Unmarshal(answer.Data, data)
}

// answer is a series that a query gave.
type answer struct {
	Metric map[string]string
	Values [][2]any // time, and the value as text
}

// ask evaluates an expression at every second since the start, and at the next one, for what came
// within this one. data says whether it was ever a number.
func (p *prometheus) ask(expr string) (series []answer, data bool, err error) {
	var result struct{ Result []answer }
	err = p.get("/api/v1/query_range", url.Values{
		"query": {expr}, "step": {"1"},
		"start": {fmt.Sprint(p.began.Unix())}, "end": {fmt.Sprint(time.Now().Unix() + 1)},
	}, &result)
	for _, s := range result.Result {
		for _, v := range s.Values {
			text, _ := v[1].(string)
			if n, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(n) {
				data = true
			}
		}
	}
	return result.Result, data, err
}

// now is an expression's value at this moment; not ok where it has none, or several.
func (p *prometheus) now(expr string) (value float64, ok bool) {
	p.t.Helper()
	var result struct {
		Result []struct{ Value [2]any }
	}
	if err := p.get("/api/v1/query", url.Values{"query": {expr}}, &result); err != nil {
		p.t.Fatalf("%s: %v", expr, err)
	}
	if len(result.Result) != 1 {
		return 0, false
	}
	text, _ := result.Result[0].Value[1].(string)
	value, err := strconv.ParseFloat(text, 64)
	return value, err == nil
}

// until waits for an expression to be true (to have a sample other than 0).
func (p *prometheus) until(expr string) {
	p.t.Helper()
	product.Until(p.t, expr, func() bool {
		value, ok := p.now("max(" + expr + ")")
		return ok && value != 0
	})
}
