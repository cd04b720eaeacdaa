package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay/sessions"
	"github.com/sagaz-relay/relay/relay/store"
)

// checkTable looks for changes of saga_outbox that slow the relay down.
func (ex *exam) checkTable(ctx context.Context) {
	const check = "saga_outbox"
	if ex.table == 0 {
		return
	}
	var persistence string
	var triggers []string
	if !ex.ask(ctx, check, `SELECT relpersistence::text,
			ARRAY(SELECT quote_ident(tgname) FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 16 > 0 ORDER BY tgname)
		FROM pg_class c WHERE oid = $1::bigint::oid`, []any{int64(ex.table)}, &persistence, &triggers) {
		return
	}
	wrong := false
	add := func(f Finding) {
		wrong, f.Check = true, check
		ex.add(f)
	}
	// With a stream the start reports it.
	if stream, _ := ex.streaming(); persistence == "u" && !stream {
		add(Finding{
			Severity: Degraded, Summary: "it is unlogged", Why: "A crash of PostgreSQL empties it.",
			Fix: []Step{do("as %s (rewrites the table, and locks it meanwhile):", ex.tableOwner), sql(`ALTER TABLE %s SET LOGGED;`, ex.tableName)},
		})
	}
	if len(triggers) > 0 {
		f := Finding{
			Severity: Note, Summary: "triggers run at every update: " + strings.Join(triggers, ", "), Why: "They run for every mark, which makes marks slow, and one that changes the row may undo a mark.",
			Fix: []Step{do("if they are not needed for the relay's updates, as %s:", ex.tableOwner)},
		}
		for _, name := range triggers {
			f.Fix = append(f.Fix, sql(`ALTER TABLE %s DISABLE TRIGGER %s;`, ex.tableName, name))
		}
		add(f)
	}
	if !wrong {
		ex.ok(check, "an ordinary table")
	}
}

var tune = run("sagaz-relay migrate --tune")

// libraryIndexes are those that "migrate --tune" brings into shape.
var libraryIndexes = []string{"idx_outbox_pending", "idx_outbox_claimed_at"}

// checkIndexes looks for indexes that mention a column which a mark changes, in a key, an
// expression or a predicate. PostgreSQL writes a new entry into every index for such an update;
// otherwise it is a HOT update, which touches no index. BRIN does not count from 16 on.
func (ex *exam) checkIndexes(ctx context.Context) {
	const check = "indexes"
	if ex.table == 0 {
		return
	}
	if ex.cfg.Mark != "update" {
		ex.ok(check, "RELAY_MARK=%s takes rows out, whatever the indexes are", ex.cfg.Mark)
		return
	}
	var bad []string
	if !ex.ask(ctx, check, `SELECT coalesce(array_agg(DISTINCT c.relname::text), '{}') FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am am ON am.oid = c.relam
			JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid
			JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
		WHERE i.indrelid = $1::bigint::oid AND a.attname IN ('status', 'sent_at') AND NOT (am.amname = 'brin' AND $2::int >= 16)`, []any{int64(ex.table), ex.version}, &bad) {
		return
	}
	if len(bad) == 0 {
		ex.ok(check, "none mentions a column that a mark changes")
		return
	}
	f := Finding{
		Check: check, Severity: Note, Summary: "marks are not HOT updates, because of " + strings.Join(bad, ", "),
		Why: "An index that mentions status or sent_at gets a new entry at every mark: about a third of the speed, and the indexes grow.",
	}
	for _, name := range bad {
		if slices.Contains(libraryIndexes, name) {
			f.Fix = append(f.Fix, do("as the owner of saga_outbox (it locks nobody out):"), tune)
			break
		}
	}
	for _, name := range bad {
		if !slices.Contains(libraryIndexes, name) {
			f.Fix = append(f.Fix, do("if no query of yours needs it:"), sql(`DROP INDEX CONCURRENTLY %s;`, term.Ident(name)))
		}
	}
	ex.add(f)
}

// roomyPages is the highest fillfactor at which most marks find room on their page (measured: at 60
// two of three do).
const roomyPages = 60

// fewUpdates is how many updates are too few for a share.
const fewUpdates = 10_000

func (ex *exam) checkPages(ctx context.Context) {
	const check = "pages"
	if ex.table == 0 || ex.cfg.Mark != "update" {
		return
	}
	var fill int
	var updates, hot int64
	if !ex.ask(ctx, check, `SELECT coalesce((SELECT option_value::int FROM pg_options_to_table(c.reloptions) WHERE option_name = 'fillfactor'), 100),
			coalesce(pg_stat_get_tuples_updated(c.oid), 0), coalesce(pg_stat_get_tuples_hot_updated(c.oid), 0) FROM pg_class c WHERE oid = $1::bigint::oid`,
		[]any{int64(ex.table)}, &fill, &updates, &hot) {
		return
	}
	share := "too few updates so far for the share of HOT ones"
	if updates >= fewUpdates {
		share = fmt.Sprintf("%d %% of %d updates were HOT", hot*100/updates, updates)
	}
	if fill <= roomyPages {
		ex.ok(check, "filled to %d %%; %s", fill, share)
		return
	}
	f := Finding{
		Check: check, Severity: Note, Summary: fmt.Sprintf("filled to %d %%; %s", fill, share),
		Why: "A mark writes a new version of its row. Without room on the same page it goes elsewhere, and every index gets a new entry.",
		Fix: []Step{do("as %s (for pages written from now on):", ex.tableOwner), sql(`ALTER TABLE %s SET (fillfactor = 50);`, ex.tableName)},
	}
	if fill == 100 {
		f.Fix = append([]Step{do("as the owner of saga_outbox (it locks nobody out):"), tune, do("or")}, f.Fix...)
	}
	ex.add(f)
}

