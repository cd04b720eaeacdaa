package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// benchOptions are the flags of bench.
type benchOptions struct {
	rows     int
	rowBytes int
	shapes   []int // rows a transaction
	big      int
	rate     int
	rateFor  time.Duration
	repeat   int
	poll     bool
	json     bool
}

func newBench(load func() (*settings, error)) *cobra.Command {
	var o benchOptions
	var shapes string
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the relay against the bare replication stream, in one run",
		Long: `bench fills a backlog in a database of its own, copies the slot, and drains one copy with pg_recvlogical to nowhere (or
with a bare reader, where pg_recvlogical is not installed) and the other with this relay into the sinks of BROKER_TYPE, rows
marked. The ratio of the two rates, taken in the same run on the same machine, is the figure to look at.

It prints for each shape of transaction both rates, the ratio, the CPU seconds of relay and walsender, and the relay's peak
memory; then the time from commit to acknowledgement at a steady rate; then the peak memory during one large transaction.
With BROKER_TYPE=rabbitmq it also measures a bare confirming publisher on the same queue.

With --poll it measures nothing of that, but how fast a relay with RELAY_MODE=polling drains --rows pending rows, 1,000,000
unless said otherwise.

The server is that of DATABASE_URL, whose role must be allowed to create databases and slots; without it a
PostgreSQL is started on this machine. The database made here, its slots, topic and queue are removed at the end.`,
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
				o.shapes = append(o.shapes, n)
			}
			if o.poll && !cmd.Flags().Changed("rows") {
				o.rows = pollRows
			}
			if o.rows < 1 || o.rowBytes < 100 || o.repeat < 1 {
				return usageError{errors.New("want --rows and --repeat of at least 1, --row-bytes of at least 100")}
			}
			return runBench(cmd.Context(), s, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.rows, "rows", 500_000, "rows in the backlog of each shape")
	f.IntVar(&o.rowBytes, "row-bytes", 500, "bytes of each row's payload")
	f.StringVar(&shapes, "shapes", "5000,1", "rows a transaction, one backlog for each")
	f.IntVar(&o.repeat, "repeat", 1, "relay runs for each backlog, each between two runs of the reference")
	f.IntVar(&o.big, "big", 1_000_000, "rows of the one large transaction; 0 leaves it out")
	f.IntVar(&o.rate, "rate", 1000, "events a second for the latency; 0 leaves it out")
	f.DurationVar(&o.rateFor, "rate-for", 20*time.Second, "how long to hold that rate")
	f.BoolVar(&o.poll, "poll", false, "measure the drain of pending rows by RELAY_MODE=polling instead")
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// benchReport is what bench found.
type benchReport struct {
	Server  string           `json:"server"`
	CPU     string           `json:"cpu"`
	Cores   int              `json:"cores"`
	Sinks   []string         `json:"sinks"`
	Mark    string           `json:"mark"`
	Drains  []benchDrain     `json:"drains,omitempty"`
	Polls   []benchPoll      `json:"polls,omitempty"`
	Bare    *benchBare       `json:"bare_publisher,omitempty"`
	Latency *benchLatency    `json:"latency,omitempty"`
	Big     *benchBigPayload `json:"large_transaction,omitempty"`
}

// benchDrain is one backlog drained by both.
type benchDrain struct {
	RowsPerTx int `json:"rows_per_transaction"`
	Rows      int `json:"rows"`
	// Reference is the mean of the runs before and after the relay's, so that a drift of the machine counts half.
	Reference     benchRun   `json:"reference"`
	ReferenceRuns []benchRun `json:"reference_runs"`
	ReferenceBy   string     `json:"reference_by"`
	Relay         benchRun   `json:"relay"`
	Ratio         float64    `json:"ratio"`
	Settled       int64      `json:"rows_marked"`
}

// benchRun is one drain.
type benchRun struct {
	Seconds      float64 `json:"seconds"`
	PerSecond    float64 `json:"events_per_second"`
	CPU          float64 `json:"cpu_seconds"`
	WalsenderCPU float64 `json:"walsender_cpu_seconds"` // 0 when the server is not on this machine
	PeakRSS      int64   `json:"peak_rss_bytes"`
}

type benchBare struct {
	Queue     string  `json:"queue"`
	PerSecond float64 `json:"events_per_second"`
	Ratio     float64 `json:"relay_ratio"` // of the relay's rate with 5,000-row transactions, or the first shape
}

