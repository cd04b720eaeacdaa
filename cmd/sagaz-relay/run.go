package main

import (
	"context"
	"errors"
	"math"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/admin"
	"github.com/sagaz-relay/relay/relay/encode"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/relay/store"
	"github.com/sagaz-relay/relay/relay/traces"
	"github.com/sagaz-relay/relay/relay/watch"
)

func newRun(load func() (*settings, error)) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Relay events until SIGTERM",
		Long: `run relays until SIGTERM, SIGINT or SIGHUP, then finishes what is in flight and exits 0.

Any number of relays may run. A slot has one owner: with one slot a relay owns it, with several the
relays share them. Relays that own none are standbys, and take over when an owner stops or dies.

Settings:
` + strings.Join(describeVariables(), "\n"),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			return runRelay(cmd, s)
		},
	}
}

// runRelay relays until the command's context ends.
func runRelay(cmd *cobra.Command, s *settings) error {
	if err := s.all(); err != nil {
		return err
	}
	level, err := parseLevel(s.program.LogLevel)
	if err != nil {
		return err
	}
	log := newLogger(cmd.ErrOrStderr(), level)
	for _, w := range s.warnings {
		log.Warn(w)
	}
	// The reader of our output or log may end: that is a sink that is down, or a log that is lost,
	// and no end of the process and all its other sinks.
	signal.Ignore(syscall.SIGPIPE)
	limitMemory(log)
	limitProcs(log)
	defer endAnyway(cmd.Context(), s.relay.DrainTimeout+endPatience, func() {
		log.Error("something does not end, the process ends without it", "after", s.relay.DrainTimeout+endPatience)
		os.Exit(exitFailure)
	})()
	return serve(cmd.Context(), s, log, nil)
}

// endPatience is how long after the drain the rest may take: the last position, the lease,
// connections and spans.
const endPatience = 9 * time.Second

// endAnyway calls f when that much time has passed since ctx ended, unless the function that it
// returns was called before. Whatever hangs then, the next owner waits for our connections to end.
func endAnyway(ctx context.Context, after time.Duration, f func()) (ended func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-done:
			return
		case <-ctx.Done():
		}
		timer := time.NewTimer(after)
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C:
			f()
		}
	}()
	return func() { close(done) }
}

// memoryLimit is what the collector aims for when GOMEMLIMIT is not set: below the 100 MB that we
// promise, with room for what it does not count.
const memoryLimit = 72 << 20

func limitMemory(log hclog.Logger) {
	if debug.SetMemoryLimit(-1) != math.MaxInt64 {
		return // the user's own limit
	}
	debug.SetMemoryLimit(memoryLimit)
	log.Debug("memory limit set", "bytes", memoryLimit)
}

// limitProcs leaves the cores to the database and the brokers on the same machine. The relay waits
// for the network far more than it computes: one P carries more than a walsender sends, and every
// further one spins for work at each wake-up. On 2 cores that spinning cost 10 µs of CPU an event
// on all sides together, against 23 without (docs/measurements.md).
func limitProcs(log hclog.Logger) {
	if os.Getenv("GOMAXPROCS") != "" {
		return // the user's own limit
	}
	procs := max(1, runtime.GOMAXPROCS(0)/4)
	runtime.GOMAXPROCS(procs)
	log.Debug("threads limited", "gomaxprocs", procs)
}

// serve builds the program from its settings and runs it. running, if not nil, is called with what
// shows the relay, and the address that answers HTTP.
func serve(ctx context.Context, s *settings, log hclog.Logger, running func(shown *watch.Watch, addr string)) (err error) {
	v, revision := buildVersion()
	log.Info("starting", "version", v, "revision", revision, "worker_id", s.relay.WorkerID, "sinks", s.used(), "mark", s.store.Mark)
	for _, name := range s.program.NamedSinks {
		log.Info("a named sink", "sink", name, "kind", s.kindOf(name).name, "address", sinkAddress(s.sinks[name]))
	}

	reg, metrics := newRegistry(s.relay.WorkerID, s.watch)

	sinks, err := s.openSinks(log)
	if err != nil {
		return err
	}
	defer closeSinks(sinks, log)
	encoder, err := encode.New(s.encode)
	if err != nil {
		return configError{err}
	}
	table, err := s.routes()
	if err != nil {
		return configError{err}
	}
	s.relay.Routers = table.Routers()
	for _, name := range s.used() {
		if n := len(table.Of(name)); n > 0 {
			log.Info("a sink has rules", "sink", name, "rules", n, "no_match", s.route.NoMatch)
		}
	}
	source, err := cdc.New(s.cdc, log)
	if err != nil {
		return configError{err}
	}
	rows, err := store.New(s.store, log)
	if err != nil {
		return configError{err}
	}
	rows.Delivers(s.used())
	if s.relay.Mode == relay.ModePolling {
		rows.Changes(nil, false)
	} else {
		rows.Changes(source.CreateForChange, s.relay.Mode == relay.ModeCDC)
	}
	if s.relay.Retention > 0 {
		rows.Prunes(s.relay.RetentionAction == relay.RetentionArchive)
	}
	tracer, err := traces.New(s.traces, traces.About{WorkerID: s.relay.WorkerID, Version: v, Topic: s.encode.Topic, RoutingKey: s.encode.RoutingKey, Rules: table.Templates, Dropped: metrics.SpansDropped}, log)
	if err != nil {
		return configError{err}
	}
	if tracer != nil {
		s.relay.Tracer = tracer
		defer flushAtEnd(ctx, tracer, s.relay.DrainTimeout)()
	}
	shown := watch.New(metrics, s.usedKinds(), log)
	var outbox relay.Store = rows
	if s.wrapStore != nil {
		outbox = s.wrapStore(rows)
	}
	e, err := engine.New(s.relay, log, shown, source, outbox, encoder, sinks...)
	if err != nil {
		return configError{err}
	}

	// HTTP outlives the drain, so that probes and scrapes see it.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var group errgroup.Group
	addr := ""
	if bind := s.httpAddr(); bind != "" {
		server, err := admin.Listen(s.httpSide(bind, v, revision), shown, reg, log)
		if err != nil {
			return configError{err}
		}
		addr = server.Addr()
		log.Info("serving metrics and health", "address", addr, "url", server.URL(), "token", s.admin.Token != "")
		group.Go(func() error { return server.Serve(serving) })
	}
	group.Go(func() error {
		s.lookForBrokers(ctx, sinks, log)
		return nil
	})
	group.Go(func() error {
		defer stop()
		if running != nil {
			running(shown, addr)
		}
		return e.Run(ctx)
	})
	err = group.Wait()
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// flushAtEnd returns what exports the last spans, in what is left of the drain that began when ctx
// ended: between one second and five, because no other relay waits for us any more, but the end of
// the process does.
func flushAtEnd(ctx context.Context, tracer *traces.Tracer, drain time.Duration) func() {
	var deadline atomic.Int64 // Unix nanoseconds
	unwatch := context.AfterFunc(ctx, func() { deadline.Store(time.Now().Add(drain).UnixNano()) })
	return func() {
		unwatch()
		left := drain
		if at := deadline.Load(); at != 0 {
			left = time.Until(time.Unix(0, at))
		}
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(max(left, time.Second), 5*time.Second))
		defer cancel()
		tracer.Close(flush)
	}
}

