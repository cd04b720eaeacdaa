package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"os/user"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/relay"
)

// demoOptions are the flags of demo.
type demoOptions struct {
	keep     bool
	duration time.Duration
	rate     int // events a second, 0 for no limit
	writers  int
}

const (
	demoRate     = 1000
	demoKeepRate = 200 // the file and the table grow for as long as it runs
)

func newDemo() *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show it all on this machine, with a database of its own, and check what it did",
		Long: `demo starts a PostgreSQL of its own in a temporary directory, migrates it, and runs the relay into a file, one JSON
object a line, synced to disk before it is acknowledged. Meanwhile several writers run order sagas: concurrent transactions
that change business tables and write their events to saga_outbox, some compensated, some rolled back.

At the end it compares what was committed with what is in the file, and exits 1 if a promise did not hold. Nothing stays
running, and the directory is removed. The first run downloads PostgreSQL into the cache directory.

No environment variable has any influence on it, but HTTPS_PROXY for the download and TMPDIR for the directory.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.duration <= 0 || o.rate < 0 || o.writers < 1 || o.writers > 100 {
				return usageError{errors.New("want --duration above 0, --rate of 0 (no limit) or more, --writers from 1 to 100")}
			}
			if o.keep && !cmd.Flags().Changed("rate") {
				o.rate = demoKeepRate
			}
			settleEnvironment()
			d := &demo{opts: o, screen: newScreen(cmd.OutOrStdout()), patience: catchUpTimeout}
			ctx, hurry, stop := twoSignals(cmd.Context())
			defer stop()
			return d.run(ctx, hurry)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.keep, "keep", false, "go on until Ctrl-C instead of --duration, and print how to look inside")
	f.DurationVar(&o.duration, "duration", 8*time.Second, "how long the writers write")
	f.IntVar(&o.rate, "rate", demoRate, fmt.Sprintf("events a second, 0 for as many as this machine can take; with --keep the default is %d", demoKeepRate))
	f.IntVar(&o.writers, "writers", 8, "concurrent writers")
	return cmd
}

// settleEnvironment takes the user's PostgreSQL settings out of our environment, where pgx would find them, and finds the
// home directory, for the cache, if nothing says where it is.
func settleEnvironment() {
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

// twoSignals returns a context that ends with the first signal, upon which the demo stops writing and checks what it
// did, and one that ends with the second, upon which it only cleans up. A third one is the shell's usual end.
func twoSignals(ctx context.Context) (first, second context.Context, stop func()) {
	first, endFirst := context.WithCancel(ctx)
	second, endSecond := context.WithCancel(context.WithoutCancel(ctx))
	// Its own registration: that of main is given up with the first signal. A terminal that is closed must not leave the
	// directory behind either.
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

// demo is one run.
type demo struct {
	opts     demoOptions
	screen   *screen
	wrapSink func(relay.Sink) relay.Sink // a test's fault, between relay and file; may be nil
	patience time.Duration               // for the relay to catch up

	demoSite
	watch *stopwatch
	load  *demoLoad
}

// run goes from the empty directory to the verdict. With ctx the load ends early, with hurry everything does.
//
//	set up → load → catch up → stop the relay → check → clean up
//	   └───────┴────────┴── on failure ──────────────────┘
func (d *demo) run(ctx, hurry context.Context) (err error) {
	d.watch = newStopwatch()
	defer func() {
		d.screen.endLive()
		err = errors.Join(err, d.cleanUp(err != nil && !errors.Is(err, errInterrupted)))
	}()
	d.screen.say("sagaz-relay demo: order sagas write to PostgreSQL, the relay delivers to a file")
	d.screen.say("")
	if err := d.setUp(ctx); err != nil {
		if ctx.Err() != nil {
			return errInterrupted
		}
		return err
	}
	if d.opts.keep {
		d.howToLook()
	}

	if err := d.write(ctx, hurry); err != nil {
		return err
	}
	if hurry.Err() != nil {
		return errInterrupted
	}
	return d.check(hurry)
}

var errInterrupted = errors.New("interrupted, nothing was checked")

// write runs the load and shows how it goes.
func (d *demo) write(ctx, hurry context.Context) error {
	loading, stop := context.WithCancel(ctx)
	defer stop()
	if !d.opts.keep {
		loading, stop = context.WithTimeout(loading, d.opts.duration)
		defer stop()
	}
	d.screen.say("")
	began := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- d.load.run(loading, hurry) }()
	progress := newProgress(d.screen, d.load, d.watch)
	defer progress.close()
	for {
		select {
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("load: %w", err)
			}
			d.load.took = time.Since(began)
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

func (d *demo) howToLook() {
	s := d.screen
	s.say("")
	s.say("Look inside while it runs:")
	s.say("  psql '%s'", d.settings.cdc.DatabaseURL)
	s.say("  DATABASE_URL='%s' %s status", d.settings.cdc.DatabaseURL, os.Args[0])
	s.say("  curl -s %s/metrics | grep ^outbox_", d.url)
	s.say("  tail -f %s", d.eventsPath())
	s.say("  tail -f %s", d.logPath())
	s.say("Ctrl-C stops the writers, checks what was delivered, and cleans up.")
}
