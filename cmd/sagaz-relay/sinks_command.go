package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/internal/variables"
	"github.com/sagaz-relay/relay/relay/store"
	"github.com/sagaz-relay/relay/sinks/file"
	"github.com/sagaz-relay/relay/sinks/kafka"
	"github.com/sagaz-relay/relay/sinks/rabbitmq"
	"github.com/sagaz-relay/relay/sinks/webhook"
)

// shownSink is one line of `sinks`.
type shownSink struct {
	Name string `json:"name"`
	// empty for a sink that is not configured, and has entries
	Kind    string `json:"kind,omitempty"`
	Address string `json:"address,omitempty"` // without user and password

	Entries   int64 `json:"entries"` // of the ledger
	Dead      int64 `json:"dead"`
	Discarded int64 `json:"discarded"`
}

func newSinks(load func() (*settings, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "sinks",
		Short: "List the sinks with their kinds, addresses and ledger entries, or rename one",
		Long: `sinks lists where events go: the sinks of BROKER_TYPE and RELAY_SINKS, each with its kind, its
address (without user and password) and the entries that the ledger has of it: events that wait
for it, and its dead letters. A sink without a kind is not configured (any more), and still has
entries: they stay until it is configured again, until "sinks rename" gives them to another, or
until they are discarded (sagaz-relay dead-letter discard --state all --sink NAME).

A sink that is added gets what is committed from then on, and no older events but by replay. Where
it gets entries by "sinks rename", it gets those, too.`,
		Args: subcommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return onDatabase(cmd, load, "sinks", func(ctx context.Context, s *settings, conn *pgx.Conn) error {
				counts, err := store.LedgerSinks(ctx, conn)
				if err != nil {
					return err
				}
				shown := s.listSinks(counts)
				if asJSON {
					return term.WriteJSON(cmd.OutOrStdout(), struct {
						Sinks []shownSink `json:"sinks"`
					}{shown})
				}
				return printSinks(cmd.OutOrStdout(), shown)
			})
		},
		SuggestionsMinimumDistance: 2,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(newSinksRename(load))
	return cmd
}

// listSinks are the sinks that are used, and then those that only have entries.
func (s *settings) listSinks(counts []store.LedgerSink) []shownSink {
	shown := []shownSink{}
	for _, name := range s.used() {
		out := shownSink{Name: name, Address: sinkAddress(s.sinks[name])}
		if kind := s.kindOf(name); kind != nil {
			out.Kind = kind.name
			if kind.address != nil {
				out.Address = kind.address(s.sinks[name])
			}
		}
		shown = append(shown, out)
	}
	for _, c := range counts {
		i := slices.IndexFunc(shown, func(out shownSink) bool { return out.Name == c.Sink })
		if i < 0 {
			i, shown = len(shown), append(shown, shownSink{Name: c.Sink})
		}
		shown[i].Entries, shown[i].Dead, shown[i].Discarded = c.Entries, c.Dead, c.Discarded
	}
	return shown
}

// sinkAddress is where a sink's events go, without what may be secret.
func sinkAddress(config any) string {
	switch cfg := config.(type) {
	case *kafka.Config:
		return address.Show(strings.Join(cfg.Brokers, ","))
	case *rabbitmq.Config:
		return strings.Join(append([]string{address.Show(cfg.URL)}, cfg.Hosts...), ",") + " exchange " + cfg.Exchange
	case *file.Config:
		return address.Path(cfg.Path)
	case *webhook.Config:
		return cfg.Receiver()
	}
	return ""
}

func printSinks(w io.Writer, shown []shownSink) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SINK\tKIND\tENTRIES\tDEAD\tDISCARDED\tADDRESS")
	for _, s := range shown {
		kind := s.Kind
		if kind == "" {
			kind = "not configured"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%s\n", term.Text(s.Name), kind, s.Entries, s.Dead, s.Discarded, term.Text(term.OrDash(s.Address)))
	}
	return t.Flush()
}

func newSinksRename(load func() (*settings, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rename OLD NEW",
		Short: "Give a sink's ledger to the sink of another name",
		Long: `rename gives what the database has of the sink OLD to NEW: its ledger entries (events that wait,
dead letters), and its place in the list of sinks that each slot's last owner had. Use it when a
sink gets another name in the settings: kafka of BROKER_TYPE becomes orders-kafka of RELAY_SINKS,
for one. What was sent stays sent.

  1. stop the relays
  2. sagaz-relay sinks rename kafka orders-kafka
  3. start them with the new settings

All of it is one transaction: a command that ends in the middle has changed nothing. It refuses
while a relay runs that delivers to one of the two names, be it a standby, and where NEW has entries
already. While it works no relay can take a slot; those that know neither name go on. A standby
behind a connection pooler (PgBouncer) cannot be seen: make sure of those yourself.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{fmt.Errorf("%s: want two names, OLD and NEW\nsee: %[1]s --help", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			from, to := args[0], args[1]
			if sinkKindOf(to) == nil {
				if err := variables.CheckSinkName(to); err != nil {
					return usageError{err}
				}
			}
			return onDatabase(cmd, load, "sinks rename", func(ctx context.Context, s *settings, conn *pgx.Conn) error {
				done, err := store.RenameSink(ctx, conn, from, to, s.store.LeaseTTL)
				if err != nil {
					if errors.Is(err, store.ErrRename) {
						return fmt.Errorf("sinks rename: %w", err)
					}
					return err
				}
				if asJSON {
					return term.WriteJSON(cmd.OutOrStdout(), struct {
						From string `json:"from"`
						To   string `json:"to"`
						store.SinkRenamed
					}{from, to, done})
				}
				fmt.Fprintf(cmd.OutOrStdout(), "renamed %s to %s: %d ledger entries, noted by %d slots\n", term.Text(from), to, done.Entries, len(done.Slots))
				if !slices.Contains(s.used(), to) {
					fmt.Fprintf(cmd.OutOrStdout(), "these settings have no sink %s: the entries wait until a relay has one\n", to)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
