package sessions

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
)

// SQLSTATEs that are told apart by their names, here and elsewhere (PostgreSQL docs, appendix A).
const (
	UndefinedColumn    = "42703"
	UndefinedObject    = "42704"
	UndefinedTable     = "42P01"
	DuplicateObject    = "42710"
	NoPrivilege        = "42501"
	NotInState         = "55000"
	InUse              = "55006"
	LockNotAvailable   = "55P03"
	OutOfMemory        = "53200"
	TooManyConnections = "53300"
	LimitReached       = "53400"

	badPassword       = "28P01" //nolint:gosec // an error code
	badAuthorization  = "28000"
	noFeature         = "0A000"
	protocolViolation = "08P01" // with which PgBouncer refuses settings that it does not know
)

// Code is the SQLSTATE of a server's error, or "".
func Code(err error) string {
	if pg := serverError(err); pg != nil {
		return pg.Code
	}
	return ""
}

func serverError(err error) *pgconn.PgError {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return nil
	}
	return pg
}

// Cause takes the cause out of pgconn's error, which repeats user, database and every address
// tried.
func Cause(err error) error {
	if pg := serverError(err); pg != nil {
		return pg
	}
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return once(connect.Unwrap())
	}
	return err
}

// once is the first of several errors that read alike: pgconn tries an address with TLS and
// without, and returns both.
func once(err error) error {
	all, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	var first error
	for _, e := range all.Unwrap() {
		if first == nil {
			first = e
		} else if e.Error() != first.Error() {
			return err
		}
	}
	return cmp.Or(first, err)
}

// connectFaults are the SQLSTATEs with which a server refuses a session for what a person has to
// change: the role, the database, the parameters. Every other error at that point is transient and
// waited out. The server starts, stops or recovers (57P01 to 57P03), is short of something (53…),
// takes no sessions just now (55000), or the connection broke (08…).
var connectFaults = map[string]struct{ problem, fix string }{
	"28000": {"the server refuses the role or its password", "set the right user and password; where the message names pg_hba.conf, allow the role there"},
	"28P01": {"the server refuses the role or its password", "set the right user and password"},
	"3D000": {"the database does not exist", "create it, or set the right name"},
	"42501": {"the role may not connect", "as the owner of the database: GRANT CONNECT ON DATABASE … TO …"},
	"42704": {"the server does not know a parameter of it", "leave the parameter out that the message names"},
	"42601": {"the server cannot read its options", "fix options=…"},
	"22023": {"the server does not take the value of a parameter of it", "fix the value of the parameter that the message names"},
	"22P02": {"the server does not take the value of a parameter of it", "fix the value of the parameter that the message names"},
	"55P02": {"a parameter of it cannot be set at the start of a session", "leave the parameter out that the message names"},
	"0A000": {"the server does not support what it asks for", "leave the parameter out that the message names"},
	"42P02": {"the server does not know a parameter of it", "leave the parameter out that the message names"},
}

// Refused turns a server's refusal of a session into a *relay.SetupError, if a person has to fix
// it. It leaves any other error as it is.
func Refused(err error) error {
	if setup := (*relay.SetupError)(nil); errors.As(err, &setup) {
		return err
	}
	state := Code(err)
	fault, is := connectFaults[state]
	if !is && strings.HasPrefix(state, "28") {
		fault, is = connectFaults["28000"], true
	}
	// PgBouncer's.
	if state == protocolViolation && strings.Contains(serverError(err).Message, "startup parameter") {
		fault, is = connectFaults["42704"], true
	}
	if !is {
		return err
	}
	return &relay.SetupError{Problem: "DATABASE_URL: " + fault.problem, Err: Cause(err), Fix: fault.fix}
}

// RefusedReplication is Refused for a replication connection.
func RefusedReplication(err error, role string) error {
	// unsupported startup parameter: replication
	if state := Code(err); errors.Is(err, ErrPooler) || state == protocolViolation || state == noFeature {
		return Pooler(err)
	}
	return Refused(NoReplication(err, role))
}

