package cdc

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// divided is a set of slots for a test's database.
func divided(db *pgtest.DB, shards int) relay.Set {
	return relay.Set{Slot: db.Name[max(0, len(db.Name)-50):], Publication: "sagaz_outbox", Shards: shards}
}

// newDivided is a database on a server that can filter rows.
func newDivided(t testing.TB) *pgtest.DB {
	version := pgtest.Version()
	if sessions.MajorVersion(version) < 15 {
		version = pgtest.Newest
	}
	return pgtest.NewVersion(t, version, pgtest.Migrated())
}

// keysOf are the keys whose rows belong to a shard, in the order of their insertion.
func keysOf(t testing.TB, db *pgtest.DB, shard relay.Shard) string {
	t.Helper()
	return ask(t, db, `SELECT coalesce(string_agg(`+relay.RowKey+`, ' ' ORDER BY created_at, (payload->>'n')::int), '') FROM saga_outbox WHERE `+shard.SQL(relay.RowKey))
}

// Each shard's slot delivers the rows of its keys, and all of them together deliver each row once.
func TestShards(t *testing.T) {
	t.Parallel()
	for _, partitioned := range []bool{false, true} {
		t.Run(fmt.Sprintf("partitioned %t", partitioned), func(t *testing.T) {
			t.Parallel()
			testShards(t, partitioned)
		})
	}
}

