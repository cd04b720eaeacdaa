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

// SQLSTATEs that are treated differently (PostgreSQL docs, appendix A).
const (
	codeInvalidPassword    = "28P01" //nolint:gosec // an error code
	codeInvalidAuth        = "28000"
	codeNoDatabase         = "3D000"
	codePrivilege          = "42501"
	codeUndefinedObject    = "42704"
	codeDuplicateObject    = "42710"
	codeInUse              = "55006"
	codePrerequisite       = "55000"
	codeConfigurationLimit = "53400"
	codeOutOfMemory        = "53200"
	codeTooManyConnections = "53300"
	codeFeature            = "0A000"
	codeProtocolViolation  = "08P01"
)

// classify adds to a server's error what a person can do about it, where that is known. Everything
// else is a transient error and stays as it is. role is ours, for the statements that fix its
// rights.
func classify(err error, role string) error {
	var column *pgoutput.ColumnError
	if errors.As(err, &column) {
		return &relay.SetupError{Problem: column.Error(), Fix: "then start the relay again: the slot is before the first row it could not read"}
	}
	var pg *pgconn.PgError
	if done := (*relay.SetupError)(nil); errors.As(err, &done) || !errors.As(err, &pg) {
		return err
	}
	switch pg.Code {
	case codeInvalidPassword, codeInvalidAuth:
		// no pg_hba.conf entry for replication connection …
		if strings.Contains(pg.Message, "replication") {
			return &relay.SetupError{
				Problem: "DATABASE_URL: the server does not let this role make replication connections", Err: err, Streaming: true,
				Fix: "allow the role in pg_hba.conf (a replication connection to a named database matches that database's lines)",
			}
		}
		return sessions.Refused(err)
	case codeNoDatabase:
		return sessions.Refused(err)
	case codePrivilege:
		// The server's messages may be in any language; what it calls the attribute and its own
		// functions is not translated.
		if strings.Contains(pg.Message, "walsender") || strings.Contains(pg.Message, "replication") || strings.Contains(pg.Detail, "REPLICATION") || pg.Routine == "InitPostgres" {
			grant := "ALTER ROLE " + quoteIdent(role) + " REPLICATION;"
			return &relay.SetupError{
				Problem: "the role of DATABASE_URL lacks the right to replicate", Err: err, Streaming: true,
				Fix: "as a superuser: " + grant + " (on RDS: GRANT rds_replication TO " + quoteIdent(role) + ")", SQL: []string{grant},
			}
		}
		return &relay.SetupError{Problem: "the role of DATABASE_URL lacks a right", Err: err, Fix: "grant what the message names"}
	case codePrerequisite:
		if strings.Contains(pg.Message, "wal_level") {
			return walLevelError(err)
		}
	case codeConfigurationLimit:
		return NoSlotFree(err)
	case codeTooManyConnections:
		// otherwise max_connections, which is transient
		if strings.Contains(pg.Message, "max_wal_senders") {
			return NoSenderFree(err)
		}
	}
	return err
}

// classifyConnect is classify for the answer to our attempt to connect.
func classifyConnect(err error, role string) error {
	// unsupported startup parameter: replication
	if errors.Is(err, sessions.ErrPooler) || hasCode(err, codeProtocolViolation) || hasCode(err, codeFeature) {
		return Pooler(err)
	}
	return sessions.Refused(classify(err, role))
}

// Pooler is the error where a pooler answers.
func Pooler(err error) *relay.SetupError {
	return &relay.SetupError{
		Problem: "DATABASE_URL does not lead to PostgreSQL itself, but to a pooler that has no replication connections", Err: err, Streaming: true,
		Fix: "name PostgreSQL's own host and port in DATABASE_URL, or set RELAY_MODE=polling",
	}
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

// NoSenderFree is the error when it has no walsender for us.
func NoSenderFree(err error) *relay.SetupError {
	return &relay.SetupError{
		Problem: "no walsender is free", Err: err, Streaming: true,
		Fix: "raise max_wal_senders and restart PostgreSQL, or end a replication connection that is not used (SELECT * FROM pg_stat_replication)",
	}
}

// hasCode reports whether err is a server's error with the given SQLSTATE.
func hasCode(err error, code string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == code
}
