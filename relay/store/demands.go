package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// Examine checks everything that a relay needs of the tables and the server: for a way to mark,
// with or without a retention that removes rows, with or without an archive. It is what Check
// refuses by.
func Examine(ctx context.Context, conn *pgx.Conn, mark string, retention, archive bool) []relay.Examined {
	s := &Store{cfg: Config{Mark: mark}, prunes: retention, prunesTo: archive}
	return s.examine(ctx, conn)
}

func (s *Store) examine(ctx context.Context, conn *pgx.Conn) []relay.Examined {
	x := &demands{s: s, conn: conn, needs: Needs(s.cfg.Mark, s.prunes, s.prunesTo)}
	all := relay.Examine(ctx, []relay.Look{
		{Check: "database", Make: x.server},
		{Check: "tables", Make: x.tables},
		{Check: "columns", Make: x.columns},
		{Check: "archive", Make: x.archive},
		{Check: "rights", Make: x.rights},
		{Check: "row security", Make: x.rowSecurity},
	})
	if relay.FirstFault(all) != nil { // a statement that does not fit is a worse explanation
		return all
	}
	return append(all, relay.Examine(ctx, []relay.Look{{Check: "statements", Make: x.plan}})...)
}

// demands are what the tables and the server have to be like.
type demands struct {
	s     *Store
	conn  *pgx.Conn
	needs []Need
}

func (x *demands) server(ctx context.Context) (fine string, faults []*relay.SetupError, err error) {
	var standby, readOnly bool
	var version int
	var full string
	err = x.conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::boolean, current_setting('server_version_num')::int / 10000, current_setting('server_version')`).
		Scan(&standby, &readOnly, &version, &full)
	switch {
	case err != nil:
		return "", nil, setup(err)
	case version < sessions.OldestServer:
		faults = append(faults, sessions.TooOld(version, full))
	case standby:
		return "", nil, sessions.ErrStandby
	case readOnly: // a pooler's sessions are as the role has them
		faults = append(faults, &relay.SetupError{Problem: "sessions of the role are read only", Fix: "ALTER ROLE … RESET default_transaction_read_only (or the same of the database)"})
	}
	return "", faults, nil
}

// tables looks for each table the way the statements do, by search_path, and, where it is not
// found, elsewhere.
func (x *demands) tables(ctx context.Context) (fine string, faults []*relay.SetupError, err error) {
	var found, missing []string
	for _, n := range x.needs {
		var there, usable bool
		var kind, elsewhere, role, database string
		err := x.conn.QueryRow(ctx, `SELECT t.oid IS NOT NULL, coalesce(c.relkind::text, ''), coalesce(quote_ident(other.nspname), ''), coalesce(has_schema_privilege(other.oid, 'USAGE'), true),
				quote_ident(current_user), quote_ident(current_database())
			FROM (SELECT to_regclass($2) AS oid) t LEFT JOIN pg_class c ON c.oid = t.oid
			LEFT JOIN LATERAL (SELECT n.oid, n.nspname FROM pg_class e JOIN pg_namespace n ON n.oid = e.relnamespace
				WHERE e.relname = $1 AND e.relkind IN ('r', 'p') AND t.oid IS NULL ORDER BY n.nspname LIMIT 1) other ON true`, n.Table, x.named(n.Table)).
			Scan(&there, &kind, &elsewhere, &usable, &role, &database)
		switch {
		case err != nil:
			return "", faults, fmt.Errorf("look for %s: %w", n.Table, setup(err))
		case there && kind != "r" && kind != "p":
			faults = append(faults, &relay.SetupError{
				Problem: n.Table + " is no table, but a view or the like: replication streams tables, and marks update rows",
				Fix:     "name the database of the table itself in DATABASE_URL",
			})
		case there:
			found = append(found, n.Table)
		case elsewhere == "":
			missing = append(missing, n.Table)
		case !usable:
			grant := fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s;", elsewhere, role)
			faults = append(faults, &relay.SetupError{Problem: fmt.Sprintf("%s is in schema %s, which role %s may not use", n.Table, elsewhere, role), Fix: grant, SQL: []string{grant}})
		default:
			path := fmt.Sprintf("ALTER ROLE %s IN DATABASE %s SET search_path = %s, public;", role, database, elsewhere)
			faults = append(faults, &relay.SetupError{
				Problem: fmt.Sprintf("%s is in schema %s, which is not on the search_path of role %s", n.Table, elsewhere, role),
				Fix:     "for new connections: " + path, SQL: []string{path},
			})
		}
	}
	if missing != nil {
		faults = append(faults, &relay.SetupError{
			Problem: "not there: " + strings.Join(missing, ", "), Fix: "as the owner of saga_outbox, or of the database, run: sagaz-relay migrate",
		})
	}
	return strings.Join(found, ", "), faults, nil
}

func (x *demands) named(table string) *string { return sessions.Of(x.conn.PgConn()).Named(table) }

// outboxColumns are the columns of saga_outbox that are read or written, as 0001_saga_outbox.sql
// makes them.
var outboxColumns = []struct{ name, definition string }{
	{"event_id", "UUID PRIMARY KEY"},
	{"saga_id", "VARCHAR(255) NOT NULL"},
	{"aggregate_type", "VARCHAR(255) NOT NULL DEFAULT 'saga'"},
	{"aggregate_id", "VARCHAR(255) NOT NULL"},
	{"event_type", "VARCHAR(255) NOT NULL"},
	{"payload", "JSONB NOT NULL"},
	{"headers", "JSONB NOT NULL DEFAULT '{}'"},
	{"status", "VARCHAR(50) NOT NULL DEFAULT 'pending'"},
	{"created_at", "TIMESTAMPTZ NOT NULL DEFAULT NOW()"},
	{"claimed_at", "TIMESTAMPTZ"},
	{"sent_at", "TIMESTAMPTZ"},
	{"retry_count", "INTEGER NOT NULL DEFAULT 0"},
	{"last_error", "TEXT"},
	{"worker_id", "VARCHAR(255)"},
}

// names are the columns of a table in their order; empty for a table that does not exist.
func (x *demands) names(ctx context.Context, table string) ([]string, error) {
	all, err := names(ctx, x.conn, `SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, x.named(table))
	if err != nil {
		return nil, fmt.Errorf("look at the columns of %s: %w", table, err)
	}
	return all, nil
}