// bigTable is the number of rows from which on reading all of them takes noticeable time.
const bigTable = 50_000

// checkSweepIndex looks for an index by which the rows that are not sent are found without reading
// the whole table.
func (ex *exam) checkSweepIndex(ctx context.Context) {
	const check = "sweep"
	if ex.table == 0 || ex.cfg.Mark != "update" {
		return
	}
	var rows float64
	var by string
	if !ex.ask(ctx, check, `SELECT c.reltuples::float8, coalesce((SELECT min(i.indexrelid::regclass::text) FROM pg_index i
				JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid
				JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
			WHERE i.indrelid = c.oid AND a.attname = 'status' AND i.indisvalid), '')
		FROM pg_class c WHERE oid = $1::bigint::oid`, []any{int64(ex.table)}, &rows, &by) {
		return
	}
	switch {
	case by != "":
		ex.ok(check, "index %s finds rows by status", by)
	case rows < bigTable:
		ex.ok(check, "the table is small enough to be read as a whole")
	case ex.version >= 16:
		ex.add(Finding{
			Check: check, Severity: Note, Summary: fmt.Sprintf("about %.0f rows, and no index on status", rows),
			Why: "At its start, and again within ten minutes each time, the relay looks over the whole table. A BRIN index makes that cheap, is tiny, and keeps marks HOT on this version.",
			Fix: []Step{
				do("as %s (it locks nobody out; so does sagaz-relay migrate --tune):", ex.tableOwner),
				sql(`CREATE INDEX CONCURRENTLY saga_outbox_status ON %s USING brin (status) WITH (pages_per_range = 64, autosummarize = on);`, ex.tableName),
				sql(`VACUUM %s;`, ex.tableName),
			},
		})
	default:
		ex.add(Finding{
			Check: check, Severity: Note, Summary: fmt.Sprintf("about %.0f rows, and no index on status", rows),
			Why: "At its start, and again within ten minutes each time, the relay looks over the whole table. Before PostgreSQL 16 an index for that would make marks slow.",
			Fix: []Step{do("set RELAY_RETENTION, so that rows that were sent do not stay for ever; or upgrade PostgreSQL")},
		})
	}
}

// manyDead is how many dead row versions are worth reporting, where they are also a fifth of the
// table.
const manyDead = 10_000

func (ex *exam) checkVacuum(ctx context.Context) {
	const check = "vacuum"
	if ex.table == 0 {
		return
	}
	rows, err := ex.conn.Query(ctx, `SELECT c.oid::regclass::text, pg_stat_get_live_tuples(c.oid), pg_stat_get_dead_tuples(c.oid),
			coalesce((SELECT option_value::bool FROM pg_options_to_table(c.reloptions) WHERE option_name = 'autovacuum_enabled'), true)
		FROM pg_class c WHERE c.oid IN (to_regclass('saga_outbox'), to_regclass('saga_outbox_relay'), to_regclass('saga_outbox_delivery')) ORDER BY 1`)
	if err != nil {
		ex.unknown(check, err)
		return
	}
	wrong := false
	var table string
	var live, dead int64
	var auto bool
	_, err = pgx.ForEachRow(rows, []any{&table, &live, &dead, &auto}, func() error {
		if !auto {
			wrong = true
			ex.add(Finding{
				Check: check, Severity: Degraded, Summary: "autovacuum is switched off for " + table, Why: "Every mark leaves a dead row version; without vacuum table and look-ups grow without end.",
				Fix: []Step{sql(`ALTER TABLE %s RESET (autovacuum_enabled);`, table)},
			})
		}
		if dead > manyDead && dead > (live+dead)/5 {
			wrong = true
			ex.add(Finding{
				Check: check, Severity: Note, Summary: fmt.Sprintf("%s has %d dead row versions and %d live ones", table, dead, live),
				Why: "Autovacuum does not keep up, or something holds it back: an old transaction, a prepared one, a slot that does not move.",
				Fix: []Step{sql(`VACUUM (ANALYZE) %s;`, table), do("if they do not go: SELECT pid, xact_start, application_name FROM pg_stat_activity WHERE backend_xmin IS NOT NULL ORDER BY xact_start")},
			})
		}
		return nil
	})
	if err != nil {
		ex.unknown(check, err)
		return
	}
	if !wrong {
		ex.ok(check, "few dead rows")
	}
}

