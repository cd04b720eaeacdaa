package migrations

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/internal/term"
)

// View is an outbox under an application's own names: a view that applications insert into, and
// whose rows are rows of saga_outbox. The relay, the slot and the marks know nothing of it. So there
// may be several, and none costs the relay anything.
//
// The view's trigger runs with the rights of whoever made the view: an application needs INSERT on
// the view, and nothing on saga_outbox.
type View struct {
	// Schema is empty for that of saga_outbox.
	Schema string `json:"schema,omitempty"`
	Name   string `json:"name"`
	// Columns are in the view's order.
	Columns []ViewColumn `json:"columns"`
	// KeyHeader is a header that holds the key of the events that have it; the others have that of
	// the column aggregate_id.
	KeyHeader string `json:"key_header,omitempty"`
}

// ViewColumn is one column of a view.
type ViewColumn struct {
	Name string `json:"name"`
	// Of is a column of saga_outbox, or "header:" and the name of a header.
	Of string `json:"of"`
	// Type is the column's type; empty for that of the column in saga_outbox, text for a header.
	Type string `json:"type,omitempty"`
}

// ErrView is in errors that a person can do something about.
var ErrView = errors.New("view")

func viewError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrView, fmt.Sprintf(format, args...))
}

// viewMark begins the comment on a view; its description follows, as JSON.
const viewMark = "sagaz-relay view "

// headerOf is the name of the header that a column becomes.
func (c *ViewColumn) headerOf() (name string, is bool) { return strings.CutPrefix(c.Of, "header:") }

// viewColumns are the columns of saga_outbox that a view may have, in the order of an INSERT. The
// others are the relay's.
var viewColumns = []string{"event_id", "saga_id", "aggregate_type", "aggregate_id", "event_type", "payload", "headers", "created_at"}

// Check finds what is wrong with the description, whatever the database has.
func (v *View) Check() error {
	if err := checkViewName("the view", v.Name); err != nil {
		return err
	}
	if strings.HasPrefix(v.Name, "saga_outbox") || v.Name == "consumer_inbox" {
		return viewError("the name %s is one of the relay's own: want another name", v.Name)
	}
	names, of := make(map[string]bool), make(map[string]string)
	for i := range v.Columns {
		c := &v.Columns[i]
		if err := checkViewName("a column", c.Name); err != nil {
			return err
		}
		if names[c.Name] {
			return viewError("column %s is there twice", c.Name)
		}
		header, is := c.headerOf()
		switch {
		case is && header == "":
			return viewError("column %s: header: without a name", c.Name)
		case !is && !slices.Contains(viewColumns, c.Of):
			return viewError("column %s: %s is no column of saga_outbox that an application writes: want %s or header:NAME", c.Name, c.Of, strings.Join(viewColumns, ", "))
		case of[c.Of] != "":
			return viewError("columns %s and %s are both %s", of[c.Of], c.Name, c.Of)
		}
		names[c.Name], of[c.Of] = true, c.Name
	}
	for _, needed := range []string{"event_type", "payload"} {
		if of[needed] == "" {
			return viewError("no column is the %s: add COLUMN=%s", needed, needed)
		}
	}
	if of["aggregate_id"] == "" && v.KeyHeader == "" {
		return viewError("no column is the key, aggregate_id, by which events are ordered: add COLUMN=aggregate_id")
	}
	return nil
}

// checkViewName checks a name as PostgreSQL keeps it.
func checkViewName(what, name string) error {
	if name == "" || len(name) > 63 || strings.ContainsRune(name, 0) {
		return viewError("%s %q: want a name of 1 to 63 bytes", what, name)
	}
	return nil
}