// NoReplication makes of a server's answer a *relay.SetupError, if it says that this role, or for
// now nobody, may replicate, and leaves any other error as it is. Slots are refused in the same
// words as sessions.
func NoReplication(err error, role string) error {
	pg := serverError(err)
	if setup := (*relay.SetupError)(nil); pg == nil || errors.As(err, &setup) {
		return err
	}
	switch pg.Code {
	case badPassword, badAuthorization:
		// no pg_hba.conf entry for replication connection …
		if strings.Contains(pg.Message, "replication") {
			return &relay.SetupError{
				Problem: "DATABASE_URL: the server does not let this role make replication connections", Err: err, Streaming: true,
				Fix: "allow the role in pg_hba.conf (a replication connection to a named database matches that database's lines)",
			}
		}
	case NoPrivilege:
		// The server's messages may be in any language; what it calls the attribute and its own
		// functions is not translated.
		if strings.Contains(pg.Message, "walsender") || strings.Contains(pg.Message, "replication") || strings.Contains(pg.Detail, "REPLICATION") || pg.Routine == "InitPostgres" {
			name := pgx.Identifier{role}.Sanitize()
			grant := "ALTER ROLE " + name + " REPLICATION;"
			return &relay.SetupError{
				Problem: "the role of DATABASE_URL lacks the right to replicate", Err: err, Streaming: true,
				Fix: "as a superuser: " + grant + " (on RDS: GRANT rds_replication TO " + name + ")", SQL: []string{grant},
			}
		}
	case TooManyConnections:
		// otherwise max_connections, which is transient
		if strings.Contains(pg.Message, "max_wal_senders") {
			return NoSenderFree(err)
		}
	}
	return err
}

// Pooler is the error where a pooler answers.
func Pooler(err error) *relay.SetupError {
	return &relay.SetupError{
		Problem: "DATABASE_URL does not lead to PostgreSQL itself, but to a pooler that has no replication connections", Err: err, Streaming: true,
		Fix: "name PostgreSQL's own host and port in DATABASE_URL, or set RELAY_MODE=polling",
	}
}

// NoSenderFree is the error when the server has no walsender for us.
func NoSenderFree(err error) *relay.SetupError {
	return &relay.SetupError{
		Problem: "no walsender is free", Err: err, Streaming: true,
		Fix: "raise max_wal_senders and restart PostgreSQL, or end a replication connection that is not used (SELECT * FROM pg_stat_replication)",
	}
}

// LacksRight makes of a refusal of a statement a *relay.SetupError with what grants the right, and
// leaves any other error as it is. The server names the table at the most, not what is needed.
func LacksRight(err error, fix string) error {
	if setup := (*relay.SetupError)(nil); Code(err) != NoPrivilege || errors.As(err, &setup) {
		return err
	}
	return &relay.SetupError{Problem: "the role of DATABASE_URL lacks a right", Err: err, Fix: fix}
}

// ErrStandby is transient: somebody promotes the server, or the name in DATABASE_URL comes to lead
// to the primary.
var ErrStandby = errors.New("the server is a standby, which takes no writes; name the primary in DATABASE_URL, with several hosts add target_session_attrs=read-write")

// OldestServer is the first version that the relay works with. It has pgoutput's binary option.
const OldestServer = 14

// MajorVersion takes 17 out of "17.6 (Debian …)" and 18 out of "18beta1".
func MajorVersion(version string) int {
	digits := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if digits < 0 {
		digits = len(version)
	}
	// 0 is too old, and is reported with the version as it was sent
	n, _ := strconv.Atoi(version[:digits])
	return n
}

// TooOld is the error of a server that is too old; nil for one that is not.
func TooOld(major int, version string) *relay.SetupError {
	if major >= OldestServer {
		return nil
	}
	return &relay.SetupError{Problem: fmt.Sprintf("PostgreSQL %s is too old", version), Fix: fmt.Sprintf("use PostgreSQL %d or later", OldestServer)}
}
