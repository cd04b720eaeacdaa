package verify

import (
	"fmt"
	"strings"

	"github.com/sagaz-relay/relay/internal/term"
)

// Text is the report for people.
func (r *AuditReport) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d events in the table\n", r.Events)
	for _, s := range r.Sinks {
		fmt.Fprintf(&b, "\n%s: %d of them there, in %d deliveries (%d replays); %d missing, %d pending, %d dead letters, %d duplicates, %d earlier\n",
			term.Text(s.Sink), s.Events, s.Deliveries, s.Replayed, s.Missing.Count, s.Pending, s.DeadLetters, s.Duplicates.Count, s.EarlierArrivedLater.Count)
		if s.Dropped > 0 {
			fmt.Fprintf(&b, "  %d are not there by a rule of RELAY_ROUTES\n", s.Dropped)
		}
		list(&b, "missing", s.Missing)
		list(&b, "duplicate", s.Duplicates)
		list(&b, "earlier", s.EarlierArrivedLater)
		list(&b, "not in the table (deleted since, or another application's)", s.Unknown)
		if s.NoID > 0 {
			fmt.Fprintf(&b, "  %d messages without an event_id\n", s.NoID)
		}
	}
	if r.Disagreements.Count > 0 {
		b.WriteString("\nbetween the sinks:\n")
		list(&b, "disagreeing", r.Disagreements)
	}
	return b.String()
}

func list[T any](b *strings.Builder, what string, found Found[T]) {
	if found.Count == 0 {
		return
	}
	fmt.Fprintf(b, "  %s:\n", what)
	for _, f := range found.List {
		fmt.Fprintf(b, "    %s\n", term.Text(fmt.Sprint(f)))
	}
	if more := found.Count - len(found.List); more > 0 {
		fmt.Fprintf(b, "    and %d more (--all lists them)\n", more)
	}
}
