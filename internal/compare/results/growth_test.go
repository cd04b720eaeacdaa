package results

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGrowth(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "growth.csv"), filepath.Join(dir, "growth.svg")
	write := func(lines ...string) {
		t.Helper()
		if err := os.WriteFile(from, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	head := strings.Join(growthColumns, ",")
	write(head, "keys,1,1,100,0.2,1.5,60000,5.1,6.2,3.3,80000000", "keys,1000000,1,100,0.2,1.5,60000,5.1,6.2,3.3,80000000", "sent,0,1,100,0.2,1.5,60000,5.1,6.2,9.3,80000000")
	if err := Growth(from, to); err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg", "keys", "sent", "walsender", "1,000,000"} {
		if !strings.Contains(string(svg), want) {
			t.Errorf("the plot has no %q", want)
		}
	}
	for name, lines := range map[string][]string{"nothing": {head}, "other columns": {"a,b"}, "no number": {head, "keys,x,1,100,0.2,1.5,60000,5.1,6.2,3.3,1"}} {
		write(lines...)
		if err := Growth(from, to); err == nil {
			t.Errorf("%s: drawn", name)
		}
	}
}
