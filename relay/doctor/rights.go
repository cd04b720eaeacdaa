package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/migrations"
	"github.com/sagaz-relay/relay/relay/columns"
	"github.com/sagaz-relay/relay/relay/sessions"
	"github.com/sagaz-relay/relay/relay/store"
)

var (
	asOwner = do("as the owner of saga_outbox, or of the database:")
	migrate = run("sagaz-relay migrate")
)

const cannotWork = "The relay cannot work without it."

func (ex *exam) needs() []store.Need {
	return store.Needs(ex.cfg.Mark, ex.cfg.Retention, ex.cfg.Archive)
}

// named is the qualified name of a table of ours, or nil where it was not found: to_regclass is NULL then.
func (ex *exam) named(table string) *string {
	name := sessions.Of(ex.conn.PgConn()).Table(table)
	if name == "" {
		return nil
	}
	return &name
}

// checkTables looks for each table the way the relay does, by search_path, and, where it is not found, elsewhere.
func (ex *exam) checkTables(ctx context.Context) {
	const check = "tables"
	var found, missing []string
	for _, n := range ex.needs() {
		var oid uint32
		var name, owner, elsewhere string
		var readable, usable bool
		if !ex.ask(ctx, check, `SELECT coalesce(c.oid, 0), coalesce(quote_ident(s.nspname) || '.' || quote_ident(c.relname), ''), coalesce(quote_ident(pg_get_userbyid(c.relowner)), ''),
				coalesce(has_table_privilege(c.oid, 'SELECT'), false), coalesce(quote_ident(other.nspname), ''), coalesce(has_schema_privilege(other.oid, 'USAGE'), true)
			FROM (SELECT to_regclass($2) AS oid) t LEFT JOIN pg_class c ON c.oid = t.oid LEFT JOIN pg_namespace s ON s.oid = c.relnamespace
			LEFT JOIN LATERAL (SELECT n.oid, n.nspname FROM pg_class e JOIN pg_namespace n ON n.oid = e.relnamespace
				WHERE e.relname = $1 AND e.relkind IN ('r', 'p') AND t.oid IS NULL ORDER BY n.nspname LIMIT 1) other ON true`,
			[]any{n.Table, ex.named(n.Table)}, &oid, &name, &owner, &readable, &elsewhere, &usable) {
			continue
		}
		switch {
		case oid == 0 && elsewhere != "" && !usable:
			ex.add(Finding{
				Check: check, Severity: Broken, Summary: fmt.Sprintf("%s is in schema %s, which role %s may not use", n.Table, elsewhere, ex.role), Why: cannotWork,
				Fix: []Step{sql(`GRANT USAGE ON SCHEMA %s TO %s;`, elsewhere, ex.role)},
			})
		case oid == 0 && elsewhere != "":
			ex.add(Finding{
				Check: check, Severity: Broken, Summary: fmt.Sprintf("%s is in schema %s, which is not on the search_path of role %s", n.Table, elsewhere, ex.role), Why: cannotWork,
				Fix: []Step{do("for new connections:"), sql(`ALTER ROLE %s IN DATABASE %s SET search_path = %s, public;`, ex.role, ex.dbname, elsewhere)},
			})
		case oid == 0:
			missing = append(missing, n.Table)
		default:
			found = append(found, n.Table)
			switch n.Table {
			case "saga_outbox":
				ex.table, ex.tableName, ex.tableOwner = oid, name, owner
			case "saga_outbox_relay":
				ex.relayTable = readable
			case "saga_outbox_delivery":
				ex.ledger = readable
			}
		}
	}
	if missing != nil {
		ex.add(Finding{Check: check, Severity: Broken, Summary: "not there: " + strings.Join(missing, ", "), Why: cannotWork, Fix: []Step{asOwner, migrate}})
	} else if len(found) == len(ex.needs()) {
		ex.ok(check, "%s", strings.Join(found, ", "))
	}
}

// outboxColumns are the columns of saga_outbox that are read or written, as 0001_saga_outbox.sql makes them.
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

