package results

import (
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var at = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

func sample() []Row {
	rows := []Row{{At: at, Measure: "machine", Metric: "cpu", Note: `2 cores of "some", or others`}, {At: at, Measure: "contestant", Contestant: "peer", Metric: "does", Note: "marks nothing"}}
	for run := 1; run <= 3; run++ {
		for i, name := range []string{"relay", "peer"} {
			r := Row{At: at, Run: run, Measure: "drain", Contestant: name, PerTx: 5000, RowBytes: 500, Rows: 100, Metric: "events_per_second_after_first", Value: float64(10_000*(2-i) + run)}
			l := Row{At: at, Run: run, Measure: "latency", Contestant: name, PerTx: 1, RowBytes: 500, Rate: 1000, Rows: 100, Metric: "p99_ms", Value: float64(run * (i + 1))}
			k := Row{At: at, Run: run, Measure: "recovery", Contestant: name, PerTx: 1, RowBytes: 500, Rate: 1000, Rows: 100, Metric: "recovery_seconds", Value: float64(run)}
			rows = append(rows, r, l, k)
		}
	}
	return append(rows, Row{At: at, Run: 3, Measure: "drain", Contestant: "broken", PerTx: 5000, RowBytes: 500, Metric: "failed", Value: 1, Note: "it | fell"})
}

func TestWhatIsAppendedIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "results.csv")
	want := sample()
	for _, r := range want { // in several parts, as runs end
		if err := Append(path, []Row{r}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(path)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("read %v, %v\nwant %v", got, err, want)
	}
	// Killed while it wrote a line.
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text[:len(text)-20], 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path); err != nil || len(got) != len(want)-1 {
		t.Errorf("of a file that ends in the middle of a line %d rows were read, %v; want %d", len(got), err, len(want)-1)
	}
	if err := os.WriteFile(path, []byte("a,b\n1,2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil {
		t.Error("a file with other columns was read")
	}
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   Spread
	}{
		{[]float64{5}, Spread{5, 5, 5, 1}},
		{[]float64{9, 1, 5}, Spread{5, 1, 9, 3}},
		{[]float64{4, 1, 2, 9}, Spread{3, 1, 9, 4}},
	} {
		if got := SpreadOf(c.values); got != c.want {
			t.Errorf("of %v: %v, want %v", c.values, got, c.want)
		}
	}
	if got := SpreadOf(nil); got.Runs != 0 || !math.IsNaN(got.Median) {
		t.Errorf("of nothing: %v", got)
	}
}

func TestDigits(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.123: "0.12", 1.239: "1.24", 12.34: "12.3", 999: "999", 1000: "1,000", 1234: "1,230", 123456: "123,000", 1e6: "1,000,000",
	} {
		if got := digits(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}

// What was not measured is left out.
func TestReportOfAPart(t *testing.T) {
	for _, measure := range []string{"machine", "drain", "latency", "recovery"} {
		dir := t.TempDir()
		csv, doc := filepath.Join(dir, "results.csv"), filepath.Join(dir, "doc.md")
		for _, r := range sample() {
			if r.Measure == measure {
				if err := Append(csv, []Row{r}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := Report(csv, dir, doc); err != nil {
			t.Errorf("of %s alone: %v", measure, err)
		}
	}
}

func TestReport(t *testing.T) {
	dir := t.TempDir()
	csv, doc := filepath.Join(dir, "results.csv"), filepath.Join(dir, "doc.md")
	if err := Append(csv, sample()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(doc, []byte("# Ours\n"+begin+"\nold\n"+end+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Report(csv, filepath.Join(dir, "plots"), doc); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# Ours\n" + begin, end + "\nafter\n", "30 November 2026, 3 runs of each.",
		"| relay | 20,000 (20,000 to 20,000) |", "| peer (marks nothing) | 4.00 (2.00 to 6.00) |", "| broken | – |", "broken failed in 1 run: it / fell",
		"![drain](plots/drain.svg)\n![latency](plots/latency.svg)\n![recovery](plots/recovery.svg)\n\n[All figures](results.csv), one a line.",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the document has not %q:\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "old") {
		t.Error("the document still has the old tables")
	}
	for _, name := range []string{"drain", "latency", "recovery"} {
		svg, err := os.ReadFile(filepath.Join(dir, "plots", name+".svg"))
		if err != nil || !strings.Contains(string(svg), "<svg") || (name != "latency" && !strings.Contains(string(svg), "peer")) {
			t.Errorf("plot %s: %d bytes, %v", name, len(svg), err)
		}
	}
	if err := os.WriteFile(doc, []byte("no lines\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Report(csv, dir, doc); err == nil {
		t.Error("a document without the lines was overwritten")
	}
}
