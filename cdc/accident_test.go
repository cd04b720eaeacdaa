package cdc

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// A slot's accidents: each is reported with its cause, and Create and Open bring back a slot that
// delivers what comes later.

func newAccident(t testing.TB, db *pgtest.DB) *accident {
	a := &accident{t: t, db: db, src: newSource(t, config(db.DSN)), in: newIntake(t)}
	a.run = start(t, a.src, db.Name, a.in)
	insert(t, db, "before")
	a.in.wait(1)
	return a
}

// accident is a database whose slot streams.
type accident struct {
	t   testing.TB
	db  *pgtest.DB
	src *Source
	in  *intake
	run *running
}

// down stops the relay, and returns the position up to which it has let the slot go.
func (a *accident) down() relay.LSN {
	a.t.Helper()
	_ = a.run.stop()
	return a.in.Watermark()
}

// whileBusy calls f until its error is not that the slot is busy: the server may not be done with a
// connection that was closed.
func whileBusy(f func() error) error {
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if err := f(); !errors.Is(err, relay.ErrSlotBusy) || time.Now().After(end) {
			return err
		}
	}
}

// open returns the error of Open.
func (a *accident) open(src *Source, known relay.LSN) error {
	a.t.Helper()
	return whileBusy(func() error {
		st, err := src.Open(a.t.Context(), whole(a.db.Name), known)
		if err == nil {
			_ = st.Close(a.t.Context())
			a.t.Fatal("Open works")
		}
		return err
	})
}

// recovers makes the slot and opens it, by this relay or by another one that knows nothing of the
// accident. What is inserted later must arrive, and nothing of before the position that Create has
// returned.
func (a *accident) recovers(src *Source) {
	a.t.Helper()
	var at relay.LSN
	if err := whileBusy(func() (err error) {
		at, err = src.Create(a.t.Context(), whole(a.db.Name))
		return err
	}); err != nil {
		a.t.Fatalf("Create: %v", err)
	}
	if got := confirmed(a.t, a.db); got != at {
		a.t.Errorf("Create reports the slot at %s, the server has it at %s", at, got)
	}
	st, err := src.Open(a.t.Context(), whole(a.db.Name), at)
	if err != nil {
		a.t.Fatalf("Open after Create: %v", err)
	}
	in := newIntake(a.t)
	run := run(a.t, st, in)
	insert(a.t, a.db, "after")
	events := in.until("the event inserted later", func() bool {
		return len(in.events) > 0 && in.events[len(in.events)-1].AggregateID == "after"
	})
	for i := range events {
		if events[i].CommitLSN < at {
			a.t.Errorf("got the event of commit %s, before the position %s that Create has returned", events[i].CommitLSN, at)
		}
	}
	run.alive()
	_ = run.stop()
}

// eachVersion runs a test on each version of PostgreSQL, beside other tests.
func eachVersion(t *testing.T, more []string, f func(t *testing.T, version string)) {
	t.Parallel()
	versions := slices.Clone(pgtest.Versions())
	for _, v := range more {
		if !slices.Contains(versions, v) {
			versions = append(versions, v)
		}
	}
	for _, version := range versions {
		t.Run("PostgreSQL "+version, func(t *testing.T) {
			t.Parallel()
			f(t, version)
		})
	}
}

