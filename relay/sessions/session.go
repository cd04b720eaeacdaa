package sessions

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sagaz-relay/relay/relay"
)

// About is what is known of a session beyond what the server reports.
type About struct {
	// Pooled is true when a pooler may run each transaction in another session. Then a session has
	// no state: no settings, no prepared statements with a name, no advisory locks, no origin.
	Pooled bool
	// Path is the search_path that the session was given, Schemas are those of it that exist and
	// that the role may use.
	Path    string
	Schemas []string
	// Pinned is true when nothing but PostgreSQL's own functions is found by name.
	Pinned bool

	tables tables
}

// Table is the qualified and quoted name of a table of ours, or "" where the search_path does not
// lead to it.
func (a *About) Table(name string) string {
	schema, is := a.tables[name]
	if !is {
		return ""
	}
	return schema + "." + pgx.Identifier{name}.Sanitize()
}

// Named is what finds a table of ours in this session: Table, or through a pooler, where nothing is
// known, the bare name. It is nil where the table was not found, and to_regclass is NULL then.
func (a *About) Named(name string) *string {
	if !a.Pooled {
		name = a.Table(name)
	}
	if name == "" {
		return nil
	}
	return &name
}

const aboutKey = "sagaz-relay session"

// Of returns what is known of a session that was made here.
func Of(conn *pgconn.PgConn) *About {
	about, is := conn.CustomData()[aboutKey].(*About)
	if !is {
		return &About{}
	}
	return about
}

// nameLimit is at how many bytes PostgreSQL cuts an application_name off (NAMEDATALEN - 1).
const nameLimit = 63

// Name is what pg_stat_activity shows for a purpose, cut off as PostgreSQL does, so that it is
// found again.
//
// Of the slots of a set, whose names differ only at their ends, these ends stay.
func Name(purpose string) string {
	name := "sagaz-relay " + purpose
	if len(name) <= nameLimit {
		return name
	}
	end := ofSet.FindString(name)
	return name[:nameLimit-len(end)] + end
}

// ofSet is the end of a slot's name that is one of several.
var ofSet = regexp.MustCompile(`_[0-9]+of[0-9]+$`)

// Options are what one session has beyond the others.
type Options struct {
	Purpose string            // shown in pg_stat_activity
	Direct  map[string]string // parameters for a session that is ours alone, without a pooler
	Creates bool              // the session makes tables; see doc.go

	// Frontend, where it is not nil, reads and writes the protocol.
	Frontend func(r io.Reader, w io.Writer) *pgproto3.Frontend
}

// Open makes an ordinary session. cfg is not changed; its query mode stays, but for one through a
// pooler, which can prepare nothing.
func Open(ctx context.Context, cfg *pgx.ConnConfig, o Options) (*pgx.Conn, error) {
	direct := cfg.Copy()
	pin(&direct.Config, o)
	conn, err := pgx.ConnectConfig(ctx, direct)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, ErrPooler), Code(err) == protocolViolation:
	default:
		return nil, Refused(Cause(err))
	}
	pooled := cfg.Copy()
	for _, name := range pooledSettings {
		set(pooled.RuntimeParams, name, settings[name])
	}
	set(pooled.RuntimeParams, "application_name", Name(o.Purpose))
	// No prepared statement, not even for two round trips.
	pooled.DefaultQueryExecMode = pgx.QueryExecModeExec
	pooled.StatementCacheCapacity, pooled.DescriptionCacheCapacity = 0, 0
	if conn, err = pgx.ConnectConfig(ctx, pooled); err != nil {
		return nil, Refused(Cause(err))
	}
	conn.PgConn().CustomData()[aboutKey] = &About{Pooled: true}
	if err := takeAnyBytes(ctx, conn.PgConn()); err != nil {
		_ = conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}

// OpenDirect makes a session for those who speak the protocol themselves, and which has to be ours
// alone: through a pooler it does not open (ErrPooler). cfg is not changed. What the server says is
// the caller's to sort: a look that finds no connection is no reason to end what goes on beside it.
func OpenDirect(ctx context.Context, cfg *pgconn.Config, o Options) (*pgconn.PgConn, error) {
	direct := cfg.Copy()
	pin(direct, o)
	conn, err := pgconn.ConnectConfig(ctx, direct)
	if err != nil {
		return nil, Cause(err)
	}
	return conn, nil
}

// ErrPooler means that a pooler has started the session.
var ErrPooler = errors.New("settings at the start of a session are lost")

// pin prepares a configuration for one connection, so that its session is as doc.go has it.
func pin(cfg *pgconn.Config, o Options) {
	for name, value := range settings {
		set(cfg.RuntimeParams, name, value)
	}
	for name, value := range o.Direct {
		set(cfg.RuntimeParams, name, value)
	}
	set(cfg.RuntimeParams, "application_name", Name(o.Purpose))
	set(cfg.RuntimeParams, directSetting, "yes")
	delete(cfg.RuntimeParams, "transaction_timeout") // only newer servers know it; see prepare
	var out *qualifier
	build := o.Frontend
	if build == nil {
		build = pgproto3.NewFrontend
	}
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		out = &qualifier{to: w}
		return build(r, out)
	}
	after := cfg.AfterConnect
	cfg.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		about, err := prepare(ctx, conn, o.Creates)
		if err != nil {
			return err
		}
		if err := takeAnyBytes(ctx, conn); err != nil {
			return err
		}
		if !o.Creates {
			out.tables = about.tables
		}
		conn.CustomData()[aboutKey] = about
		if after != nil {
			return after(ctx, conn)
		}
		return nil
	}
}

