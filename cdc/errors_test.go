package cdc

import (
	"context"
	"crypto/rand"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// withoutPassword fails the test when the error has the password of dsn.
func withoutPassword(t testing.TB, err error, dsn string) {
	t.Helper()
	u, parse := url.Parse(dsn)
	if parse != nil {
		t.Fatal(parse)
	}
	if password, _ := u.User.Password(); password != "" && err != nil && strings.Contains(err.Error(), password) {
		t.Errorf("the password is in %q", err)
	}
}

// openFails opens the slot, which must not work.
func openFails(t testing.TB, dsn, slot string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	st, err := newSource(t, config(dsn)).Open(ctx, whole(slot), 0)
	if err == nil {
		_ = st.Close(ctx)
		t.Fatal("Open works")
	}
	withoutPassword(t, err, dsn)
	return err
}

// createFails makes the slot, which must not work.
func createFails(t testing.TB, dsn, slot string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := newSource(t, config(dsn)).Create(ctx, whole(slot))
	if err == nil {
		t.Fatal("Create works")
	}
	withoutPassword(t, err, dsn)
	return err
}

// Whatever is wrong with the database is reported with the statement that fixes it. Where that is a
// statement that we can run, it does fix it.
func TestSetupErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		sql   string
		check bool // Check reports the same
		poll  bool // without streaming it would work
		want  []string
		fix   string // what the Fix has to run, as far as it is one statement of SQL
	}{
		{"table missing", `DROP TABLE saga_outbox`, true, false, []string{"saga_outbox does not exist", "sagaz-relay migrate"}, ""},
		{"columns missing", `ALTER TABLE saga_outbox DROP headers, DROP payload`, true, false, []string{"saga_outbox", "payload, headers"}, ""},
		{
			"publication without the table", `CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox_archive`, true, true,
			[]string{`"sagaz_outbox"`, "does not contain", "ALTER PUBLICATION"},
			`ALTER PUBLICATION "sagaz_outbox" ADD TABLE public.saga_outbox;`,
		},
		{
			"publication without inserts", `CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox WITH (publish = 'update, delete')`, true, true,
			[]string{"does not publish inserts"},
			`ALTER PUBLICATION "sagaz_outbox" SET (publish = 'insert');`,
		},
		{
			"publication lacks a column", `CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox (event_id, saga_id) WITH (publish = 'insert')`, true, true,
			[]string{"leaves out column aggregate_type"},
			`ALTER PUBLICATION "sagaz_outbox" SET TABLE public.saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, status, created_at);`,
		},
		{
			"physical slot", `SELECT pg_create_physical_replication_slot(current_database())`, false, true,
			[]string{"physical slot", "RELAY_SLOT"},
			`SELECT pg_drop_replication_slot(current_database())`,
		},
		{
			"slot of another plugin", `SELECT pg_create_logical_replication_slot(current_database(), 'test_decoding')`, false, true,
			[]string{"test_decoding", "pgoutput"},
			`SELECT pg_drop_replication_slot(current_database())`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewVersion(t, pgtest.Newest, pgtest.Migrated())
			exec(t, db, c.sql)
			for _, err := range []error{openFails(t, db.DSN, db.Name), createFails(t, db.DSN, db.Name)} {
				wantSetup(t, err, c.want...)
				wantStreaming(t, err, c.poll)
			}
			err := newSource(t, config(db.DSN)).Check(t.Context(), whole("unused").Set)
			if c.check {
				wantSetup(t, err, c.want...)
			} else if err != nil {
				t.Errorf("Check: %v", err)
			}
			if c.fix == "" {
				return
			}
			if strings.HasPrefix(c.fix, "ALTER") {
				wantSetup(t, openFails(t, db.DSN, db.Name), c.fix)
			}
			exec(t, db, c.fix)
			in := newIntake(t)
			start(t, newSource(t, config(db.DSN)), db.Name, in)
			insert(t, db, "a")
			in.wait(1)
		})
	}
}

func TestSlotOfAnotherDatabase(t *testing.T) {
	t.Parallel()
	db, other := pgtest.New(t, pgtest.Migrated()), pgtest.New(t, pgtest.Migrated())
	exec(t, other, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Name)
	wantSetup(t, openFails(t, db.DSN, db.Name), other.Name, db.Name, "RELAY_SLOT")
	wantStreaming(t, createFails(t, db.DSN, db.Name), true)
	_, err := newSource(t, config(db.DSN)).EnsureSlot(t.Context(), whole(db.Name))
	wantSetup(t, err, other.Name)
}

