package sessions

import (
	"cmp"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// codeProtocolViolation is the SQLSTATE with which PgBouncer refuses settings that it does not know.
const codeProtocolViolation = "08P01"

// code is the SQLSTATE of a server's error, or "".
func code(err error) string {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return ""
	}
	return pg.Code
}

// Cause takes the cause out of pgconn's error, which repeats user, database and every address tried.
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

// once is the first of several errors that read alike: pgconn tries an address with TLS and without, and tells both.
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