// Until search_path is pinned, everything in a statement has to be qualified. A session that is not
// ours alone must not be changed.
const directSQL = `SELECT pg_catalog.current_setting('` + directSetting + `', true)`

// pinSQL takes the search_path that the session was given, and puts ours in its place; the names of
// the schemas are in their order.
const pinSQL = `SELECT pg_catalog.current_setting('search_path'),
		pg_catalog.set_config('sagaz_relay.path', pg_catalog.current_setting('search_path'), false),
		pg_catalog.set_config('sagaz_relay.schemas', pg_catalog.current_schemas(false)::pg_catalog.text, false),
		pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
	SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout';
	SELECT unnest(current_setting('sagaz_relay.schemas')::name[])::text;
	SELECT schema, name FROM (` + oursSQL + `) o;
	SELECT set_config('search_path', concat_ws(', ', 'pg_catalog', nullif(current_setting('sagaz_relay.path'), ''), 'pg_temp'), false)
		WHERE EXISTS (` + dependentsSQL + `)`

// oursSQL are the tables by our names that the original search_path leads to; of two by one name
// the first.
const oursSQL = `SELECT DISTINCT ON (c.relname) c.oid, n.nspname::text AS schema, c.relname::text AS name
	FROM pg_catalog.unnest(pg_catalog.current_setting('sagaz_relay.schemas')::name[]) WITH ORDINALITY AS s (schema, nth)
	JOIN pg_namespace n ON n.nspname = s.schema JOIN pg_class c ON c.relnamespace = n.oid
	WHERE (c.relname ~ '^saga_outbox' OR c.relname = 'consumer_inbox') AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY c.relname, s.nth`

// dependentsSQL are the functions that run when a row of ours is written, and that look names up in
// whatever search_path there is.
const dependentsSQL = `WITH ours AS (` + oursSQL + `), tables AS (SELECT oid FROM ours UNION SELECT inhrelid FROM pg_inherits WHERE inhparent IN (SELECT oid FROM ours)),
	users (classid, objid) AS (
		SELECT 'pg_constraint'::regclass::oid, oid FROM pg_constraint WHERE conrelid IN (SELECT oid FROM tables)
			OR contypid IN (SELECT atttypid FROM pg_attribute WHERE attrelid IN (SELECT oid FROM tables) AND attnum > 0)
		UNION ALL SELECT 'pg_attrdef'::regclass::oid, oid FROM pg_attrdef WHERE adrelid IN (SELECT oid FROM tables)
		UNION ALL SELECT 'pg_class'::regclass::oid, indexrelid FROM pg_index WHERE indrelid IN (SELECT oid FROM tables)
		UNION ALL SELECT 'pg_policy'::regclass::oid, oid FROM pg_policy WHERE polrelid IN (SELECT oid FROM tables))
	SELECT pg_catalog.format('%I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)) AS function
	FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang JOIN pg_namespace n ON n.oid = p.pronamespace
	WHERE n.nspname <> 'pg_catalog' AND l.lanname NOT IN ('c', 'internal') AND p.prosqlbody IS NULL
		AND NOT EXISTS (SELECT FROM pg_catalog.unnest(p.proconfig) AS s WHERE s LIKE 'search_path=%')
		AND p.oid IN (SELECT tgfoid FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM tables) AND NOT tgisinternal AND tgenabled IN ('O', 'A')
			UNION ALL SELECT d.refobjid FROM pg_depend d JOIN users u ON d.classid = u.classid AND d.objid = u.objid WHERE d.refclassid = 'pg_proc'::regclass::oid)`

// prepare sets a session that was just connected up as doc.go has it.
func prepare(ctx context.Context, conn *pgconn.PgConn, creates bool) (*About, error) {
	results, err := conn.Exec(ctx, directSQL).ReadAll()
	if err != nil {
		return nil, err
	}
	if string(results[0].Rows[0][0]) != "yes" {
		return nil, ErrPooler
	}
	if results, err = conn.Exec(ctx, pinSQL).ReadAll(); err != nil {
		return nil, fmt.Errorf("prepare the session: %w", err)
	}
	about := &About{Path: string(results[0].Rows[0][0]), Pinned: len(results[4].Rows) == 0, tables: make(tables)}
	for _, row := range results[2].Rows {
		about.Schemas = append(about.Schemas, string(row[0]))
	}
	home := ""
	for _, row := range results[3].Rows {
		about.tables.add(string(row[1]), string(row[0]))
		if string(row[1]) == "saga_outbox" {
			home = string(row[0])
		}
	}
	if !creates {
		return about, nil
	}
	if home == "" && len(about.Schemas) > 0 {
		home = about.Schemas[0]
	}
	if home == "" {
		return nil, &relay.SetupError{
			Problem: "the search_path of the role leads to no schema in which tables could be made",
			Fix:     "make a schema, and name it in DATABASE_URL (?search_path=…) or by ALTER ROLE … SET search_path = …",
		}
	}
	path := pgx.Identifier{home}.Sanitize() + ", pg_temp"
	_, err = conn.Exec(ctx, `SELECT set_config('search_path', '`+strings.ReplaceAll(path, "'", "''")+`', false)`).ReadAll()
	return about, err
}

// Dependents are the functions because of which a session's search_path is not pinned.
func Dependents(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	rows, err := conn.Query(ctx, dependentsSQL, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// Ours are the tables that only the relay uses, by their bare names: those that migrations make in
// addition to the library's.
func (a *About) Ours() []string {
	var names []string
	for _, name := range []string{"saga_outbox_delivery", "saga_outbox_migrations", "saga_outbox_relay", "saga_outbox_set"} {
		if _, is := a.tables[name]; is {
			names = append(names, name)
		}
	}
	return names
}
