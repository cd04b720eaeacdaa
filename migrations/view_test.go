package migrations_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/migrations"
)

func makeView(t testing.TB, conn *pgx.Conn, v migrations.View) {
	t.Helper()
	if _, made, err := migrations.MakeView(t.Context(), conn, v); err != nil || !made {
		t.Fatalf("made %t: %v", made, err)
	}
}

func columns(of ...string) (all []migrations.ViewColumn) {
	for _, text := range of {
		name, is, _ := strings.Cut(text, "=")
		name, kind, _ := strings.Cut(name, ":")
		all = append(all, migrations.ViewColumn{Name: name, Of: is, Type: kind})
	}
	return all
}

// newest is the row that was inserted last.
const newest = ` FROM saga_outbox ORDER BY created_at DESC, event_id LIMIT 1`

func TestView(t *testing.T) {
	onEach(t, func(t *testing.T, version string) {
		db := pgtest.NewVersion(t, version, pgtest.Migrated())
		conn := db.Conn(t)
		v := migrations.View{
			Name: `order's "events"`, KeyHeader: "customer",
			Columns: columns("id=event_id", "order_no:bigint=aggregate_id", "kind=event_type", "body:json=payload", "tenant=header:tenant", `odd=header:it's \ odd`, "customer:integer=header:customer", "more=headers"),
		}
		makeView(t, conn, v)
		if _, made, err := migrations.MakeView(t.Context(), conn, v); made || err != nil {
			t.Errorf("again: made %t: %v", made, err)
		}
		name := pgx.Identifier{v.Name}.Sanitize()

		// An application has the right to insert into the view, and no other.
		exec(t, conn, `CREATE ROLE view_app; GRANT INSERT, SELECT, DELETE, UPDATE ON `+name+` TO view_app`, pgx.QueryExecModeSimpleProtocol)
		defer func(conn *pgx.Conn) {
			exec(t, conn, `DROP OWNED BY view_app; DROP ROLE view_app`, pgx.QueryExecModeSimpleProtocol)
		}(db.Conn(t))
		exec(t, conn, `SET ROLE view_app`)
		id := value[string](t, conn, `INSERT INTO `+name+` (order_no, kind, body, tenant, odd, customer, more) VALUES (42, 'OrderPaid', '{"b": 1, "a": 2}', 'x', 'y', 7, '{"trace": "z"}') RETURNING id::text`)
		if got := value[int](t, conn, `SELECT count(*) FROM `+name+` WHERE id = $1::text::uuid AND tenant = 'x' AND odd = 'y' AND kind = 'OrderPaid'`, id); got != 1 {
			t.Errorf("%d rows by the id that was returned, want 1", got)
		}
		if tag, err := conn.Exec(t.Context(), `DELETE FROM `+name+` WHERE id = $1::text::uuid`, id); err != nil || tag.RowsAffected() != 1 {
			t.Errorf("the delete at once found %d rows (%v), want 1", tag.RowsAffected(), err)
		}
		if _, err := conn.Exec(t.Context(), `UPDATE `+name+` SET kind = 'x'`); err == nil || !strings.Contains(err.Error(), "is not changed after") {
			t.Errorf("an update: %v", err)
		}
		if _, err := conn.Exec(t.Context(), `SELECT FROM saga_outbox`); err == nil {
			t.Error("the application may read saga_outbox")
		}
		exec(t, conn, `RESET ROLE`)
		got := value[string](t, conn, `SELECT concat_ws('|', event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, status, created_at > now() - interval '1 minute')`+newest)
		if want := id + `|7|saga|7|OrderPaid|{"a": 2, "b": 1}|pending|t`; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		headers := value[map[string]string](t, conn, `SELECT headers`+newest)
		if want := map[string]string{"trace": "z", "tenant": "x", `it's \ odd`: "y", "customer": "7"}; !maps.Equal(headers, want) {
			t.Errorf("headers %v, want %v", headers, want)
		}

		// Without the header the key is the column's.
		exec(t, conn, `INSERT INTO `+name+` (order_no, kind, body) VALUES (43, 'OrderPaid', '[]')`)
		if got, want := value[string](t, conn, `SELECT concat_ws('|', saga_id, aggregate_id, headers)`+newest), `43|43|{}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}

		views, err := migrations.Views(t.Context(), conn)
		if err != nil || len(views) != 1 || views[0].Name != v.Name || views[0].Schema != "public" || len(views[0].Columns) != 8 {
			t.Errorf("%v, %v", views, err)
		}
		if err := migrations.DropView(t.Context(), conn, "", v.Name); err != nil {
			t.Fatal(err)
		}
		if got := value[int](t, conn, `SELECT (SELECT count(*) FROM pg_class WHERE relname = $1) + (SELECT count(*) FROM pg_proc WHERE proname = $1)`, v.Name); got != 0 {
			t.Errorf("%d things are left", got)
		}
		if got := value[int](t, conn, `SELECT count(*) FROM saga_outbox`); got != 2 {
			t.Errorf("%d rows, want 2", got)
		}
	})
}

// Whatever types the columns of saga_outbox have, a view's row is what was inserted.
func TestViewOfOtherTypes(t *testing.T) {
	onEach(t, func(t *testing.T, version string) {
		conn := pgtest.NewVersion(t, version, pgtest.SQL(`CREATE SCHEMA app; CREATE TYPE app.kind AS ENUM ('Paid', 'Sent')`), pgtest.Migrated()).Conn(t)
		exec(t, conn, `SET search_path = public, app`)
		exec(t, conn, `ALTER TABLE saga_outbox ALTER event_type TYPE app.kind USING 'Paid', ALTER aggregate_id TYPE bigint USING 0, ALTER payload TYPE text, ALTER headers DROP DEFAULT, ALTER headers TYPE json, ALTER created_at DROP DEFAULT, ALTER created_at TYPE timestamp`, pgx.QueryExecModeSimpleProtocol)
		v := migrations.View{Schema: "app", Name: "outbox", Columns: columns("key=aggregate_id", "type=event_type", "payload:bytea=payload", "saga:uuid=saga_id", "at=created_at", "tenant=header:tenant")}
		makeView(t, conn, v)
		const saga = "6f1ed002-ab5d-4d04-91dc-4f5ab1b0a9a5"
		exec(t, conn, `INSERT INTO app.outbox (key, type, payload, saga, at, tenant) VALUES (5, 'Sent', '\x7b7d', '`+saga+`', '2026-01-02 03:04:05', 'ü')`)
		if got, want := value[string](t, conn, `SELECT concat_ws('|', saga_id, aggregate_id, event_type, payload, headers, created_at)`+newest), saga+`|5|Sent|{}|{"tenant": "ü"}|2026-01-02 03:04:05`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		exec(t, conn, `INSERT INTO app.outbox (key, type, payload) VALUES (6, 'Paid', '[]')`)
		if got, want := value[string](t, conn, `SELECT concat_ws('|', saga_id, aggregate_id, headers, created_at > now() - interval '2 days')`+newest), `6|6|{}|t`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		// Types with a length of one where none is given; headers that are JSON's null, as an ORM writes them.
		makeView(t, conn, migrations.View{Schema: "app", Name: "more", Columns: columns("key=aggregate_id", "type=event_type", "payload=payload", "region:char(5)=header:region", "flags:bit(3)=header:flags", "headers=headers", "at=created_at")})
		exec(t, conn, `INSERT INTO app.more (key, type, payload, region, flags, headers) VALUES (7, 'Paid', '[]', 'eu', '101', 'null')`)
		if got, want := value[string](t, conn, `SELECT headers::text FROM saga_outbox WHERE aggregate_id = 7`), `{"flags": "101", "region": "eu"}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		exec(t, conn, `DROP VIEW app.more`)
		// A text that is too long is the application's error, and not cut.
		exec(t, conn, `ALTER TABLE saga_outbox ALTER saga_id TYPE varchar(8) USING left(saga_id, 8)`)
		if _, err := conn.Exec(t.Context(), `INSERT INTO app.outbox (key, type, payload, saga) VALUES (6, 'Paid', '[]', '`+saga+`')`); err == nil || !strings.Contains(err.Error(), "too long") {
			t.Errorf("got %v", err)
		}
	})
}

