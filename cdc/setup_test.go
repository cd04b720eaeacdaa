package cdc

import (
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// Open makes nothing. The first Create makes what is missing, the second one finds it.
func TestCreateMakesPublicationAndSlot(t *testing.T) {
	t.Parallel()
	versions := pgtest.Versions()
	if !slices.Contains(versions, "14") { // the one without column lists
		versions = append(versions, "14")
	}
	for _, version := range versions {
		t.Run("PostgreSQL "+version, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewVersion(t, version, pgtest.Migrated())
			src := newSource(t, config(db.DSN))
			if err := src.Check(t.Context(), whole("unused").Set); err != nil {
				t.Fatal(err)
			}
			if got := ask(t, db, `SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())`); got != "0" {
				t.Fatalf("Check has made %s publications and slots", got)
			}
			wantGone(t, openFails(t, db.DSN, db.Name), db.Name, relay.GoneMissing)
			if got := ask(t, db, `SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())`); got != "0" {
				t.Fatalf("Open has made %s publications and slots", got)
			}
			var first string
			for try := range 2 {
				in := newIntake(t)
				r := start(t, src, db.Name, in)
				insert(t, db, "a")
				in.wait(1)
				_ = r.stop()

				got := ask(t, db, `SELECT concat_ws(' ', pubinsert, pubupdate, pubdelete, pubtruncate, tablename) FROM pg_publication JOIN pg_publication_tables USING (pubname)`)
				if want := "t f f f saga_outbox"; got != want {
					t.Errorf("got publication %s, want %s", got, want)
				}
				if version != "14" {
					got := ask(t, db, `SELECT string_agg(a, ',' ORDER BY a) FROM pg_publication_tables, unnest(attnames) a`)
					want := ask(t, db, `SELECT string_agg(a, ',' ORDER BY a) FROM unnest(string_to_array($1, ',')::name[]) a`, strings.Join(pgoutput.Columns, ","))
					if got != want {
						t.Errorf("got columns %s, want %s", got, want)
					}
				} else if got := ask(t, db, `SELECT count(*) FROM pg_publication_rel`); got != "1" {
					t.Errorf("got %s tables in the publication, want 1", got)
				}
				got = ask(t, db, `SELECT concat_ws(' ', slot_type, plugin, temporary, active) FROM pg_replication_slots WHERE slot_name = $1`, db.Name)
				if want := "logical pgoutput f f"; got != want {
					t.Errorf("got slot %s, want %s", got, want)
				}
				if version >= "17" {
					if got := ask(t, db, `SELECT failover FROM pg_replication_slots WHERE slot_name = $1`, db.Name); got != "true" {
						t.Errorf("got failover %s, want true", got)
					}
				}
				oid := ask(t, db, `SELECT oid FROM pg_publication`)
				if try > 0 && oid != first {
					t.Errorf("the second Create has made the publication again")
				}
				first = oid
			}
		})
	}
}

func TestFailoverOff(t *testing.T) {
	t.Parallel()
	db := pgtest.NewVersion(t, pgtest.Newest, pgtest.Migrated())
	cfg := config(db.DSN)
	cfg.Failover = false
	if _, err := newSource(t, cfg).EnsureSlot(t.Context(), whole(db.Name)); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, db, `SELECT failover FROM pg_replication_slots WHERE slot_name = $1`, db.Name); got != "false" {
		t.Errorf("got failover %s, want false", got)
	}
}

func TestEnsure(t *testing.T) {
	t.Parallel()
	for _, version := range pgtest.Versions() {
		t.Run("PostgreSQL "+version, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewVersion(t, version, pgtest.Migrated())
			src, conn := newSource(t, config(db.DSN)), db.Conn(t)
			for _, want := range []bool{true, false} {
				if got, err := EnsurePublication(t.Context(), conn, whole("unused")); got != want || err != nil {
					t.Errorf("EnsurePublication: got %t, %v, want %t", got, err, want)
				}
				if got, err := src.EnsureSlot(t.Context(), whole(db.Name)); got != want || err != nil {
					t.Errorf("EnsureSlot: got %t, %v, want %t", got, err, want)
				}
			}
			in := newIntake(t)
			start(t, src, db.Name, in)
			insert(t, db, "a")
			in.wait(1)
		})
	}
}

// Names are taken as they are.
func TestOddNames(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.SQL(`CREATE SCHEMA "Odd ""schema"`), pgtest.Migrated())
	exec(t, db, `ALTER TABLE saga_outbox SET SCHEMA "Odd ""schema"`)
	exec(t, db, `ALTER DATABASE "`+db.Name+`" SET search_path = 'Odd "schema', public`)
	in := newIntake(t)
	run(t, openShard(t, newSource(t, config(db.DSN)), relay.Alone(db.Name, `it's "Odd", Ünï`)), in)
	exec(t, db, `INSERT INTO "Odd ""schema".saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 's', 'a', 'e', '{}')`)
	in.wait(1)
}
