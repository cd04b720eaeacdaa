package store

import (
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// wantSetup fails unless err is a *relay.SetupError whose text has all the words.
func wantSetup(t testing.TB, err error, words ...string) {
	t.Helper()
	var setup *relay.SetupError
	if !errors.As(err, &setup) {
		t.Errorf("got %v, want a *relay.SetupError", err)
		return
	}
	if setup.Fix == "" {
		t.Errorf("%q does not say what to do", err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
}

func TestCheck(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for _, mode := range []string{MarkUpdate, MarkDelete, MarkArchive} {
			if err := newStore(t, withMark(db, mode), nil).Check(t.Context()); err != nil {
				t.Errorf("%s: %v", mode, err)
			}
		}
		for _, tt := range []struct {
			name, mode, sql string
			want            []string
		}{
			{"NoRelayTable", MarkUpdate, `ALTER TABLE saga_outbox_relay RENAME TO gone`, []string{"saga_outbox_relay", "sagaz-relay migrate"}},
			{"NoLedger", MarkUpdate, `ALTER TABLE saga_outbox_delivery RENAME TO gone`, []string{"saga_outbox_delivery", "sagaz-relay migrate"}},
			{"NoReason", MarkUpdate, `ALTER TABLE saga_outbox_delivery RENAME COLUMN reason TO gone`, []string{"reason", "sagaz-relay migrate"}},
			{"NoOutboxTable", MarkUpdate, `ALTER TABLE saga_outbox RENAME TO gone`, []string{"saga_outbox", "sagaz-relay migrate"}},
			{"NoArchiveTable", MarkArchive, `ALTER TABLE saga_outbox_archive RENAME TO gone`, []string{"saga_outbox_archive", "sagaz-relay migrate"}},
			{"NoColumn", MarkUpdate, `ALTER TABLE saga_outbox RENAME COLUMN last_error TO gone`, []string{"last_error", "restore"}},
			{"NoEpoch", MarkUpdate, `ALTER TABLE saga_outbox_relay RENAME COLUMN epoch TO gone`, []string{"epoch", "sagaz-relay migrate"}},
			{"ColumnNotInArchive", MarkArchive, `ALTER TABLE saga_outbox ADD COLUMN tenant text`, []string{"saga_outbox_archive", "ADD COLUMN"}},
			{"ColumnOfAnotherTypeInArchive", MarkArchive, `ALTER TABLE saga_outbox_archive ALTER COLUMN retry_count DROP DEFAULT, ALTER COLUMN retry_count TYPE uuid USING NULL`, []string{"saga_outbox_archive", "retry_count"}},
			{"ArchiveComputesAColumn", MarkArchive, `ALTER TABLE saga_outbox ADD COLUMN n int GENERATED ALWAYS AS (1) STORED; ALTER TABLE saga_outbox_archive ADD COLUMN n int GENERATED ALWAYS AS (1) STORED`, []string{"saga_outbox_archive", "DROP EXPRESSION"}},
			{"View", MarkUpdate, `ALTER TABLE saga_outbox RENAME TO real_outbox; CREATE VIEW saga_outbox AS SELECT * FROM real_outbox`, []string{"saga_outbox is no table"}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				db := pgtest.NewVersion(t, db.Version, pgtest.Migrated(), pgtest.SQL(tt.sql))
				s := newStore(t, withMark(db, tt.mode), nil)
				wantSetup(t, s.Check(t.Context()), tt.want...)
				if tt.name == "NoRelayTable" {
					_, err := s.Acquire(t.Context(), relay.Alone("outbox", ""))
					wantSetup(t, err, tt.want...)
				}
			})
		}
	})
}

