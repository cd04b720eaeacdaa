package cdc

import (
	"errors"
	"sync"
	"testing"

	"github.com/sagaz-relay/relay/migrations/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// The server gives a slot up that needs more WAL than it may keep, and ends whoever reads it. The relay tells so, and
// how to go on.
func TestSlotLostWhileStreaming(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Version(), map[string]string{"max_slot_wal_keep_size": "1MB"})
	db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated(), pgtest.SQL(`CREATE TABLE other (t text)`))
	src := newSource(t, config(db.DSN))
	in := newIntake(t)
	in.hold()
	r := start(t, src, db.Name, in)
	insert(t, db, "a")
	in.wait(1)
	for range 20 { // segments of 16 MB
		exec(t, db, `INSERT INTO other VALUES ('x')`)
		exec(t, db, `SELECT pg_switch_wal()`)
		exec(t, db, `CHECKPOINT`)
		if ask(t, db, `SELECT wal_status FROM pg_replication_slots`) == "lost" {
			break
		}
	}
	db.Until(t, `SELECT wal_status = 'lost' FROM pg_replication_slots`)
	if err := r.ended(); err == nil {
		t.Error("Run returned no error")
	}
	wantSetup(t, openFails(t, db.DSN, db.Name), "is lost", "max_slot_wal_keep_size", `SELECT pg_drop_replication_slot('`+db.Name+`');`)
	_, err := src.EnsureSlot(t.Context(), db.Name)
	wantSetup(t, err, "is lost")

	exec(t, db, `SELECT pg_drop_replication_slot($1)`, db.Name)
	next := newIntake(t)
	start(t, src, db.Name, next)
	insert(t, db, "b")
	if got := keys(next.wait(1)); got != "b" {
		t.Errorf("got %s, want b", got)
	}
}

// Relays that find an empty database at once do not disturb each other: one streams, the others are told to wait, or fail in a way
// that passes.
func TestManyOpenAtOnce(t *testing.T) {
	for _, version := range pgtest.Versions() {
		t.Run("PostgreSQL "+version, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewVersion(t, version, pgtest.Migrated())
			var wg sync.WaitGroup
			for range 6 {
				src := newSource(t, config(db.DSN))
				wg.Go(func() {
					st, err := src.Open(t.Context(), db.Name)
					if err == nil {
						err = st.Close(t.Context())
					}
					var setup *relay.SetupError
					if errors.As(err, &setup) {
						t.Errorf("Open: got %v, want an error that passes", err)
					}
				})
			}
			wg.Wait()
			in := newIntake(t)
			start(t, newSource(t, config(db.DSN)), db.Name, in)
			insert(t, db, "a")
			in.wait(1)
			if got := ask(t, db, `SELECT concat_ws(' ', (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()))`); got != "1 1" {
				t.Errorf("got %s publications and slots, want 1 1", got)
			}
		})
	}
}

// A restart of the server is trouble that passes, and loses nothing.
func TestServerRestart(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Version(), nil)
	db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
	src := newSource(t, config(db.DSN))
	in := newIntake(t)
	in.hold() // nothing is confirmed
	r := start(t, src, db.Name, in)
	insert(t, db, "a", "b")
	in.wait(2)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	err := r.ended()
	var setup *relay.SetupError
	if err == nil || errors.As(err, &setup) {
		t.Errorf("Run: got %v, want an error that passes", err)
	}
	if _, err := src.Open(t.Context(), db.Name); err == nil || errors.As(err, &setup) {
		t.Errorf("Open: got %v, want an error that passes", err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Until(t, `SELECT true`)
	insert(t, db, "c")
	next := newIntake(t)
	start(t, src, db.Name, next)
	if got, want := keys(next.wait(3)), "a b c"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
