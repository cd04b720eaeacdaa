package monitoring

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/alloy/syntax/parser"
	"go.yaml.in/yaml/v3"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// The files that make up a configuration of Alloy: of the cluster, with the component, and of
// docker-compose.yml.
var (
	base        = []string{"config/config.alloy", "config/labels.alloy"}
	withSagaIDs = []string{"config/config.alloy", "components/saga-id-labels/labels.alloy"}
	inCompose   = []string{"../testdata/compose/config.alloy", "config/labels.alloy"}
)

// collected is what Alloy makes of a line.
type collected struct {
	read     map[string]string // name in the pipeline to key of the line
	labels   []string          // of the stream
	metadata []string          // structured
}

// collects reads Alloy's configuration, which Alloy's parser takes. What one component sends to
// another goes to one that is there.
func collects(t *testing.T, names []string) (c collected) {
	t.Helper()
	text := ""
	for _, name := range names {
		source := product.Read(t, filepath.Join("monitoring", name))
		if _, err := parser.ParseFile(name, source); err != nil {
			t.Fatal(err)
		}
		text += string(source)
	}
	for _, m := range regexp.MustCompile(`((?:discovery|loki)\.[\w.]+)\.(\w+)\.(?:targets|output|receiver)\b`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(text, m[1]+` "`+m[2]+`" {`) {
			t.Errorf("%v: no %s", names, m[0])
		}
	}
	for _, m := range regexp.MustCompile(`target_label\s*= "(\w+)"`).FindAllStringSubmatch(text, -1) {
		c.labels = append(c.labels, m[1])
	}
	values := func(stage string) map[string]string {
		all := make(map[string]string)
		block := regexp.MustCompile(`(?s)stage\.` + stage + ` \{\n\s*\w+ = \{(.*?)\}`).FindStringSubmatch(text)
		if block == nil {
			t.Fatalf("%v: no stage.%s", names, stage)
		}
		for _, m := range regexp.MustCompile(`(\w+)\s*= "(\w*)"`).FindAllStringSubmatch(block[1], -1) {
			all[m[1]] = cmp.Or(m[2], m[1])
		}
		return all
	}
	c.read = values("json")
	c.labels = slices.Sorted(slices.Values(slices.AppendSeq(c.labels, maps.Keys(values("labels")))))
	c.metadata = slices.Sorted(maps.Keys(values("structured_metadata")))
	return c
}

// What has as many values as there are sagas is a label only where somebody asked for that, and
// what is read from a line is one of its documented keys.
func TestLabels(t *testing.T) {
	plain, ids, compose := collects(t, base), collects(t, withSagaIDs), collects(t, inCompose)
	bounded := []string{"app", "container", "level", "namespace", "pod", "saga_name"}
	if !slices.Equal(plain.labels, bounded) {
		t.Errorf("labels %v, want %v", plain.labels, bounded)
	}
	if want := slices.Sorted(slices.Values(append([]string{"saga_id", "correlation_id", "step_name"}, bounded...))); !slices.Equal(ids.labels, want) {
		t.Errorf("component: labels %v, want %v", ids.labels, want)
	}
	if fmt.Sprint(compose) != fmt.Sprint(plain) {
		t.Errorf("docker-compose.yml: %+v, want what the cluster has: %+v", compose, plain)
	}
	if promtail := promtailCollects(t); fmt.Sprint(promtail) != fmt.Sprint(plain) {
		t.Errorf("Promtail: %+v, want what Alloy has: %+v", promtail, plain)
	}
	document := string(product.Read(t, "docs/observability.md"))
	for name, key := range plain.read {
		if !strings.Contains(document, "`"+key+"`") {
			t.Errorf("docs/observability.md does not have the key %q", key)
		}
		if name != "ts" && slices.Contains(plain.labels, name) == slices.Contains(plain.metadata, name) {
			t.Errorf("%s is neither a label nor metadata, or both", name)
		}
	}
}

// promtailCollects is what Promtail makes of a line. Labels with __ are its own.
func promtailCollects(t *testing.T) (c collected) {
	t.Helper()
	var config struct {
		Scrapes []struct {
			Relabel []struct {
				Target string `yaml:"target_label"`
			} `yaml:"relabel_configs"`
			Pipeline []struct {
				JSON     struct{ Expressions map[string]string }
				Labels   map[string]any
				Metadata map[string]any `yaml:"structured_metadata"`
			} `yaml:"pipeline_stages"`
		} `yaml:"scrape_configs"`
	}
	err := yaml.Unmarshal(product.Read(t, "monitoring/components/promtail/promtail.yml"), &config)
	if err != nil || len(config.Scrapes) != 1 {
		t.Fatalf("promtail.yml: %v, %+v", err, config)
	}
	for _, r := range config.Scrapes[0].Relabel {
		if !strings.HasPrefix(r.Target, "__") {
			c.labels = append(c.labels, r.Target)
		}
	}
	for _, s := range config.Scrapes[0].Pipeline {
		if s.JSON.Expressions != nil {
			c.read = s.JSON.Expressions
		}
		c.labels = slices.AppendSeq(c.labels, maps.Keys(s.Labels))
		c.metadata = slices.AppendSeq(c.metadata, maps.Keys(s.Metadata))
	}
	slices.Sort(c.labels)
	slices.Sort(c.metadata)
	return c
}