// httpSide is what the HTTP side gets.
func (s *settings) httpSide(bind, version, revision string) admin.Config {
	cfg := s.admin
	cfg.Addr, cfg.Version, cfg.Revision = bind, version, revision
	cfg.Database, cfg.Redact = s.lookAtDatabase, redacted.Bytes
	return cfg
}

// lookAtDatabase reads for the status page what relays share. A connection of its own each time,
// because looks are rare.
func (s *settings) lookAtDatabase(ctx context.Context) (*admin.Database, error) {
	conn, err := s.connect(ctx, "page")
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx) //nolint:errcheck // read only
	o, err := store.ReadOverview(ctx, conn, false)
	if err != nil {
		return nil, err
	}
	d := &admin.Database{Updates: o.Updates, HOTUpdates: o.HOTUpdates, Slots: []admin.DatabaseSlot{}, Ledger: []admin.DatabaseLedger{}}
	for _, slot := range o.Slots {
		d.Slots = append(d.Slots, admin.DatabaseSlot{
			Slot: slot.Slot, Owner: slot.Owner, Epoch: slot.Epoch, Taken: slot.Taken, Active: slot.Active, LagBytes: slot.BehindBytes, RetainedBytes: slot.RetainedBytes, WALStatus: slot.WALStatus,
		})
	}
	for _, e := range o.Ledger {
		d.Ledger = append(d.Ledger, admin.DatabaseLedger{Slot: e.Slot, Sink: e.Sink, State: e.State, Reason: e.Reason, Entries: e.Entries, Oldest: e.OldestTime})
	}
	return d, nil
}

// httpAddr is the address to bind, or empty for none.
func (s *settings) httpAddr() string {
	switch {
	case s.program.HTTPAddr != "":
		return s.program.HTTPAddr
	case s.program.MetricsPort == 0:
		return ""
	default:
		return ":" + strconv.Itoa(s.program.MetricsPort)
	}
}

// lookTimeout is how long a broker has to answer a relay that starts.
const lookTimeout = 10 * time.Second

// lookForBrokers asks each broker once whether it is there, so that a wrong address shows in the
// log at the start and not at the first event. It has no other consequence: the engine finds out
// for itself, event by event. The sink file is left out: its file may be another relay's to write.
func (s *settings) lookForBrokers(ctx context.Context, sinks []relay.Sink, log hclog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	var all sync.WaitGroup
	defer all.Wait()
	for _, sink := range sinks {
		checker, ok := sink.(relay.Checker)
		kind := s.kindOf(sink.Name())
		if !ok || kind == nil {
			continue
		}
		variable := map[string]string{
			"kafka": "KAFKA_BOOTSTRAP_SERVERS (or BROKER_URL)", "rabbitmq": "RABBITMQ_URL (or BROKER_URL)", "webhook": "RELAY_WEBHOOK_URL",
		}[kind.name]
		if kind.variable != "" {
			variable = kind.variable
		}
		if variable == "" {
			continue
		}
		if named := s.named[sink.Name()]; named != nil {
			variable = s.renamer(sink.Name(), named)(variable)
		}
		all.Go(func() {
			err := checker.Check(ctx)
			if err == nil || errors.Is(ctx.Err(), context.Canceled) { // the relay is being stopped
				return
			}
			fix := "check " + variable + ", that the broker runs, and that no firewall or network policy is in between"
			// it is more precise
			if setup := (*relay.SetupError)(nil); errors.As(err, &setup) && setup.Fix != "" {
				fix = setup.Fix
			}
			log.Warn("the broker cannot be used, events wait for it", "sink", sink.Name(), "error", err, "fix", fix)
		})
	}
}