func (ex *exam) columns(ctx context.Context, table string) ([]string, error) {
	rows, err := ex.conn.Query(ctx, `SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, ex.named(table))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func (ex *exam) checkColumns(ctx context.Context) {
	const check = "columns"
	if ex.table == 0 {
		return
	}
	have, err := ex.columns(ctx, "saga_outbox")
	if err != nil {
		ex.unknown(check, err)
		return
	}
	f := Finding{Check: check, Severity: Broken, Why: cannotWork}
	var missing []string
	for _, want := range outboxColumns {
		if !slices.Contains(have, want.name) {
			missing = append(missing, want.name)
			f.Fix = append(f.Fix, sql(`ALTER TABLE %s ADD COLUMN %s %s;`, ex.tableName, want.name, want.definition))
		}
	}
	if missing == nil {
		ex.checkTypes(ctx)
		return
	}
	f.Summary = "saga_outbox lacks " + strings.Join(missing, ", ")
	f.Fix = append([]Step{do("if DATABASE_URL names the right database, as %s:", ex.tableOwner)}, f.Fix...)
	ex.add(f)
}

// checkTypes looks for columns of types that the start refuses.
func (ex *exam) checkTypes(ctx context.Context) {
	const check = "columns"
	all, err := store.Columns(ctx, ex.conn, ex.table)
	if err != nil {
		ex.unknown(check, err)
		return
	}
	problems := columns.Check(ex.tableName, all)
	if problems == nil {
		ex.ok(check, "all that are needed, of types that are accepted")
		return
	}
	f := Finding{
		Check: check, Severity: Broken, Why: "The relay does not start with it: stream and table would not give the same bytes, or a mark could not be written.",
		Fix: []Step{do("as %s (it rewrites the table, and locks it meanwhile):", ex.tableOwner)},
	}
	var said []string
	for i := range problems {
		said = append(said, problems[i].String())
		f.Fix = append(f.Fix, sql("%s", problems[i].Fix))
	}
	f.Summary = strings.Join(said, "; ")
	ex.add(f)
}

func (ex *exam) checkArchive(ctx context.Context) {
	const check = "archive"
	if ex.table == 0 || !ex.cfg.Archive {
		return
	}
	outbox, err := ex.columns(ctx, "saga_outbox")
	var archive []string
	if err == nil {
		archive, err = ex.columns(ctx, "saga_outbox_archive")
	}
	switch {
	case err != nil:
		ex.unknown(check, err)
	case len(archive) == 0: // told already
	case !slices.Equal(outbox, archive):
		f := Finding{
			Check: check, Severity: Broken, Summary: "saga_outbox_archive does not have the columns of saga_outbox, in the same order", Why: "Rows are moved whole: they cannot be archived.",
		}
		if len(archive) < len(outbox) && slices.Equal(outbox[:len(archive)], archive) {
			for _, name := range outbox[len(archive):] {
				var kind string
				if !ex.ask(ctx, check, `SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = $1::bigint::oid AND attname = $2`, []any{int64(ex.table), name}, &kind) {
					return
				}
				f.Fix = append(f.Fix, sql(`ALTER TABLE saga_outbox_archive ADD COLUMN %s %s;`, term.Ident(name), kind))
			}
		} else {
			f.Fix = []Step{
				do("keep the old archive under another name, and make a new one:"),
				sql(`ALTER TABLE saga_outbox_archive RENAME TO saga_outbox_archive_old;`), sql(`CREATE TABLE saga_outbox_archive (LIKE saga_outbox INCLUDING ALL EXCLUDING IDENTITY EXCLUDING GENERATED);`),
			}
		}
		ex.add(f)
	default:
		ex.ok(check, "same columns as saga_outbox")
	}
}

func (ex *exam) checkMigrations(ctx context.Context) {
	const check = "migrations"
	var there, readable bool
	if !ex.ask(ctx, check, `SELECT to_regclass('saga_outbox_migrations') IS NOT NULL, coalesce(has_table_privilege(to_regclass('saga_outbox_migrations'), 'SELECT'), false)`, nil, &there, &readable) {
		return
	}
	var done []int32
	switch {
	case there && !readable:
		ex.add(Finding{
			Check: check, Severity: Unknown, Summary: "could not be found out: saga_outbox_migrations may not be read",
			Fix: []Step{sql(`GRANT SELECT ON saga_outbox_migrations TO %s;`, ex.role)},
		})
		return
	case there:
		if !ex.ask(ctx, check, `SELECT coalesce(array_agg(version ORDER BY version), '{}') FROM saga_outbox_migrations`, nil, &done) {
			return
		}
	}
	all := migrations.All()
	var missing []string
	for _, m := range all {
		if !slices.Contains(done, int32(m.Version)) { //nolint:gosec // a small number
			missing = append(missing, fmt.Sprintf("%04d_%s", m.Version, m.Name))
		}
	}
	switch newest := all[len(all)-1].Version; {
	case missing != nil:
		ex.add(Finding{Check: check, Severity: Broken, Summary: "not applied: " + strings.Join(missing, ", "), Why: "The relay's tables are older than this sagaz-relay.", Fix: []Step{asOwner, migrate}})
	case int(done[len(done)-1]) > newest:
		ex.add(Finding{
			Check: check, Severity: Note, Summary: fmt.Sprintf("up to %04d: applied by a sagaz-relay newer than this one, which knows %04d", done[len(done)-1], newest),
			Fix: []Step{do("use the newer sagaz-relay")},
		})
	default:
		ex.ok(check, "up to date, %04d", newest)
	}
}

func (ex *exam) checkRights(ctx context.Context) {
	const check = "rights"
	f := Finding{Check: check, Severity: Broken, Why: cannotWork, Fix: []Step{do("as the tables' owner, or a superuser:")}}
	var lacks []string
	looked := 0
	for _, n := range ex.needs() {
		there, missing, err := n.Lacks(ctx, ex.conn)
		if err != nil {
			ex.unknown(check, err)
			return
		}
		if !there { // told already
			continue
		}
		looked++
		if len(missing) > 0 {
			lacks = append(lacks, strings.Join(missing, ", ")+" on "+n.Table)
			f.Fix = append(f.Fix, sql(`GRANT %s ON %s TO %s;`, strings.Join(missing, ", "), n.Table, ex.role))
		}
	}
	switch {
	case lacks != nil:
		f.Summary = fmt.Sprintf("role %s lacks %s", ex.role, strings.Join(lacks, "; "))
		ex.add(f)
	case looked > 0:
		ex.ok(check, "on %d tables", looked)
	}
}

func (ex *exam) checkPublication(ctx context.Context) {
	const check = "publication"
	stream, severity := ex.streaming()
	if !stream || ex.table == 0 {
		return
	}
	columns, filter := "NULL::text[]", "NULL::text"
	if ex.version >= 15 {
		columns, filter = "pt.attnames::text[]", "pt.rowfilter"
	}
	var there, inserts, more, member, mayMake bool
	var attnames []string
	var rowfilter string
	if !ex.ask(ctx, check, `SELECT p.oid IS NOT NULL, coalesce(p.pubinsert, false), coalesce(p.pubupdate OR p.pubdelete, false), pt.tablename IS NOT NULL, coalesce(`+columns+`, '{}'), coalesce(`+filter+`, ''),
			has_database_privilege(current_database(), 'CREATE') AND pg_has_role((SELECT relowner FROM pg_class WHERE oid = $2::bigint::oid), 'USAGE')
		FROM (SELECT 1) one LEFT JOIN pg_publication p ON p.pubname = $1
		LEFT JOIN pg_publication_tables pt ON pt.pubname = p.pubname AND format('%I.%I', pt.schemaname, pt.tablename) = $3`,
		[]any{ex.cfg.Publication, int64(ex.table), ex.tableName}, &there, &inserts, &more, &member, &attnames, &rowfilter, &mayMake) {
		return
	}
	name := term.Ident(ex.cfg.Publication)
	whole := sql(`ALTER PUBLICATION %s SET TABLE %s;`, name, ex.tableName)
	if ex.version >= 15 {
		whole = sql(`ALTER PUBLICATION %s SET TABLE %s (%s);`, name, ex.tableName, strings.Join(pgoutput.Columns, ", "))
	}
	itsOwner := do("as the owner of the publication:")
	wrong := false
	add := func(severity Severity, summary, why string, fix ...Step) {
		wrong = true
		ex.add(Finding{Check: check, Severity: severity, Summary: ex.cfg.Publication + ": " + summary, Why: why, Fix: fix})
	}
	switch {
	case !there && mayMake:
		ex.add(Finding{Check: check, Severity: Note, Summary: ex.cfg.Publication + ": not there yet; the relay makes it when it starts (sagaz-relay migrate does, too)"})
		return
	case !there:
		add(severity, fmt.Sprintf("not there, and role %s may not make it", ex.role), ex.noStream(),
			do("as %s, who owns %s and needs CREATE on database %s, or as a superuser:", ex.tableOwner, ex.tableName, ex.dbname),
			sql("%s;", cdc.PublicationSQL(ex.cfg.Publication, ex.tableName, ex.version)))
		return
	}
	if !inserts {
		add(severity, "does not publish inserts", "No event would come by it. "+ex.noStream(), itsOwner, sql(`ALTER PUBLICATION %s SET (publish = 'insert');`, name))
	}
	var left []string
	for _, want := range pgoutput.Columns {
		if len(attnames) > 0 && !slices.Contains(attnames, want) {
			left = append(left, want)
		}
	}
	switch {
	case !member:
		add(severity, "does not contain "+ex.tableName, "No event would come by it. "+ex.noStream(), itsOwner, sql(`ALTER PUBLICATION %s ADD TABLE %s;`, name, ex.tableName))
	case left != nil:
		add(severity, "leaves out "+strings.Join(left, ", "), "Events cannot be made without. "+ex.noStream(), itsOwner, whole)
	case rowfilter != "":
		add(severity, "passes only rows with "+rowfilter, "Other events would come late and out of order. "+ex.noStream(), itsOwner, whole)
	}
	if inserts && more {
		add(Note, "publishes updates or deletes too", "PostgreSQL decodes and sends every mark of the relay, which then throws it away.", itsOwner, sql(`ALTER PUBLICATION %s SET (publish = 'insert');`, name))
	}
	if !wrong {
		ex.ok(check, "%s: inserts of %s", ex.cfg.Publication, ex.tableName)
	}
}
