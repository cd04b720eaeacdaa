package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/repair"
	"github.com/sagaz-relay/relay/relay/store"
)

func newDeadLetter(load func() (*settings, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead-letter",
		Short: "List, show, retry or discard events that did not work",
		Long: `dead-letter deals with events that a broker refused for good, after MAX_RETRIES attempts (and
RELAY_UNROUTABLE_PATIENCE, where no queue is bound or no topic exists); with those that wait for
their next attempt or are held behind another one of their key; and with rows whose events are
delivered and that do not take their marks.

  sagaz-relay dead-letter list                         what is dead, and why
  sagaz-relay dead-letter show EVENT_ID                everything about one event
  sagaz-relay dead-letter retry --reason unroutable    offer them again, once the cause is fixed
  sagaz-relay dead-letter discard --event-id EVENT_ID  give one up

It may be used while relays run, or while none does: it changes the database, and the relay
delivers. A retried event and those that are held behind it go out in their original order.`,
		Args:                       subcommand,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SuggestionsMinimumDistance: 2,
	}
	cmd.AddCommand(newLetterList(load), newLetterShow(load), newLetterChange(load, letterRetry), newLetterChange(load, letterDiscard))
	return cmd
}

// subcommand refuses what is not the name of one.
func subcommand(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown command %q for %q%s\nsee: %[2]s --help", address.Argument(args[0]), cmd.CommandPath(), didYouMean(cmd.SuggestionsFor(args[0])))}
	}
	return nil
}

// letterFlags are the filters that list, retry and discard share.
type letterFlags struct {
	sink, reason, eventType, key, sagaID, olderThan, state string
	eventIDs                                               []string
}

func (f *letterFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.sink, "sink", "", "only those of this `sink` (kafka, rabbitmq, …; - for rows without a ledger entry)")
	flags.StringVar(&f.reason, "reason", "", "only those refused for this `reason`: unroutable, too_large, nacked, rejected, encode, unknown_topic, sink_down; of rows that do not take their marks: unmarked, locked")
	flags.StringVar(&f.eventType, "event-type", "", "only events of this `type`")
	flags.StringVar(&f.key, "key", "", "only events of this partition `key` (aggregate_id)")
	flags.StringSliceVar(&f.eventIDs, "event-id", nil, "only these events (`id`, several with commas between)")
	flags.StringVar(&f.sagaID, "saga-id", "", "only events of this saga (`id`)")
	flags.StringVar(&f.olderThan, "older-than", "", "only those that have been here for `longer`, such as 90m or 7d")
	flags.StringVar(&f.state, "state", string(repair.StateDead), "`state`: dead; retry (waits for its next attempt); held (behind another of its key); unmarked (delivered, and the row does not take its mark); discarded; all")
}

