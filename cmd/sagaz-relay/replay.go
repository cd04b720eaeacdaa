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

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay/repair"
	"github.com/sagaz-relay/relay/relay/store"
)

// manyEvents is how many events replay delivers without --yes.
const manyEvents = 1000

func newReplay(load func() (*settings, error)) *cobra.Command {
	var (
		ids, sinks               []string
		since, until             string
		replay                   repair.Replay
		dryRun, yes, jsonWritten bool
	)
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Deliver events once more that were sent already",
		Long: `replay delivers again, on purpose, events that were sent: for a consumer that has lost them, or a
broker that was restored. A running relay does it, next to its other work, in created_at order per
key. Each record carries the header relay-replayed-at (RFC 3339), and the event_id it always had:
a consumer with an inbox that has kept the id drops it.

Choose by --event-id, --saga-id, or by created_at with --since and --until. Rows that were not
sent are left alone: they are on their way, or dead letters (sagaz-relay dead-letter). Rows in
saga_outbox_archive are copied back into saga_outbox first. What RELAY_MARK=delete or a retention
has deleted is gone, and cannot be delivered again.

The sinks are those of BROKER_TYPE and RELAY_SINKS, or --sink.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var errs []error
			var err error
			now := time.Now()
			if replay.EventIDs, err = parseEventIDs(ids); err != nil {
				errs = append(errs, err)
			}
			if replay.Since, err = parseMoment("--since", since, now); err != nil {
				errs = append(errs, err)
			}
			if replay.Until, err = parseMoment("--until", until, now); err != nil {
				errs = append(errs, err)
			}
			load := load
			if slices.ContainsFunc(sinks, func(name string) bool { return sinkKindOf(name) == nil }) {
				s, err := load()
				if err != nil {
					return err
				}
				load = func() (*settings, error) { return s, nil }
				for _, name := range sinks {
					if s.kindOf(name) == nil {
						errs = append(errs, fmt.Errorf("--sink=%s: want %s", name, strings.Join(s.choosable(), ", ")))
					}
				}
			}
			switch {
			case len(errs) > 0:
			case len(ids) == 0 && replay.SagaID == "" && since == "":
				errs = append(errs, fmt.Errorf("%s: want --event-id, --saga-id or --since\nsee: %[1]s --help", cmd.CommandPath()))
			case until != "" && since != "" && !replay.Since.Before(replay.Until):
				errs = append(errs, errors.New("--until: want a time after --since"))
			}
			if err := errors.Join(errs...); err != nil {
				return usageError{err}
			}
			return onDatabase(cmd, load, "replay", func(ctx context.Context, s *settings, conn *pgx.Conn) error {
				set, err := store.SetOf(ctx, conn, s.set())
				if err != nil {
					return err
				}
				replay.Set = set.Set
				replay.Sinks = sinks
				if len(sinks) == 0 {
					replay.Sinks = s.used()
				}
				plan, err := repair.PlanReplay(ctx, conn, replay)
				if err != nil {
					return err
				}
				if plan.Events > manyEvents && !yes && !dryRun {
					return usageError{fmt.Errorf("%d events would be delivered again: add --yes if that is meant, or look at them with --dry-run", plan.Events)}
				}
				result := replayResult{
					changed: changed{Command: "replay", DryRun: dryRun, Chosen: plan.Events, Done: &repair.Done{Sinks: map[string]int{}}}, Plan: plan,
				}
				if !dryRun {
					done, err := plan.Run(ctx, conn, replay)
					if err != nil {
						return err
					}
					result.Done, result.Restored = &done.Done, done.Restored
					// found, and then removed by a retention
					plan.Missing = append(plan.Missing, done.Gone...)
				}
				if result.Relay, err = store.Owners(ctx, conn, s.store.LeaseTTL); err != nil {
					return err
				}
				if jsonWritten {
					err = term.WriteJSON(cmd.OutOrStdout(), result)
				} else {
					printReplay(cmd.OutOrStdout(), &result, replay.Sinks)
				}
				switch {
				case err != nil:
					return err
				case result.Locked > 0:
					return fmt.Errorf("%d could not be put into the ledger, because others had locked it all the time: run it again", result.Locked)
				case len(plan.Missing) > 0:
					return fmt.Errorf("not there (any more): %s", someOf(plan.Missing))
				}
				return nil
			})
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&ids, "event-id", nil, "these events (`id`, several with commas between)")
	flags.StringVar(&replay.SagaID, "saga-id", "", "the events of this saga (`id`)")
	flags.StringVar(&since, "since", "", "events created at this `time` or later: 2026-11-23T07:30:00Z, 2026-11-23 (UTC), or 2h (ago)")
	flags.StringVar(&until, "until", "", "and before this `time`")
	flags.StringVar(&replay.EventType, "event-type", "", "of these only events of this `type`")
	flags.StringSliceVar(&sinks, "sink", nil, "to this `sink` instead of all that are set")
	flags.BoolVar(&dryRun, "dry-run", false, "only print what it would do")
	flags.BoolVar(&yes, "yes", false, fmt.Sprintf("also if there are more than %d events", manyEvents))
	flags.BoolVar(&jsonWritten, "json", false, "print JSON")
	return cmd
}

// someOf lists at most 20.
func someOf(ids []string) string {
	const most = 20
	if more := len(ids) - most; more > 0 {
		return fmt.Sprintf("%s and %d more (--json lists them)", strings.Join(ids[:most], ", "), more)
	}
	return strings.Join(ids, ", ")
}

type replayResult struct {
	changed
	Restored int `json:"restored"`
	*repair.Plan
}

func printReplay(w io.Writer, r *replayResult, sinks []string) {
	if r.DryRun {
		fmt.Fprintf(w, "dry run: %d events would be delivered again to %s\n", r.Events, strings.Join(sinks, ", "))
		if r.Archived > 0 {
			fmt.Fprintf(w, "%d of them would be copied back from saga_outbox_archive\n", r.Archived)
		}
	} else {
		if r.N() == 0 {
			fmt.Fprintln(w, "nothing to deliver again")
		} else {
			fmt.Fprintf(w, "to be delivered again: %s\n", bySink(r.Sinks))
		}
		if r.Restored > 0 {
			fmt.Fprintf(w, "copied back from saga_outbox_archive: %d\n", r.Restored)
		}
		if r.Passed > 0 {
			fmt.Fprintf(w, "left alone, because their entry is in the ledger already: %d\n", r.Passed)
		}
	}
	if n := len(r.Missing); n > 0 {
		fmt.Fprintf(w, "not there (any more): %d\n", n)
	}
	var unsent []string
	for status, n := range r.Unsent {
		unsent = append(unsent, fmt.Sprintf("%s %d", term.Text(status), n))
	}
	if slices.Sort(unsent); unsent != nil {
		fmt.Fprintf(w, "left alone, because they were not sent yet: %s\n", strings.Join(unsent, ", "))
	}
	if r.NoArchive {
		fmt.Fprintln(w, "saga_outbox_archive is not there, or not to be read, and was not looked at")
	}
	if !r.DryRun && r.N() > 0 {
		fmt.Fprintln(w, whoDelivers(r.Relay))
	}
}
