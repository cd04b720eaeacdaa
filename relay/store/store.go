package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
)

// Store is the outbox in one database. It holds no connection of its own: a lease has two, for as long as it lives.
type Store struct {
	cfg  Config
	conn *pgx.ConnConfig
	log  hclog.Logger

	leases  sync.Map // by slot: the *lease that this process has or had last
	waiting sync.Map // by slot: the error that keeps Acquire from even asking
	bounds  bounds
	pooled  atomic.Int32 // what the last connection was: 0 is not known, 1 direct, 2 through a pooler
}

var _ relay.Store = (*Store)(nil)

// New returns a store. It makes no connection; the error is about the configuration.
func New(cfg Config, log hclog.Logger) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	conn, err := pgx.ParseConfig(cfg.DatabaseURL)
	if err != nil {
		// pgx's error quotes the connection string, and with it the password.
		return nil, errors.New("DATABASE_URL: cannot be read: want postgresql://user:password@host:5432/database")
	}
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = 10 * time.Second
	}
	return &Store{cfg: cfg, conn: conn, log: log.Named("store"), bounds: bounds{heldAtOnce, freedAtOnce, freedOfKey}}, nil
}

// applicationName is what pg_stat_activity shows for a purpose: PostgreSQL cuts it off at 63 bytes, and so do we, to find it again.
func applicationName(purpose string) string {
	name := "sagaz-relay " + purpose
	return name[:min(len(name), 63)]
}

func (s *Store) address() string {
	return fmt.Sprintf("%s/%s as %s", net.JoinHostPort(s.conn.Host, strconv.Itoa(int(s.conn.Port))), s.conn.Database, s.conn.User)
}

// plainConnectError takes the cause out of pgconn's error, which repeats user, database and every address tried.
func plainConnectError(err error) error {
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

// setup turns what a person has to mend into a *relay.SetupError.
func setup(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch pg.Code {
	case "28P01", "28000":
		return &relay.SetupError{Problem: "DATABASE_URL: the server refuses the role or its password", Err: err, Fix: "set the right user and password"}
	case "3D000":
		return &relay.SetupError{Problem: "DATABASE_URL: the database does not exist", Err: err, Fix: "create it, or set the right name"}
	case "42P01":
		return &relay.SetupError{Problem: "a table of the relay is missing", Err: err, Fix: "run: sagaz-relay migrate"}
	case "42703":
		return &relay.SetupError{Problem: "a column that the relay needs is missing", Err: err, Fix: "run: sagaz-relay migrate; if it is a column of saga_outbox, restore it"}
	case "42601", "42804": // INSERT has more expressions than target columns; column … is of type … but expression is of type …
		return &relay.SetupError{
			Problem: "the columns of saga_outbox_archive are not those of saga_outbox", Err: err,
			Fix: "give it the same columns in the same order (ALTER TABLE saga_outbox_archive ADD COLUMN …), or set RELAY_MARK to update or delete",
		}
	case "42501":
		return &relay.SetupError{Problem: "the role of DATABASE_URL lacks a right", Err: err, Fix: Grants("the_role")}
	}
	return err
}

// Grants are the statements that give a role that owns nothing what the relay needs.
func Grants(role string) string {
	return strings.Join([]string{
		"GRANT SELECT, UPDATE, DELETE ON saga_outbox TO " + role + ";",
		"GRANT SELECT, INSERT, UPDATE ON saga_outbox_archive TO " + role + ";",
		"GRANT SELECT, INSERT, UPDATE ON saga_outbox_relay TO " + role + ";",
		"GRANT SELECT, INSERT, UPDATE, DELETE ON saga_outbox_delivery TO " + role + ";",
	}, " ")
}

// statements are those that Check plans: all that touch the tables, but those for retention, which is another setting.
func (s *Store) statements() []string {
	all := []string{
		acquireSQL, lastPositionSQL, blockingSQL, countsSQL, fenceSQL, s.deliveredSQL(), withoutEntries(s.deliveredSQL()), refusedSQL, statusSQL, parkSQL,
		lookUpSQL, inLedgerSQL, claimSQL, dueSQL, nextSQL, holdAgainSQL, rowsSQL, takeOutSQL, chargeSQL, behindSQL, freeSQL, stuckSQL, tellSQL, giveUpSQL,
		notedSQL, anySentSQL, noteSinksSQL, oweSweepSQL, sweepFromSQL, endSweepSQL, horizonSQL, reviveSQL,
	}
	for kind := range wanted {
		all = append(all, keysSQL(kind, false), keysSQL(kind, true), pieceSQL(kind))
	}
	return all
}

// checkTimeout bounds the look at the tables at the start, which is made again.
const checkTimeout = 30 * time.Second

// Check implements relay.Store.
func (s *Store) Check(ctx context.Context) error {
	conn, err := s.connect(ctx, "check")
	if err != nil {
		return setup(err)
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing depends on it
	// Planning looks at every table, column and right that the lease's statements need; nothing is read.
	// Planning waits for whoever alters a table. That shall be said, not waited for in silence.
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if !isPooled(conn) {
		if _, err := conn.Exec(ctx, fmt.Sprintf(`SET lock_timeout = %d`, (checkTimeout/6).Milliseconds())); err != nil {
			return fmt.Errorf("check the tables: %w", err)
		}
	}
	for _, sql := range s.statements() {
		if _, err := conn.Prepare(ctx, "", sql); err != nil {
			return fmt.Errorf("check the tables: %w", setup(err))
		}
	}
	var missing string
	err = conn.QueryRow(ctx, `SELECT coalesce(string_agg(wanted || ' on ' || name, ', '), '') FROM (VALUES
		('saga_outbox', 'SELECT', true), ('saga_outbox', 'UPDATE', true), ('saga_outbox', 'DELETE', $1 <> 'update'),
		('saga_outbox_archive', 'SELECT', $1 = 'archive'), ('saga_outbox_archive', 'INSERT', $1 = 'archive'), ('saga_outbox_archive', 'UPDATE', $1 = 'archive'),
		('saga_outbox_relay', 'SELECT', true), ('saga_outbox_relay', 'INSERT', true), ('saga_outbox_relay', 'UPDATE', true),
		('saga_outbox_delivery', 'SELECT', true), ('saga_outbox_delivery', 'INSERT', true), ('saga_outbox_delivery', 'UPDATE', true), ('saga_outbox_delivery', 'DELETE', true)) AS r (name, wanted, needed)
		WHERE CASE WHEN needed THEN NOT has_table_privilege(name, wanted) END`, s.cfg.Mark).Scan(&missing)
	if err != nil {
		return fmt.Errorf("check the rights: %w", setup(err))
	}
	if missing != "" {
		return &relay.SetupError{Problem: fmt.Sprintf("role %q lacks %s", s.conn.User, missing), Fix: Grants(pgx.Identifier{s.conn.User}.Sanitize())}
	}
	return nil
}