// A role that owns nothing works with the rights that the error has for it, and with nothing less.
func TestCheckRights(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for _, mode := range []string{MarkUpdate, MarkDelete, MarkArchive} {
			role, password, dsn := db.Role(t, "")
			cfg := withMark(db, mode)
			cfg.DatabaseURL = dsn
			s := newStore(t, cfg, nil)
			err := s.Check(t.Context())
			wantSetup(t, err, role, "saga_outbox", "saga_outbox_relay", "GRANT SELECT, UPDATE")
			var setup *relay.SetupError
			if !errors.As(err, &setup) {
				t.FailNow()
			}
			if strings.Contains(err.Error(), password) {
				t.Error("the error holds the password")
			}
			_, err = s.Acquire(t.Context(), relay.Alone("outbox", ""))
			wantSetup(t, err, "saga_outbox_relay", "GRANT")

			exec(t, db, setup.Fix)
			if err := s.Check(t.Context()); err != nil {
				t.Errorf("%s: after %s: %v", mode, setup.Fix, err)
			}
			l := acquire(t, s, "outbox")
			marks := marksOf(insert(t, db, 1, 2))
			refuse(&marks[1], "no route")
			mark(t, l, marks)
			if got := settled(t, l, []relay.Event{{ID: id(1)}, {ID: id(2)}}); !got[0] || !got[1] {
				t.Errorf("%s: settled %v", mode, got)
			}
			if err := l.Release(t.Context(), true); err != nil {
				t.Errorf("%s: %v", mode, err)
			}
			exec(t, db, `TRUNCATE saga_outbox, saga_outbox_archive, saga_outbox_delivery`)

			for _, one := range strings.Split(strings.TrimSuffix(setup.Fix, ";"), ";") {
				if strings.Contains(one, "archive") && mode != MarkArchive {
					continue
				}
				for _, right := range []string{"SELECT", "INSERT", "UPDATE", "DELETE"} {
					if !strings.Contains(one, right) || right == "DELETE" && mode == MarkUpdate {
						continue
					}
					table := strings.Fields(one[strings.Index(one, " ON "):])[1]
					exec(t, db, `REVOKE `+right+` ON `+table+` FROM `+role)
					wantSetup(t, s.Check(t.Context()), role, right, table)
					exec(t, db, one)
				}
			}
		}
	})
}

// secret is in every DSN of TestNoPassword; neither it nor a part of it may be logged.
const secret = "s3cr%ETword"

func TestNoPassword(t *testing.T) {
	db := pgtest.New(t)
	u, err := url.Parse(db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	closed.Close()
	with := func(change func(*url.URL)) string {
		v := *u
		v.User = url.UserPassword("postgres", secret)
		change(&v)
		return v.String()
	}
	for _, tt := range []struct {
		name, dsn string
		setup     bool // a person must act
		want      string
	}{
		{"WrongPassword", with(func(*url.URL) {}), true, "password"},
		{"UnknownRole", with(func(v *url.URL) { v.User = url.UserPassword("nobody_here", secret) }), true, "nobody_here"},
		{"NobodyListens", with(func(v *url.URL) { v.Host = nobody }), false, nobody},
		{"NoSuchHost", with(func(v *url.URL) { v.Host = "no-such-host.invalid:5432" }), false, "no-such-host.invalid"},
		{"UnknownDatabase", strings.Replace(db.DSN, "/"+db.Name, "/no_such_database", 1), true, "no_such_database"},
		{"BadEscape", "postgres://postgres:" + secret + "@" + u.Host + "/x", true, "DATABASE_URL"},
		{"SlashInPassword", "postgres://postgres:s3cr/ETword@" + u.Host + "/x", true, "DATABASE_URL"},
		{"BadPort", "postgres://postgres:s3crETword@host:port/x", true, "DATABASE_URL"},
		{"BadSSLMode", with(func(v *url.URL) { v.RawQuery = "sslmode=maybe" }), true, "DATABASE_URL"},
		{"KeywordsCutShort", "host=x password='s3cr ETword", true, "DATABASE_URL"},
		{"KeywordsWithoutQuotes", "host=x password=s3cr ETword", true, "DATABASE_URL"},
		{"NoURL", "s3crETword", true, "DATABASE_URL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(db)
			cfg.DatabaseURL = tt.dsn
			s, err := New(cfg, hclog.NewNullLogger())
			if err == nil {
				err = s.Check(t.Context())
				var setup *relay.SetupError
				if got := errors.As(err, &setup); got != tt.setup {
					t.Errorf("a person has to act: got %t, want %t: %v", got, tt.setup, err)
				}
			}
			if err == nil {
				t.Fatal("no error")
			}
			password, _ := u.User.Password()
			for _, part := range []string{"s3cr", "ETword", "%ET", password} {
				if strings.Contains(err.Error(), part) {
					t.Errorf("%q holds %q of the password", err, part)
				}
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%q does not name %s", err, tt.want)
			}
		})
	}
}

