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

func newBench(load func() (*settings, error)) *cobra.Command {
	var o bench.Options
	var shapes string
	var asJSON bool
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
measures a bare confirming publisher on the same queue.

With --poll it measures nothing of that, but how fast a relay with RELAY_MODE=polling drains
--rows pending rows, 1,000,000 by default.

The server is that of DATABASE_URL, whose role must be allowed to create databases and slots;
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
			if o.Poll && !cmd.Flags().Changed("rows") {
				o.Rows = pollRows
			}
			if o.Rows < 1 || o.RowBytes < 100 || o.Repeat < 1 {
				return usageError{errors.New("want --rows and --repeat of at least 1, --row-bytes of at least 100")}
			}
			return bench.Measure(cmd.Context(), s.benched(), o, cmd.ErrOrStderr(), func(r *bench.Report) error {
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
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// benched is this program with these settings, on a database that the bench makes.
func (s *settings) benched() bench.Program {
	onDatabase := func(databaseURL string) (bench.Relay, error) {
		s.cdc.DatabaseURL, s.store.DatabaseURL = databaseURL, databaseURL
		if err := s.all(); err != nil {
			return bench.Relay{}, err
		}
		return bench.Relay{
			Sinks: s.program.Sinks, Mark: s.store.Mark, Kafka: s.sinks["kafka"].(*kafka.Config), RabbitMQ: s.sinks["rabbitmq"].(*rabbitmq.Config),
			Run: s.benchedSlot,
		}, nil
	}
	return bench.Program{DatabaseURL: s.cdc.DatabaseURL, Publication: s.cdc.Publication, Relay: onDatabase}
}

// benchedSlot relays one slot in this process, without HTTP.
func (s *settings) benchedSlot(ctx context.Context, slot string, wrap func(relay.Sink) relay.Sink, running func(*watch.Watch)) error {
	one := *s
	one.relay.Slots = []string{slot}
	one.program.MetricsPort, one.program.HTTPAddr = 0, ""
	one.wrapSink = wrap
	return serve(ctx, &one, newLogger(os.Stderr, hclog.Warn), func(r *watch.Watch, _ string) { running(r) })
}
