package doctor

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/internal/term"
)

// Print prints the report for people. Statements and commands are not wrapped, so that they can be
// copied.
func (r *Report) Print(w io.Writer) error {
	checks := 0
	for i := range r.Findings {
		checks = max(checks, utf8.RuneCountInString(r.Findings[i].Check))
	}
	const severities = len("degraded")
	margin := severities + 2 + checks + 2
	for i := range r.Findings {
		f := &r.Findings[i]
		fmt.Fprintf(w, "%-*s  %-*s  %s\n", severities, f.Severity, checks, f.Check, term.Hang(f.Summary, margin))
		if f.Why == "" && len(f.Fix) == 0 {
			continue
		}
		const label = 10 // "why  " under the check's name
		if f.Why != "" {
			fmt.Fprintf(w, "%*s%s\n", label, "why  ", term.Hang(f.Why, label))
		}
		for j, step := range f.Fix {
			name := "fix  "
			if j > 0 {
				name = ""
			}
			text := term.Lines(step.SQL + step.Run) // whole, so that it can be copied
			if step.Do != "" {
				text = term.Hang(step.Do, label)
			}
			fmt.Fprintf(w, "%*s%s\n", label, name, text)
		}
		if i < len(r.Findings)-1 {
			fmt.Fprintln(w)
		}
	}
	var parts []string
	for _, s := range []Severity{Broken, Degraded, Unknown, Note, OK} {
		if n := r.Counts[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	_, err := fmt.Fprintf(w, "\n%s\n", strings.Join(parts, ", "))
	return err
}