func (ex *exam) checkOrigin(ctx context.Context) {
	const check = "origin"
	if stream, _ := ex.streaming(); !stream || ex.version < 16 || ex.table == 0 {
		return
	}
	var may bool
	if !ex.ask(ctx, check, `SELECT has_function_privilege('pg_replication_origin_create(text)', 'EXECUTE') AND has_function_privilege('pg_replication_origin_session_setup(text)', 'EXECUTE')
		AND has_table_privilege('pg_replication_origin', 'SELECT')`, nil, &may) {
		return
	}
	if foreign, err := cdc.ForeignOrigins(ctx, ex.conn); err == nil && len(foreign) > 0 {
		ex.add(Finding{
			Check: check, Severity: Note, Summary: "others have replication origins here: " + strings.Join(foreign, ", "),
			Why: "Rows may be written under them, so all origins are read, to keep commit order. PostgreSQL then decodes the relay's own marks too, and the stream is up to a fifth slower.",
			Fix: []Step{do("nothing, where a subscription or a migration service writes to this database; one that is not used any more can be dropped by a superuser with pg_replication_origin_drop(text)")},
		})
		return
	}
	if may {
		ex.checkOrigins(ctx, check)
		return
	}
	ex.add(Finding{
		Check: check, Severity: Note, Summary: fmt.Sprintf("role %s may not use replication origins", ex.role),
		Why: "PostgreSQL then decodes the relay's own marks only to throw them away; with the right it skips them, and the stream is up to a fifth faster.",
		Fix: append([]Step{do("as a superuser, in database %s:", ex.dbname)}, statements(store.OriginGrants(ex.role))...),
	})
}

// checkOrigins counts the server's origins, which subscriptions need, too, and names those that are
// not used.
func (ex *exam) checkOrigins(ctx context.Context, check string) {
	ours, left, err := store.Origins(ctx, ex.conn, ex.set.Slots())
	if err != nil {
		ex.unknown(check, err)
		return
	}
	var used, limit int
	var setting string
	if !ex.ask(ctx, check, `SELECT (SELECT count(*) FROM pg_replication_origin), setting::int, name FROM pg_settings
		WHERE name IN ('max_active_replication_origins', 'max_replication_slots') ORDER BY name LIMIT 1`, nil, &used, &limit, &setting) {
		return
	}
	if len(left) > 0 {
		f := Finding{
			Check: check, Severity: Note, Summary: fmt.Sprintf("left behind by relays whose database is gone: %s", strings.Join(left, ", ")),
			Why: "A server has few replication origins, and subscriptions need them, too.", Fix: []Step{do("as a superuser:")},
		}
		for _, name := range left {
			f.Fix = append(f.Fix, sql(`SELECT pg_replication_origin_drop(%s);`, term.Literal(name)))
		}
		ex.add(f)
	}
	if used >= limit {
		ex.add(Finding{
			Check: check, Severity: Degraded, Summary: fmt.Sprintf("all %d of %s are taken by replication origins, %d by this database's relays", limit, setting, len(ours)),
			Why: "A subscription that is made now fails, and a relay marks without an origin, which is slower.",
			Fix: []Step{do("look whose they are (SELECT roname FROM pg_replication_origin), or, and then restart PostgreSQL:"), sql(`ALTER SYSTEM SET %s = %d;`, setting, used+10)},
		})
		return
	}
	ex.ok(check, "marks carry a replication origin, and are not decoded; %d of %s = %d in use, %d by this database's relays", used, setting, limit, len(ours))
}

// checkStrangers reports who may create functions and operators next to saga_outbox, and what keeps
// sessions from leaving them out.
func (ex *exam) checkStrangers(ctx context.Context) {
	const check = "search_path"
	about := sessions.Of(ex.conn.PgConn())
	if ex.table == 0 || about.Pooled {
		return
	}
	var creators []string
	if !ex.ask(ctx, check, `SELECT ARRAY(SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
			WHERE c.oid = $1::bigint::oid AND a.privilege_type = 'CREATE' AND a.grantee <> c.relowner ORDER BY 1)`, []any{int64(ex.table)}, &creators) {
		return
	}
	who := "nobody but their owner"
	if len(creators) > 0 {
		who = strings.Join(creators, ", ")
	}
	if about.Pinned {
		ex.ok(check, "pinned to pg_catalog: no other function or operator is found, whoever may create some in the tables' schema (%s)", who)
		return
	}
	functions, err := sessions.Dependents(ctx, ex.conn)
	if err != nil {
		ex.unknown(check, err)
		return
	}
	f := Finding{
		Check: check, Severity: Note, Summary: fmt.Sprintf("not pinned, for the sake of %s; in the tables' schema may create: %s", strings.Join(functions, ", "), who),
		Why: "Who may create functions and operators in a schema of the path may have them run as the relay's role. Sessions leave the path out once no trigger or constraint of the table relies on it.",
	}
	for _, function := range functions {
		f.Fix = append(f.Fix, sql(`ALTER FUNCTION %s SET search_path = %s, pg_temp;`, function, strings.Join(quoted(about.Schemas), ", ")))
	}
	ex.add(f)
}

func quoted(names []string) []string {
	out := make([]string, 0, len(names))
	for _, name := range names {
		out = append(out, term.Ident(name))
	}
	return out
}
