package repair

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
)

// tableWidth is what tables for people fit into.
const tableWidth = 100

// PrintLetters prints a line a letter, and below it the error, unless it is that of the line
// before.
func PrintLetters(w io.Writer, letters []Letter, total int, now time.Time) error {
	if total == 0 {
		_, err := fmt.Fprintln(w, "none")
		return err
	}
	var table strings.Builder
	t := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "EVENT_ID\tSINK\tSTATE\tREASON\tATTEMPTS\tAGE\tKEY")
	for i := range letters {
		l := &letters[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", l.EventID, term.Cut(term.Text(l.Sink), len(relay.MarkSink)), term.Text(string(l.State)), term.Text(term.OrDash(l.Reason)), l.Attempts, age(now.Sub(l.Since)), term.Text(l.Key))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	last := ""
	for i, line := range strings.Split(strings.TrimSuffix(table.String(), "\n"), "\n") {
		fmt.Fprintln(w, term.Cut(line, tableWidth))
		if i == 0 {
			continue
		}
		if text := term.Text(letters[i-1].LastError); text != "" && text != last {
			fmt.Fprintln(w, term.Cut("  "+text, tableWidth))
			last = text
		}
	}
	if len(letters) < total {
		fmt.Fprintf(w, "… and %d more: --limit 0 shows all\n", total-len(letters))
	}
	return nil
}

// PrintEvent prints all that is known of an event.
func PrintEvent(w io.Writer, e *Event, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		if value := term.Text(fmt.Sprintf(format, args...)); value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, value)
		}
	}
	moment := func(name string, at *time.Time) {
		if at != nil {
			line(name, "%s (%s)", at.UTC().Format(time.RFC3339), when(at.Sub(now)))
		}
	}
	line("event_id", "%s", e.EventID)
	if r := e.Row; r == nil {
		line("row", "%s", "gone: neither in saga_outbox nor in its archive; the relay drops its entries")
	} else {
		line("event_type", "%s", r.EventType)
		line("aggregate", "%s %s (the key)", r.AggregateType, r.AggregateID)
		line("saga_id", "%s", r.SagaID)
		if r.Archived {
			line("row", "%s, in saga_outbox_archive", r.Status)
		} else {
			line("row", "%s", r.Status)
		}
		line("created_at", "%s", r.CreatedAt)
		moment("claimed_at", r.ClaimedAt)
		moment("sent_at", r.SentAt)
		line("retry_count", "%d", r.RetryCount)
		line("last_error", "%s", r.LastError)
		line("worker_id", "%s", r.WorkerID)
		line("headers", "%s", term.OrDash(strings.Join(r.Headers, ", ")))
		if r.Payload == nil {
			line("payload", "%d bytes (--payload prints it)", r.PayloadBytes)
		} else {
			line("payload", "%d bytes: %s", r.PayloadBytes, *r.Payload)
		}
	}
	for i := range e.Entries {
		l := &e.Entries[i]
		fmt.Fprintf(t, "\nsink\t%s\n", term.Text(l.Sink))
		line("state", "%s", describeState(l))
		line("reason", "%s", l.Reason)
		line("attempts", "%d", l.Attempts)
		moment("next attempt", l.NextAttemptAt)
		line("last_error", "%s", l.LastError)
		moment("in the ledger", &l.Since)
		moment("replayed_at", l.ReplayedAt)
		line("slot", "%s, position %d", l.Slot, l.Position)
	}
	return t.Flush()
}

// describeState is the state of a ledger entry in words.
func describeState(l *Letter) string {
	switch {
	case l.Discarded:
		return "discarded: the relay takes it out"
	case l.State == StateUnmarked:
		return "unmarked: delivered, and the row does not take its mark; tried again by itself"
	case l.State == StateHeld:
		return "held: behind another event of its key"
	case l.State == StateDead && l.Detached:
		return "dead: later events of its key have gone on without it"
	case l.State == StateDead:
		return "dead: later events of its key wait until it is retried or discarded"
	case l.NextAttemptAt != nil:
		return "retry: waits for its next attempt"
	default:
		return "retry: due, it is offered next"
	}
}

// age renders a duration in its largest unit.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

func when(d time.Duration) string {
	if d > 0 {
		return "in " + age(d)
	}
	return age(-d) + " ago"
}