type benchLatency struct {
	Rate    int           `json:"events_per_second"`
	Events  int           `json:"events"`
	P50     time.Duration `json:"p50_ns"`
	P95     time.Duration `json:"p95_ns"`
	P99     time.Duration `json:"p99_ns"`
	Maximum time.Duration `json:"max_ns"`
}

type benchBigPayload struct {
	Rows int      `json:"rows"`
	Run  benchRun `json:"run"`
}

func runBench(ctx context.Context, s *settings, o benchOptions, out, progress io.Writer) (err error) {
	say := func(format string, args ...any) { fmt.Fprintf(progress, format+"\n", args...) }
	b, err := newBenchDatabase(ctx, s, say)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := s.all(); err != nil {
		return err
	}
	target, err := openBenchTarget(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.close()) }()

	report := benchReport{Server: b.version, CPU: cpuName(), Cores: cores(), Sinks: s.program.Sinks, Mark: s.store.Mark}
	if o.poll {
		for range o.repeat {
			p, err := b.poll(ctx, target, o, say)
			if err != nil {
				return err
			}
			report.Polls = append(report.Polls, *p)
		}
		return report.write(out, o.json)
	}
	for _, shape := range o.shapes {
		for range o.repeat {
			say("filling a backlog of %d rows, %d a transaction", o.rows, shape)
			d, err := b.drain(ctx, target, o, shape, say)
			if err != nil {
				return err
			}
			report.Drains = append(report.Drains, *d)
		}
	}
	if report.Bare, err = target.bare(ctx, o, say); err != nil {
		return err
	}
	if report.Bare != nil {
		report.Bare.Ratio = report.Drains[0].Relay.PerSecond / report.Bare.PerSecond
	}
	if o.big > 0 {
		say("one transaction of %d rows", o.big)
		if report.Big, err = b.large(ctx, target, o, say); err != nil {
			return err
		}
	}
	if o.rate > 0 {
		say("%d events/s for %s", o.rate, o.rateFor)
		if report.Latency, err = b.latency(ctx, target, o); err != nil {
			return err
		}
	}
	return report.write(out, o.json)
}

func (r *benchReport) write(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, r)
	}
	return r.print(w)
}

func (r *benchReport) print(w io.Writer) error {
	p := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	p("PostgreSQL %s · %d cores of %s · sinks %s · RELAY_MARK=%s", r.Server, r.Cores, r.CPU, strings.Join(r.Sinks, ","), r.Mark)
	for _, d := range r.Drains {
		p("")
		p("%d rows waiting, %d a transaction", d.Rows, d.RowsPerTx)
		p("  %-16s %9.0f events/s   walsender %5.2f s CPU", d.ReferenceBy, d.Reference.PerSecond, d.Reference.WalsenderCPU)
		for i, run := range d.ReferenceRuns {
			p("    run %d          %9.0f", i+1, run.PerSecond)
		}
		p("  %-16s %9.0f events/s   walsender %5.2f s CPU, relay %5.2f s CPU (%.1f µs an event), peak %d MB, %d rows marked",
			"relay", d.Relay.PerSecond, d.Relay.WalsenderCPU, d.Relay.CPU, d.Relay.CPU/float64(d.Rows)*1e6, d.Relay.PeakRSS/1e6, d.Settled)
		p("  ratio            %9.2f", d.Ratio)
	}
	for _, poll := range r.Polls {
		p("")
		p("%d rows pending, drained by polling: %.0f rows/s, relay %.2f s CPU (%.1f µs a row), peak %d MB, %d rows marked",
			poll.Rows, poll.Run.PerSecond, poll.Run.CPU, poll.Run.CPU/float64(poll.Rows)*1e6, poll.Run.PeakRSS/1e6, poll.Settled)
	}
	if r.Bare != nil {
		p("")
		p("bare confirming publisher on the same %s: %.0f events/s; relay / bare = %.2f", r.Bare.Queue, r.Bare.PerSecond, r.Bare.Ratio)
	}
	if r.Big != nil {
		p("")
		p("one transaction of %d rows: %.0f events/s, peak %d MB", r.Big.Rows, r.Big.Run.PerSecond, r.Big.Run.PeakRSS/1e6)
	}
	if r.Latency != nil {
		p("")
		p("commit to acknowledged at %d events/s, %d events: p50 %s  p95 %s  p99 %s  max %s",
			r.Latency.Rate, r.Latency.Events, ms(r.Latency.P50), ms(r.Latency.P95), ms(r.Latency.P99), ms(r.Latency.Maximum))
	}
	return nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/1e6) }
