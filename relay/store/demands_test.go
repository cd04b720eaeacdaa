package store

import (
	"net/url"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// Row level security on any of the tables, for a role that is not their owner, is reported by the
// start. No statement takes a row that is hidden for one that is gone.
func TestRowSecurity(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		role, _, dsn := db.Role(t, "")
		exec(t, db, Grants(role))
		cfg := testConfig(db)
		cfg.DatabaseURL = dsn
		s := newStore(t, cfg, nil)
		for _, n := range Needs(MarkArchive, true, true) {
			exec(t, db, `ALTER TABLE `+n.Table+` ENABLE ROW LEVEL SECURITY`)
			wantSetup(t, s.Check(t.Context()), "row level security hides rows of "+n.Table, role, "BYPASSRLS")
			exec(t, db, `ALTER TABLE `+n.Table+` DISABLE ROW LEVEL SECURITY`)
		}
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}

		// Switched on while the relay runs.
		l := acquire(t, s, "outbox")
		events := insert(t, db, 1, 3)
		exec(t, db, `ALTER TABLE saga_outbox ENABLE ROW LEVEL SECURITY`)
		marks := marksOf(events)
		refuse(&marks[1], "no route")
		if later, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marks}); err == nil {
			t.Errorf("marked, but for %v, rows that are hidden", later)
		}
		if settled, err := l.Settled(t.Context(), events); err == nil {
			t.Errorf("settled %v, rows that are hidden", settled)
		}
		exec(t, db, `ALTER ROLE `+role+` BYPASSRLS`)
		mark(t, l, marks)
		if got, want := counts(t, db), "1 failed, 2 sent"; got != want {
			t.Errorf("after the fix %s, want %s", got, want)
		}
	})
}

// What role, database and connection string set for sessions does not count in ours.
func TestSettingsOfRoleAndDatabase(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		role, _, dsn := db.Role(t, "")
		exec(t, db, Grants(role))
		for _, setting := range []string{
			"default_transaction_read_only = on", "default_transaction_isolation = serializable", "client_encoding = LATIN1", "statement_timeout = 1", "lock_timeout = 1",
			"idle_in_transaction_session_timeout = 1", "datestyle = 'SQL, DMY'", "intervalstyle = sql_standard", "timezone = 'Asia/Kathmandu'", "bytea_output = escape",
			"standard_conforming_strings = off", "extra_float_digits = -15", "quote_all_identifiers = on", "row_security = on",
		} {
			exec(t, db, `ALTER ROLE `+role+` SET `+setting)
			name, of, _ := strings.Cut(setting, " = ")
			exec(t, db, `ALTER DATABASE "`+db.Name+`" SET `+name+` = `+of)
		}
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal("the DSN is no URL")
		}
		q := u.Query()
		q.Set("default_transaction_read_only", "on")
		q.Set("TimeZone", "Asia/Kathmandu")
		q.Set("options", "-c statement_timeout=1 -c client_encoding=LATIN1")
		q.Set("keepalives_idle", "30")
		q.Set("pgbouncer", "true")
		u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
		cfg := testConfig(db)
		cfg.DatabaseURL = u.String()
		s := newStore(t, cfg, nil)
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		conn, err := s.connect(t.Context(), "test")
		if err != nil {
			t.Fatal(err)
		}
		defer closeConn(conn)
		const want = "off, read committed, UTF8, 0, 0, 0, ISO, postgres, UTC, hex, on, 1, off, off"
		got := value[string](t, conn, `SELECT concat_ws(', ', current_setting('transaction_read_only'), current_setting('transaction_isolation'), current_setting('client_encoding'),
			current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout'), split_part(current_setting('datestyle'), ',', 1),
			current_setting('intervalstyle'), current_setting('timezone'), current_setting('bytea_output'), current_setting('standard_conforming_strings'), current_setting('extra_float_digits'),
			current_setting('quote_all_identifiers'), current_setting('row_security'))`)
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		exec(t, db, `ALTER DATABASE "`+db.Name+`" RESET ALL`)
		mark(t, acquire(t, s, "outbox"), marksOf(insert(t, db, 1, 3)))
	})
}

// How pgx is to send statements may be part of DATABASE_URL; marks need the way that they are
// written for.
func TestQueryModesOfTheAddress(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	for _, way := range []string{
		"default_query_exec_mode=exec", "default_query_exec_mode=simple_protocol", "default_query_exec_mode=describe_exec", "default_query_exec_mode=cache_describe",
		"statement_cache_capacity=0", "default_query_exec_mode=cache_describe&description_cache_capacity=0",
	} {
		cfg := testConfig(db)
		cfg.Owner = "relay " + way
		u, err := url.Parse(cfg.DatabaseURL)
		if err != nil {
			t.Fatal("the DSN is no URL")
		}
		u.RawQuery = strings.TrimPrefix(u.RawQuery+"&"+way, "&")
		cfg.DatabaseURL = u.String()
		s := newStore(t, cfg, nil)
		l := acquire(t, s, "outbox")
		mark(t, l, marksOf(insert(t, db, 1, 3)))
		if got := counts(t, db); got != "3 sent" {
			t.Errorf("%s: %s", way, got)
		}
		if n, err := l.Prune(t.Context(), 0, false, 100); err != nil || n != 3 {
			t.Errorf("%s: pruned %d, %v", way, n, err)
		}
		release(t, l)
	}
}

// Rows are archived whole with an identity column; with a computed one once the archive does not
// compute it itself.
func TestArchiveOfIdentityAndComputedColumns(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		exec(t, db, `ALTER TABLE saga_outbox ADD COLUMN seq bigint GENERATED ALWAYS AS IDENTITY, ADD COLUMN kind text GENERATED ALWAYS AS (lower(event_type)) STORED`)
		exec(t, db, `ALTER TABLE saga_outbox_archive ADD COLUMN seq bigint GENERATED ALWAYS AS IDENTITY, ADD COLUMN kind text GENERATED ALWAYS AS ('other') STORED`)
		s := newStore(t, withMark(db, MarkArchive), nil)
		wantSetup(t, s.Check(t.Context()), "saga_outbox_archive computes a column", "kind", "DROP EXPRESSION")
		exec(t, db, `ALTER TABLE saga_outbox_archive ALTER COLUMN kind DROP EXPRESSION`)
		s.Prunes(true)
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		exec(t, db, `SELECT nextval(pg_get_serial_sequence('saga_outbox', 'seq')) FROM generate_series(1, 40)`)
		mark(t, acquire(t, s, "outbox"), marksOf(insert(t, db, 1, 3)))
		if got, want := value[string](t, db.Pool, `SELECT string_agg(seq || kind || status, ' ' ORDER BY seq) FROM saga_outbox_archive`), "41testedsent 42testedsent 43testedsent"; got != want {
			t.Errorf("archived %s, want %s", got, want)
		}
	})
}