// SQL is what makes the view. home is the schema of saga_outbox, types are those of its columns.
func (v *View) SQL(home string, types map[string]string) (string, error) {
	if err := v.Check(); err != nil {
		return "", err
	}
	description, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	name := v.identifier(home)
	var shown []string
	for i := range v.Columns {
		shown = append(shown, v.Columns[i].shown(types)+" AS "+quote(v.Columns[i].Name))
	}
	into, values := v.insert(types)
	returning := ""
	for i := range v.Columns {
		if c := &v.Columns[i]; c.Of == "event_id" {
			returning = "\n    NEW." + quote(c.Name) + " := made;"
		}
	}
	return fmt.Sprintf(`CREATE VIEW %[1]s AS
  SELECT %[2]s
  FROM %[3]s;
CREATE FUNCTION %[1]s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $view$
DECLARE
  made uuid;
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO %[3]s (%[4]s)
    VALUES (%[5]s)
    RETURNING event_id INTO made;%[6]s
    RETURN NEW;
  ELSIF TG_OP = 'DELETE' THEN
    RETURN OLD; -- many applications delete the row at once; the relay needs it, and RELAY_RETENTION removes it
  END IF;
  RAISE EXCEPTION 'a row of an outbox is not changed after it was inserted' USING ERRCODE = 'feature_not_supported', HINT = 'insert another event';
END $view$;
REVOKE ALL ON FUNCTION %[1]s() FROM PUBLIC;
CREATE TRIGGER outbox INSTEAD OF INSERT OR UPDATE OR DELETE ON %[1]s FOR EACH ROW EXECUTE FUNCTION %[1]s();
COMMENT ON VIEW %[1]s IS %[7]s;
`, name, strings.Join(shown, ",\n    "), quote(home, "saga_outbox"), strings.Join(into, ", "), strings.Join(values, ",\n      "), returning, term.Literal(viewMark+string(description))), nil
}

// shown is the column as the view shows it. Of a type that not every row's text has there is
// nothing to show: other applications write to the same table.
func (c *ViewColumn) shown(types map[string]string) string {
	expression := quote(c.Of)
	if header, is := c.headerOf(); is {
		expression = "(headers::jsonb OPERATOR(pg_catalog.->>) " + term.Literal(header) + ")"
	}
	switch {
	case c.Type == "" || c.Type == types[c.Of]:
		return expression
	case slices.Contains([]string{"text", "character varying", "json", "jsonb"}, c.Type) && types[c.Of] != "bytea":
		if _, is := c.headerOf(); !is || c.Type == "text" {
			return expression + "::text::" + c.Type
		}
	}
	return "NULL::" + c.Type
}

// insert is which columns of saga_outbox get which values of a new row.
func (v *View) insert(types map[string]string) (into, values []string) {
	given := make(map[string]*ViewColumn)
	headers := make(map[string]*ViewColumn)
	for i := range v.Columns {
		c := &v.Columns[i]
		if header, is := c.headerOf(); is {
			headers[header] = c
		} else {
			given[c.Of] = c
		}
	}
	// Names that are built from pairs begin with what the column of headers has.
	all := "'{}'::jsonb"
	if c := given["headers"]; c != nil {
		all = "coalesce(nullif(" + c.as("jsonb") + ", 'null'), '{}')" // JSON's null, too, is no headers
	}
	if len(headers) > 0 {
		var pairs []string
		for _, name := range slices.Sorted(maps.Keys(headers)) {
			pairs = append(pairs, term.Literal(name)+", "+headers[name].as("text"))
		}
		all = "(" + all + " || jsonb_strip_nulls(jsonb_build_object(" + strings.Join(pairs, ", ") + ")))"
	}
	key := "NULL"
	if c := given["aggregate_id"]; c != nil {
		key = c.as("text")
	}
	if v.KeyHeader != "" {
		key = "coalesce(nullif(" + all + " ->> " + term.Literal(v.KeyHeader) + ", ''), " + key + ")"
	}
	for _, column := range viewColumns {
		c := given[column]
		value := ""
		switch {
		case column == "headers":
			value = all
			if types[column] != "jsonb" {
				value += "::text::" + types[column]
			}
		case column == "aggregate_id":
			value = cast(key, types[column])
		case c != nil && column == "event_id":
			value = "coalesce(" + c.as("uuid") + ", gen_random_uuid())"
		case column == "event_id":
			value = "gen_random_uuid()"
		case c != nil && column == "saga_id":
			value = cast("coalesce("+c.as("text")+", "+key+")", types[column])
		case column == "saga_id":
			value = cast(key, types[column])
		case c != nil && column == "created_at":
			value = "coalesce(" + c.as(types[column]) + ", now())"
		case c != nil && column == "payload":
			value = c.as(types[column])
		case c != nil:
			value = cast(c.as("text"), types[column])
		default:
			continue // the column's default
		}
		into, values = append(into, quote(column)), append(values, value)
	}
	return into, values
}