func testShards(t *testing.T, partitioned bool) {
	db := newDivided(t)
	if partitioned {
		for _, sql := range []string{
			`ALTER TABLE saga_outbox RENAME TO whole`,
			`CREATE TABLE saga_outbox (LIKE whole INCLUDING DEFAULTS INCLUDING CONSTRAINTS, PRIMARY KEY (event_id)) PARTITION BY HASH (event_id)`,
			`CREATE TABLE saga_outbox_a PARTITION OF saga_outbox FOR VALUES WITH (MODULUS 2, REMAINDER 0)`,
			`CREATE TABLE saga_outbox_b PARTITION OF saga_outbox FOR VALUES WITH (MODULUS 2, REMAINDER 1)`,
		} {
			exec(t, db, sql)
		}
	}
	src, set := newSource(t, config(db.DSN)), divided(db, 4)
	if err := src.Check(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	intakes := make([]*intake, set.Shards)
	for i, shard := range set.All() {
		intakes[i] = newIntake(t)
		run(t, openShard(t, src, shard), intakes[i])
	}
	exec(t, db, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) SELECT gen_random_uuid(), 'saga', 'key-' || k % 300, 'Made', jsonb_build_object('n', k) FROM generate_series(1, 900) k`)
	end, all := askLSN(t, db, `SELECT pg_current_wal_lsn()`), 0
	for i, shard := range set.All() {
		got := intakes[i].waitPassed(end)
		if len(got) == 0 {
			t.Errorf("%s delivers nothing", shard.Slot)
		}
		if keys(got) != keysOf(t, db, shard) {
			t.Errorf("%s delivers %s, want %s", shard.Slot, keys(got), keysOf(t, db, shard))
		}
		all += len(got)
	}
	if all != 900 {
		t.Errorf("got %d events, want 900", all)
	}
	if err := src.Check(t.Context(), set); err != nil {
		t.Errorf("Check: %v", err)
	}
	for _, shard := range set.All() {
		if made, err := EnsurePublication(t.Context(), db.Conn(t), shard); made || err != nil {
			t.Errorf("EnsurePublication: got %t, %v", made, err)
		}
		if made, err := src.EnsureSlot(t.Context(), shard); made || err != nil {
			t.Errorf("EnsureSlot: got %t, %v", made, err)
		}
	}
}

// Whatever type the key has, filter and conditions agree. What PostgreSQL does not take into a
// filter is refused with a statement that fixes it.
func TestShardsOfAnyKey(t *testing.T) {
	t.Parallel()
	const word, number = `substr('abcdefghij', 1 + n % 10, 1) || n % 7`, `n * 7919 - 30000`
	uuid := `md5(n::text)::uuid`
	for _, c := range []struct {
		name, column, values string
		refused              bool
	}{
		{"text", `text`, word, false},
		{"ICU collation", `text COLLATE "de-x-icu"`, word, false},
		{"char(n)", `char(9)`, word, false},
		{"uuid", `uuid`, uuid, false},
		{"bigint", `bigint`, number, false},
		{"integer", `integer`, number, false},
		{"smallint", `smallint`, `n % 1000 - 500`, false},
		{"nullable", `varchar(255)`, `nullif(` + word + `, 'b1')`, false},
		{"domain", `made_text`, word, true},
		{"domain of uuid", `made_uuid`, uuid, true},
		{"citext", `citext`, word, true},
		{"enum", `made_enum`, `(ARRAY['x', 'y', 'z'])[1 + n % 3]::made_enum`, true},
		{"collation that somebody made", `text COLLATE made`, word, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := newDivided(t)
			exec(t, db, `CREATE EXTENSION citext`)
			exec(t, db, `CREATE DOMAIN made_text AS varchar(255)`)
			exec(t, db, `CREATE DOMAIN made_uuid AS uuid`)
			exec(t, db, `CREATE TYPE made_enum AS ENUM ('x', 'y', 'z')`)
			exec(t, db, `CREATE COLLATION made (provider = icu, locale = 'und', deterministic = false)`)
			exec(t, db, `DROP INDEX IF EXISTS idx_outbox_aggregate_id`)
			exec(t, db, `ALTER TABLE saga_outbox DROP COLUMN aggregate_id`)
			exec(t, db, `ALTER TABLE saga_outbox ADD COLUMN aggregate_id `+c.column)
			src, set := newSource(t, config(db.DSN)), divided(db, 3)
			if c.refused {
				err := src.Check(t.Context(), set)
				wantSetup(t, err, "aggregate_id", "somebody has made", "ALTER TABLE public.saga_outbox")
				wantStreaming(t, err, true)
				if made, err := EnsurePublication(t.Context(), db.Conn(t), set.Shard(1)); made || err == nil {
					t.Errorf("EnsurePublication: got %t, %v", made, err)
				}
				for _, sql := range fixOf(t, err) {
					exec(t, db, sql)
				}
			}
			intakes := make([]*intake, set.Shards)
			for i, shard := range set.All() {
				intakes[i] = newIntake(t)
				run(t, openShard(t, src, shard), intakes[i])
			}
			exec(t, db, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) SELECT gen_random_uuid(), 'saga', `+c.values+`, 'Made', jsonb_build_object('n', n) FROM generate_series(1, 200) n`)
			end, all := askLSN(t, db, `SELECT pg_current_wal_lsn()`), 0
			for i, shard := range set.All() {
				got := intakes[i].waitPassed(end)
				if keys(got) != keysOf(t, db, shard) {
					t.Errorf("%s delivers %s, want %s", shard.Slot, keys(got), keysOf(t, db, shard))
				}
				// the ledger has the key as the stream delivers it
				var texts []string
				for j := range got {
					texts = append(texts, got[j].AggregateID)
				}
				var other int
				err := db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM unnest($1::text[]) AS partition_key WHERE NOT `+shard.SQL("partition_key"), texts).Scan(&other)
				if err != nil || other > 0 {
					t.Errorf("in the ledger %d of %s would be another's (%v)", other, shard.Slot, err)
				}
				all += len(got)
			}
			if all != 200 {
				t.Errorf("got %d events, want 200", all)
			}
		})
	}
}

// fixOf are the statements that fix what an error is about.
func fixOf(t testing.TB, err error) []string {
	t.Helper()
	var setup *relay.SetupError
	if !errors.As(err, &setup) || len(setup.SQL) == 0 {
		t.Fatalf("no statements in %v", err)
	}
	return setup.SQL
}

// A publication whose filter is not the shard's is refused by all who look at it, and its fix
// works.
func TestWrongFilter(t *testing.T) {
	t.Parallel()
	const (
		list = `(event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, status, created_at)`
		of   = `CREATE PUBLICATION sagaz_outbox_1of3 FOR TABLE saga_outbox ` + list + ` WHERE (%s) WITH (publish = '%s', publish_via_partition_root = true)`
	)
	right := relay.Set{Shards: 3}.Shard(1).SQL("aggregate_id")
	sql := func(condition string) string { return fmt.Sprintf(of, condition, "insert") }
	for _, c := range []struct{ name, sql, want string }{
		{"another shard's", sql(relay.Set{Shards: 3}.Shard(2).SQL("aggregate_id")), "its shard is another"},
		{"another set's", sql(relay.Set{Shards: 4}.Shard(1).SQL("aggregate_id")), "its shard is another"},
		{"another column's", sql(strings.Replace(right, "aggregate_id", "saga_id", 1)), "its shard is another"},
		{"more than that", sql(right + ` AND status = 'pending'`), "its shard is another"},
		{"less than that", sql(right + ` OR saga_id = 'x'`), "its shard is another"},
		{"none", `CREATE PUBLICATION sagaz_outbox_1of3 FOR TABLE saga_outbox ` + list + ` WITH (publish = 'insert')`, "all 3 shards"},
		{"all tables", `CREATE PUBLICATION sagaz_outbox_1of3 FOR ALL TABLES WITH (publish = 'insert')`, "all 3 shards"},
		{"a schema", `CREATE PUBLICATION sagaz_outbox_1of3 FOR TABLES IN SCHEMA public WITH (publish = 'insert')`, "all 3 shards"},
		{"another table", `CREATE PUBLICATION sagaz_outbox_1of3 FOR TABLE saga_outbox_archive WITH (publish = 'insert')`, "does not contain table"},
		{"columns", `CREATE PUBLICATION sagaz_outbox_1of3 FOR TABLE saga_outbox (event_id) WITH (publish = 'insert')`, "leaves out column"},
		{"updates too", fmt.Sprintf(of, right, "insert, update"), "updates or deletes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := newDivided(t)
			src, set := newSource(t, config(db.DSN)), divided(db, 3)
			exec(t, db, c.sql)
			err := src.Check(t.Context(), set)
			wantSetup(t, err, "sagaz_outbox_1of3", c.want)
			wantStreaming(t, err, true)
			if _, err := src.Create(t.Context(), set.Shard(1)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Create: got %v", err)
			}
			if made, err := src.EnsureSlot(t.Context(), set.Shard(1)); made || err == nil {
				t.Errorf("EnsureSlot: got %t, %v", made, err)
			}
			if made, err := EnsurePublication(t.Context(), db.Conn(t), set.Shard(1)); made || err == nil {
				t.Errorf("EnsurePublication: got %t, %v", made, err)
			}
			if got := ExaminePublication(t.Context(), db.Conn(t), set.Shard(1)); len(got.Faults) != 1 {
				t.Errorf("ExaminePublication: got %+v", got)
			}
			for _, sql := range fixOf(t, err) {
				exec(t, db, sql)
			}
			if err := src.Check(t.Context(), set); err != nil {
				t.Errorf("after the fix: %v", err)
			}
			in := newIntake(t)
			run(t, openShard(t, src, set.Shard(1)), in)
			exec(t, db, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) SELECT gen_random_uuid(), 'saga', n, 'Made', jsonb_build_object('n', n) FROM generate_series(1, 50) n`)
			if got := in.waitPassed(askLSN(t, db, `SELECT pg_current_wal_lsn()`)); keys(got) != keysOf(t, db, set.Shard(1)) {
				t.Errorf("got %s, want %s", keys(got), keysOf(t, db, set.Shard(1)))
			}
		})
	}
	// The same in other words is the same.
	t.Run("written differently", func(t *testing.T) {
		t.Parallel()
		db := newDivided(t)
		set := divided(db, 3)
		exec(t, db, sql(`1 = ((pg_catalog.hashtext(CAST(coalesce(saga_outbox.aggregate_id, '') AS text) COLLATE pg_catalog."C") & 2147483647)) % (3)`))
		wantSetup(t, newSource(t, config(db.DSN)).Check(t.Context(), set), "its shard is another") // equal, but not the same
		exec(t, db, `DROP PUBLICATION sagaz_outbox_1of3`)
		exec(t, db, sql(`((((pg_catalog.hashtext(COALESCE(saga_outbox.aggregate_id::pg_catalog.text, ''::text) COLLATE pg_catalog."C")) & (2147483647)) % 3)) = 1`))
		if err := newSource(t, config(db.DSN)).Check(t.Context(), set); err != nil {
			t.Error(err)
		}
	})
	// A table that is not divided has no filter, be it that of a shard.
	t.Run("not divided", func(t *testing.T) {
		t.Parallel()
		db := newDivided(t)
		exec(t, db, strings.Replace(sql(right), "sagaz_outbox_1of3", "sagaz_outbox", 1))
		wantSetup(t, newSource(t, config(db.DSN)).Check(t.Context(), divided(db, 1)), "passes only rows with")
	})
}

