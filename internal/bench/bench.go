package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/watch"
	"github.com/sagaz-relay/relay/sinks/kafka"
	"github.com/sagaz-relay/relay/sinks/rabbitmq"
)

// Options are what to measure.
type Options struct {
	Rows     int           // in the backlog of each shape, or pending when Poll
	RowBytes int           // of each row's payload
	Shapes   []int         // rows a transaction, one backlog for each
	Big      int           // rows of the one large transaction; 0 leaves it out
	Rate     int           // events a second for the latency; 0 leaves it out
	RateFor  time.Duration // how long to keep that rate
	Repeat   int           // relay runs for each backlog
	Poll     bool          // measure a relay that polls, and nothing else
	Shards   []int         // measure so many slots, and nothing else
	Relays   int           // that share the slots of Shards; 0: as many as slots
	Bare     bool          // measure the relay and a bare publisher in turns, and nothing else
	Grow     []Axis        // measure what costs as these grow, and nothing else
	Discard  bool          // with Shards or Grow: the relays have a sink that does nothing
	NoMarks  bool          // with Shards: the relays write no marks
	// RelayCommand is how the program is told to run a relay with Discard and NoMarks.
	RelayCommand []string
}

// Program is what the bench needs of the program that it measures.
type Program struct {
	DatabaseURL string // the server; where it is empty one is started
	Publication string
	// Relay takes the database that was made on that server, and reports whether all settings will
	// do.
	Relay func(databaseURL string) (Relay, error)
}

// Relay is a relay by the user's settings on the bench's database.
type Relay struct {
	Sinks    []string
	Mark     string
	Kafka    *kafka.Config
	RabbitMQ *rabbitmq.Config
	// Run relays one slot in this process, without HTTP, until ctx ends. wrap goes between the
	// relay and each of its sinks. running is called once.
	Run func(ctx context.Context, slot string, wrap func(relay.Sink) relay.Sink, running func(*watch.Watch)) error
}

// Report is what bench found.
type Report struct {
	Server  string    `json:"server"`
	CPU     string    `json:"cpu"`
	Cores   int       `json:"cores"`
	Sinks   []string  `json:"sinks"`
	Mark    string    `json:"mark"`
	Drains  []Drain   `json:"drains,omitempty"`
	Polls   []Poll    `json:"polls,omitempty"`
	Shards  []Sharded `json:"shards,omitempty"`
	Grow    []Growth  `json:"grow,omitempty"`
	Bare    *Bare     `json:"bare_publisher,omitempty"`
	Beside  *Beside   `json:"bare_publisher_beside,omitempty"`
	Latency *Latency  `json:"latency,omitempty"`
	Big     *Large    `json:"large_transaction,omitempty"`
}

// Drain is one backlog drained by both.
type Drain struct {
	RowsPerTx int `json:"rows_per_transaction"`
	Rows      int `json:"rows"`
	// Reference is the mean of the runs before and after the relay's, so that a drift of the
	// machine counts half.
	Reference     Run     `json:"reference"`
	ReferenceRuns []Run   `json:"reference_runs"`
	ReferenceBy   string  `json:"reference_by"`
	Relay         Run     `json:"relay"`
	Ratio         float64 `json:"ratio"`
	Marked        int64   `json:"rows_marked"`
}

// Run is one drain.
type Run struct {
	Seconds      float64 `json:"seconds"`
	PerSecond    float64 `json:"events_per_second"`
	CPU          float64 `json:"cpu_seconds"`
	WalsenderCPU float64 `json:"walsender_cpu_seconds"`       // 0 when the server is not on this machine
	MarksCPU     float64 `json:"marks_cpu_seconds,omitempty"` // of the sessions that write marks; with shards only
	PeakRSS      int64   `json:"peak_rss_bytes"`
}

type Bare struct {
	Queue     string  `json:"queue"`
	PerSecond float64 `json:"events_per_second"`
	// of the relay's rate with 5,000-row transactions, or the first shape
	Ratio float64 `json:"relay_ratio"`
}

type Latency struct {
	Rate    int           `json:"events_per_second"`
	Events  int           `json:"events"`
	P50     time.Duration `json:"p50_ns"`
	P95     time.Duration `json:"p95_ns"`
	P99     time.Duration `json:"p99_ns"`
	Maximum time.Duration `json:"max_ns"`
}

type Large struct {
	Rows int `json:"rows"`
	Run  Run `json:"run"`
}

