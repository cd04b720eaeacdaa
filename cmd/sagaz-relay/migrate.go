package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/migrations"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

func newMigrate(load func() (*settings, error)) *cobra.Command {
	var (
		tune, slot, noPublication bool
		wait                      time.Duration
	)
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Prepare the database: tables, indexes, publication, slot",
		Long: `migrate creates what is missing in the database of DATABASE_URL: the outbox tables as the Python
library makes them, the relay's own tables, and the publication. What is there stays as it is. It
may be run at any time, also by several processes at once, and waits for a database that is still
starting.

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
			m := migration{settings: s, out: cmd.OutOrStdout(), progress: cmd.ErrOrStderr(), tune: tune, slot: slot, publication: !noPublication, wait: wait}
			return m.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&tune, "tune", false, "replace indexes that the library made by HOT-safe ones, and leave room on pages: marks get about three times as fast")
	cmd.Flags().BoolVar(&slot, "slot", false, "also create the replication slot, so that events count from now on")
	cmd.Flags().BoolVar(&noPublication, "no-publication", false, "leave the publication to somebody else")
	cmd.Flags().DurationVar(&wait, "wait", 2*time.Minute, "how long to wait for the database")
	return cmd
}

type migration struct {
	settings                *settings
	out, progress           io.Writer
	tune, slot, publication bool
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
	if !m.publication && !m.slot {
		return nil
	}
	// A session that makes tables has their schema on its path; all else is done by one that has
	// not.
	_ = conn.Close(ctx)
	if conn, err = m.settings.connect(ctx, "migrate"); err != nil {
		return err
	}
	source, err := cdc.New(m.settings.cdc, newLogger(m.progress, 5))
	if err != nil {
		return configError{err}
	}
	if m.publication {
		made, err := cdc.EnsurePublication(ctx, conn, m.settings.cdc.Publication)
		if err != nil {
			return err
		}
		report("publication %s %s", m.settings.cdc.Publication, madeOrThere(made))
	}
	if m.slot {
		for _, slot := range m.settings.relay.Slots {
			made, err := source.EnsureSlot(ctx, slot)
			if err != nil {
				return err
			}
			if made {
				if err := store.NoteSlot(ctx, conn, slot); err != nil {
					return err
				}
			}
			report("slot %s %s", slot, madeOrThere(made))
		}
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
