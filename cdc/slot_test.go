package cdc

import (
	"errors"
	"sync"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// Relays that find an empty database at once do not disturb each other: one streams, the others get
// an error that means to wait, or a transient one.
func TestManyOpenAtOnce(t *testing.T) {
	t.Parallel()
	for _, version := range pgtest.Versions() {
		t.Run("PostgreSQL "+version, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewVersion(t, version, pgtest.Migrated())
			var wg sync.WaitGroup
			for range 6 {
				src := newSource(t, config(db.DSN))
				wg.Go(func() {
					_, err := src.Create(t.Context(), whole(db.Name))
					if err == nil {
						var st relay.Stream
						if st, err = src.Open(t.Context(), whole(db.Name), 0); err == nil {
							err = st.Close(t.Context())
						}
					}
					var setup *relay.SetupError
					if errors.As(err, &setup) {
						t.Errorf("got %v, want an error that passes", err)
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

// A restart of the server is a transient error, and loses nothing.
func TestServerRestart(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Version(), nil)
	db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
	src := newSource(t, config(db.DSN))
	in := newIntake(t)
	in.pin() // nothing is confirmed
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
	if _, err := src.Open(t.Context(), whole(db.Name), 0); err == nil || errors.As(err, &setup) {
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
