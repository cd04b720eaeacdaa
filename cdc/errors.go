package cdc

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// classify adds to a server's error about a statement what a person can do about it, where that is
// known. Everything else is transient and stays as it is. role is ours, for the statements that fix
// its rights.
func classify(err error, role string) error {
	var column *pgoutput.ColumnError
	if errors.As(err, &column) {
		return &relay.SetupError{Problem: column.Error(), Fix: "then start the relay again: the slot is before the first row it could not read"}
	}
	err = sessions.LacksRight(sessions.NoReplication(err, role), "grant what the message names")
	var pg *pgconn.PgError
	if done := (*relay.SetupError)(nil); errors.As(err, &done) || !errors.As(err, &pg) {
		return err
	}
	switch {
	case pg.Code == sessions.NotInState && strings.Contains(pg.Message, "wal_level"):
		return walLevelError(err)
	case pg.Code == sessions.LimitReached:
		return NoSlotFree(err)
	}
	return err
}

func walLevelError(err error) *relay.SetupError {
	alter := "ALTER SYSTEM SET wal_level = 'logical';"
	return &relay.SetupError{
		Problem: "wal_level is not logical, so there is nothing to stream", Err: err, Streaming: true,
		Fix: alter + " then restart PostgreSQL (managed services have a parameter for it: rds.logical_replication, cloudsql.logical_decoding)", SQL: []string{alter},
	}
}

// WALLevel is the error for a wal_level; nil for the one that is needed.
func WALLevel(level string) *relay.SetupError {
	if level == "logical" {
		return nil
	}
	return walLevelError(fmt.Errorf("wal_level = %s", level))
}

// NoSlotFree is the error when the server has no slot for us.
func NoSlotFree(err error) *relay.SetupError {
	return &relay.SetupError{
		Problem: "no replication slot is free", Err: err, Streaming: true,
		Fix: "raise max_replication_slots and restart PostgreSQL; or find out whose each slot is (SELECT slot_name, database, plugin, active FROM pg_replication_slots), and have its owner drop one that nobody needs",
	}
}
