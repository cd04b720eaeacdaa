package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// Connect opens a connection for a command that a person has typed; purpose is shown in
// pg_stat_activity. It prepares no statements, so a pooler in between does no harm. What a person
// has to fix is a *relay.SetupError; no error has the password.
func Connect(ctx context.Context, databaseURL, purpose string) (*pgx.Conn, error) {
	return open(ctx, databaseURL, sessions.Options{Purpose: purpose})
}

// ConnectToMigrate is Connect for a command that makes tables.
func ConnectToMigrate(ctx context.Context, databaseURL string) (*pgx.Conn, error) {
	return open(ctx, databaseURL, sessions.Options{Purpose: "migrate", Creates: true})
}

func open(ctx context.Context, databaseURL string, o sessions.Options) (*pgx.Conn, error) {
	address, err := sessions.Parse(databaseURL)
	if err != nil {
		return nil, &relay.SetupError{Problem: err.Error()}
	}
	address.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := sessions.Open(ctx, address.ConnConfig, o)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	describe(conn)
	return conn, nil
}

// ConnectCause takes the cause out of pgconn's error, which repeats user, database and every
// address tried.
func ConnectCause(err error) error { return sessions.Cause(err) }

// Diagnose turns a server's error that a person has to fix into a *relay.SetupError, and leaves any
// other as it is.
func Diagnose(err error) error {
	return setup(err)
}