func TestViewRefused(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	conn := db.Conn(t)
	good := []string{"id=event_id", "key=aggregate_id", "type=event_type", "payload=payload"}
	exec(t, conn, `CREATE TABLE taken (); CREATE VIEW theirs AS SELECT 1`, pgx.QueryExecModeSimpleProtocol)
	makeView(t, conn, migrations.View{Name: "there", Columns: columns(good...)})
	for name, c := range map[string]struct {
		name    string
		columns []string
		key     string
		want    string
	}{
		"reserved":       {name: "saga_outbox_mine", columns: good, want: "one of the relay's own"},
		"long":           {name: strings.Repeat("x", 64), columns: good, want: "1 to 63 bytes"},
		"no type":        {columns: []string{"key=aggregate_id", "payload=payload"}, want: "add COLUMN=event_type"},
		"no key":         {columns: []string{"type=event_type", "payload=payload"}, want: "add COLUMN=aggregate_id"},
		"the relay's":    {columns: append([]string{"s=status"}, good...), want: "status is no column of saga_outbox that an application writes"},
		"twice":          {columns: append([]string{"id=saga_id"}, good...), want: "column id is there twice"},
		"two of one":     {columns: append([]string{"other=payload"}, good...), want: "columns other and payload are both payload"},
		"no header":      {columns: append([]string{"h=header:"}, good...), want: "header: without a name"},
		"unknown type":   {columns: append([]string{"h:nonsense=saga_id"}, good...), want: `there is no type "nonsense"`},
		"hostile type":   {columns: append([]string{"h:text; DROP TABLE taken=saga_id"}, good...), want: `there is no type`},
		"a table":        {name: "taken", columns: good, want: "there is a table by the name taken"},
		"another's":      {name: "theirs", columns: good, want: "there is a view by the name theirs"},
		"others columns": {name: "there", columns: append([]string{"s=saga_id"}, good...), want: "sagaz-relay view drop there"},
	} {
		v := migrations.View{Name: c.name, Columns: columns(c.columns...), KeyHeader: c.key}
		if v.Name == "" {
			v.Name = "outbox"
		}
		_, made, err := migrations.MakeView(t.Context(), conn, v)
		if made || !errors.Is(err, migrations.ErrView) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: made %t: %v, want %q", name, made, err, c.want)
		}
	}
	for name, want := range map[string]string{"nowhere": "no view nowhere", "taken": "it stays", "theirs": "it stays"} {
		if err := migrations.DropView(t.Context(), conn, "", name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("drop %s: %v, want %q", name, err, want)
		}
	}
	// The view's trigger has the rights of its maker, so without them no application could insert.
	exec(t, conn, `CREATE ROLE view_maker; GRANT USAGE, CREATE ON SCHEMA public TO view_maker; SET ROLE view_maker`, pgx.QueryExecModeSimpleProtocol)
	defer func(conn *pgx.Conn) {
		exec(t, conn, `DROP OWNED BY view_maker; DROP ROLE view_maker`, pgx.QueryExecModeSimpleProtocol)
	}(db.Conn(t))
	for _, right := range []string{"", "INSERT", "INSERT, SELECT (event_id)", "SELECT"} {
		if right != "" {
			exec(t, conn, `RESET ROLE; REVOKE ALL ON saga_outbox FROM view_maker; GRANT `+right+` ON saga_outbox TO view_maker; SET ROLE view_maker`, pgx.QueryExecModeSimpleProtocol)
		}
		_, made, err := migrations.MakeView(t.Context(), conn, migrations.View{Name: "outbox", Columns: columns(good...)})
		if made || !errors.Is(err, migrations.ErrView) || !strings.Contains(err.Error(), "view_maker") || !strings.Contains(err.Error(), "GRANT") {
			t.Errorf("rights %q: made %t: %v, want what the role needs", right, made, err)
		}
	}
	exec(t, conn, `RESET ROLE; GRANT SELECT, INSERT ON saga_outbox TO view_maker; SET ROLE view_maker`, pgx.QueryExecModeSimpleProtocol)
	makeView(t, conn, migrations.View{Name: "outbox", Columns: columns(good...)})
	exec(t, conn, `INSERT INTO outbox (key, type, payload) VALUES ('k', 't', '[]'); RESET ROLE`, pgx.QueryExecModeSimpleProtocol)
	exec(t, conn, `DROP TABLE saga_outbox CASCADE`)
	if _, _, err := migrations.MakeView(t.Context(), conn, migrations.View{Name: "outbox", Columns: columns(good...)}); err == nil || !strings.Contains(err.Error(), "run sagaz-relay migrate first") {
		t.Errorf("without the table: %v", err)
	}
}