func TestServerSettings(t *testing.T) {
	t.Parallel()
	t.Run("wal_level", func(t *testing.T) {
		t.Parallel()
		server := pgtest.OwnServer(t, pgtest.Version(), map[string]string{"wal_level": "replica"})
		db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
		wantSetup(t, openFails(t, db.DSN, db.Name), "wal_level", "ALTER SYSTEM SET wal_level = 'logical'")
		err := newSource(t, config(db.DSN)).Check(t.Context(), whole("unused").Set)
		wantSetup(t, err, "wal_level")
		wantStreaming(t, err, true)
		// The publication needs no WAL of any kind: a deployment may make it before the restart.
		if made, err := EnsurePublication(t.Context(), db.Conn(t), whole("unused")); !made || err != nil {
			t.Errorf("EnsurePublication: got %t, %v", made, err)
		}
	})
	t.Run("no walsender is free", func(t *testing.T) {
		t.Parallel()
		server := pgtest.OwnServer(t, pgtest.Version(), map[string]string{"max_wal_senders": "1"})
		db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
		start(t, newSource(t, config(db.DSN)), db.Name, newIntake(t))
		err := openFails(t, db.DSN, "another")
		wantSetup(t, err, "no walsender is free", "max_wal_senders")
		wantStreaming(t, err, true)
	})
	t.Run("no slot is free", func(t *testing.T) {
		t.Parallel()
		server := pgtest.OwnServer(t, pgtest.Version(), map[string]string{"max_replication_slots": "1"})
		db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
		exec(t, db, `SELECT pg_create_physical_replication_slot('standby')`)
		err := createFails(t, db.DSN, db.Name)
		wantSetup(t, err, "max_replication_slots", "pg_replication_slots")
		wantStreaming(t, err, true)
		exec(t, db, `SELECT pg_drop_replication_slot('standby')`)
		start(t, newSource(t, config(db.DSN)), db.Name, newIntake(t))
	})
}

func TestRights(t *testing.T) {
	t.Parallel()
	for _, version := range pgtest.Versions() {
		t.Run("PostgreSQL "+version, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewVersion(t, version, pgtest.Migrated())

			role, _, dsn := db.Role(t, "")
			exec(t, db, `GRANT SELECT ON saga_outbox TO `+role)
			fix := `ALTER ROLE "` + role + `" REPLICATION`
			wantSetup(t, openFails(t, dsn, db.Name), fix)
			err := newSource(t, config(dsn)).Check(t.Context(), whole("unused").Set)
			wantSetup(t, err, fix)
			wantStreaming(t, err, true)
			exec(t, db, fix)

			// Now it may replicate, but the table is somebody else's, and so is the publication to
			// make.
			create := (&session{server: sessions.MajorVersion(version)}).publicationSQL(whole(db.Name), &outbox{name: "public.saga_outbox"})
			for _, err := range []error{newSource(t, config(dsn)).Check(t.Context(), whole("unused").Set), createFails(t, dsn, db.Name)} {
				wantSetup(t, err, create, "owner of public.saga_outbox")
				wantStreaming(t, err, true)
			}
			exec(t, db, create)
			if err := newSource(t, config(dsn)).Check(t.Context(), whole("unused").Set); err != nil {
				t.Errorf("Check: %v", err)
			}
			in := newIntake(t)
			start(t, newSource(t, config(dsn)), db.Name, in)
			insert(t, db, "a")
			in.wait(1)
		})
	}
}

func TestConnectErrors(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	role, _, dsn := db.Role(t, "REPLICATION")
	change := func(f func(*url.URL)) string {
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		f(u)
		return u.String()
	}
	t.Run("wrong password", func(t *testing.T) {
		err := openFails(t, change(func(u *url.URL) { u.User = url.UserPassword(role, "wr0ng-s3cret") }), db.Name)
		wantSetup(t, err, "user and password", role)
		wantStreaming(t, err, false)
	})
	t.Run("no such role", func(t *testing.T) {
		wantSetup(t, openFails(t, change(func(u *url.URL) { u.User = url.UserPassword("nobody_here", "wr0ng-s3cret") }), db.Name), "user and password")
	})
	t.Run("no such database", func(t *testing.T) {
		err := openFails(t, change(func(u *url.URL) { u.Path = "/not_there" }), db.Name)
		wantSetup(t, err, "not_there", "database does not exist")
		wantStreaming(t, err, false)
	})
	t.Run("nobody listens", func(t *testing.T) {
		err := openFails(t, change(func(u *url.URL) { u.Host = "127.0.0.1:1" }), db.Name)
		var setup *relay.SetupError
		if errors.As(err, &setup) {
			t.Errorf("got %v, want an error that passes", err)
		}
	})
}

