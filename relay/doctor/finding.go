package doctor

import (
	"fmt"
	"slices"
)

// Severity is how bad a finding is.
type Severity int

// Severities, in rising order.
const (
	OK       Severity = iota
	Note              // all works; it could be better, or should be known
	Unknown           // it could not be found out
	Degraded          // the relay works, but not as it should, or not for long
	Broken            // the relay cannot work, or not deliver
)

var severityNames = []string{"ok", "note", "unknown", "degraded", "broken"}

// String is the word that is shown.
func (s Severity) String() string { return severityNames[s] }

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Severity) UnmarshalText(text []byte) error {
	i := slices.Index(severityNames, string(text))
	if i < 0 {
		return fmt.Errorf("%q is no severity", text)
	}
	*s = Severity(i)
	return nil
}

// Finding is what one check has found. Of several things that are wrong each is a finding of its
// own.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	Summary  string   `json:"summary"`       // what is, or what is wrong
	Why      string   `json:"why,omitempty"` // why it matters
	Fix      []Step   `json:"fix,omitempty"` // in order
}

// Step is a part of a fix: a statement, a command, or something else to do.
type Step struct {
	// In words; before a statement or a command: who runs it, and when.
	Do  string `json:"do,omitempty"`
	SQL string `json:"sql,omitempty"` // one statement, to be run as it is
	Run string `json:"run,omitempty"` // a command line
}

func do(format string, args ...any) Step { return Step{Do: fmt.Sprintf(format, args...)} }

func sql(format string, args ...any) Step { return Step{SQL: fmt.Sprintf(format, args...)} }

func statements(all []string) []Step {
	steps := make([]Step, 0, len(all))
	for _, s := range all {
		steps = append(steps, sql("%s", s))
	}
	return steps
}

func run(format string, args ...any) Step { return Step{Run: fmt.Sprintf(format, args...)} }

// count renders a number of things, whose name takes an s.
func count(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// Report is all that was found, in the order of the checks.
type Report struct {
	Findings []Finding        `json:"findings"`
	Counts   map[Severity]int `json:"counts"` // every severity, also those without a finding
}

// Worst is the highest severity of any finding.
func (r *Report) Worst() Severity {
	worst := OK
	for i := range r.Findings {
		worst = max(worst, r.Findings[i].Severity)
	}
	return worst
}
