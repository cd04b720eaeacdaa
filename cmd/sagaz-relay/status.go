package main

import (
	"context"
	"fmt"
	"io"
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
		Long: `status reads the database of DATABASE_URL: for each slot who owns it, how far it is behind and how
much WAL it holds back; and how many rows are in each status. Counting looks at the whole table:
--no-rows leaves it out.`,
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
				return term.WriteJSON(cmd.OutOrStdout(), overview)
			}
			return printOverview(cmd.OutOrStdout(), overview)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().Bool("no-rows", false, "do not count rows")
	return cmd
}

func printOverview(w io.Writer, o *store.Overview) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SLOT\tOWNER\tEPOCH\tSTREAMING\tBEHIND\tWAL HELD\tWAL STATUS\tMARKED UP TO")
	for _, s := range o.Slots {
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", term.Text(s.Slot), term.Text(term.OrDash(s.Owner)), s.Epoch, yesNo(s.Active), term.Size(s.BehindBytes), term.Size(s.RetainedBytes), term.OrDash(s.WALStatus), s.MarkedLSN)
	}
	if len(o.Slots) == 0 {
		fmt.Fprintln(t, "(no relay has run here yet)")
	}
	if len(o.Ledger) > 0 {
		fmt.Fprintln(t, "\nSINK\tSTATE\tREASON\tENTRIES\tSINCE\tNEXT ATTEMPT\tSLOT")
		for _, e := range o.Ledger {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", term.Text(e.Sink), term.Text(e.State), term.Text(term.OrDash(e.Reason)), e.Entries, e.Oldest, term.OrDash(e.Next), term.Text(e.Slot))
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

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