func dropSlot(t testing.TB, db *pgtest.DB) {
	t.Helper()
	exec(t, db, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active`, db.Name)
	db.Until(t, `SELECT NOT active FROM pg_replication_slots WHERE slot_name = $1`, db.Name)
	exec(t, db, `SELECT pg_drop_replication_slot($1)`, db.Name)
}

func TestSlotDropped(t *testing.T) {
	t.Parallel()
	t.Run("while streaming", func(t *testing.T) {
		eachVersion(t, nil, func(t *testing.T, version string) {
			a := newAccident(t, pgtest.NewVersion(t, version, pgtest.Migrated()))
			dropSlot(t, a.db)
			if err := a.run.ended(); err == nil {
				t.Error("Run returned no error")
			}
			wantGone(t, a.open(a.src, a.in.Watermark()), a.db.Name, relay.GoneMissing)
			a.recovers(a.src)
		})
	})
	t.Run("while down", func(t *testing.T) {
		eachVersion(t, nil, func(t *testing.T, version string) {
			a := newAccident(t, pgtest.NewVersion(t, version, pgtest.Migrated()))
			known := a.down()
			dropSlot(t, a.db)
			other := newSource(t, config(a.db.DSN))
			wantGone(t, a.open(other, known), a.db.Name, relay.GoneMissing)
			a.recovers(other)
		})
	})
}

// The server gives a slot up that needs more WAL than it may keep, and ends the connection that
// reads it.
func TestSlotLost(t *testing.T) {
	t.Parallel()
	for _, streaming := range []bool{true, false} {
		t.Run(map[bool]string{true: "while streaming", false: "while down"}[streaming], func(t *testing.T) {
			eachVersion(t, nil, func(t *testing.T, version string) {
				server := pgtest.OwnServer(t, version, map[string]string{"max_slot_wal_keep_size": "1MB"})
				db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated(), pgtest.SQL(`CREATE TABLE other (t text)`))
				a := newAccident(t, db)
				known := a.in.Watermark()
				if streaming {
					a.in.pin()
				} else {
					known = a.down()
				}
				for range 20 { // segments of 16 MB
					exec(t, db, `INSERT INTO other VALUES ('x')`)
					exec(t, db, `SELECT pg_switch_wal()`)
					exec(t, db, `CHECKPOINT`)
					if ask(t, db, `SELECT wal_status FROM pg_replication_slots`) == "lost" {
						break
					}
				}
				db.Until(t, `SELECT wal_status = 'lost' FROM pg_replication_slots`)
				if streaming {
					if err := a.run.ended(); err == nil {
						t.Error("Run returned no error")
					}
				}
				wantGone(t, a.open(a.src, known), db.Name, relay.GoneLost, "wal_status = lost")
				_, err := a.src.EnsureSlot(t.Context(), whole(db.Name))
				wantSetup(t, err, "is lost", "max_slot_wal_keep_size", "start the relay")
				a.recovers(newSource(t, config(db.DSN))) // Create sees it by itself
			})
		})
	}
}

// Up to PostgreSQL 17 the server ends the stream when its publication is gone. 18 warns and goes on
// without the rows, which would not be noticed.
func TestPublicationDropped(t *testing.T) {
	t.Parallel()
	t.Run("while streaming", func(t *testing.T) {
		eachVersion(t, []string{"18"}, func(t *testing.T, version string) {
			a := newAccident(t, pgtest.NewVersion(t, version, pgtest.Migrated()))
			exec(t, a.db, `DROP PUBLICATION sagaz_outbox`)
			before := askLSN(t, a.db, `SELECT pg_current_wal_insert_lsn()`)
			insert(t, a.db, "gap")
			after := askLSN(t, a.db, `SELECT pg_current_wal_insert_lsn()`)
			wantGone(t, a.run.ended(), a.db.Name, relay.GonePublication, "sagaz_outbox")
			if got := confirmed(t, a.db); got >= after {
				t.Errorf("got %s confirmed, beyond the row that was not read (%s to %s)", got, before, after)
			}
			wantGone(t, a.open(a.src, a.in.Watermark()), a.db.Name, relay.GonePublication)
			a.recovers(a.src)
		})
	})
	t.Run("while streaming, without traffic", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t, pgtest.Migrated())
		a := &accident{t: t, db: db, src: newSource(t, config(db.DSN)), in: newIntake(t)}
		a.src.lookEvery = 50 * time.Millisecond
		a.run = start(t, a.src, db.Name, a.in)
		exec(t, db, `DROP PUBLICATION sagaz_outbox`)
		wantGone(t, a.run.ended(), db.Name, relay.GonePublication, "dropped")
		a.recovers(a.src)
	})
	t.Run("while down", func(t *testing.T) {
		eachVersion(t, []string{"18"}, func(t *testing.T, version string) {
			a := newAccident(t, pgtest.NewVersion(t, version, pgtest.Migrated()))
			known := a.down()
			exec(t, a.db, `DROP PUBLICATION sagaz_outbox`)
			insert(t, a.db, "gap")
			other := newSource(t, config(a.db.DSN))
			wantGone(t, a.open(other, known), a.db.Name, relay.GonePublication, "does not exist")
			a.recovers(newSource(t, config(a.db.DSN))) // Create sees it by itself
		})
	})
	// A slot does not see a publication that is younger than what it decodes. The server reports
	// that at the first row.
	t.Run("while down, and made again", func(t *testing.T) {
		eachVersion(t, []string{"18"}, func(t *testing.T, version string) {
			a := newAccident(t, pgtest.NewVersion(t, version, pgtest.Migrated()))
			known := a.down()
			exec(t, a.db, `DROP PUBLICATION sagaz_outbox`)
			insert(t, a.db, "gap")
			if made, err := EnsurePublication(t.Context(), a.db.Conn(t), whole("unused")); !made || err != nil {
				t.Fatalf("EnsurePublication: got %t, %v", made, err)
			}
			other, in := newSource(t, config(a.db.DSN)), newIntake(t)
			st, err := other.Open(t.Context(), whole(a.db.Name), known)
			if err != nil {
				t.Fatal(err)
			}
			wantGone(t, run(t, st, in).ended(), a.db.Name, relay.GonePublication, "sagaz_outbox")
			if got := keys(in.events); got != "" {
				t.Errorf("got %s", got)
			}
			a.recovers(other)
		})
	})
}

// The server does not report that a publication has ceased to carry a table.
func TestPublicationChanged(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, change, back string // statements
		// the setup error for a person; none if nothing is wrong any more
		setup []string
		lists bool // only a list of columns is changed, which 14 has not
	}{
		{"table taken out", `ALTER PUBLICATION sagaz_outbox DROP TABLE saga_outbox`, `ALTER PUBLICATION sagaz_outbox ADD TABLE saga_outbox`, []string{"does not contain", "ADD TABLE"}, false},
		{"no inserts", `ALTER PUBLICATION sagaz_outbox SET (publish = 'delete')`, `ALTER PUBLICATION sagaz_outbox SET (publish = 'insert')`, []string{"does not publish inserts", "SET (publish"}, false},
		{
			"column dropped", `ALTER TABLE saga_outbox DROP headers CASCADE`,
			`ALTER TABLE saga_outbox ADD headers jsonb DEFAULT '{}'; ALTER PUBLICATION sagaz_outbox SET TABLE saga_outbox`,
			[]string{"lacks column headers"},
			true,
		},
		// It does no harm, but that cannot be seen.
		{"columns added", `ALTER PUBLICATION sagaz_outbox SET TABLE saga_outbox`, ``, nil, true},
		{"out and in again", `ALTER PUBLICATION sagaz_outbox DROP TABLE saga_outbox; ALTER PUBLICATION sagaz_outbox ADD TABLE saga_outbox`, ``, nil, false},
	} {
		t.Run(c.name+" while streaming", func(t *testing.T) {
			eachVersion(t, nil, func(t *testing.T, version string) {
				db := pgtest.NewVersion(t, version, pgtest.Migrated())
				a := &accident{t: t, db: db, src: newSource(t, config(db.DSN)), in: newIntake(t)}
				a.src.lookEvery = 50 * time.Millisecond
				a.run = start(t, a.src, db.Name, a.in)
				insert(t, db, "before")
				a.in.wait(1)
				// It looks again and again, and finds nothing.
				for range 3 {
					last := ask(t, db, `SELECT coalesce(max(query_start), '-infinity') FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sagaz-relay look'`)
					db.Until(t, `SELECT max(query_start) > $1::text::timestamptz FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sagaz-relay look'`, last)
				}
				a.run.alive()
				exec(t, db, c.change) // in one transaction, so that no look falls in between
				if c.lists && c.setup == nil && version == "14" {
					goesOn(a.run, db, a.in)
					return
				}
				err := a.run.ended()
				if c.setup == nil {
					wantGone(t, err, db.Name, relay.GonePublication, "changed")
					a.recovers(a.src)
					return
				}
				wantSetup(t, err, c.setup...)
				wantSetup(t, a.open(a.src, a.in.Watermark()), c.setup...)
				exec(t, db, c.back)
				a.recovers(a.src) // Create sees by itself that the slot leaves something out
			})
		})
		t.Run(c.name+" while down", func(t *testing.T) {
			eachVersion(t, nil, func(t *testing.T, version string) {
				a := newAccident(t, pgtest.NewVersion(t, version, pgtest.Migrated()))
				known := a.down()
				exec(t, a.db, c.change)
				exec(t, a.db, c.back)
				other := newSource(t, config(a.db.DSN))
				if c.lists && version == "14" {
					in := newIntake(t)
					st, err := other.Open(t.Context(), whole(a.db.Name), known)
					if err != nil {
						t.Fatal(err)
					}
					goesOn(run(t, st, in), a.db, in)
					return
				}
				wantGone(t, a.open(other, known), a.db.Name, relay.GonePublication, "changed")
				a.recovers(other)
			})
		})
	}
}