// columns looks for columns that are missing, or of types that are not accepted.
func (x *demands) columns(ctx context.Context) (fine string, faults []*relay.SetupError, err error) {
	have, err := x.names(ctx, "saga_outbox")
	if err != nil || len(have) == 0 {
		return "", nil, err
	}
	name := *x.named("saga_outbox")
	var missing, add []string
	for _, want := range outboxColumns {
		if !slices.Contains(have, want.name) {
			missing = append(missing, want.name)
			add = append(add, fmt.Sprintf("ALTER TABLE %s ADD COLUMN %s %s;", name, want.name, want.definition))
		}
	}
	if missing != nil {
		faults = append(faults, &relay.SetupError{
			Problem: fmt.Sprintf("table %s lacks column %s", name, strings.Join(missing, ", ")),
			Fix:     "if DATABASE_URL names the right database, restore it, as the table's owner: " + strings.Join(add, " "), SQL: add,
		})
	}
	return "all that are needed, of types that are accepted", faults, checkColumns(ctx, x.conn)
}

// archive looks whether rows can be moved whole.
func (x *demands) archive(ctx context.Context) (fine string, faults []*relay.SetupError, err error) {
	if !slices.ContainsFunc(x.needs, func(n Need) bool { return n.Table == archiveTable }) {
		return "", nil, nil
	}
	outbox, err := x.names(ctx, "saga_outbox")
	if err != nil {
		return "", nil, err
	}
	archive, err := x.names(ctx, archiveTable)
	switch {
	case err != nil || len(outbox) == 0 || len(archive) == 0: // reported already
		return "", nil, err
	case len(archive) >= len(outbox) && slices.Equal(outbox, archive[:len(outbox)]):
		return "the columns of saga_outbox, in the same order", nil, nil
	}
	var fix []string
	name, from := *x.named(archiveTable), *x.named("saga_outbox")
	if len(archive) < len(outbox) && slices.Equal(outbox[:len(archive)], archive) {
		fix, err = names(ctx, x.conn, `SELECT pg_catalog.format('ALTER TABLE %s ADD COLUMN %I %s;', $2::text, attname, format_type(atttypid, atttypmod))
			FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = ANY($3) ORDER BY attnum`, from, name, outbox[len(archive):])
		if err != nil {
			return "", nil, err
		}
		return "", []*relay.SetupError{archiveError(nil, "", fix)}, nil
	}
	fix = []string{
		fmt.Sprintf("ALTER TABLE %s RENAME TO saga_outbox_archive_old;", name),
		fmt.Sprintf("CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING IDENTITY EXCLUDING GENERATED);", name, from),
	}
	return "", []*relay.SetupError{archiveError(nil, "keep the old archive under another name, and make a new one: ", fix)}, nil
}