// A filter that is changed while the slot is read ends the stream before any row that the new one
// passes, and the slot is made again.
func TestFilterChanged(t *testing.T) {
	t.Parallel()
	db := newDivided(t)
	src, set := newSource(t, config(db.DSN)), divided(db, 2)
	in := newIntake(t)
	r := run(t, openShard(t, src, set.Shard(0)), in)
	insertKeys := `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) SELECT gen_random_uuid(), 'saga', n, 'Made', jsonb_build_object('n', n) FROM generate_series(1, 20) n`
	exec(t, db, insertKeys)
	before := in.waitPassed(askLSN(t, db, `SELECT pg_current_wal_lsn()`))
	exec(t, db, `ALTER PUBLICATION sagaz_outbox_0of2 SET TABLE saga_outbox WHERE (`+set.Shard(1).SQL("aggregate_id")+`)`)
	exec(t, db, insertKeys)
	err := r.ended()
	wantSetup(t, err, "sagaz_outbox_0of2", "its shard is another")
	if got := in.until("what came before", func() bool { return true }); len(got) != len(before) {
		t.Errorf("got %s after the change", keys(got[len(before):]))
	}
	for _, sql := range fixOf(t, err) {
		exec(t, db, sql)
	}
	_, err = src.Open(t.Context(), set.Shard(0), 0)
	wantGone(t, err, set.Shard(0).Slot, relay.GonePublication)
	// So does another process.
	_, err = newSource(t, config(db.DSN)).Open(t.Context(), set.Shard(0), 0)
	wantGone(t, err, set.Shard(0).Slot, relay.GonePublication)
	now := askLSN(t, db, `SELECT pg_current_wal_lsn()`)
	if at, err := src.Create(t.Context(), set.Shard(0)); err != nil || at < now {
		t.Errorf("the slot begins at %s, %v; want it made again at %s or later", at, err, now)
	}
	next := newIntake(t)
	run(t, openShard(t, src, set.Shard(0)), next)
	exec(t, db, insertKeys)
	if got := next.waitPassed(askLSN(t, db, `SELECT pg_current_wal_lsn()`)); keys(got) != keys(before) {
		t.Errorf("got %s, want %s", keys(got), keys(before))
	}
}

// Before version 15 there are no filters.
func TestShardsNeedFilters(t *testing.T) {
	t.Parallel()
	db := pgtest.NewVersion(t, "14", pgtest.Migrated())
	set := divided(db, 2)
	err := newSource(t, config(db.DSN)).Check(t.Context(), set)
	wantSetup(t, err, "version 15", "RELAY_SHARDS")
	wantStreaming(t, err, true)
	if made, err := EnsurePublication(t.Context(), db.Conn(t), set.Shard(1)); made || err == nil {
		t.Errorf("EnsurePublication: got %t, %v", made, err)
	}
}