// goesOn wants what is inserted now from a stream to which nothing has happened.
func goesOn(r *running, db *pgtest.DB, in *intake) {
	insert(in.t, db, "after")
	in.until("the event inserted later", func() bool {
		return len(in.events) > 0 && in.events[len(in.events)-1].AggregateID == "after"
	})
	r.alive()
}

// Rows that were left out while the table was out of the publication are found by the sweep. A
// later row of the same key must not go before them: the change is noticed before it is handed on.
func TestPublicationChangedBetweenRows(t *testing.T) {
	eachVersion(t, []string{"14", "18"}, func(t *testing.T, version string) {
		db := pgtest.NewVersion(t, version, pgtest.Migrated())
		a := &accident{t: t, db: db, src: newSource(t, config(db.DSN)), in: newIntake(t)}
		a.src.lookEvery = time.Hour
		a.run = start(t, a.src, db.Name, a.in)
		insert(t, db, "before")
		a.in.wait(1)
		exec(t, db, `ALTER PUBLICATION sagaz_outbox DROP TABLE saga_outbox`)
		insert(t, db, "gap")
		exec(t, db, `ALTER PUBLICATION sagaz_outbox ADD TABLE saga_outbox`)
		insert(t, db, "later")
		wantGone(t, a.run.ended(), db.Name, relay.GonePublication, "changed")
		if got := keys(a.in.events); got != "before" {
			t.Errorf("got %s, want nothing after the gap", got)
		}
		a.recovers(a.src)
	})
}

