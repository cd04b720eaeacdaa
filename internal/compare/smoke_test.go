//go:build smoke

package main

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/sagaz-relay/relay/internal/compare/results"
)

// TestSmoke runs a little of everything, on real servers with all contestants, and wants each event
// to arrive once. Make test-compare runs it; nothing of it is about speed.
func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	csv := filepath.Join(dir, "results.csv")
	o, err := parse([]string{"-smoke", "-csv", csv, "-logs", filepath.Join(dir, "logs"), "-relay", "../../bin/sagaz-relay", "-forwarder", "../../bin/watermill-forwarder"})
	if err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	rows, err := results.Read(csv)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, r := range rows {
		found[r.Measure+" "+r.Contestant+" "+r.Metric] = true
		once := r.Metric == "repeated" && r.Measure == "drain" || r.Metric == "lost" || r.Metric == "undelivered" && r.Measure == "latency"
		if r.Metric == "failed" || once && r.Value != 0 {
			t.Errorf("%s of %s: %s %v %s", r.Measure, r.Contestant, r.Metric, r.Value, r.Note)
		}
	}
	for _, c := range contestants() {
		for _, metric := range []string{"drain %s events_per_second", "drain %s cpu_contestant", "drain %s peak_bytes", "latency %s p99_ms", "recovery %s recovery_seconds"} {
			if name := fmt.Sprintf(metric, c.name); !found[name] {
				t.Errorf("there is no %s", name)
			}
		}
	}
	if err := results.Report(csv, dir, filepath.Join(dir, "doc.md")); err != nil {
		t.Error(err)
	}
}