// as is a new row's value in another type.
func (c *ViewColumn) as(want string) string {
	value := "NEW." + quote(c.Name)
	switch {
	case c.Type == want:
		return value
	case c.Type == "bytea":
		return cast("convert_from("+value+", 'UTF8')", want)
	case want == "bytea":
		return "convert_to(" + value + "::text, 'UTF8')"
	}
	return cast(value+"::text", want)
}

// cast makes another type of a text. Texts with a limit are left to the assignment, which is an
// error where a cast would cut.
func cast(text, want string) string {
	if want == "" || want == "text" || strings.HasPrefix(want, "character") {
		return text
	}
	return "(" + text + ")::" + want
}

func (v *View) identifier(home string) string {
	if v.Schema != "" {
		home = v.Schema
	}
	return quote(home, v.Name)
}

func quote(names ...string) string { return pgx.Identifier(names).Sanitize() }

// MakeView makes a view, and reports whether it did: it may be there already. sql is what makes it.
func MakeView(ctx context.Context, conn *pgx.Conn, v View) (sql string, made bool, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var home string
		if sql, home, err = describeView(ctx, tx, &v); err != nil {
			return err
		}
		there, kind, err := findView(ctx, tx, v.identifier(home))
		switch {
		case err != nil:
			return err
		case there != nil && sameView(there, &v):
			return nil
		case there != nil:
			return viewError("%s is there with other columns: drop it first (sagaz-relay view drop %s)", v.Name, v.Name)
		case kind != "":
			return viewError("there is a %s by the name %s: rename it first, or choose another name", kind, v.Name)
		}
		if err := v.checkRights(ctx, tx, home); err != nil {
			return err
		}
		made = true
		_, err = tx.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
		return err
	})
	return sql, made && err == nil, err
}

// ViewSQL is what MakeView would run. It changes nothing.
func ViewSQL(ctx context.Context, conn *pgx.Conn, v View) (sql string, err error) {
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		sql, _, err = describeView(ctx, tx, &v)
		return err
	})
	return sql, err
}