func TestReadOverview(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		conn := db.Conn(t)
		slot := db.Name
		read := func(rows bool) *Overview {
			t.Helper()
			o, err := ReadOverview(t.Context(), conn, rows)
			if err != nil {
				t.Fatal(err)
			}
			return o
		}
		if o := read(true); len(o.Slots) != 0 || len(o.Rows) != 0 {
			t.Errorf("of nothing: %+v", o)
		}
		l := acquire(t, newStore(t, testConfig(db), nil), slot)
		if o := read(false); len(o.Slots) != 1 || o.Slots[0].Owner != "relay-1" || o.Slots[0].BehindBytes != nil || o.Slots[0].WALStatus != "" {
			t.Errorf("without a slot: %+v", o)
		}
		exec(t, db, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
		events := insert(t, db, 1, 7)
		mark(t, l, marksOf(events[:5]))
		o := read(true)
		got := o.Slots[0]
		if got.Slot != slot || got.Owner != "relay-1" || got.Epoch != 1 || got.MarkedLSN != events[0].CommitLSN.String() || got.Active || got.WALStatus != "reserved" {
			t.Errorf("slot: %+v", got)
		}
		if got.BehindBytes == nil || *got.BehindBytes <= 0 || got.RetainedBytes == nil || *got.RetainedBytes < *got.BehindBytes {
			t.Errorf("slot's bytes: %+v", got)
		}
		if len(o.Rows) != 2 || o.Rows[0].Status != "pending" || o.Rows[0].Rows != 2 || o.Rows[1].Status != "sent" || o.Rows[1].Rows != 5 || o.Rows[0].Oldest == "" {
			t.Errorf("rows: %+v", o.Rows)
		}
		mark(t, l, parking(marksOf(events[5:]), refusal("kafka", "no")))
		if o := read(false); len(o.Ledger) != 1 || o.Ledger[0].Slot != slot || o.Ledger[0].Sink != "kafka" || o.Ledger[0].State != "retry" || o.Ledger[0].Reason != "rejected" || o.Ledger[0].Entries != 2 || o.Ledger[0].Oldest == "" {
			t.Errorf("ledger: %+v", o.Ledger)
		}
		exec(t, db, `INSERT INTO saga_outbox_delivery SELECT (e).* FROM (SELECT jsonb_populate_record(d, '{"sink": "saga_outbox", "state": "retry", "reason": "unmarked"}') AS e
			FROM saga_outbox_delivery d LIMIT 1) d`)
		if o := read(false); len(o.Ledger) != 2 || o.Ledger[1].Sink != relay.MarkSink || o.Ledger[1].State != "unmarked" {
			t.Errorf("a row that does not take its mark: %+v", o.Ledger)
		}
		info, err := l.Slot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !info.Exists || info.Active || info.WALStatus != "reserved" || info.WALEnd <= info.ConfirmedFlush || info.Restart > info.ConfirmedFlush || info.Restart == 0 || info.KeepSize != 0 {
			t.Errorf("slot: %+v", info)
		}
		release(t, l)
		if o := read(false); o.Slots[0].Owner != "" {
			t.Errorf("after the release the owner is %q", o.Slots[0].Owner)
		}
		exec(t, db, `DROP TABLE saga_outbox_relay`)
		_, err = ReadOverview(t.Context(), conn, true)
		wantSetup(t, err, "saga_outbox_relay", "sagaz-relay migrate")
	})
}

// An owner hears which sinks the one before had; a zombie's note is refused.
func TestNoteSinks(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for _, s := range []*Store{newStore(t, testConfig(db), nil), behindPooler(t, db, nil)} {
			exec(t, db, `DELETE FROM saga_outbox_relay`)
			note := func(l *lease, want string, sinks ...string) {
				t.Helper()
				before, err := l.NoteSinks(t.Context(), sinks)
				if err != nil || strings.Join(before, " ") != want {
					t.Errorf("got %q, %v; want %q", before, err, want)
				}
			}
			l := acquire(t, s, "outbox")
			note(l, "", "kafka", "rabbitmq")
			note(l, "kafka rabbitmq", "kafka", "rabbitmq")
			release(t, l)
			l = acquire(t, s, "outbox")
			note(l, "kafka rabbitmq", "file")
			exec(t, db, `UPDATE saga_outbox_relay SET epoch = epoch + 1`)
			if _, err := l.NoteSinks(t.Context(), []string{"stdout"}); !errors.Is(err, relay.ErrFenced) {
				t.Errorf("a zombie: got %v, want ErrFenced", err)
			}
			if got := value[string](t, db.Pool, `SELECT sinks FROM saga_outbox_relay`); got != "file" {
				t.Errorf("the table has %q", got)
			}
			release(t, l)
		}
	})
}
