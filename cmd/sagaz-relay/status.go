package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay/store"
)

func newStatus(load func() (*settings, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show slots, owners, lag and rows by status",
		Long: `status reads the database of DATABASE_URL: for each slot who owns it and since when, how far it is
behind and how much WAL it holds back; and how many rows are in each status. Counting looks at the
whole table: --no-rows leaves it out. The ledger's entries are by sink; with RELAY_SINKS each sink's
kind is next to its name, as these settings have it. While the number of slots is changed (migrate --shards) it
shows how far that is, and for whom it waits.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			if err := s.database(); err != nil {
				return err
			}
			noRows, err := cmd.Flags().GetBool("no-rows")
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			conn, err := s.connect(ctx, "status")
			if err != nil {
				return err
			}
			defer conn.Close(ctx) //nolint:errcheck // read only
			overview, err := store.ReadOverview(ctx, conn, !noRows)
			if err != nil {
				return err
			}
			if asJSON {
				return term.WriteJSON(cmd.OutOrStdout(), struct {
					*store.Overview
					SinkKinds map[string]string `json:"sink_kinds"` // by name
				}{overview, s.usedKinds()})
			}
			return printOverview(cmd.OutOrStdout(), overview, s.kindNames())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().Bool("no-rows", false, "do not count rows")
	return cmd
}

// printOverview prints for people. kinds are those of named sinks: a sink of BROKER_TYPE is called as
// its kind is.
func printOverview(w io.Writer, o *store.Overview, kinds map[string]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if o.Set != nil && (o.Set.Shards > 1 || o.Set.Target != 0) {
		for line := range strings.Lines("the table's events are " + o.Set.String()) {
			fmt.Fprintln(t, term.Text(strings.TrimSpace(line)))
		}
		fmt.Fprintln(t)
	}
	changing := o.Set != nil && o.Set.Target != 0
	fmt.Fprint(t, "SLOT\tOWNER\tEPOCH\tSINCE\tSTREAMING\tBEHIND\tWAL HELD\tWAL STATUS\tMARKED UP TO")
	if changing {
		fmt.Fprint(t, "\tCHANGE")
	}
	fmt.Fprintln(t)
	for i := range o.Slots {
		s := &o.Slots[i]
		since := ""
		if s.Taken != nil {
			since = s.Taken.UTC().Format(time.DateTime)
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s", term.Text(s.Slot), term.Text(term.OrDash(s.Owner)), s.Epoch, term.OrDash(since), yesNo(s.Active), term.Size(s.BehindBytes), term.Size(s.RetainedBytes),
			term.OrDash(s.WALStatus), s.MarkedLSN)
		if changing {
			fmt.Fprintf(t, "\t%s", inChange(s))
		}
		fmt.Fprintln(t)
	}
	if len(o.Slots) == 0 {
		fmt.Fprintln(t, "(no relay has run here yet)")
	}
	if len(o.Ledger) > 0 {
		kind := func(string) string { return "" }
		if len(kinds) > 0 {
			kind = func(text string) string { return "\t" + text }
		}
		fmt.Fprintf(t, "\nSINK%s\tSTATE\tREASON\tENTRIES\tSINCE\tNEXT ATTEMPT\tSLOT\n", kind("KIND"))
		for _, e := range o.Ledger {
			fmt.Fprintf(t, "%s%s\t%s\t%s\t%d\t%s\t%s\t%s\n", term.Text(e.Sink), kind(term.OrDash(kinds[e.Sink])), term.Text(e.State), term.Text(term.OrDash(e.Reason)), e.Entries, e.Oldest, term.OrDash(e.Next), term.Text(e.Slot))
		}
	}
	if o.Rows != nil {
		fmt.Fprintln(t, "\nSTATUS\tROWS\tOLDEST")
		for _, r := range o.Rows {
			fmt.Fprintf(t, "%s\t%d\t%s\n", term.Text(r.Status), r.Rows, r.Oldest)
		}
		if len(o.Rows) == 0 {
			fmt.Fprintln(t, "(no rows)")
		}
	}
	return t.Flush()
}

// inChange is what a slot is in a change of the number of slots.
func inChange(s *store.SlotOverview) string {
	switch {
	case s.Change == store.SlotOld && s.LeftBytes != nil && *s.LeftBytes > 0:
		return "old, " + term.Size(s.LeftBytes) + " to the switch"
	case s.Change == store.SlotOld && s.LeftBytes != nil:
		return "old, past the switch"
	case s.Change == store.SlotNew:
		return "new, not read yet"
	default:
		return term.OrDash(s.Change)
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