// describeView finds out what the database has. The types of v get their full names, which are the
// same in every session.
func describeView(ctx context.Context, tx pgx.Tx, v *View) (sql, home string, err error) {
	if err := v.Check(); err != nil {
		return "", "", err
	}
	var table int64
	err = tx.QueryRow(ctx, `SELECT c.oid::int8, n.nspname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = pg_catalog.to_regclass('saga_outbox')::oid`).Scan(&table, &home)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", "", viewError("there is no table saga_outbox: run sagaz-relay migrate first")
	}
	if err != nil {
		return "", "", err
	}
	asked := make(map[string]int64) // types by the names that were given
	for i := range v.Columns {
		c := &v.Columns[i]
		var oid *int64
		if c.Type == "" {
			continue
		}
		var wrong *pgconn.PgError
		err := tx.QueryRow(ctx, `SELECT pg_catalog.to_regtype($1::text)::oid::int8`, c.Type).Scan(&oid)
		if err != nil && !errors.As(err, &wrong) {
			return "", "", err
		}
		if oid == nil {
			return "", "", viewError("column %s: there is no type %q", c.Name, c.Type)
		}
		asked[c.Type] = *oid
	}
	if _, err := tx.Exec(ctx, `SET LOCAL search_path = pg_catalog, pg_temp`); err != nil {
		return "", "", err
	}
	types := make(map[string]string)
	rows, err := tx.Query(ctx, `SELECT attname::text, format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = $1::int8::oid AND attnum > 0 AND NOT attisdropped`, table)
	if err != nil {
		return "", "", err
	}
	var column, kind string
	if _, err := pgx.ForEachRow(rows, []any{&column, &kind}, func() error { types[column] = kind; return nil }); err != nil {
		return "", "", err
	}
	for i := range v.Columns {
		c := &v.Columns[i]
		_, header := c.headerOf()
		switch {
		case c.Type != "":
			// With -1, and not NULL: character and bit mean a length of one.
			if err := tx.QueryRow(ctx, `SELECT format_type($1::int8::oid, -1)`, asked[c.Type]).Scan(&c.Type); err != nil {
				return "", "", err
			}
		case header:
			c.Type = "text"
		case types[c.Of] == "":
			return "", "", viewError("column %s: saga_outbox has no column %s", c.Name, c.Of)
		default:
			c.Type = types[c.Of]
		}
	}
	sql, err = v.SQL(home, types)
	return sql, home, err
}

// findView returns the description of a view, or else what kind of thing has its name.
func findView(ctx context.Context, tx pgx.Tx, name string) (v *View, kind string, err error) {
	var comment string
	err = tx.QueryRow(ctx, `SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view' ELSE 'relation' END, coalesce(pg_catalog.obj_description(c.oid, 'pg_class'), '')
		FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass($1::text)::oid`, name).Scan(&kind, &comment)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	return described(comment), kind, nil
}

// described reads the comment on a view; nil where it is not ours.
func described(comment string) *View {
	text, is := strings.CutPrefix(comment, viewMark)
	v := new(View)
	if !is || json.Unmarshal([]byte(text), v) != nil {
		return nil
	}
	return v
}

func sameView(a, b *View) bool {
	return a.KeyHeader == b.KeyHeader && slices.Equal(a.Columns, b.Columns)
}

// DropView drops a view that MakeView made. Rows stay in saga_outbox.
func DropView(ctx context.Context, conn *pgx.Conn, schema, name string) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		v := View{Schema: schema, Name: name}
		var home *string
		if err := tx.QueryRow(ctx, `SELECT (SELECT n.nspname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.oid = pg_catalog.to_regclass('saga_outbox')::oid)`).Scan(&home); err != nil {
			return err
		}
		if home == nil {
			return viewError("there is no table saga_outbox")
		}
		id := v.identifier(*home)
		there, kind, err := findView(ctx, tx, id)
		switch {
		case err != nil:
			return err
		case there == nil && kind == "":
			return viewError("there is no view %s", name)
		case there == nil:
			return viewError("the %s %s was not made by sagaz-relay view make: it stays", kind, name)
		}
		_, err = tx.Exec(ctx, fmt.Sprintf(`DROP VIEW %[1]s; DROP FUNCTION %[1]s()`, id), pgx.QueryExecModeSimpleProtocol)
		return err
	})
}

// Views returns the views of this database that MakeView made, by schema and name.
func Views(ctx context.Context, conn *pgx.Conn) ([]View, error) {
	rows, err := conn.Query(ctx, `SELECT n.nspname::text, c.relname::text, pg_catalog.obj_description(c.oid, 'pg_class') FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'v' AND pg_catalog.starts_with(pg_catalog.obj_description(c.oid, 'pg_class'), $1::text) ORDER BY 1, 2`, viewMark)
	if err != nil {
		return nil, err
	}
	var views []View
	var schema, name, comment string
	_, err = pgx.ForEachRow(rows, []any{&schema, &name, &comment}, func() error {
		if v := described(comment); v != nil {
			v.Schema, v.Name = schema, name
			views = append(views, *v)
		}
		return nil
	})
	return views, err
}
