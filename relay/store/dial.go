package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// Connect opens a connection for a command that a person has typed; purpose is shown in pg_stat_activity. It prepares no
// statements and asks for no session settings, so a pooler in between does no harm. What a person has to mend is a
// *relay.SetupError; no error holds the password.
func Connect(ctx context.Context, databaseURL, purpose string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil || strings.Contains(cfg.Host, "@") {
		// pgx's error quotes the connection string, and with it the password. A password with an @ ends there, and the rest of
		// it would be told as part of the host's name.
		return nil, ErrDatabaseURL
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	cfg.RuntimeParams["application_name"] = applicationName(purpose)
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to %s:%d/%s as %s: %w", cfg.Host, cfg.Port, cfg.Database, cfg.User, setup(plainConnectError(err)))
	}
	return conn, nil
}

// ErrDatabaseURL is the error for a connection string that cannot be read.
var ErrDatabaseURL = errors.New("DATABASE_URL: cannot be read: want postgresql://user:password@host:5432/database")

// ConnectCause takes the cause out of pgconn's error, which repeats user, database and every address tried.
func ConnectCause(err error) error { return plainConnectError(err) }

// Diagnose turns a server's error that a person has to mend into a *relay.SetupError, and leaves any other as it is.
func Diagnose(err error) error {
	if done := (*relay.SetupError)(nil); err == nil || errors.As(err, &done) {
		return err
	}
	return setup(err)
}
