package results

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// begin and end are the lines of a document between which Report writes.
const (
	begin = "<!-- results: written by compare report -->"
	end   = "<!-- end of results -->"
)

// Report draws the plots into a directory, and writes the tables into a document: between two
// lines of it where it is there, else into a new one.
func Report(csv, plots, doc string) error {
	rows, err := Read(csv)
	if err != nil {
		return err
	}
	t := Table{rows}
	if err := os.MkdirAll(plots, 0o755); err != nil {
		return fmt.Errorf("create directory for plots: %w", err)
	}
	drawn, err := draw(t, plots)
	if err != nil {
		return err
	}
	var links strings.Builder
	for _, name := range drawn {
		path, err := filepath.Rel(filepath.Dir(doc), filepath.Join(plots, name+".svg"))
		if err != nil {
			return err
		}
		fmt.Fprintf(&links, "![%s](%s)\n", strings.ReplaceAll(name, "-", " "), filepath.ToSlash(path))
	}
	figures, err := filepath.Rel(filepath.Dir(doc), csv)
	if err != nil {
		return err
	}
	fmt.Fprintf(&links, "\n[All figures](%s), one a line.\n", filepath.ToSlash(figures))
	old, err := os.ReadFile(doc)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	text, err := splice(string(old), Tables(t)+"\n"+links.String())
	if err != nil {
		return fmt.Errorf("%s: %w", doc, err)
	}
	return os.WriteFile(doc, []byte(text), 0o644)
}

// splice puts text between the two lines.
func splice(old, text string) (string, error) {
	if old == "" {
		old = "# Benchmarks\n\n" + begin + "\n" + end + "\n"
	}
	head, rest, ok := strings.Cut(old, begin+"\n")
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", fmt.Errorf("has not the lines %q and %q, between which the tables go", begin, end)
	}
	return head + begin + "\n\n" + strings.TrimSpace(text) + "\n\n" + end + tail, nil
}

// column is a metric with its heading, in a unit that is divided by.
type column struct {
	title, metric string
	unit          float64
}

// Tables are all figures, as Markdown: of each the median, and the extremes in brackets.
func Tables(t Table) string {
	var b strings.Builder
	machine(&b, t)
	for _, perTx := range Distinct(t, Case{Measure: "drain"}, func(r Row) int { return r.PerTx }) {
		for _, size := range Distinct(t, Case{Measure: "drain", PerTx: perTx}, func(r Row) int { return r.RowBytes }) {
			c := Case{Measure: "drain", PerTx: perTx, RowBytes: size}
			fmt.Fprintf(&b, "### Drain: %s a transaction, payloads of %d bytes\n\n", plural(perTx, "row"), size)
			write(&b, t, c, []column{
				{"events/s, start included", "events_per_second", 1},
				{"from the first message on", "events_per_second_after_first", 1},
				{"marked/s from the first message on", "marked_per_second_after_first", 1},
				{"`pg_recvlogical` in the same run", "reference_per_second", 1},
				{"ratio to it", "ratio", 1},
				{"ratio from the first message on", "ratio_after_first", 1},
				{"start to first message, s", "first_event_seconds", 1},
			})
			if t.Of(c, "cpu_contestant").Runs == 0 {
				continue
			}
			b.WriteString("CPU seconds for a million events, start included, and memory:\n\n")
			write(&b, t, c, []column{
				{"contestant", "cpu_contestant", 1},
				{"… after its first message", "cpu_contestant_after_first", 1},
				{"walsender", "cpu_walsender", 1},
				{"other backends", "cpu_backends", 1},
				{"PostgreSQL's own", "cpu_server", 1},
				{"broker", "cpu_broker", 1},
				{"all", "cpu_all", 1},
				{"peak memory, MB", "peak_bytes", 1e6},
			})
		}
	}
	for _, rate := range Distinct(t, Case{Measure: "latency"}, func(r Row) int { return r.Rate }) {
		if rate == 0 {
			continue
		}
		fmt.Fprintf(&b, "### Commit to consumer at %d events/s\n\n", rate)
		write(&b, t, Case{Measure: "latency", Rate: rate}, []column{
			{"p50, ms", "p50_ms", 1},
			{"p95, ms", "p95_ms", 1},
			{"p99, ms", "p99_ms", 1},
			{"maximum, ms", "max_ms", 1},
			{"committed/s", "committed_per_second", 1},
			{"CPU s a million: contestant", "cpu_contestant", 1},
			{"walsender", "cpu_walsender", 1},
			{"other backends", "cpu_backends", 1},
			{"broker", "cpu_broker", 1},
		})
	}
	if len(Distinct(t, Case{Measure: "recovery"}, func(r Row) string { return r.Contestant })) > 0 {
		fmt.Fprintf(&b, "### After kill -9\n\n")
		write(&b, t, Case{Measure: "recovery"}, []column{
			{"events/s at the time", "kill_rate", 1}, {"to the next message, s", "recovery_seconds", 1}, {"events that came twice", "repeated", 1}, {"events that did not come within 15 s", "undelivered", 1},
		})
	}
	return b.String()
}

