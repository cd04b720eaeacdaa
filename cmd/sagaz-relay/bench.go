//go:build !nodemo

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/bench"
	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/watch"
	"github.com/sagaz-relay/relay/sinks/kafka"
	"github.com/sagaz-relay/relay/sinks/rabbitmq"
)

// pollRows is how many rows bench --poll drains by default: the number that the promised rate is
// stated for.
const pollRows = 1_000_000

// growRows is how many rows bench --grow drains by default, where they are not what grows.
const growRows = 200_000

func newBench(load func() (*settings, error)) *cobra.Command {
	var o bench.Options
	var shapes, shards string
	var grow []string
	var asJSON, asCSV bool
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the relay against the bare replication stream, in one run",
		Long: `bench fills a backlog in a database of its own, copies the slot, and drains one copy with
pg_recvlogical to nowhere (or with a bare reader, where pg_recvlogical is not installed) and the
other with this relay into the sinks of BROKER_TYPE, rows marked. The ratio of the two rates,
taken in the same run on the same machine, is the figure to look at.

It prints for each shape of transaction both rates, the ratio, the CPU seconds of relay and
walsender, and the relay's peak memory; then the time from commit to acknowledgement at a steady
rate; then the peak memory during one large transaction. With BROKER_TYPE=rabbitmq it also
measures a bare confirming publisher on the same queue: alone, and in turns with the relay, with
what the relay's PostgreSQL has to do beside both. Then the publisher gets a row from a walsender
for each message, and marks the rows, 2,500 at a time. --bare measures nothing else, --repeat times.

With --poll it measures nothing of that, but how fast a relay with RELAY_MODE=polling drains
--rows pending rows, 1,000,000 by default. With --shards=1,2,4 it measures nothing but how fast a
backlog is drained by one relay from one slot, by two from two, and by four from four, each after as
many bare readers. --relays=1 has one relay read all slots. --discard and --no-marks take the sinks'
and the marks' cost out of it.

The server is that of DATABASE_URL, whose role needs CREATEDB and REPLICATION (or SUPERUSER);
without it a PostgreSQL is started on this machine. The database made here, its slots, topic and
queue are removed at the end.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			for _, text := range strings.Split(shapes, ",") {
				n, err := strconv.Atoi(strings.TrimSpace(text))
				if err != nil || n < 1 {
					return usageError{fmt.Errorf("--shapes=%s: want rows a transaction, such as 5000,1", shapes)}
				}
				o.Shapes = append(o.Shapes, n)
			}
			for _, text := range strings.FieldsFunc(shards, func(c rune) bool { return c == ',' }) {
				n, err := strconv.Atoi(strings.TrimSpace(text))
				if err != nil || n < 1 || n > relay.MaxShards {
					return usageError{fmt.Errorf("--shards=%s: want numbers of slots from 1 to %d, such as 1,2,4", shards, relay.MaxShards)}
				}
				o.Shards = append(o.Shards, n)
			}
			if shards != "" && len(o.Shards) == 0 {
				return usageError{fmt.Errorf("--shards=%s: want numbers of slots, such as 1,2,4", shards)}
			}
			if len(o.Shards) > 0 && o.Rows < o.Shapes[0] {
				return usageError{fmt.Errorf("--rows=%d: want at least one transaction of --shapes, %d rows", o.Rows, o.Shapes[0])}
			}
			if o.Grow, err = bench.ParseAxes(grow); err != nil {
				return usageError{err}
			}
			if asCSV && len(o.Grow) == 0 {
				return usageError{errors.New("--csv goes with --grow")}
			}
			if len(o.Grow) > 0 && !cmd.Flags().Changed("rows") {
				o.Rows = growRows
			}
			if len(o.Shards) == 0 && (o.Relays != 0 || o.NoMarks || o.Discard && len(o.Grow) == 0) {
				return usageError{errors.New("--relays and --no-marks go with --shards, --discard with that or --grow")}
			}
			if o.Relays < 0 {
				return usageError{fmt.Errorf("--relays=%d: want at least 1, or 0 for as many as slots", o.Relays)}
			}
			if o.RelayCommand = []string{"bench", "relay"}; o.Discard {
				s.discard()
			}
			if alone := []bool{o.Poll, len(o.Shards) > 0, o.Bare, len(o.Grow) > 0}; more(alone) {
				return usageError{errors.New("want one of --poll, --shards, --bare and --grow, which measure nothing else")}
			}
			if o.Poll && !cmd.Flags().Changed("rows") {
				o.Rows = pollRows
			}
			if o.Rows < 1 || o.RowBytes < 100 || o.Repeat < 1 {
				return usageError{errors.New("want --rows and --repeat of at least 1, --row-bytes of at least 100")}
			}
			if o.Rate < 0 || o.Big < 0 || o.Rate > 0 && o.RateFor < time.Second {
				return usageError{errors.New("want --rate and --big of at least 0, --rate-for of at least 1s")}
			}
			if asCSV && asJSON {
				return usageError{errors.New("want one of --csv and --json")}
			}
			return bench.Measure(cmd.Context(), s.benched(), o, cmd.ErrOrStderr(), func(r *bench.Report) error {
				if asCSV {
					return r.WriteCSV(cmd.OutOrStdout())
				}
				if asJSON {
					return term.WriteJSON(cmd.OutOrStdout(), r)
				}
				return r.Print(cmd.OutOrStdout())
			})
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Rows, "rows", 500_000, "rows in the backlog of each shape")
	f.IntVar(&o.RowBytes, "row-bytes", 500, "bytes of each row's payload")
	f.StringVar(&shapes, "shapes", "5000,1", "rows a transaction, one backlog for each")
	f.IntVar(&o.Repeat, "repeat", 1, "relay runs for each backlog, each between two runs of the reference")
	f.IntVar(&o.Big, "big", 1_000_000, "rows of the one large transaction; 0 leaves it out")
	f.IntVar(&o.Rate, "rate", 1000, "events a second for the latency; 0 leaves it out")
	f.DurationVar(&o.RateFor, "rate-for", 20*time.Second, "how long to hold that rate")
	f.BoolVar(&o.Poll, "poll", false, "measure the drain of pending rows by RELAY_MODE=polling instead")
	f.BoolVar(&o.Bare, "bare", false, "measure the relay and a bare publisher of RabbitMQ in turns instead, with a walsender and marks beside both")
	f.StringVar(&shards, "shards", "", "numbers of slots: measure the drain by as many relays, in transactions of the first of --shapes")
	f.IntVar(&o.Relays, "relays", 0, "with --shards: how many relays share the slots; 0: as many as slots")
	f.BoolVar(&o.Discard, "discard", false, "with --shards or --grow: the relays have no sink but one that does nothing")
	f.BoolVar(&o.NoMarks, "no-marks", false, "with --shards: the relays write no marks")
	f.StringArrayVar(&grow, "grow", nil, "measure what an event costs as this grows instead: "+strings.Join(bench.Growable(), ", ")+", or all; with values, if others are wanted: keys=1,1000")
	f.BoolVar(&asCSV, "csv", false, "with --grow: print CSV")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(newBenchRelay(load))
	return cmd
}

// more reports whether more than one of them is set.
func more(set []bool) bool {
	n := 0
	for _, one := range set {
		if one {
			n++
		}
	}
	return n > 1
}

// newBenchRelay is what bench runs as a process where that is not run: it must not be at hand for
// anything else, because it delivers nothing.
func newBenchRelay(load func() (*settings, error)) *cobra.Command {
	var discard, noMarks bool
	cmd := &cobra.Command{
		Use: "relay", Hidden: true, Args: noArgs, Short: "Relay for bench, which reads what this one claims to do",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Getenv(bench.Variable) == "" {
				return usageError{errors.New("bench relay is a part of bench, and not for people: it delivers nothing")}
			}
			s, err := load()
			if err != nil {
				return err
			}
			if discard {
				s.discard()
			}
			if noMarks {
				s.wrapStore = bench.Unmarked
			}
			return runRelay(cmd, s)
		},
	}
	cmd.Flags().BoolVar(&discard, "discard", false, "deliver to nothing")
	cmd.Flags().BoolVar(&noMarks, "no-marks", false, "mark nothing")
	return cmd
}

// discard sets a sink that does nothing.
func (s *settings) discard() {
	s.program.NamedSinks = nil
	s.program.Sinks, s.wrapSink = []string{"stdout"}, func(relay.Sink) relay.Sink { return bench.Discard{} }
}

// benched is this program with these settings, on a database that the bench makes.
func (s *settings) benched() bench.Program {
	onDatabase := func(databaseURL string) (bench.Relay, error) {
		s.cdc.DatabaseURL, s.store.DatabaseURL = databaseURL, databaseURL
		if len(s.program.NamedSinks) > 0 {
			return bench.Relay{}, configError{errors.New("RELAY_SINKS: the bench delivers to the sinks of BROKER_TYPE only: unset it")}
		}
		if err := s.all(); err != nil {
			return bench.Relay{}, err
		}
		if s.dropsSome() {
			return bench.Relay{}, configError{errors.New("RELAY_ROUTES: a rule drops events, and the bench would wait for them: unset it")}
		}
		return bench.Relay{
			Sinks: s.program.Sinks, Mark: s.store.Mark, Kafka: s.sinks["kafka"].(*kafka.Config), RabbitMQ: s.sinks["rabbitmq"].(*rabbitmq.Config),
			Run: s.benchedSlot,
		}, nil
	}
	return bench.Program{DatabaseURL: s.cdc.DatabaseURL, Publication: s.store.Publication, Relay: onDatabase}
}

// benchedSlot relays one slot in this process, without HTTP.
func (s *settings) benchedSlot(ctx context.Context, slot string, wrap func(relay.Sink) relay.Sink, running func(*watch.Watch)) error {
	one := *s
	one.store.Slot = slot
	one.program.MetricsPort, one.program.HTTPAddr = 0, ""
	one.wrapSink = wrap
	return serve(ctx, &one, newLogger(os.Stderr, hclog.Warn), func(r *watch.Watch, _ string) { running(r) })
}
