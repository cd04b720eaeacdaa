package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/doctor"
	"github.com/sagaz-relay/relay/relay/encode"
	"github.com/sagaz-relay/relay/relay/store"
)

func newDoctor(load func() (*settings, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check database, rights, slots, table and brokers, and print how to fix what is wrong",
		Long: `doctor looks at everything that "sagaz-relay run" needs with the same settings, and at the state
of its work. It prints for each thing what is wrong, why it matters, and the statement or setting
that fixes it, all at once. It changes nothing, and may be run at any time.

  ok        all is well
  note      it works; it could be better, or should be known
  unknown   it could not be found out; that alone does not change the exit code
  degraded  the relay works, but not as it should, or not for long
  broken    the relay cannot work, or not deliver

Exit codes:
  0  nothing is degraded or broken
  1  something is degraded
  2  something is broken`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			var problems []error
			if err := s.all(); err != nil {
				problems = allErrors(err)
			}
			log := hclog.NewNullLogger() // what sinks would log of their errors is in the report
			sinks, more := s.sinksThatOpen(log)
			defer closeSinks(sinks, log)
			report := doctor.Examine(cmd.Context(), s.examined(sinks), append(problems, more...))
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				err = printReport(cmd.OutOrStdout(), report)
			}
			if err != nil {
				return err
			}
			return worst(report)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// worst is the error whose exit code shows how bad it is.
func worst(r *doctor.Report) error {
	switch r.Worst() {
	case doctor.Broken:
		return configError{fmt.Errorf("doctor: %d broken, %d degraded", r.Counts[doctor.Broken], r.Counts[doctor.Degraded])}
	case doctor.Degraded:
		return fmt.Errorf("doctor: %d degraded", r.Counts[doctor.Degraded])
	default:
		return nil
	}
}

// allErrors takes errors.Join apart, at every depth.
func allErrors(err error) []error {
	if config := (configError{}); errors.As(err, &config) {
		err = config.error
	}
	joined, ok := err.(interface{ Unwrap() []error }) //nolint:errorlint // only what is joined here
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, allErrors(e)...)
	}
	return all
}

// sinksThatOpen makes those sinks of BROKER_TYPE that can be made, and returns of the others what
// settings.all does not report.
func (s *settings) sinksThatOpen(log hclog.Logger) (sinks []relay.Sink, problems []error) {
	for _, name := range s.program.Sinks {
		kind := sinkKindOf(strings.ToLower(name))
		if kind == nil || kind.validate(s.sinks[kind.name]) != nil {
			continue
		}
		sink, err := kind.open(s.sinks[kind.name], log)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		sinks = append(sinks, sink)
	}
	return sinks, problems
}

// examined is what the doctor needs to know of the settings.
func (s *settings) examined(sinks []relay.Sink) doctor.Config {
	encoder, err := encode.New(s.encode)
	if err != nil { // reported by settings.all
		encoder = &encode.Encoder{}
	}
	return doctor.Config{
		DatabaseURL: s.cdc.DatabaseURL, Mode: s.relay.Mode, Slots: s.relay.Slots, Publication: s.cdc.Publication, Failover: s.cdc.Failover,
		WALSenderTimeout: s.cdc.WALSenderTimeout, WALBudget: s.relay.WALBudget, Mark: s.store.Mark,
		Retention:    s.relay.Retention > 0,
		Archive:      s.store.Mark == store.MarkArchive || s.relay.Retention > 0 && s.relay.RetentionAction == relay.RetentionArchive,
		ClaimTimeout: s.store.ClaimTimeout, LeaseTTL: s.store.LeaseTTL,
		SinkNames: s.program.Sinks, Sinks: sinks, Encoder: encoder, ByDefault: s.relay.SinksByDefault,
		RetainedTooMuch: doctor.DefaultRetainedTooMuch, PendingTooLong: doctor.DefaultPendingTooLong, Now: time.Now,
	}
}

// reportWidth is what the report is wrapped to; statements and commands are not wrapped, so that
// they can be copied.
const reportWidth = 96

func printReport(w io.Writer, r *doctor.Report) error {
	checks := 0
	for i := range r.Findings {
		checks = max(checks, utf8.RuneCountInString(r.Findings[i].Check))
	}
	const severities = len("degraded")
	margin := severities + 2 + checks + 2
	for i := range r.Findings {
		f := &r.Findings[i]
		fmt.Fprintf(w, "%-*s  %-*s  %s\n", severities, f.Severity, checks, f.Check, hang(f.Summary, margin))
		if f.Why == "" && len(f.Fix) == 0 {
			continue
		}
		const label = 10 // "why  " under the check's name
		if f.Why != "" {
			fmt.Fprintf(w, "%*s%s\n", label, "why  ", hang(f.Why, label))
		}
		for j, step := range f.Fix {
			name := "fix  "
			if j > 0 {
				name = ""
			}
			text := term.Lines(step.SQL + step.Run) // whole, so that it can be copied
			if step.Do != "" {
				text = hang(step.Do, label)
			}
			fmt.Fprintf(w, "%*s%s\n", label, name, text)
		}
		if i < len(r.Findings)-1 {
			fmt.Fprintln(w)
		}
	}
	var parts []string
	for _, s := range []doctor.Severity{doctor.Broken, doctor.Degraded, doctor.Unknown, doctor.Note, doctor.OK} {
		if n := r.Counts[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	_, err := fmt.Fprintf(w, "\n%s\n", strings.Join(parts, ", "))
	return err
}

// hang breaks text at spaces, to be printed after margin columns.
func hang(text string, margin int) string {
	var lines []string
	line := ""
	for _, word := range slices.DeleteFunc(strings.Split(term.Text(text), " "), func(w string) bool { return w == "" }) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > reportWidth-margin {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return strings.Join(append(lines, line), "\n"+strings.Repeat(" ", margin))
}
