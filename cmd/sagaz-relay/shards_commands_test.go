package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// one returns the one value of a query as text.
func one(t *testing.T, db *pgtest.DB, sql string, args ...any) (text string) {
	t.Helper()
	if err := db.Pool.QueryRow(t.Context(), "SELECT ("+sql+")::text", append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...).Scan(&text); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return text
}

// migrate makes what all slots need, at the number that was decided first. replay gives each event
// to the slot of its key. uninstall finds what sets of any number of slots have left.
func TestCommandsOfShards(t *testing.T) {
	db := pgtest.NewVersion(t, pgtest.Newest)
	base := db.Name[max(0, len(db.Name)-40):]
	env := map[string]string{"DATABASE_URL": db.DSN, "BROKER_TYPE": "stdout", "RELAY_SLOT": base, "RELAY_SHARDS": "4"}
	run := func(want int, args ...string) string {
		t.Helper()
		text, code := outcome(t, env, args...)
		if code != want {
			t.Errorf("%s: exit code %d, want %d:\n%s", strings.Join(args, " "), code, want, text)
		}
		return text
	}
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	wants := func(text string, all ...string) {
		t.Helper()
		for _, want := range all {
			if !strings.Contains(text, want) {
				t.Errorf("want %q in\n%s", want, text)
			}
		}
	}
	wants(run(0, "migrate", "--slot"), "divided among 4 slots", "publication sagaz_outbox_0of4 created", "publication sagaz_outbox_3of4 created", "slot "+base+"_0of4 created", "slot "+base+"_3of4 created")
	wants(run(0, "migrate", "--slot"), "divided among 4 slots", "publication sagaz_outbox_2of4 is there", "slot "+base+"_2of4 is there")
	env["RELAY_SHARDS"] = "2"
	wants(run(0, "migrate"), "divided among 4 slots", "RELAY_SHARDS=2 is not used", "publication sagaz_outbox_1of4 is there")
	if got, want := one(t, db, `SELECT string_agg(concat_ws(' ', slot, shard, shards, epoch, sweep_snapshot IS NOT NULL), ', ' ORDER BY slot) FROM saga_outbox_relay`),
		fmt.Sprintf("%[1]s_0of4 0 4 0 t, %[1]s_1of4 1 4 0 t, %[1]s_2of4 2 4 0 t, %[1]s_3of4 3 4 0 t", base); got != want {
		t.Errorf("noted: %s, want %s", got, want)
	}
	wants(run(0, "doctor", "--json"), "RELAY_SHARDS is 2, and the table is divided among 4", "sagaz_outbox_3of4: inserts of", base+"_3of4: holds back")
	env["RELAY_SHARDS"] = "4"
	wants(run(0, "status"), "divided among 4 slots", base+"_0of4", base+"_3of4")

	exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, status, sent_at)
		SELECT gen_random_uuid(), 's', 'order-' || n, 'Paid', '{}', 'sent', now() FROM generate_series(1, 100) n`)
	wants(run(0, "replay", "--saga-id", "s", "--yes"), "to be delivered again: stdout 100")
	set := relay.Set{Slot: base, Shards: 4}
	for _, shard := range set.All() {
		if got := one(t, db, fmt.Sprintf(`SELECT concat(count(*) > 0, ' ', count(*) FILTER (WHERE NOT %s), ' ', count(DISTINCT position) = max(position)) FROM saga_outbox_delivery WHERE slot = '%s'`, shard.SQL("partition_key"), shard.Slot)); got != "t 0 t" {
			t.Errorf("%s: there are entries, of other shards, positions from 1 on: %s", shard.Slot, got)
		}
	}
	// Entries are not given to slots that were done away with.
	exec(`DELETE FROM saga_outbox_delivery`)
	exec(`UPDATE saga_outbox_set SET generation = generation + 1, shards = 3`)
	text, _ := outcome(t, env, "replay", "--saga-id", "s", "--yes")
	if made := one(t, db, `SELECT count(*) FROM saga_outbox_delivery d WHERE slot LIKE '%of4'`); made != "0" {
		t.Errorf("with another set: %s entries were made:\n%s", made, text)
	}
	wants(run(1, "doctor", "--json"), "slot "+base+"_0of4 was a relay's, when the table had another number of slots than 3")

	one(t, db, `SELECT pg_create_logical_replication_slot('`+base+`_5of7', 'pgoutput')`)
	one(t, db, `SELECT pg_create_logical_replication_slot('`+base+`_mine', 'pgoutput')`)
	one(t, db, `SELECT pg_replication_origin_create('sagaz_relay_' || oid || '_`+base+`_5of7') FROM pg_database WHERE datname = current_database()`)
	for _, p := range []string{"sagaz_outbox", "sagaz_outbox_5of7", "sagaz_outbox_mine"} {
		exec(`CREATE PUBLICATION ` + p + ` FOR TABLE saga_outbox`)
	}
	wants(run(0, "uninstall", "--yes", "--tables"), "removed  slot         "+base+"_5of7", "removed  slot         "+base+"_0of4", "sagaz_outbox_3of4", "saga_outbox_set")
	left := one(t, db, `SELECT concat_ws(', ', (SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE database = current_database()), (SELECT string_agg(pubname, ' ') FROM pg_publication),
		(SELECT string_agg(roname, ' ') FROM pg_replication_origin WHERE roname LIKE '%' || (SELECT oid FROM pg_database WHERE datname = current_database()) || '%'),
		(SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public'))`)
	if want := base + "_mine, sagaz_outbox_mine, consumer_inbox saga_outbox saga_outbox_archive"; left != want {
		t.Errorf("left: %s, want %s", left, want)
	}
	one(t, db, `SELECT pg_drop_replication_slot('`+base+`_mine')`)
}

// migrate --shards is interrupted, given up and run again: at the end there are the publications of
// the slots that there are. Numbers that cannot be are refused.
func TestMigrateShardsAgain(t *testing.T) {
	db := pgtest.NewVersion(t, pgtest.Newest)
	env := map[string]string{"DATABASE_URL": db.DSN, "RELAY_SLOT": db.Name[max(0, len(db.Name)-40):]}
	run := func(want int, args ...string) string {
		t.Helper()
		text, code := outcome(t, env, args...)
		if code != want {
			t.Errorf("%s: exit code %d, want %d:\n%s", strings.Join(args, " "), code, want, text)
		}
		return text
	}
	publications := func(want ...string) {
		t.Helper()
		if got := one(t, db, `SELECT coalesce(string_agg(pubname, ' ' ORDER BY pubname), '') FROM pg_publication`); got != strings.Join(want, " ") {
			t.Errorf("publications: %s, want %v", got, want)
		}
	}
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	// switched is what the relays do in the end.
	switched := func() {
		exec(`UPDATE saga_outbox_set SET shards = target, generation = generation + 1, target = NULL, state = NULL, switch_lsn = NULL, since = NULL, changer = NULL`)
	}
	run(0, "migrate")
	for _, n := range []string{"0", "65", "-1", "abc"} {
		if text := run(2, "migrate", "--shards", n); !strings.Contains(text, "want 1 to 64") {
			t.Errorf("--shards %s:\n%s", n, text)
		}
		if n == "abc" {
			continue // RELAY_SHARDS is read as every number is
		}
		env["RELAY_SHARDS"] = n
		if text := run(2, "migrate"); !strings.Contains(text, "RELAY_SHARDS="+n+": want 1 to 64") {
			t.Errorf("RELAY_SHARDS=%s:\n%s", n, text)
		}
		delete(env, "RELAY_SHARDS")
	}

	run(0, "migrate", "--shards", "2", "--no-wait")
	publications("sagaz_outbox", "sagaz_outbox_0of2", "sagaz_outbox_1of2")
	if text := run(2, "migrate", "--shards", "3"); !strings.Contains(text, "is being changed from 1 to 2") || !strings.Contains(text, "--shards 1") {
		t.Errorf("another change meanwhile:\n%s", text)
	}
	if text := run(0, "migrate"); !strings.Contains(text, "is being changed to 2") || !strings.Contains(text, "RELAY_SHARDS=1 is not used. Set RELAY_SHARDS=2\n") {
		t.Errorf("migrate meanwhile:\n%s", text)
	}
	if text := run(0, "migrate", "--shards", "2", "--no-wait"); !strings.Contains(text, "publication sagaz_outbox_1of2 is there") {
		t.Errorf("the same again:\n%s", text)
	}
	if text := run(0, "migrate", "--shards", "1"); !strings.Contains(text, "the change from 1 to 2 slots is given up") {
		t.Errorf("giving it up:\n%s", text)
	}
	publications("sagaz_outbox")

	exec(`CREATE TABLE others (id int)`)
	exec(`CREATE PUBLICATION sagaz_outbox_5of7 FOR TABLE saga_outbox, others WITH (publish = 'insert')`)
	run(0, "migrate", "--shards", "2", "--no-wait")
	switched()
	publications("sagaz_outbox", "sagaz_outbox_0of2", "sagaz_outbox_1of2", "sagaz_outbox_5of7")
	if text := run(0, "migrate", "--shards", "2"); !strings.Contains(text, "divided among 2 slots already") || !strings.Contains(text, "publication sagaz_outbox dropped") {
		t.Errorf("after it has ended:\n%s", text)
	}
	publications("sagaz_outbox_0of2", "sagaz_outbox_1of2", "sagaz_outbox_5of7")
	if text := run(0, "migrate", "--shards", "1", "--no-wait"); !strings.Contains(text, "the change from 2 to 1 slot has begun") {
		t.Errorf("to one slot:\n%s", text)
	}
	run(0, "migrate", "--shards", "2")
	publications("sagaz_outbox_0of2", "sagaz_outbox_1of2", "sagaz_outbox_5of7")
}

// PostgreSQL 14 cannot divide a table.
func TestMigrateShardsOn14(t *testing.T) {
	db := pgtest.NewVersion(t, "14")
	env := map[string]string{"DATABASE_URL": db.DSN, "RELAY_SHARDS": "2"}
	if text, code := outcome(t, env, "migrate"); code == 0 || !strings.Contains(text, "row filters") || !strings.Contains(text, "RELAY_SHARDS=1") {
		t.Errorf("exit code %d:\n%s", code, text)
	}
	if text, code := outcome(t, env, "doctor"); code == 0 || !strings.Contains(text, "row filters") {
		t.Errorf("exit code %d:\n%s", code, text)
	}
	env["RELAY_SHARDS"] = "1"
	if text, code := outcome(t, env, "migrate"); code != 0 || strings.Contains(text, "divided") {
		t.Errorf("exit code %d:\n%s", code, text)
	}
}