// Measure measures what o wants, and gives what it found to show before it cleans up.
func Measure(ctx context.Context, program Program, o Options, progress io.Writer, show func(*Report) error) (err error) {
	printf := func(format string, args ...any) { fmt.Fprintf(progress, format+"\n", args...) }
	b, err := newDatabase(ctx, program, printf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if b.relay, err = program.Relay(b.dsn); err != nil {
		return err
	}
	target, err := openTarget(ctx, b.relay)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.close()) }()

	if o.Discard {
		b.relay.Sinks = []string{Discard{}.Name()}
	}
	if o.NoMarks {
		b.relay.Mark = "nothing"
	}
	report := Report{Server: b.version, CPU: cpuName(), Cores: cores(), Sinks: b.relay.Sinks, Mark: b.relay.Mark}
	if o.Poll {
		for range o.Repeat {
			p, err := b.poll(ctx, target, o, printf)
			if err != nil {
				return err
			}
			report.Polls = append(report.Polls, *p)
		}
		return show(&report)
	}
	if len(o.Shards) > 0 {
		if report.Shards, err = b.shards(ctx, target, o, printf); err != nil {
			return err
		}
		return show(&report)
	}
	if len(o.Grow) > 0 {
		if report.Grow, err = b.grow(ctx, target, program, o, printf); err != nil {
			return err
		}
		return show(&report)
	}
	if o.Bare {
		if target.rabbit == nil {
			return errors.New("the bare publisher is one of RabbitMQ: set BROKER_TYPE=rabbitmq")
		}
		if report.Beside, err = b.beside(ctx, target, o, o.Repeat, printf); err != nil {
			return err
		}
		return show(&report)
	}
	for _, shape := range o.Shapes {
		for range o.Repeat {
			printf("filling a backlog of %d rows, %d a transaction", o.Rows, shape)
			d, err := b.drain(ctx, target, o, shape, printf)
			if err != nil {
				return err
			}
			report.Drains = append(report.Drains, *d)
		}
	}
	if report.Bare, err = target.bare(ctx, o, printf); err != nil {
		return err
	}
	if report.Bare != nil {
		report.Bare.Ratio = report.Drains[0].Relay.PerSecond / report.Bare.PerSecond
		one := o
		one.Rows = min(o.Rows, bareRows)
		if report.Beside, err = b.beside(ctx, target, one, 1, printf); err != nil {
			return err
		}
	}
	if o.Big > 0 {
		printf("one transaction of %d rows", o.Big)
		if report.Big, err = b.large(ctx, target, o, printf); err != nil {
			return err
		}
	}
	if o.Rate > 0 {
		printf("%d events/s for %s", o.Rate, o.RateFor)
		if report.Latency, err = b.latency(ctx, target, o); err != nil {
			return err
		}
	}
	return show(&report)
}

// Print writes it for people.
func (r *Report) Print(w io.Writer) error {
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
			"relay", d.Relay.PerSecond, d.Relay.WalsenderCPU, d.Relay.CPU, d.Relay.CPU/float64(d.Rows)*1e6, d.Relay.PeakRSS/1e6, d.Marked)
		p("  ratio            %9.2f", d.Ratio)
	}
	for _, poll := range r.Polls {
		p("")
		p("%d rows pending, drained by polling: %.0f rows/s, relay %.2f s CPU (%.1f µs a row), peak %d MB, %d rows marked",
			poll.Rows, poll.Run.PerSecond, poll.Run.CPU, poll.Run.CPU/float64(poll.Rows)*1e6, poll.Run.PeakRSS/1e6, poll.Marked)
	}
	for _, s := range r.Shards {
		p("")
		p("%d rows waiting, %d slots", s.Rows, s.Shards)
		an := func(cpu float64) float64 { return cpu / float64(s.Rows) * 1e6 }
		p("  %-16s %9.0f events/s (%.2f × the first)   CPU an event: walsenders %.1f µs", fmt.Sprintf("%d readers", s.Shards), s.Reference.PerSecond, s.ReferenceRatio, an(s.Reference.WalsenderCPU))
		p("  %-16s %9.0f events/s (%.2f × the first)   CPU an event: walsenders %.1f µs, marks %.1f, relays %.1f; peak %d MB together, %d rows marked",
			fmt.Sprintf("%d relays", s.Relays), s.Run.PerSecond, s.Ratio, an(s.Run.WalsenderCPU), an(s.Run.MarksCPU), an(s.Run.CPU), s.Run.PeakRSS/1e6, s.Marked)
	}
	r.printGrowth(p)
	if r.Bare != nil {
		p("")
		p("bare confirming publisher on the same %s: %.0f events/s; relay / bare = %.2f", r.Bare.Queue, r.Bare.PerSecond, r.Bare.Ratio)
	}
	if b := r.Beside; b != nil {
		p("")
		p("a walsender drained and rows marked beside both, %d rows, %d a transaction, start-up not counted", b.Relay[0].Rows, b.RowsPerTx)
		for i, run := range b.Bare {
			p("  bare publisher   %9.0f events/s   CPU an event: walsender %.1f µs, marks %.1f, publisher %.1f", run.PerSecond, run.Walsender, run.Marks, run.Relay)
			if i < len(b.Relay) {
				run := b.Relay[i]
				p("  relay            %9.0f events/s   CPU an event: walsender %.1f µs, marks %.1f, relay %.1f", run.PerSecond, run.Walsender, run.Marks, run.Relay)
			}
		}
		p("  relay / bare     %9.2f", b.Ratio)
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