// replicate makes a connection of somebody else who reads the slot.
func replicate(t testing.TB, db *pgtest.DB, slot, application, publication string) (pid string) {
	t.Helper()
	cfg, err := pgconn.ParseConfig(db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["replication"], cfg.RuntimeParams["application_name"] = "database", application
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	// Nothing reads the answer: it is only to keep the slot in use.
	if _, err := conn.Conn().Write(query(`START_REPLICATION SLOT "` + slot + `" LOGICAL 0/0 (proto_version '1', publication_names '"` + publication + `"')`)); err != nil {
		t.Fatal(err)
	}
	db.Until(t, `SELECT active FROM pg_replication_slots WHERE slot_name = $1`, slot)
	return ask(t, db, `SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1`, slot)
}

func query(sql string) []byte {
	n := 4 + len(sql) + 1
	return append(append([]byte{'Q', 0, 0, byte(n >> 8), byte(n)}, sql...), 0)
}

func TestSlotBusy(t *testing.T) {
	t.Parallel()
	t.Run("a stranger reads it", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t, pgtest.Migrated())
		src := newSource(t, config(db.DSN))
		_ = start(t, src, db.Name, newIntake(t)).stop()
		pid := replicate(t, db, db.Name, "pg_recvlogical", "sagaz_outbox")
		for range 2 {
			err := openFails(t, db.DSN, db.Name)
			if !errors.Is(err, relay.ErrSlotBusy) || !strings.Contains(err.Error(), "pid "+pid+" ") || !strings.Contains(err.Error(), "pg_recvlogical") {
				t.Errorf("got %v, want %v by pid %s (pg_recvlogical)", err, relay.ErrSlotBusy, pid)
			}
		}
		if got := ask(t, db, `SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1`, db.Name); got != pid {
			t.Errorf("the stranger with pid %s was ended; %s reads now", pid, got)
		}
		// it is there, after all
		if made, err := src.EnsureSlot(t.Context(), whole(db.Name)); made || err != nil {
			t.Errorf("EnsureSlot: got %t, %v", made, err)
		}
		if err := src.Check(t.Context(), whole("unused").Set); err != nil {
			t.Errorf("Check: %v", err)
		}
	})
	t.Run("the relay of another slot reads it", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t, pgtest.Migrated())
		_ = start(t, newSource(t, config(db.DSN)), db.Name, newIntake(t)).stop()
		pid := replicate(t, db, db.Name, applicationFor("of_another"), "sagaz_outbox")
		if err := openFails(t, db.DSN, db.Name); !errors.Is(err, relay.ErrSlotBusy) || !strings.Contains(err.Error(), pid) {
			t.Errorf("got %v, want %v by pid %s", err, relay.ErrSlotBusy, pid)
		}
		if got := ask(t, db, `SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1`, db.Name); got != pid {
			t.Errorf("pid %s was ended; %s reads now", pid, got)
		}
	})
	for _, c := range []struct{ name, slot string }{
		{"a zombie is ended", "z_" + strings.ToLower(rand.Text()[:10])},
		// The server keeps 63 bytes of an application_name, and a slot's name may be as long by
		// itself.
		{"a zombie with a long name is ended", "z_" + strings.ToLower(rand.Text()[:10]) + strings.Repeat("o", 51)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t, pgtest.Migrated())
			src := newSource(t, config(db.DSN))
			_ = start(t, src, c.slot, newIntake(t)).stop()
			pid := replicate(t, db, c.slot, applicationFor(c.slot), "sagaz_outbox")
			err := openFails(t, db.DSN, c.slot)
			if !errors.Is(err, relay.ErrSlotBusy) || !strings.Contains(err.Error(), "pid "+pid) || !strings.Contains(err.Error(), "ended") {
				t.Errorf("got %v, want %v with pid %s ended", err, relay.ErrSlotBusy, pid)
			}
			in := newIntake(t)
			start(t, src, c.slot, in)
			insert(t, db, "a")
			in.wait(1)
		})
	}
	// pg_terminate_backend is refused to a role that is not the walsender's own, nor a superuser:
	// then it is only named.
	t.Run("a zombie of another role", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t, pgtest.Migrated())
		slot := "z_" + strings.ToLower(rand.Text()[:10])
		_ = start(t, newSource(t, config(db.DSN)), slot, newIntake(t)).stop()
		role, _, dsn := db.Role(t, "REPLICATION")
		exec(t, db, `GRANT SELECT ON saga_outbox TO `+role)
		pid := replicate(t, db, slot, applicationFor(slot), "sagaz_outbox")
		if err := openFails(t, dsn, slot); !errors.Is(err, relay.ErrSlotBusy) || !strings.Contains(err.Error(), "pid "+pid) || !strings.Contains(err.Error(), "may not end") {
			t.Errorf("got %v, want %v by pid %s", err, relay.ErrSlotBusy, pid)
		}
	})
}

// The server makes a slot only when all transactions under way have ended. Whoever waits for that
// can be stopped.
func TestCreateWaitsForOldTransactions(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	old := db.Conn(t)
	tx, err := old.BeginTx(t.Context(), pgx.TxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background()) //nolint:errcheck // the test is over
	if _, err := tx.Exec(t.Context(), insertSQL, "old"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := newSource(t, config(db.DSN)).Create(ctx, whole(db.Name))
		failed <- err
	}()
	db.Until(t, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock')`, applicationFor(db.Name))
	begin := time.Now()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if took := time.Since(begin); took > soon {
		t.Errorf("Create took %s to stop", took)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	start(t, newSource(t, config(db.DSN)), db.Name, newIntake(t))
}