func (f *letterFlags) filter() (repair.Filter, error) {
	filter := repair.Filter{State: repair.State(f.state), Sink: f.sink, Reason: f.reason, EventType: f.eventType, Key: f.key, SagaID: f.sagaID}
	var errs []error
	if !slices.Contains(repair.States(), filter.State) {
		errs = append(errs, fmt.Errorf("--state=%s: want dead, retry, held, unmarked, discarded or all", f.state))
	}
	var err error
	if filter.EventIDs, err = parseEventIDs(f.eventIDs); err != nil {
		errs = append(errs, err)
	}
	if f.olderThan != "" {
		if filter.OlderThan, err = parseAge(f.olderThan); err != nil {
			errs = append(errs, fmt.Errorf("--older-than=%s: %w", f.olderThan, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return filter, usageError{err}
	}
	return filter, nil
}

func parseEventIDs(texts []string) ([]relay.UUID, error) {
	var ids []relay.UUID
	for _, text := range texts {
		id, err := relay.ParseUUID(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("--event-id=%s: want a UUID", address.Argument(text))
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// onDatabase runs f on a connection to the database of the settings.
func onDatabase(cmd *cobra.Command, load func() (*settings, error), purpose string, f func(context.Context, *settings, *pgx.Conn) error) error {
	s, err := load()
	if err != nil {
		return err
	}
	if err := s.database(); err != nil {
		return err
	}
	ctx := cmd.Context()
	conn, err := s.connect(ctx, purpose)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // all is committed
	return store.Diagnose(f(ctx, s, conn))
}

func newLetterList(load func() (*settings, error)) *cobra.Command {
	var (
		flags  letterFlags
		asJSON bool
		limit  int
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List dead letters, or other entries of the ledger",
		Long: `list shows the entries of the ledger, the oldest first: by default the dead letters. An error is
printed below the line it belongs to, once for all lines that share it. AGE is the time since the
event went to the ledger. A row of saga_outbox that failed without an entry in the ledger (the
Python library's worker wrote it) has the sink "-"; to find those the whole table may have to be
read.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := flags.filter()
			if err != nil {
				return err
			}
			if limit < 0 {
				return usageError{fmt.Errorf("--limit=%d: want 0 (all) or more", limit)}
			}
			return onDatabase(cmd, load, "dead-letter list", func(ctx context.Context, _ *settings, conn *pgx.Conn) error {
				found, total, err := repair.Find(ctx, conn, filter, limit)
				if err != nil {
					return err
				}
				if asJSON {
					return term.WriteJSON(cmd.OutOrStdout(), struct {
						Total   int             `json:"total"`
						Letters []repair.Letter `json:"letters"`
					}{total, append([]repair.Letter{}, found...)})
				}
				return repair.PrintLetters(cmd.OutOrStdout(), found, total, time.Now())
			})
		},
	}
	flags.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().IntVar(&limit, "limit", 50, "at most `n` lines; 0 for all")
	return cmd
}

func newLetterShow(load func() (*settings, error)) *cobra.Command {
	var (
		ids             []string
		asJSON, payload bool
	)
	cmd := &cobra.Command{
		Use:   "show EVENT_ID...",
		Short: "Show everything about an event, but its payload",
		Long: `show prints an event's row and its ledger entries: status, attempts, errors, the names of its
headers, the size of its payload.

The payload itself and the headers' values are what your customers' data is in. They are not
printed, so that the output can go into a ticket or a chat; --payload prints the payload for those
who need it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			events, err := parseEventIDs(append(ids, args...))
			if err != nil {
				return usageError{err}
			}
			if len(events) == 0 {
				return usageError{fmt.Errorf("%s: name an event\nsee: %[1]s --help", cmd.CommandPath())}
			}
			return onDatabase(cmd, load, "dead-letter show", func(ctx context.Context, _ *settings, conn *pgx.Conn) error {
				shown := []*repair.Event{}
				var missing []string
				for _, id := range events {
					e, err := repair.Show(ctx, conn, id, payload)
					if err != nil {
						return err
					}
					if e.Row == nil && len(e.Entries) == 0 {
						missing = append(missing, e.EventID)
						continue
					}
					shown = append(shown, e)
				}
				if asJSON {
					err = term.WriteJSON(cmd.OutOrStdout(), struct {
						Events  []*repair.Event `json:"events"`
						Missing []string        `json:"missing"`
					}{shown, append([]string{}, missing...)})
				} else {
					for i, e := range shown {
						if i > 0 {
							fmt.Fprintln(cmd.OutOrStdout())
						}
						err = errors.Join(err, repair.PrintEvent(cmd.OutOrStdout(), e, time.Now()))
					}
				}
				if err == nil && len(missing) > 0 {
					return fmt.Errorf("neither in saga_outbox, nor in its archive, nor in the ledger: %s", strings.Join(missing, ", "))
				}
				return err
			})
		},
	}
	cmd.Flags().StringSliceVar(&ids, "event-id", nil, "the event (`id`), as an argument is")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&payload, "payload", false, "print the payload, too")
	return cmd
}

// letterChange is what retry and discard differ in.
type letterChange struct {
	name, past, short, long string
	narrow                  func(repair.Filter) (repair.Filter, error)
	run                     func(ctx context.Context, conn *pgx.Conn, f repair.Filter, hybrid bool) (*repair.Done, error)
}

var letterRetry = letterChange{
	name: "retry", past: "retried", short: "Offer dead letters again",
	long: `retry has the chosen dead letters offered again, with their attempts forgotten. What is held
behind one of them (RELAY_DEAD_LETTER=hold) follows it in order. With --state retry an event that
waits for its next attempt is due now, and so is a mark with --state unmarked; with --state
discarded one is taken back, if no relay has taken it out yet. A row without a ledger entry (sink
"-") is set to pending: a relay delivers it when it next looks over the whole table, at its start
or within ten minutes.`,
	narrow: repair.ToRetry, run: repair.Retry,
}

var letterDiscard = letterChange{
	name: "discard", past: "discarded", short: "Give dead letters up",
	long: `discard gives the chosen dead letters up: they are not delivered, and what is held behind them
goes on. A running relay takes their entries out of the ledger. Their rows stay in saga_outbox
with the status dead_letter, and last_error shows that they were discarded: sagaz-relay never
deletes a row that was not delivered. Until a relay has taken an entry out, "retry --state
discarded" takes it back. A row that does not take its mark is left as it is: its event is
delivered.`,
	narrow: func(f repair.Filter) (repair.Filter, error) { return repair.ToDiscard(f), nil }, run: repair.Discard,
}

// changed is the JSON of retry, discard and replay.
type changed struct {
	Command string `json:"command"`
	DryRun  bool   `json:"dry_run"`
	Chosen  int    `json:"chosen"`
	*repair.Done
	Relay []store.SlotOwner `json:"relay"` // who would deliver
}

func newLetterChange(load func() (*settings, error), change letterChange) *cobra.Command {
	var (
		flags               letterFlags
		all, dryRun, asJSON bool
		limit               int
	)
	cmd := &cobra.Command{
		Use:   change.name,
		Short: change.short,
		Long:  change.long + "\n\nIt needs at least one filter, or --all.",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := flags.filter()
			if err != nil {
				return err
			}
			if !filter.Narrow() && !all {
				return usageError{fmt.Errorf("%s: want at least one of --event-id, --sink, --reason, … or --all\nsee: %[1]s --help", cmd.CommandPath())}
			}
			if filter, err = change.narrow(filter); err != nil {
				return usageError{fmt.Errorf("--state=%s: %w", flags.state, err)}
			}
			return onDatabase(cmd, load, "dead-letter "+change.name, func(ctx context.Context, s *settings, conn *pgx.Conn) error {
				out := cmd.OutOrStdout()
				result := changed{Command: "dead-letter " + change.name, DryRun: dryRun, Done: &repair.Done{Sinks: map[string]int{}}}
				var found []repair.Letter
				if found, result.Chosen, err = repair.Find(ctx, conn, filter, limit); err != nil {
					return err
				}
				if !dryRun {
					result.Done, err = change.run(ctx, conn, filter, s.relay.Hybrid)
				}
				if err != nil {
					return err
				}
				if result.Relay, err = store.Owners(ctx, conn, s.store.LeaseTTL); err != nil {
					return err
				}
				switch {
				case asJSON:
					err = term.WriteJSON(out, result)
				case dryRun:
					err = repair.PrintLetters(out, found, result.Chosen, time.Now())
					fmt.Fprintf(out, "dry run: %d would be %s\n", result.Chosen, change.past)
				default:
					printDone(out, change.past, &result)
				}
				if err == nil && result.Locked > 0 {
					return fmt.Errorf("the rows of %d were locked by others all the time: run it again", result.Locked)
				}
				return err
			})
		},
	}
	flags.register(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "without any filter: everything in --state")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what it would do")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().IntVar(&limit, "limit", 50, "at most `n` lines with --dry-run; 0 for all")
	return cmd
}

func printDone(w io.Writer, past string, c *changed) {
	if c.N() == 0 {
		fmt.Fprintf(w, "nothing %s\n", past)
	} else {
		fmt.Fprintf(w, "%s %d: %s\n", past, c.N(), bySink(c.Sinks))
	}
	if c.Passed > 0 {
		fmt.Fprintf(w, "left as they were, because somebody was faster: %d\n", c.Passed)
	}
	if c.N() > 0 {
		fmt.Fprintln(w, whoDelivers(c.Relay))
		if c.Sinks[repair.NoSink] > 0 && past == letterRetry.past {
			fmt.Fprintln(w, "those of sink - are pending rows now: a relay finds them when it next looks over the whole table")
		}
	}
}

func bySink(sinks map[string]int) string {
	var parts []string
	for sink, n := range sinks {
		parts = append(parts, fmt.Sprintf("%s %d", term.Text(sink), n))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// whoDelivers is a line about the relay that will act on what was done, or that none is running.
func whoDelivers(owners []store.SlotOwner) string {
	var names []string
	for _, o := range owners {
		if o.Running && !slices.Contains(names, term.Text(o.Owner)) {
			names = append(names, term.Text(o.Owner))
		}
	}
	if names == nil {
		return "no relay is running: it will be done when one runs"
	}
	return "a relay is running and does the rest: " + strings.Join(names, ", ")
}
