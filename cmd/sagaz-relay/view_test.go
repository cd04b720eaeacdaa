package main

import (
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

func TestViewCommands(t *testing.T) {
	db := pgtest.NewVersion(t, pgtest.Newest, pgtest.Migrated())
	env := map[string]string{"DATABASE_URL": db.DSN}
	run := func(want int, has string, args ...string) string {
		t.Helper()
		text, code := outcome(t, env, args...)
		if code != want || !strings.Contains(text, has) {
			t.Errorf("%s: exit code %d, want %d and %q:\n%s", strings.Join(args, " "), code, want, has, text)
		}
		return text
	}
	columns := []string{"id=event_id", "aggregateid=aggregate_id", "type=event_type", "payload=payload", "tenant:integer=header:tenant"}
	makes := func(more ...string) []string {
		return append(append([]string{"view", "make", "outbox"}, columns...), more...)
	}
	sql := run(0, "CREATE VIEW", makes("--print")...)
	if one(t, db, `SELECT to_regclass('outbox') IS NULL`) != "true" {
		t.Error("--print has made the view")
	}
	if _, err := db.Pool.Exec(t.Context(), sql); err != nil {
		t.Errorf("the printed SQL: %v", err)
	}
	run(0, "view outbox is there", makes()...)
	run(0, "public.outbox  id           event_id       uuid", "view")
	run(0, `"of": "header:tenant"`, "view", "--json")
	run(0, "view outbox dropped", "view", "drop", "outbox")
	run(0, "view public.outbox created", append([]string{"view", "make", "public.outbox", "--key", "header:tenant"}, columns...)...)
	run(0, "key          header:tenant", "view")
	if _, err := db.Pool.Exec(t.Context(), `INSERT INTO outbox (aggregateid, type, payload, tenant) VALUES ('k', 'Paid', '{}', 7)`); err != nil {
		t.Fatal(err)
	}
	if got := one(t, db, `SELECT concat_ws(' ', aggregate_id, headers) FROM saga_outbox`); got != `7 {"tenant": "7"}` {
		t.Errorf("the row is %s", got)
	}
	run(2, "drop it first", makes()...)
	run(2, "want COLUMN=OURS", "view", "make", "v", "id")
	run(2, "want header:NAME", makes("--key", "tenant")...)
	run(2, "add COLUMN=event_type", "view", "make", "v", "k=aggregate_id", "payload=payload")
	run(2, "want a name and columns", "view", "make", "v")
	run(2, "there is no view nothing", "view", "drop", "nothing")
	run(2, "want a view's name", "view", "drop")
	run(2, "may not do that", append([]string{"view", "make", "pg_catalog.outbox"}, columns...)...)
}
