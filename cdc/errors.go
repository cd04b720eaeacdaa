package cdc

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/relay"
)

// SQLSTATEs that we tell apart (PostgreSQL docs, appendix A).
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
	codeFeature            = "0A000"
)

// classify adds to a server's error what a person can do about it, where that is known. Everything else is passing trouble
// and stays as it is. role is ours, for the statements that mend its rights.
func classify(err error, role string) error {
	var column *pgoutput.ColumnError
	if errors.As(err, &column) {
		return &relay.SetupError{Problem: column.Error(), Fix: "then start the relay again: the slot stands before the first row it could not read"}
	}
	var pg *pgconn.PgError
	if done := (*relay.SetupError)(nil); errors.As(err, &done) || !errors.As(err, &pg) {
		return err
	}
	switch pg.Code {
	case codeInvalidPassword, codeInvalidAuth:
		if strings.Contains(pg.Message, "replication") { // no pg_hba.conf entry for replication connection …
			return &relay.SetupError{
				Problem: "DATABASE_URL: the server does not let this role make replication connections", Err: err,
				Fix: "allow the role in pg_hba.conf (a replication connection to a named database matches that database's lines)",
			}
		}
		return &relay.SetupError{Problem: "DATABASE_URL: the server refuses the role or its password", Err: err, Fix: "set the right user and password"}
	case codeNoDatabase:
		return &relay.SetupError{Problem: "DATABASE_URL: the database does not exist", Err: err, Fix: "create it, or set the right name"}
	case codePrivilege:
		if strings.Contains(pg.Message, "walsender") || strings.Contains(pg.Message, "replication") || strings.Contains(pg.Detail, "REPLICATION") {
			return &relay.SetupError{
				Problem: "the role of DATABASE_URL lacks the right to replicate", Err: err,
				Fix: "as a superuser: ALTER ROLE " + quoteIdent(role) + " REPLICATION;",
			}
		}
		return &relay.SetupError{Problem: "the role of DATABASE_URL lacks a right", Err: err, Fix: "grant what the message names"}
	case codeUndefinedObject:
		if strings.Contains(pg.Message, "publication") {
			return publicationGone(err)
		}
	case codePrerequisite:
		if strings.Contains(pg.Message, "wal_level") || strings.Contains(pg.Message, "logical decoding") {
			return walLevelError(err)
		}
		return &relay.SetupError{
			Problem: "the slot cannot be read any more", Err: err,
			Fix: "drop it (SELECT pg_drop_replication_slot('…')) and start the relay: rows not delivered are still pending in the table",
		}
	case codeConfigurationLimit:
		return &relay.SetupError{
			Problem: "no replication slot is free", Err: err,
			Fix: "drop one that is not used (SELECT * FROM pg_replication_slots WHERE NOT active), or raise max_replication_slots and restart PostgreSQL",
		}
	}
	return err
}

// publicationGone is for a publication that is not there as of the WAL position that pgoutput decodes.
func publicationGone(err error) error {
	return &relay.SetupError{
		Problem: "the slot is older than its publication, or the publication was dropped", Err: err,
		Fix: "drop the slot (SELECT pg_drop_replication_slot('…')) and start the relay: it makes both anew; rows not delivered are still pending in the table",
	}
}

func walLevelError(err error) error {
	return &relay.SetupError{
		Problem: "wal_level is not logical, so there is nothing to stream", Err: err,
		Fix: "ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL (managed services have a parameter for it)",
	}
}

// hasCode reports whether err is a server's error with the given SQLSTATE.
func hasCode(err error, code string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == code
}