const archiveTable = "saga_outbox_archive"

func (x *demands) rights(ctx context.Context) (fine string, faults []*relay.SetupError, err error) {
	var lacks, grants []string
	looked := 0
	var role string
	if err := x.conn.QueryRow(ctx, `SELECT quote_ident(current_user)`).Scan(&role); err != nil {
		return "", nil, err
	}
	for _, n := range x.needs {
		there, missing, err := n.Lacks(ctx, x.conn)
		if err != nil {
			return "", nil, err
		}
		if !there { // reported already
			continue
		}
		looked++
		if len(missing) > 0 {
			lacks = append(lacks, strings.Join(missing, ", ")+" on "+n.Table)
			grants = append(grants, fmt.Sprintf("GRANT %s ON %s TO %s;", strings.Join(missing, ", "), *x.named(n.Table), role))
		}
	}
	if lacks != nil {
		faults = append(faults, &relay.SetupError{
			Problem: fmt.Sprintf("role %s lacks %s", role, strings.Join(lacks, "; ")),
			Fix:     strings.Join(grants, " "), SQL: grants,
		})
	}
	if looked > 0 {
		fine = fmt.Sprintf("on %d tables", looked)
	}
	return fine, faults, nil
}

func (x *demands) rowSecurity(ctx context.Context) (fine string, faults []*relay.SetupError, err error) {
	for _, n := range Needs(MarkArchive, false, true) { // the archive, too: commands read it
		name := x.named(n.Table)
		if name == nil {
			continue
		}
		hidden, err := x.hidden(ctx, n.Table, *name)
		if err != nil {
			return "", faults, err
		}
		if hidden != nil {
			faults = append(faults, hidden)
		}
	}
	return "hides no rows", faults, nil
}

// hidden reports whether row level security hides rows of a table from our role. A row that is
// hidden looks like one that is gone: it would be delivered over and over, or never.
func (x *demands) hidden(ctx context.Context, table, name string) (*relay.SetupError, error) {
	var hidden bool
	var role string
	err := x.conn.QueryRow(ctx, `SELECT coalesce(row_security_active(to_regclass($1)), false), quote_ident(current_user)`, name).Scan(&hidden, &role)
	if err != nil {
		return nil, fmt.Errorf("ask for the row security of %s: %w", table, setup(err))
	}
	if !hidden {
		return nil, nil
	}
	past := "ALTER ROLE " + role + " BYPASSRLS;"
	return &relay.SetupError{
		Problem: fmt.Sprintf("row level security hides rows of %s from role %s", table, role),
		Fix:     "as a superuser: " + past + " or, as the table's owner: ALTER TABLE " + name + " DISABLE ROW LEVEL SECURITY;", SQL: []string{past},
	}, nil
}

// planTimeout bounds the check of the statements, which waits for whoever alters a table. Such a
// wait is to be reported, not endured in silence.
const planTimeout = 30 * time.Second

// plan plans every statement of the lease: each table, column and type that they need; nothing is
// read.
func (x *demands) plan(ctx context.Context) (fine string, faults []*relay.SetupError, err error) {
	ctx, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	if !isPooled(x.conn) {
		if _, err := x.conn.Exec(ctx, fmt.Sprintf(`SET lock_timeout = %d`, (planTimeout/6).Milliseconds())); err != nil {
			return "", nil, fmt.Errorf("check the tables: %w", err)
		}
		defer x.conn.Exec(ctx, `SET lock_timeout = 0`) //nolint:errcheck // as sessions have it; one that is broken is not used again
	}
	for _, sql := range x.s.statements() {
		if _, err := x.conn.Prepare(ctx, "", sql); err != nil {
			return "", nil, fmt.Errorf("check the tables: %w", setup(err))
		}
	}
	return "every statement of the relay can be planned", nil, nil
}