func machine(b *strings.Builder, t Table) {
	notes := map[string]string{}
	var names []string
	from, to := "", ""
	runs := 0
	for _, r := range t.rows {
		if r.Measure == "contestant" {
			continue
		}
		if r.Measure == "machine" {
			if notes[r.Metric] == "" {
				names = append(names, r.Metric)
			}
			notes[r.Metric] = r.Note
			continue
		}
		day := r.At.UTC().Format("2 January 2006")
		if from == "" {
			from = day
		}
		to, runs = day, max(runs, r.Run)
	}
	if from != to {
		from += " to " + to
	}
	fmt.Fprintf(b, "%s, %s of each. The median, and in brackets the least and the most.\n\n| | |\n|---|---|\n", from, plural(runs, "run"))
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(b, "| %s | %s |\n", name, notes[name])
	}
	b.WriteString("\n")
}

// write writes a table of a case: a line for each contestant, a column for each metric that any of
// them has.
func write(b *strings.Builder, t Table, c Case, columns []column) {
	columns = slices.DeleteFunc(slices.Clone(columns), func(k column) bool { return t.Of(c, k.metric).Runs == 0 })
	names := Distinct(t, c, func(r Row) string { return r.Contestant })
	b.WriteString("| |")
	for _, k := range columns {
		b.WriteString(" " + k.title + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
	var failures []string
	for _, name := range names {
		c.Contestant = name
		b.WriteString("| " + name)
		if does := t.does(name); does != "" {
			b.WriteString(" (" + does + ")")
		}
		b.WriteString(" |")
		for _, k := range columns {
			b.WriteString(" " + t.Of(c, k.metric).format(k.unit) + " |")
		}
		b.WriteString("\n")
		if notes := t.Failures(c); len(notes) > 0 && !slices.ContainsFunc(columns, func(k column) bool { return k.metric == "peak_bytes" && c.Measure == "drain" }) {
			failures = append(failures, fmt.Sprintf("%s failed in %s: %s", name, plural(len(notes), "run"), notes[0]))
		}
	}
	b.WriteString("\n")
	for _, f := range failures {
		b.WriteString(strings.ReplaceAll(f, "|", "/") + "\n\n")
	}
}

// does is what a contestant does besides publishing.
func (t Table) does(contestant string) string {
	for _, r := range t.rows {
		if r.Measure == "contestant" && r.Contestant == contestant {
			return r.Note
		}
	}
	return ""
}

func (s Spread) format(unit float64) string {
	if s.Runs == 0 {
		return "–"
	}
	text := digits(s.Median / unit)
	if s.Runs > 1 && s.Min != s.Max {
		text += " (" + digits(s.Min/unit) + " to " + digits(s.Max/unit) + ")"
	}
	return text
}

// digits writes three significant digits, thousands with a comma.
func digits(v float64) string {
	switch magnitude := math.Abs(v); {
	case magnitude >= 1000:
		scale := math.Pow(10, math.Floor(math.Log10(magnitude))-2)
		text := strconv.FormatFloat(math.Round(v/scale)*scale, 'f', 0, 64)
		for i := len(text) - 3; i > 0; i -= 3 {
			text = text[:i] + "," + text[i:]
		}
		return text
	case magnitude >= 100 || v == 0:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case magnitude >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

func plural(n int, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case n < 1000:
		return strconv.Itoa(n) + " " + what + "s"
	}
	return digits(float64(n)) + " " + what + "s"
}
