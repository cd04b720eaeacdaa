//go:build !nodemo

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/demo"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/watch"
	"github.com/sagaz-relay/relay/sinks/file"
)

const (
	demoRate     = 1000
	demoKeepRate = 200 // the file and the table grow for as long as it runs
)

// startWithDemo is a line of the root's help.
const startWithDemo = "  sagaz-relay demo               everything on this machine, with a database of its own\n"

func newDemo() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show it all on this machine, with a database of its own, and check what it did",
		Long: `demo starts a PostgreSQL of its own in a temporary directory, migrates it, and runs the relay into
a file, one JSON object a line, synced to disk before it is acknowledged. Meanwhile several
writers run order sagas: concurrent transactions that change business tables and write their
events to saga_outbox, some compensated, some rolled back.

At the end it compares what was committed with what is in the file, and exits 1 if a promise did
not hold. Nothing is left running, and the directory is removed. The first run downloads
PostgreSQL into the cache directory.

Settings in the environment (DATABASE_URL, RELAY_..., PG...) have no influence on it. HTTPS_PROXY
is used for the download, TMPDIR for the directory.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Duration <= 0 || o.Rate < 0 || o.Writers < 1 || o.Writers > 100 {
				return usageError{errors.New("want --duration above 0, --rate of 0 (no limit) or more, --writers from 1 to 100")}
			}
			if o.Keep && !cmd.Flags().Changed("rate") {
				o.Rate = demoKeepRate
			}
			return demo.New(o, cmd.OutOrStdout(), demoRelay).Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Keep, "keep", false, "go on until Ctrl-C instead of --duration, and print how to look inside")
	f.DurationVar(&o.Duration, "duration", 8*time.Second, "how long the writers write")
	f.IntVar(&o.Rate, "rate", demoRate, fmt.Sprintf("events a second, 0 for as many as this machine can take; with --keep the default is %d", demoKeepRate))
	f.IntVar(&o.Writers, "writers", 8, "concurrent writers")
	return cmd
}

// demoRelay is a relay with the defaults, whatever is in the environment, for the demo's database
// and file.
func demoRelay(dsn, path string, wrap func(relay.Sink) relay.Sink) (demo.Relay, error) {
	s, err := loadSettings(func(string) (string, bool) { return "", false }, nil, "")
	if err != nil {
		return demo.Relay{}, err
	}
	s.cdc.DatabaseURL, s.store.DatabaseURL = dsn, dsn
	s.relay.WorkerID, s.store.Owner = "demo", "demo"
	s.program.Sinks = []string{"file"}
	s.relay.DrainTimeout = 5 * time.Second // what is not delivered by then was waited for already
	s.program.HTTPAddr = "127.0.0.1:0"
	s.sinks["file"].(*file.Config).Path = path
	s.wrapSink = wrap
	return demo.Relay{
		Slot: s.store.Slot,
		Migrate: func(ctx context.Context, log io.Writer) error {
			m := migration{settings: s, out: log, progress: log, slot: true, publication: true, wait: 30 * time.Second}
			return m.run(ctx)
		},
		Run: func(ctx context.Context, log io.Writer, running func(*watch.Watch, string)) error {
			return serve(ctx, s, newLogger(log, hclog.Info), running)
		},
	}, s.all()
}