// A slot that is further on than we have let it go cannot deliver what it has passed.
func TestSlotMoved(t *testing.T) {
	t.Parallel()
	t.Run("advanced", func(t *testing.T) {
		eachVersion(t, nil, func(t *testing.T, version string) {
			a := newAccident(t, pgtest.NewVersion(t, version, pgtest.Migrated()))
			known := a.down()
			insert(t, a.db, "gap")
			exec(t, a.db, `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, a.db.Name)
			moved := confirmed(t, a.db)
			other := newSource(t, config(a.db.DSN))
			wantGone(t, a.open(other, known), a.db.Name, relay.GoneMoved, known.String(), moved.String())
			// It can be read, so Create leaves it as it is.
			if at, err := other.Create(t.Context(), whole(a.db.Name)); err != nil || at != moved {
				t.Errorf("Create: got %s, %v, want %s", at, err, moved)
			}
			a.recovers(other)
		})
	})
	t.Run("dropped and made again", func(t *testing.T) {
		eachVersion(t, nil, func(t *testing.T, version string) {
			a := newAccident(t, pgtest.NewVersion(t, version, pgtest.Migrated()))
			known := a.down()
			dropSlot(t, a.db)
			insert(t, a.db, "gap")
			exec(t, a.db, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, a.db.Name)
			other := newSource(t, config(a.db.DSN))
			wantGone(t, a.open(other, known), a.db.Name, relay.GoneMoved)
			a.recovers(other)
		})
	})
	t.Run("not at all", func(t *testing.T) {
		t.Parallel()
		a := newAccident(t, pgtest.New(t, pgtest.Migrated()))
		known := a.down()
		if got := confirmed(t, a.db); got != known {
			t.Fatalf("got %s confirmed, want the watermark %s", got, known)
		}
		for _, known := range []relay.LSN{known, known + 1, 0} { // 0: nobody knows
			if err := whileBusy(func() error {
				st, err := a.src.Open(t.Context(), whole(a.db.Name), known)
				if err == nil {
					err = st.Close(t.Context())
				}
				return err
			}); err != nil {
				t.Fatalf("known %s: %v", known, err)
			}
		}
	})
}

// Create has to drop a slot that a former owner's connection reads, which it may. If it is anybody
// else's, the error names the reader.
func TestCreateWhileBusy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, application string
		ends              bool
	}{{"by a former owner", applicationFor(""), true}, {"by a stranger", "pg_recvlogical ", false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := newAccident(t, pgtest.New(t, pgtest.Migrated()))
			a.down()
			// theirs stays, or their stream would end
			exec(t, a.db, `CREATE PUBLICATION theirs FOR TABLE saga_outbox`)
			pid := replicate(t, a.db, a.db.Name, c.application+a.db.Name, "theirs")
			exec(t, a.db, `DROP PUBLICATION sagaz_outbox`)
			insert(t, a.db, "gap")
			_, err := a.src.Create(t.Context(), whole(a.db.Name))
			if !errors.Is(err, relay.ErrSlotBusy) {
				t.Fatalf("got %v, want %v", err, relay.ErrSlotBusy)
			}
			if !c.ends {
				if got := ask(t, a.db, `SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1`, a.db.Name); got != pid {
					t.Errorf("the stranger with pid %s was ended; %s reads now", pid, got)
				}
				exec(t, a.db, `SELECT pg_terminate_backend($1::text::int)`, pid)
			}
			a.db.Until(t, `SELECT NOT active FROM pg_replication_slots WHERE slot_name = $1`, a.db.Name)
			// The publication is there now, but the slot is older: Create has to remember that.
			a.recovers(a.src)
		})
	}
}
