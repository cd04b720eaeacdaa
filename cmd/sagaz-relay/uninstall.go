package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

func newUninstall(load func() (*settings, error)) *cobra.Command {
	var yes, tables, asJSON bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove slots, publication and replication origins of this database's relays",
		Long: `uninstall removes from the database of DATABASE_URL, and from its server, what relays have made
for it: replication slots, which hold back WAL when nobody reads them, replication origins, of
which a server has few, and the publication. With --tables also the relay's own tables. It shows
what that is; --yes removes it.

It never touches saga_outbox, saga_outbox_archive or consumer_inbox, nor anything that another
database or another program has made, and refuses while a relay runs. It may be run again after an
interruption.

Exit codes:
  0  all is removed, or, without --yes, shown
  1  something could not be removed, or a relay is running; the message has what to do`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			if err := s.database(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			return s.uninstall(ctx, cmd.OutOrStdout(), yes, tables, asJSON)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "remove it; without, it is only shown")
	cmd.Flags().BoolVar(&tables, "tables", false, "also the relay's own tables, and with them the ledger of events that were not delivered")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (s *settings) uninstall(ctx context.Context, out io.Writer, yes, tables, asJSON bool) error {
	conn, err := s.connect(ctx, "uninstall")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // each step is committed
	all, err := store.Belongings(ctx, conn, s.set(), tables)
	if err != nil {
		return err
	}
	if err := nobodyRuns(store.Owners(ctx, conn, s.store.LeaseTTL)); err != nil {
		return err
	}
	gone := true
	if yes {
		gone = store.Remove(ctx, conn, all)
	}
	if asJSON {
		if all == nil {
			all = []store.Belonging{}
		}
		err = term.WriteJSON(out, all)
	} else {
		err = printBelongings(out, all, yes)
	}
	if err == nil && !gone {
		err = errors.New("uninstall: not everything could be removed; see above")
	}
	return err
}

// nobodyRuns refuses while a relay has a lease.
func nobodyRuns(all []store.SlotOwner, err error) error {
	if setup := (*relay.SetupError)(nil); errors.As(err, &setup) { // no tables of ours
		return nil
	}
	if err != nil {
		return err
	}
	var running []string
	for _, o := range all {
		if o.Running {
			running = append(running, fmt.Sprintf("%s owns slot %s", o.Owner, o.Slot))
		}
	}
	if running != nil {
		return fmt.Errorf("%w: %s; stop all relays of this database first", store.ErrInUse, strings.Join(running, ", "))
	}
	return nil
}

func printBelongings(w io.Writer, all []store.Belonging, yes bool) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "nothing of a relay is left here")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := range all {
		b := &all[i]
		what := "to be removed"
		switch {
		case b.Stays:
			what = "stays"
		case b.Removed:
			what = "removed"
		case b.Error != "":
			what = "not removed"
		}
		note := b.Note
		if b.Error != "" {
			note = b.Error
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", what, b.Kind, term.Text(b.Name), term.Text(note))
	}
	if err := t.Flush(); err != nil || yes {
		return err
	}
	_, err := fmt.Fprintln(w, "\nto remove it: sagaz-relay uninstall --yes")
	return err
}
