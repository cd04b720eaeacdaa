package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/internal/compare/results"
	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/peers"
)

// runner goes through what is to be measured.
type runner struct {
	*servers
	log io.Writer
}

// run measures everything o.repeat times. Contestants take turns within each measurement, so that
// a drift of the machine meets all of them.
func run(ctx context.Context, o options) error {
	var wanted []*contestant
	for _, c := range contestants() {
		if slices.Contains(o.contestants, c.name) {
			wanted = append(wanted, c)
		}
	}
	s, err := bringUp(ctx, wanted, o, os.Stderr)
	if err != nil {
		return err
	}
	defer s.close() //nolint:errcheck // servers of this run
	r := &runner{servers: s, log: os.Stderr}
	if err := r.machine(wanted); err != nil {
		return err
	}
	r.warm(ctx, wanted)
	for n := 1; n <= o.repeat; n++ {
		for _, measure := range o.measures {
			if err := r.round(ctx, n, measure, wanted); err != nil {
				return err
			}
		}
	}
	return nil
}

// warm has each broker take a backlog, of which nothing is kept: the first one pays for Java's
// compilers.
func (r *runner) warm(ctx context.Context, wanted []*contestant) {
	done := map[string]bool{}
	for _, c := range wanted {
		if c.slow || done[c.broker] {
			continue
		}
		done[c.broker] = true
		t, err := r.newSite(ctx, c)
		if err == nil {
			s := shape{perTx: 1000, rowBytes: steadyBytes}
			_, _, err = drain(ctx, t, r.o, s)
			err = errors.Join(err, t.close())
		}
		if err != nil {
			fmt.Fprintf(r.log, "warm %s up: %v\n", c.broker, err)
		}
	}
}

func (r *runner) round(ctx context.Context, n int, measure string, wanted []*contestant) error {
	shapes := []shape{{}}
	if measure == "drain" {
		shapes = r.o.drains
	}
	for _, s := range shapes {
		for _, c := range wanted {
			// One backlog is enough for what drains it row by row.
			if measure == "drain" && s != r.o.drains[0] && (c.slow || c.broker == "rabbitmq") {
				continue
			}
			if err := r.one(ctx, n, measure, c, s); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}

// one is one run of one contestant. Its error is one of writing results.
func (r *runner) one(ctx context.Context, n int, measure string, c *contestant, s shape) error {
	started := time.Now()
	row := results.Row{Run: n, Measure: measure, Contestant: c.name, PerTx: s.perTx, RowBytes: s.rowBytes}
	if measure != "drain" {
		row.PerTx, row.RowBytes = 1, steadyBytes
	}
	var failed error
	write := func(rate, rows int, f figures, err error) {
		if ctx.Err() != nil {
			return // interrupted: that says nothing about the contestant
		}
		row.Rate, row.Rows = rate, rows
		failed = r.write(row, f, err, time.Since(started))
	}
	t, err := r.newSite(ctx, c)
	if err != nil {
		write(0, 0, nil, err)
		return failed
	}
	switch measure {
	case "drain":
		rows, f, err := drain(ctx, t, r.o, s)
		write(0, rows, f, err)
	case "latency":
		if err := latency(ctx, t, r.o, write); err != nil {
			write(0, 0, nil, err)
		}
	case "recovery":
		rows, f, err := recovery(ctx, t, r.o)
		write(r.o.killRateOf(c), rows, f, err)
	}
	if err := t.close(); err != nil {
		fmt.Fprintf(r.log, "  clean up: %v\n", err)
	}
	return failed
}

// write keeps what a run found, and prints a line for who waits.
func (r *runner) write(row results.Row, f figures, problem error, took time.Duration) error {
	row.At = time.Now()
	var rows []results.Row
	line := fmt.Sprintf("%d %-8s %-15s", row.Run, row.Measure, row.Contestant)
	if row.Measure == "drain" {
		line += fmt.Sprintf(" %4d × %4d B", row.PerTx, row.RowBytes)
	} else {
		line += fmt.Sprintf(" %5d/s", row.Rate)
	}
	for _, name := range slices.Sorted(maps.Keys(f)) {
		row.Metric, row.Value = name, f[name]
		rows = append(rows, row)
	}
	for _, name := range []string{"reference_per_second", "events_per_second", "events_per_second_after_first", "marked_per_second", "first_event_seconds", "p50_ms", "p99_ms", "recovery_seconds", "repeated", "undelivered"} {
		if v, ok := f[name]; ok {
			line += fmt.Sprintf("  %s %.4g", strings.TrimSuffix(name, "_per_second"), v)
		}
	}
	if problem != nil {
		text := strings.Join(strings.Fields(problem.Error()), " ")
		row.Metric, row.Value, row.Note = "failed", 1, text
		rows = append(rows, row)
		line += "  FAILED: " + text
	}
	fmt.Fprintf(r.log, "%s  (%.1f s)\n", line, took.Seconds())
	return results.Append(r.o.csv, rows)
}

// machine notes on what it runs, and what contestants do.
func (r *runner) machine(wanted []*contestant) error {
	notes := map[string]string{
		"cpu": fmt.Sprintf("%d cores of %s", runtime.NumCPU(), cpuName()), "PostgreSQL": r.version,
		"Watermill": watermillVersions(), "Debezium Server": peers.DebeziumVersion + ", Java " + peers.JavaVersion, "Python library": "sagaz " + peers.LibraryVersion(),
	}
	if r.kafka != nil {
		notes["Kafka"] = brokertest.KafkaVersion
	}
	if r.rabbit != nil {
		notes["RabbitMQ"] = r.rabbitVersion()
	}
	var rows []results.Row
	for _, name := range slices.Sorted(maps.Keys(notes)) {
		rows = append(rows, results.Row{At: time.Now(), Measure: "machine", Metric: name, Note: notes[name]})
	}
	for _, c := range wanted {
		rows = append(rows, results.Row{At: time.Now(), Measure: "contestant", Contestant: c.name, Metric: "does", Note: c.does})
	}
	return results.Append(r.o.csv, rows)
}

func cpuName() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.Trim(name, "\t: \n")
		}
	}
	return runtime.GOARCH
}
