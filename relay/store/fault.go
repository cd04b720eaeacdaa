package store

import (
	"context"
	"errors"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// blame is whose fault the failure of a statement about many rows may be.
type blame int

const (
	// blameNobody is for the connection, the server's end, a fence, a stop: the batch is tried
	// again as it is.
	blameNobody blame = iota
	// blameTransient is for codes that as a rule are transient. A trigger may raise any of them for
	// one row again and again, so a batch that goes on failing is tried in halves after a while.
	blameTransient
	// blameRow is for codes that are about what is in a row: the batch is tried in halves at once.
	blameRow
)

// transientClasses are the classes of SQLSTATE that are about the server, about resources, or about
// concurrent work. Codes of all other classes are about data, constraints and triggers. The border
// need not be exact: what was parked by mistake gets its mark at the next try.
var transientClasses = map[string]bool{
	"08": true, // connection exception
	"0B": true, // invalid transaction initiation
	"25": true, // invalid transaction state, read-only among them
	"28": true, // invalid authorization
	"2D": true, // invalid transaction termination
	"3D": true, // invalid catalog name
	"40": true, // transaction rollback: serialization, deadlock
	"53": true, // insufficient resources
	"55": true, // object not in prerequisite state, lock not available
	"57": true, // operator intervention, statement_timeout among them
	"58": true, // system error
	"72": true, // snapshot too old
	"F0": true, // configuration file error
}

// blames judges the error of a statement that has run under ctx.
func blames(ctx context.Context, err error) blame {
	var pg *pgconn.PgError
	switch {
	case err == nil || ctx.Err() != nil:
		return blameNobody
	case errors.As(err, &pg):
		// FATAL ends the session, whatever the code; SeverityUnlocalized is not translated.
		if pg.SeverityUnlocalized != "" && pg.SeverityUnlocalized != "ERROR" || len(pg.Code) != 5 {
			return blameNobody
		}
		if transientClasses[pg.Code[:2]] {
			return blameTransient
		}
		return blameRow
	case errors.Is(err, context.DeadlineExceeded):
		return blameTransient // a trigger that hangs for one row
	default:
		return blameNobody
	}
}

// cause is what may be logged of an error: no value of a row.
type cause struct {
	code       string
	constraint string
	text       string
	raised     bool // in a function, that of a trigger for instance
}

// raisedIn finds the function in an error's context: "PL/pgSQL function public.check_it() line 3 at
// RAISE".
var raisedIn = regexp.MustCompile(`PL/[A-Za-z]+ function ([^\s(]+\([^)]*\))`)

// causeOf describes an error without what is in the row. DETAIL has the whole row and HINT what a
// trigger's author put there. The message is PostgreSQL's own, with names only, for a constraint;
// otherwise it may quote a value, or is a trigger's.
func causeOf(err error) cause {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		if errors.Is(err, context.DeadlineExceeded) {
			return cause{code: "57014", text: "no answer in time"}
		}
		return cause{text: "refused"}
	}
	c := cause{code: pg.Code, constraint: pg.ConstraintName}
	var parts []string
	if pg.ConstraintName != "" {
		parts = append(parts, "constraint "+pg.ConstraintName)
	}
	if pg.ColumnName != "" {
		parts = append(parts, "column "+pg.ColumnName)
	}
	if pg.TableName != "" {
		parts = append(parts, "table "+pg.TableName)
	}
	if m := raisedIn.FindStringSubmatch(pg.Where); m != nil {
		c.raised = true
		parts = append(parts, "in function "+m[1])
	}
	c.text = "SQLSTATE " + pg.Code
	if len(parts) > 0 {
		c.text += ": " + strings.Join(parts, ", ")
	}
	return c
}

// quiet is an error with another text.
type quiet struct {
	error
	text string
}

func (q quiet) Error() string { return q.text }

func (q quiet) Unwrap() error { return q.error }

// withoutValues takes the server's message out of an error's text where it may hold what is in a
// row. That is when a function's author has written it, or when it quotes a value that is not
// well-formed (class 22). errors.As finds the error as it was.
func withoutValues(err error) error {
	var pg *pgconn.PgError
	if err == nil || !errors.As(err, &pg) || pg.Message == "" {
		return err
	}
	// Where is translated by the server, names of languages are not.
	if !strings.Contains(pg.Where, "PL/") && !strings.HasPrefix(pg.Code, "22") && !strings.HasPrefix(pg.Code, "P0") {
		return err
	}
	return quiet{err, strings.ReplaceAll(err.Error(), pg.Message, "message withheld, as it may quote a row: "+causeOf(err).text)}
}
