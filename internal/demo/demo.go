package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"strings"
	"syscall"
	"time"

	"github.com/sagaz-relay/relay/internal/orders"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/watch"
)

// Options are what a person may ask for.
type Options struct {
	Keep     bool
	Duration time.Duration
	Rate     int // events a second, 0 for no limit
	Writers  int
}

// Relay is a relay of this program with its defaults, whatever is in the environment, that delivers
// to a file.
type Relay struct {
	Slot string
	// Migrate prepares the database, the slot included.
	Migrate func(ctx context.Context, log io.Writer) error
	// Run relays until ctx ends, as "sagaz-relay run" does. It calls running once, with the address
	// that answers HTTP.
	Run func(ctx context.Context, log io.Writer, running func(r *watch.Watch, addr string)) error
}

// NewRelay makes the relay for a database and a file. wrap goes between it and its sink.
type NewRelay func(dsn, path string, wrap func(relay.Sink) relay.Sink) (Relay, error)

// New makes a demo that shows what it does on out.
func New(o Options, out io.Writer, newRelay NewRelay) *Demo {
	return &Demo{opts: o, screen: newScreen(out), newRelay: newRelay, Patience: catchUpTimeout}
}

// Run shows it all, until the options' end or that of ctx; a signal ends it, too.
func (d *Demo) Run(ctx context.Context) error {
	cleanEnvironment()
	ctx, hurry, stop := twoSignals(ctx)
	defer stop()
	return d.RunUntil(ctx, hurry)
}

// cleanEnvironment takes the user's PostgreSQL settings out of our environment, where pgx would
// find them, and finds the home directory, for the cache, if it is not set.
func cleanEnvironment() {
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "PG") {
			_ = os.Unsetenv(name) // fails for an empty name only
		}
	}
	if os.Getenv("HOME") == "" {
		if u, err := user.Current(); err == nil {
			_ = os.Setenv("HOME", u.HomeDir)
		}
	}
}

// twoSignals returns two contexts. One ends with the first signal: the demo stops writing and
// checks what it did. The other ends with the second: it only cleans up. A third signal ends the
// process as usual.
func twoSignals(ctx context.Context) (first, second context.Context, stop func()) {
	first, endFirst := context.WithCancel(ctx)
	second, endSecond := context.WithCancel(context.WithoutCancel(ctx))
	// It has its own registration, because that of main ends with the first signal. A terminal that
	// is closed must not leave the directory behind either.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	go func() { // ends with stop
		for _, end := range []func(){endFirst, endSecond} {
			select {
			case <-signals:
				end()
			case <-done:
				return
			}
		}
		signal.Stop(signals)
	}()
	return first, second, func() {
		signal.Stop(signals)
		close(done)
		endFirst()
		endSecond()
	}
}

// Demo is one run.
type Demo struct {
	WrapSink func(relay.Sink) relay.Sink // a test's fault, between relay and file; may be nil
	Patience time.Duration               // for the relay to catch up

	opts     Options
	screen   *screen
	newRelay NewRelay

	site
	watch *stopwatch
	shop  *orders.Shop
	took  time.Duration // of the shop's orders
}

// RunUntil goes from the empty directory to the checked promises. With ctx the load ends early,
// with hurry everything does.
//
//	set up → load → catch up → stop the relay → check → clean up
//	   └───────┴────────┴── on failure ──────────────────┘
func (d *Demo) RunUntil(ctx, hurry context.Context) (err error) {
	d.watch = newStopwatch()
	defer func() {
		d.screen.endLive()
		err = errors.Join(err, d.cleanUp(err != nil && !errors.Is(err, ErrInterrupted)))
	}()
	d.screen.printf("sagaz-relay demo: order sagas write to PostgreSQL, the relay delivers to a file")
	d.screen.printf("")
	if err := d.setUp(ctx); err != nil {
		if ctx.Err() != nil {
			return ErrInterrupted
		}
		return err
	}
	if d.opts.Keep {
		d.howToLook()
	}

	if err := d.write(ctx, hurry); err != nil {
		return err
	}
	if hurry.Err() != nil {
		return ErrInterrupted
	}
	return d.check(hurry)
}

// ErrInterrupted is for a demo that has not checked its promises.
var ErrInterrupted = errors.New("interrupted, nothing was checked")

// write runs the load and shows how it goes.
func (d *Demo) write(ctx, hurry context.Context) error {
	loading, stop := context.WithCancel(ctx)
	defer stop()
	if !d.opts.Keep {
		loading, stop = context.WithTimeout(loading, d.opts.Duration)
		defer stop()
	}
	d.screen.printf("")
	began := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- d.shop.Run(loading, hurry) }()
	progress := newProgress(d.screen, d.committed, d.watch)
	defer progress.close()
	for {
		select {
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("load: %w", err)
			}
			d.took = time.Since(began)
			return nil
		case <-d.relayEnded:
			stop()
			<-ended
			return fmt.Errorf("the relay ended early: %w", d.relayErr)
		case <-progress.tick.C:
			progress.show(time.Since(began), d.slotLag(hurry))
		}
	}
}

func (d *Demo) committed() int { return d.shop.Totals().Events }

func (d *Demo) howToLook() {
	s := d.screen
	s.printf("")
	s.printf("Look inside while it runs:")
	s.printf("  psql '%s'", d.dsn)
	s.printf("  DATABASE_URL='%s' %s status", d.dsn, os.Args[0])
	s.printf("  curl -s %s/metrics | grep ^outbox_", d.url)
	s.printf("  tail -f %s", d.eventsPath())
	s.printf("  tail -f %s", d.logPath())
	s.printf("Ctrl-C stops the writers, checks what was delivered, and cleans up.")
}
