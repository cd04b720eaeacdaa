// Package product gives the checks the real binary, built from the tree around them, and what it
// says of itself.
package product

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/program"
)

// Root is the directory of the repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..")
}

// Read returns a file of the repository.
func Read(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Root(), path))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Binary is the path of sagaz-relay, built from the tree around it.
func Binary(t testing.TB) string { return program.Plain(t) }

// Setting is a line of `sagaz-relay settings --json`.
type Setting struct {
	Names    []string `json:"names"`
	Fallback string   `json:"fallback"`
	Default  string   `json:"default"`
	Secret   bool     `json:"secret"`
}

// Settings are those that the binary knows, by each of their names, fallbacks included.
func Settings(t testing.TB) map[string]Setting {
	t.Helper()
	cmd := exec.Command(Binary(t), "settings", "--json")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sagaz-relay settings --json: %v", err)
	}
	var list []Setting
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatal(err)
	}
	known := make(map[string]Setting)
	for _, s := range list {
		for _, name := range s.Names {
			known[name] = s
		}
		if s.Fallback != "" {
			known[s.Fallback] = s
		}
	}
	return known
}

// Series are the labels of each series that a relay exports, by name, from the table in
// docs/metrics.md, which a test of the relay compares with the code.
func Series(t testing.TB) map[string][]string {
	t.Helper()
	series := map[string][]string{}
	name := regexp.MustCompile("`(\\w+)`")
	for _, m := range regexp.MustCompile("(?m)^\\| `((?:outbox|go|process)_\\w+)` \\| (\\w+) \\| ([^|]*)\\|").FindAllStringSubmatch(string(Read(t, "docs/metrics.md")), -1) {
		own := []string{}
		for _, l := range name.FindAllStringSubmatch(m[3], -1) {
			own = append(own, l[1])
		}
		slices.Sort(own)
		if m[2] == "histogram" {
			series[m[1]+"_count"], series[m[1]+"_sum"] = own, own
			m[1], own = m[1]+"_bucket", slices.Sorted(slices.Values(append(slices.Clone(own), "le")))
		}
		series[m[1]] = own
	}
	if len(series) < 60 {
		t.Fatalf("%d series found in docs/metrics.md: the test looks in the wrong place", len(series))
	}
	return series
}
