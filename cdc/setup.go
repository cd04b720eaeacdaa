package cdc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/columns"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// outboxTable is the table that the Python library and every application know. It is looked up by
// search_path.
const outboxTable = "saga_outbox"

// outbox is what the catalog has about the outbox table.
type outbox struct {
	oid       uint32
	name      string // qualified and quoted
	owner     string
	published bool // the publication exists and carries its inserts
	// version is that of the catalog's rows for the publication: another one means that it was
	// changed.
	version string
	// content is what the publication carries of the table. Another version with the same content
	// did no harm, if the content was the same in between.
	content string
	filter  string // which rows it carries; empty for all
	member  bool   // it carries the table by name, not with all tables or those of a schema
	columns []columns.Column
}

// column returns a column by its name, or nil.
func (t *outbox) column(name string) *columns.Column {
	i := slices.IndexFunc(t.columns, func(c columns.Column) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &t.columns[i]
}

// readsBinary reports whether the stream may be in the types' binary form.
func (t *outbox) readsBinary() bool {
	for _, name := range columns.Names {
		if c := t.column(name); c == nil || !columns.ReadsBinary(name, c.OID) {
			return false
		}
	}
	return true
}

// describes reports whether columns that the stream has described are those of the table as it is
// now, or of types that need no catalog to be understood.
func (t *outbox) describes(types map[string]uint32) bool {
	for name, oid := range types {
		if c := t.column(name); (c == nil || c.OID != oid) && !columns.ReadsBinary(name, oid) {
			return false
		}
	}
	return true
}

// query runs SQL by the simple protocol, the only one a walsender takes, and returns the rows as
// text.
func (s *session) query(ctx context.Context, sql string) ([][]string, error) {
	results, err := s.conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	var rows [][]string
	for _, r := range results {
		for _, values := range r.Rows {
			row := make([]string, len(values))
			for i, v := range values {
				row[i] = string(v)
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// inspect looks at the table and a shard's publication, and for streaming at the connection and the
// settings too, and reports what a person has to fix.
func (s *session) inspect(ctx context.Context, shard relay.Shard, streaming bool) (*outbox, error) {
	rows, err := s.query(ctx, `SELECT current_setting('wal_level'), c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname), pg_get_userbyid(c.relowner), current_database(),
			pg_is_in_recovery(), coalesce((SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()), 'walsender'), c.relpersistence
		FROM (SELECT to_regclass(`+quoteLiteral(outboxTable)+`) AS oid) t LEFT JOIN pg_class c ON c.oid = t.oid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace`)
	if err != nil {
		return nil, fmt.Errorf("look at the database: %w", classify(err, s.role))
	}
	row := rows[0]
	s.dbname = row[4]
	switch {
	case row[5] == "t":
		return nil, sessions.ErrStandby
	case streaming && row[6] != "walsender":
		return nil, sessions.Pooler(fmt.Errorf("a %s answers, not a walsender", row[6]))
	case streaming && row[0] != "logical":
		return nil, WALLevel(row[0])
	case row[1] == "":
		return nil, &relay.SetupError{
			Problem: fmt.Sprintf("table %s does not exist in database %q (or not on the role's search_path)", outboxTable, s.dbname),
			Fix:     "run: sagaz-relay migrate",
		}
	}
	oid, err := strconv.ParseUint(row[1], 10, 32)
	if err != nil {
		return nil, fmt.Errorf("look at the database: OID of %s: %w", outboxTable, err)
	}
	t := &outbox{oid: uint32(oid), name: row[2], owner: row[3]}
	carried, err := s.readPublication(ctx, shard.Publication, t)
	if err != nil {
		return nil, err
	}
	// A missing column is the first thing to fix: dropping it has changed the publication, too.
	// This query comes second, because the first one waits for whoever is changing the table just
	// now.
	if err := s.checkColumns(ctx, t); err != nil {
		return nil, err
	}
	if err = s.checkPublication(shard, t, carried); err == nil {
		err = s.checkFilter(ctx, shard, t)
	}
	if err == nil && row[7] == "u" {
		logged := fmt.Sprintf("ALTER TABLE %s SET LOGGED;", t.name)
		err = &relay.SetupError{
			Problem: fmt.Sprintf("table %s is unlogged: its rows are not in the WAL, so the stream does not deliver them, and a crash of PostgreSQL empties it", t.name),
			Fix:     fmt.Sprintf("as %s (it rewrites the table, and locks it meanwhile): %s", t.owner, logged), SQL: []string{logged}, Streaming: true,
		}
	}
	return t, err
}

func (s *session) checkColumns(ctx context.Context, t *outbox) error {
	rows, err := s.query(ctx, columns.SQL(t.oid))
	if err != nil {
		return fmt.Errorf("look at the columns of %s: %w", t.name, err)
	}
	t.columns = make([]columns.Column, len(rows))
	for i, r := range rows {
		oid, _ := strconv.ParseUint(r[1], 10, 32) // the server sent it: it is a number
		length, _ := strconv.Atoi(r[4])
		t.columns[i] = columns.Column{Name: r[0], OID: uint32(oid), Type: r[2], Send: r[3], Length: length, Collation: r[5]}
	}
	var missing []string
	for _, want := range columns.Names {
		if t.column(want) == nil {
			missing = append(missing, want)
		}
	}
	if missing != nil {
		return &relay.SetupError{
			Problem: fmt.Sprintf("table %s lacks column %s", t.name, strings.Join(missing, ", ")),
			Fix:     "restore it, or name the right database in DATABASE_URL",
		}
	}
	return columns.SetupError(t.name, t.columns)
}

// readPublication reads what the catalog has of the publication and the table in it; nothing when
// there is no such publication.
func (s *session) readPublication(ctx context.Context, publication string, t *outbox) (row []string, err error) {
	attnames, filter, schema := "NULL", "NULL", ""
	if s.server >= 15 {
		attnames, filter = "array_to_string(pt.attnames, ',')", "pt.rowfilter"
		schema = fmt.Sprintf(` OR EXISTS (SELECT FROM pg_publication_namespace n WHERE n.pnpubid = p.oid AND n.pnnspid = (SELECT relnamespace FROM pg_class WHERE oid = %d))`, t.oid)
	}
	rows, err := s.query(ctx, fmt.Sprintf(`SELECT p.pubinsert, pt.tablename IS NOT NULL, coalesce(%s, ''), concat_ws(' ', p.oid, m.every),
			concat_ws(' ', p.oid, p.puballtables, p.pubinsert, p.pubviaroot, m.members), coalesce(%s, ''), p.pubupdate OR p.pubdelete, p.puballtables%s
		FROM pg_publication p
		CROSS JOIN (SELECT string_agg(x::text, ' ' ORDER BY x::text) AS every,
				string_agg(x::text, ' ' ORDER BY x::text) FILTER (WHERE NOT own) AS members
			FROM (%s) r) m
		LEFT JOIN pg_publication_tables pt ON pt.pubname = p.pubname AND format('%%I.%%I', pt.schemaname, pt.tablename) = %s
		WHERE p.pubname = %s`, attnames, filter, schema, s.membershipSQL(publication, t), quoteLiteral(t.name), quoteLiteral(publication)))
	if err != nil {
		return nil, fmt.Errorf("look at publication %q: %w", publication, err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	return rows[0], nil
}

// checkPublication finds out whether the publication is there and carries what is needed, but for
// which rows: see checkFilter. A missing one is no fault: it can be made.
func (s *session) checkPublication(shard relay.Shard, t *outbox, row []string) error {
	if row == nil {
		return nil
	}
	publication, name := shard.Publication, quoteIdent(shard.Publication)
	wrong := func(problem, fix string) error { return wrongPublication(publication, problem, fix) }
	inserts := fmt.Sprintf("ALTER PUBLICATION %s SET (publish = 'insert');", name)
	if row[0] != "t" {
		return wrong("does not publish inserts", inserts)
	}
	if row[1] != "t" {
		table := t.name
		if !shard.Whole() {
			table = s.carries(shard, t)
		}
		return wrong("does not contain table "+t.name, fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s;", name, table))
	}
	if row[6] == "t" && !shard.Whole() {
		return wrong("publishes updates or deletes too, which PostgreSQL refuses then, because of the filter", inserts)
	}
	var left []string
	for _, want := range pgoutput.Columns {
		if row[2] != "" && !slices.Contains(strings.Split(row[2], ","), want) {
			left = append(left, want)
		}
	}
	if left != nil {
		return wrong(fmt.Sprintf("leaves out column %s of %s", strings.Join(left, ", "), t.name), fmt.Sprintf("ALTER PUBLICATION %s SET TABLE %s;", name, s.carries(shard, t)))
	}
	t.published, t.version, t.filter, t.member = true, strconv.FormatUint(uint64(t.oid), 10)+" "+row[3], row[5], row[7] != "t"
	t.content = strconv.FormatUint(uint64(t.oid), 10) + " " + row[2] + " " + row[4]
	if t.filter != "" {
		t.content += " " + t.filter
	}
	return nil
}

func wrongPublication(publication, problem string, fix ...string) error {
	return &relay.SetupError{
		Problem: fmt.Sprintf("publication %q ", publication) + problem, Fix: "as the owner of the publication: " + strings.Join(fix, " "), SQL: fix, Streaming: true,
	}
}

// membershipSQL selects, as x, the transactions that last changed the rows of the catalog by which
// the publication carries the table. These are the publication's own row (own), and the membership
// of the table (or its partition ancestors) and of its schema.
func (s *session) membershipSQL(publication string, t *outbox) string {
	sql := fmt.Sprintf(`SELECT xmin AS x, true AS own FROM pg_publication WHERE pubname = %[1]s
		UNION ALL SELECT r.xmin, false FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
			WHERE p.pubname = %[1]s AND (r.prrelid = %[2]d OR r.prrelid IN (SELECT relid FROM pg_partition_ancestors(%[2]d)))`, quoteLiteral(publication), t.oid)
	if s.server >= 15 {
		sql += fmt.Sprintf(` UNION ALL SELECT n.xmin, false FROM pg_publication_namespace n JOIN pg_publication p ON p.oid = n.pnpubid
			WHERE p.pubname = %s AND n.pnnspid = (SELECT relnamespace FROM pg_class WHERE oid = %d)`, quoteLiteral(publication), t.oid)
	}
	return sql
}

// changedSince reports whether the publication, though older than the slot, was changed so late
// that what the slot decodes next may be from before the change. The change may have added the
// table, or the kinds of changes. pgoutput does not report that, it leaves the rows out. (A
// publication that is younger altogether it does report, at the first row.)
//
// The slot keeps the catalog as of its catalog_xmin; a change by a transaction from then on may be
// invisible to it. That is also so for a while after a change that did no harm, or for long where
// another slot holds the catalog back when this one is made. Then a slot is made again for nothing.
func (s *session) changedSince(ctx context.Context, publication string, t *outbox, slot string) (bool, error) {
	rows, err := s.query(ctx, fmt.Sprintf(`SELECT coalesce(count(DISTINCT m.x::text) > 1 AND
			min(age(m.x)) FILTER (WHERE age(m.x) >= 0) <= (SELECT age(catalog_xmin) FROM pg_replication_slots WHERE slot_name = %s), false)
		FROM (%s) m`, quoteLiteral(slot), s.membershipSQL(publication, t)))
	if err != nil {
		return false, fmt.Errorf("look at the age of publication %q: %w", publication, err)
	}
	return rows[0][0] == "t", nil
}

// mayPublish reports whether the role may make the publication.
func (s *session) mayPublish(ctx context.Context, t *outbox) (bool, error) {
	rows, err := s.query(ctx, fmt.Sprintf(`SELECT pg_has_role(relowner, 'USAGE') AND has_database_privilege(current_database(), 'CREATE') FROM pg_class WHERE oid = %d`, t.oid))
	if err != nil {
		return false, fmt.Errorf("look at the role's rights: %w", err)
	}
	return len(rows) > 0 && rows[0][0] == "t", nil
}

func (s *session) createPublication(ctx context.Context, shard relay.Shard, t *outbox) error {
	_, err := s.query(ctx, s.publicationSQL(shard, t))
	switch {
	case err == nil || sessions.Code(err) == sessions.DuplicateObject:
		t.published = true
		return nil
	case sessions.Code(err) == sessions.NoPrivilege:
		return s.publicationRefused(shard, t, err)
	default:
		return fmt.Errorf("create publication %q: %w", shard.Publication, err)
	}
}

func (s *session) publicationRefused(shard relay.Shard, t *outbox, err error) error {
	create := s.publicationSQL(shard, t) + ";"
	return &relay.SetupError{
		Problem: fmt.Sprintf("publication %q does not exist, and only the owner of %s (role %s, with CREATE on the database) may make it", shard.Publication, t.name, t.owner),
		Err:     err, Fix: fmt.Sprintf("as %s: %s", t.owner, create), SQL: []string{create}, Streaming: true,
	}
}

// ExaminePublication looks over an ordinary connection at what Check looks at over a replication
// connection: what of a shard's publication and the table keeps events out of the stream.
func ExaminePublication(ctx context.Context, conn *pgx.Conn, shard relay.Shard) relay.Examined {
	s := ordinary(conn)
	return relay.Examine(ctx, []relay.Look{{Check: "publication", Make: func(ctx context.Context) (string, []*relay.SetupError, error) {
		table, err := s.inspect(ctx, shard, false)
		if setup := (*relay.SetupError)(nil); errors.As(err, &setup) && !setup.Streaming || errors.Is(err, sessions.ErrStandby) {
			return "", nil, nil // the store reports on the table itself
		}
		if err != nil {
			return "", nil, err
		}
		if table.published {
			return shard.Publication + ": inserts of " + table.name, nil, nil
		}
		may, err := s.mayPublish(ctx, table)
		if err == nil && !may {
			err = s.publicationRefused(shard, table, nil)
		}
		return shard.Publication + ": not there yet; the relay makes it when it starts (sagaz-relay migrate does, too)", nil, err
	}}})[0]
}

// ordinary is a session over an ordinary connection, for looking.
func ordinary(conn *pgx.Conn) *session {
	return &session{role: conn.Config().User, conn: conn.PgConn(), server: sessions.MajorVersion(conn.PgConn().ParameterStatus("server_version"))}
}

// In a statement of the replication protocol there are no U&'…' and E'…' (term.Literal).
func quoteIdent(s string) string   { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
func quoteLiteral(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }

// EnsurePublication makes a shard's publication over an ordinary connection if it is missing, and
// reports whether it did.
func EnsurePublication(ctx context.Context, conn *pgx.Conn, shard relay.Shard) (made bool, err error) {
	s := ordinary(conn)
	table, err := s.inspect(ctx, shard, false)
	if err != nil || table.published {
		return false, err
	}
	return true, s.createPublication(ctx, shard, table)
}
