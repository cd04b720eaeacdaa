package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/migrations"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
	"github.com/sagaz-relay/relay/relay/store"
)

func newMigrate(load func() (*settings, error)) *cobra.Command {
	var (
		tune, slot, noPublication, noWait bool
		shards                            int
		wait                              time.Duration
	)
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Prepare the database: tables, indexes, publication, slot",
		Long: `migrate creates what is missing in the database of DATABASE_URL: the outbox tables as the Python
library makes them, the relay's own tables, and the publication, or with RELAY_SHARDS those of all
slots. What is there stays as it is, also the number of slots once it is decided. It may be run at
any time, also by several processes at once, and waits for a database that is still starting.

With --shards it changes among how many slots the table's events are divided. The relays do that
while they work; migrate waits, shows how far they are, and drops the old publications at the end.
The number that there is gives a change up that is under way. It may be interrupted, and run again.

The role must own the table saga_outbox, or be able to create it, and have CREATE on the database
for the publication.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			if err := s.database(); err != nil {
				return err
			}
			m := migration{settings: s, out: cmd.OutOrStdout(), progress: cmd.ErrOrStderr(), tune: tune, slot: slot, publication: !noPublication, shards: shards, noWait: noWait, wait: wait}
			return m.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&tune, "tune", false, "replace indexes that the library made by HOT-safe ones, and leave room on pages: marks get about three times as fast")
	cmd.Flags().BoolVar(&slot, "slot", false, "also create the replication slot, so that events count from now on")
	cmd.Flags().BoolVar(&noPublication, "no-publication", false, "leave the publication to somebody else")
	cmd.Flags().Var((*shardsFlag)(&shards), "shards", "change among how many slots the events are divided")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "with --shards: do not wait until the relays are through; the old publications stay")
	cmd.Flags().DurationVar(&wait, "wait", 2*time.Minute, "how long to wait for the database")
	return cmd
}

// shardsFlag is a number of slots.
type shardsFlag int

func (f *shardsFlag) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > relay.MaxShards {
		return fmt.Errorf("want 1 to %d, a number of slots", relay.MaxShards)
	}
	*f = shardsFlag(n)
	return nil
}

func (f *shardsFlag) String() string { return "" }
func (f *shardsFlag) Type() string   { return "int" }

type migration struct {
	settings                *settings
	out, progress           io.Writer
	tune, slot, publication bool
	shards                  int // to change to; 0: no change
	noWait                  bool
	wait                    time.Duration
}

func (m *migration) run(ctx context.Context) error {
	conn, err := m.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // all is committed
	report := func(format string, args ...any) { fmt.Fprintf(m.out, format+"\n", args...) }

	applied, err := migrations.Run(ctx, conn)
	for _, a := range applied {
		report("applied %04d_%s", a.Version, a.Name)
	}
	if err != nil {
		return permission(err)
	}
	if len(applied) == 0 {
		report("tables are up to date")
	}
	if m.tune {
		did, err := migrations.Tune(ctx, conn)
		for _, line := range did {
			report("tuned: %s", line)
		}
		if err != nil {
			return permission(err)
		}
		if len(did) == 0 {
			report("indexes and pages are tuned already")
		}
	}
	// A session that makes tables has their schema on its path; all else is done by one that has
	// not.
	_ = conn.Close(ctx)
	if conn, err = m.settings.connect(ctx, "migrate"); err != nil {
		return err
	}
	return m.divide(ctx, conn, report)
}

// divide decides among how many slots the table's events are divided, unless that was decided
// before, and makes what these need. All publications come before the first slot: what a slot sees
// begins where it was made.
func (m *migration) divide(ctx context.Context, conn *pgx.Conn, report func(format string, args ...any)) error {
	want := m.settings.set()
	noted, err := store.MakeSet(ctx, conn, want)
	if err != nil {
		return permission(err)
	}
	set := want
	set.Shards, set.Generation = noted.Shards, noted.Generation
	if set.Shards > 1 || want.Shards > 1 {
		report("the table's events are %s", relay.DividedText(set.Shards))
	}
	switch {
	case m.shards > 0:
	case noted.Target != 0:
		report("the number of slots is being changed to %d, by the relays: sagaz-relay status shows how far they are", noted.Target)
		if want.Shards != noted.Target {
			report("RELAY_SHARDS=%d is not used. Set RELAY_SHARDS=%d", want.Shards, noted.Target)
		}
	case set.Shards != want.Shards:
		change := ""
		if store.Divisible(sessions.MajorVersion(conn.PgConn().ParameterStatus("server_version")), want.Shards) == nil {
			change = fmt.Sprintf("; or, to change it for the table, run: sagaz-relay migrate --shards %d", want.Shards)
		}
		report("RELAY_SHARDS=%d is not used: the database has the number since the first start. Set RELAY_SHARDS=%d%s", want.Shards, set.Shards, change)
	}
	if m.shards > 0 {
		return m.change(ctx, conn, noted, report)
	}
	source, err := cdc.New(m.settings.cdc, newLogger(m.progress, 5))
	if err != nil {
		return configError{err}
	}
	if err := m.publications(ctx, conn, set, report); err != nil {
		return err
	}
	for _, shard := range set.All() {
		if !m.slot {
			break
		}
		made, err := source.EnsureSlot(ctx, shard)
		if err != nil {
			return err
		}
		if made {
			if err := store.NoteSlot(ctx, conn, shard); err != nil {
				return err
			}
		}
		report("slot %s %s", shard.Slot, madeOrThere(made))
	}
	return nil
}

// publications makes those of a set, if they are to be made.
func (m *migration) publications(ctx context.Context, conn *pgx.Conn, set relay.Set, report func(format string, args ...any)) error {
	if !m.publication {
		return nil
	}
	for _, shard := range set.All() {
		made, err := cdc.EnsurePublication(ctx, conn, shard)
		if err != nil {
			return err
		}
		report("publication %s %s", shard.Publication, madeOrThere(made))
	}
	return nil
}

func madeOrThere(made bool) string {
	if made {
		return "created"
	}
	return "is there"
}

// lasts reports whether an error of connecting does not pass by itself.
func lasts(err error) bool {
	setup, pg := (*relay.SetupError)(nil), (*pgconn.PgError)(nil)
	// 57: starting or stopping; 53: no connection free
	return errors.As(err, &setup) || errors.As(err, &pg) && pg.Code[:2] != "57" && pg.Code[:2] != "53"
}

// connect waits for the database, but not for a wrong password.
func (m *migration) connect(ctx context.Context) (*pgx.Conn, error) {
	var conn *pgx.Conn
	deadline, said := time.Now().Add(m.wait), false
	err := relay.Retry(ctx, relay.Backoff{Min: 200 * time.Millisecond, Max: 2 * time.Second}, func() (err error) {
		conn, err = store.ConnectToMigrate(ctx, m.settings.cdc.DatabaseURL)
		return err
	}, func(err error, _ time.Duration) bool {
		if lasts(err) || time.Now().After(deadline) {
			return false
		}
		if !said {
			fmt.Fprintf(m.progress, "waiting for the database: %v\n", err)
			said = true
		}
		return true
	})
	setup, pg := (*relay.SetupError)(nil), (*pgconn.PgError)(nil)
	switch {
	case err == nil:
		return conn, nil
	case errors.As(err, &setup):
		return nil, err
	case lasts(err) && errors.As(err, &pg):
		return nil, &relay.SetupError{Problem: "DATABASE_URL", Err: err, Fix: "set the right host, database, user and password"}
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("waited %s for the database: %w", m.wait, err)
}

func permission(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" {
		return &relay.SetupError{Problem: "the role of DATABASE_URL may not do that", Err: err, Fix: "migrate as the owner of saga_outbox, or of the database"}
	}
	return err
}
