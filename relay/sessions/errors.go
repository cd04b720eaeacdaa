package sessions

import (
	"cmp"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
)

// codeProtocolViolation is the SQLSTATE with which PgBouncer refuses settings that it does not
// know.
const codeProtocolViolation = "08P01"

// code is the SQLSTATE of a server's error, or "".
func code(err error) string {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return ""
	}
	return pg.Code
}

// Cause takes the cause out of pgconn's error, which repeats user, database and every address
// tried.
func Cause(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
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
	state := code(err)
	fault, is := connectFaults[state]
	if !is && strings.HasPrefix(state, "28") {
		fault, is = connectFaults["28000"], true
	}
	var pg *pgconn.PgError
	// PgBouncer's.
	if errors.As(err, &pg) && state == codeProtocolViolation && strings.Contains(pg.Message, "startup parameter") {
		fault, is = connectFaults["42704"], true
	}
	if !is {
		return err
	}
	return &relay.SetupError{Problem: "DATABASE_URL: " + fault.problem, Err: Cause(err), Fix: fault.fix}
}
