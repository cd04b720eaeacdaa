package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// plantSQL makes, as a role that may create objects in the tables' schema and nothing else,
// operators and functions that fit the relay's statements better than PostgreSQL's own: for exactly
// the types at hand, where those need a cast or take any type. Each counts its calls, in a
// sequence, which no rollback undoes, and raises an error that names it.
const plantSQL = `
SET search_path = pg_catalog;
CREATE SEQUENCE public.stolen;
GRANT USAGE ON SEQUENCE public.stolen TO PUBLIC;
DO $plant$
DECLARE
	types text[] := '{varchar,text,name,uuid,timestamptz,bigint,jsonb,oid,regclass,"char",text[],uuid[]}';
	a text; b text; f text; op text; body text;
BEGIN
	FOREACH a IN ARRAY types LOOP
		FOREACH f IN ARRAY string_to_array('format,starts_with,hashtext,unnest,array_agg,to_jsonb,count,max,min,concat_ws,string_agg,to_regclass,to_regnamespace,quote_ident,quote_literal,pg_get_userbyid,pg_column_size,pg_size_bytes,pg_relation_size,lower,left,length,current_setting,pg_get_indexdef,row_security_active,pg_drop_replication_slot,pg_replication_origin_create,pg_replication_origin_drop,pg_replication_origin_session_setup,pg_advisory_lock,pg_advisory_unlock,pg_snapshot_xmax,pg_snapshot_xip,pg_visible_in_snapshot,array_to_string,array_position,has_table_privilege,jsonb_build_object,jsonb_populate_record,jsonb_typeof,jsonb_object_keys,octet_length,convert_to,pg_walfile_name,split_part', ',') LOOP
			body := format('RETURNS text LANGUAGE plpgsql AS %L', format('BEGIN PERFORM pg_catalog.nextval(''public.stolen''); RAISE EXCEPTION ''planted function %s(%s) was called''; END', f, replace(a, '"', '')));
			EXECUTE format('CREATE OR REPLACE FUNCTION public.%I(%s) ', f, a) || body;
			FOREACH b IN ARRAY '{text,varchar,uuid,text[]}'::text[] LOOP
				EXECUTE format('CREATE OR REPLACE FUNCTION public.%I(%s, %s) ', f, a, b) || body;
			END LOOP;
		END LOOP;
		FOREACH b IN ARRAY types LOOP
			EXECUTE format('CREATE FUNCTION public.planted_operator(%s, %s) RETURNS boolean LANGUAGE plpgsql AS %L', a, b,
				format('BEGIN PERFORM pg_catalog.nextval(''public.stolen''); RAISE EXCEPTION ''a planted operator of %s and %s was called''; END', replace(a, '"', ''), replace(b, '"', '')));
			FOREACH op IN ARRAY '{=,<>,<,<=,>,>=,~,~~,+,-,||,->,->>,%}'::text[] LOOP
				EXECUTE format('CREATE OPERATOR public.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.planted_operator)', op, a, b);
			END LOOP;
		END LOOP;
	END LOOP;
	CREATE OR REPLACE FUNCTION public.format(text, name, name) RETURNS text LANGUAGE plpgsql AS 'BEGIN PERFORM pg_catalog.nextval(''public.stolen''); RAISE EXCEPTION ''planted format was called''; END';
	CREATE OR REPLACE FUNCTION public.format(text, text, text) RETURNS text LANGUAGE plpgsql AS 'BEGIN PERFORM pg_catalog.nextval(''public.stolen''); RAISE EXCEPTION ''planted format was called''; END';
END $plant$`

// A role that may only create objects in the schema of the tables cannot have anything run as the
// relay, whatever the relay's commands do.
func TestPlantedFunctionsAndOperators(t *testing.T) {
	t.Parallel()
	w := bareWorldAt(t, pgtest.Server(t, pgtest.Version()))
	planter, password, _ := w.db.Role(t, "")
	w.exec(`GRANT CREATE, USAGE ON SCHEMA public TO ` + planter + `, ` + w.role)
	cfg, err := pgx.ParseConfig(w.db.DSN)
	if err != nil {
		t.Fatal("the DSN cannot be read")
	}
	cfg.User, cfg.Password = planter, password
	planting, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer planting.Close(t.Context())
	if _, err := planting.Exec(t.Context(), plantSQL); err != nil {
		t.Fatal(err)
	}
	// Ours are pinned as the relay's are.
	cfg.User, cfg.Password = w.db.Pool.Config().ConnConfig.User, w.db.Pool.Config().ConnConfig.Password
	cfg.RuntimeParams["search_path"] = "pg_catalog"
	us, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer us.Close(t.Context())
	ask := func(sql string, args ...any) (n int) {
		t.Helper()
		if err := us.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return n
	}
	untouched := func(after string) {
		t.Helper()
		if n := ask(`SELECT CASE WHEN is_called THEN last_value ELSE 0 END::int FROM public.stolen`); n != 0 {
			t.Fatalf("after %s: %d calls of planted functions", after, n)
		}
	}
	env := settings{"BROKER_TYPE": "file", "RELAY_FILE_PATH": t.TempDir() + "/out"}
	run := func(args ...string) {
		t.Helper()
		_, code := w.command(env, args...)
		untouched(strings.Join(args, " "))
		if code == 2 {
			t.Errorf("%q ended with %d", args, code)
		}
	}
	run("migrate", "--slot")
	run("migrate", "--tune")
	run("doctor")
	const insert = `INSERT INTO public.saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, headers) SELECT gen_random_uuid(), 's', 'k' || i, 'Tested', '{}', $2::jsonb FROM generate_series(1, $1::int) i`
	for _, mode := range []settings{{"RELAY_HYBRID": "true"}, {"RELAY_MODE": "polling"}, {"RELAY_MARK": "archive", "RELAY_RETENTION": "1s"}} {
		p := w.relay("relay", env.with(mode))
		p.waitReady()
		for _, headers := range []string{`{}`, `[]`} { // the latter cannot be encoded
			if _, err := us.Exec(t.Context(), insert, 20, headers); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, patience, fmt.Sprintf("rows are settled in %v", mode), func() string {
			if n := ask(`SELECT count(*)::int FROM public.saga_outbox WHERE status IN ('pending', 'claimed')`); n != 0 {
				return p.mustRun(fmt.Sprintf("%d are not", n))
			}
			return ""
		})
		untouched(fmt.Sprintf("run %v", mode))
		p.get("/")
		p.get("/status.json")
		run("status")
		p.stop()
		untouched(fmt.Sprintf("the end of run %v", mode))
	}
	run("dead-letter", "list", "--state", "all")
	run("dead-letter", "retry", "--all")
	run("dead-letter", "discard", "--state", "all", "--all")
	run("replay", "--since", "1h", "--yes")
	run("verify", "--since", "1h")
	run("doctor")
	run("uninstall")
	run("uninstall", "--yes", "--tables")
}
