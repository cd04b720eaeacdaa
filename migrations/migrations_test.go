package migrations_test

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Closing(m)) }

//go:embed testdata/library_schema.sql
var librarySchema string

// onEach runs a test on each version of PostgreSQL.
func onEach(t *testing.T, test func(t *testing.T, version string)) {
	for _, version := range pgtest.Versions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			test(t, version)
		})
	}
}

func exec(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func value[T any](t testing.TB, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// catalog describes all that a migration could change: tables with their options, columns,
// constraints, indexes.
func catalog(t testing.TB, conn *pgx.Conn) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), `
		SELECT format('table %s %s', relname, reloptions) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
		UNION ALL SELECT format('column %s %s %s %s %s default %s', attrelid::regclass, attnum, attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid))
			FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
			WHERE attnum > 0 AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p'))
		UNION ALL SELECT format('constraint %s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
		UNION ALL SELECT format('index %s valid %s', indexdef, indisvalid) FROM pg_indexes JOIN pg_index ON indexrelid = format('%I.%I', schemaname, indexname)::regclass
			WHERE schemaname = 'public'
		ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// ofLibrary leaves out our own tables.
func ofLibrary(lines []string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(s string) bool {
		return strings.Contains(s, "saga_outbox_relay") || strings.Contains(s, "saga_outbox_set") || strings.Contains(s, "saga_outbox_migrations") || strings.Contains(s, "saga_outbox_delivery")
	})
}

func same(t testing.TB, what string, got, want []string) {
	t.Helper()
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("%s: new: %s", what, line)
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("%s: gone: %s", what, line)
		}
	}
}

func run(t testing.TB, conn *pgx.Conn) []migrations.Migration {
	t.Helper()
	applied, err := migrations.Run(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return applied
}

func tune(t testing.TB, conn *pgx.Conn) []string {
	t.Helper()
	did, err := migrations.Tune(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return did
}

// insert adds rows, and returns their ids.
func insert(t testing.TB, conn *pgx.Conn, rows int) []string {
	t.Helper()
	return value[[]string](t, conn, `WITH new AS (
		INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 's' || i, 'a' || i, 'Tested', jsonb_build_object('n', i, 'text', repeat('x', 200)) FROM generate_series(1, $1) i RETURNING event_id)
		SELECT array_agg(event_id::text) FROM new`, rows)
}

// mark sets rows to sent and returns the share of the updates that were HOT.
func mark(t testing.TB, conn *pgx.Conn, ids []string) float64 {
	t.Helper()
	// This view counts what the session has not reported yet, which may be more than the
	// transaction.
	const counts = `SELECT ARRAY[n_tup_hot_upd, n_tup_upd] FROM pg_stat_xact_user_tables WHERE relid = 'saga_outbox'::regclass`
	var before, after []int64
	err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		if err := tx.QueryRow(t.Context(), counts).Scan(&before); err != nil {
			return err
		}
		tag, err := tx.Exec(t.Context(), `UPDATE saga_outbox SET status = 'sent', sent_at = now() WHERE event_id = ANY($1::text[]::uuid[])`, ids)
		if err != nil {
			return err
		}
		if got := tag.RowsAffected(); got != int64(len(ids)) {
			return fmt.Errorf("marked %d rows of %d", got, len(ids))
		}
		return tx.QueryRow(t.Context(), counts).Scan(&after)
	})
	if err != nil {
		t.Fatal(err)
	}
	return float64(after[0]-before[0]) / float64(after[1]-before[1])
}

func TestRunOnEmptyDatabase(t *testing.T) {
	onEach(t, func(t *testing.T, version string) {
		conn := pgtest.NewVersion(t, version).Conn(t)
		if got, want := len(run(t, conn)), len(migrations.All()); got != want {
			t.Errorf("applied %d, want %d", got, want)
		}
		first := catalog(t, conn)
		for _, table := range []string{"saga_outbox", "saga_outbox_archive", "consumer_inbox", "saga_outbox_relay", "saga_outbox_set", "saga_outbox_migrations", "saga_outbox_delivery"} {
			if !value[bool](t, conn, `SELECT to_regclass($1) IS NOT NULL`, table) {
				t.Errorf("no table %s", table)
			}
		}
		if again := run(t, conn); len(again) != 0 {
			t.Errorf("the second run applied %d", len(again))
		}
		same(t, "second run", catalog(t, conn), first)
		if got := value[int](t, conn, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); got != 0 {
			t.Errorf("%d advisory locks are still held", got)
		}
		if did := tune(t, conn); len(did) != 0 {
			t.Errorf("there is something to tune in what we made: %q", did)
		}
		brin := "index CREATE INDEX saga_outbox_status ON public.saga_outbox USING brin (status) WITH (pages_per_range='64', autosummarize='on') valid t"
		if got := slices.Contains(first, brin); got != (version >= "16") {
			t.Errorf("an index that finds what is not sent: %t", got)
		}
		ids := insert(t, conn, 1000)
		if share := mark(t, conn, ids); share < 0.95 {
			t.Errorf("%.2f of the marks are HOT, want nearly all", share)
		}

		// An application starts.
		exec(t, conn, librarySchema)
		same(t, "the library's schema after ours", catalog(t, conn), first)
	})
}

// What we make differs from what the library makes in two indexes and a fill factor, and in nothing
// else that it would notice.
func TestRunMakesTheLibrarysTables(t *testing.T) {
	onEach(t, func(t *testing.T, version string) {
		ours, theirs := pgtest.NewVersion(t, version, pgtest.Migrated()).Conn(t), pgtest.NewVersion(t, version, pgtest.SQL(librarySchema)).Conn(t)
		differs := func(line string) bool {
			return strings.HasPrefix(line, "table saga_outbox ") || strings.HasPrefix(line, "table saga_outbox_archive ") ||
				strings.Contains(line, "(created_at)") || strings.Contains(line, "(claimed_at)") || strings.Contains(line, "saga_outbox_status")
		}
		same(t, "our tables against the library's",
			slices.DeleteFunc(ofLibrary(catalog(t, ours)), differs), slices.DeleteFunc(catalog(t, theirs), differs))
	})
}

func TestRunSixAtOnce(t *testing.T) {
	onEach(t, func(t *testing.T, version string) {
		db := pgtest.NewVersion(t, version)
		var (
			all sync.WaitGroup
			mu  sync.Mutex
			by  = map[int]int{}
		)
		for range 6 {
			conn := db.Conn(t)
			all.Go(func() {
				applied, err := migrations.Run(t.Context(), conn)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				for _, m := range applied {
					by[m.Version]++
				}
			})
		}
		all.Wait()
		for _, m := range migrations.All() {
			if by[m.Version] != 1 {
				t.Errorf("migration %d was applied %d times", m.Version, by[m.Version])
			}
		}
	})
}

func TestRunThatFailsLeavesNothing(t *testing.T) {
	// A type has the name of a table's row type: that table cannot be made.
	db := pgtest.New(t, pgtest.SQL(`CREATE DOMAIN saga_outbox_relay AS int`))
	conn := db.Conn(t)
	applied, err := migrations.Run(t.Context(), conn)
	if err == nil {
		t.Fatal("no error")
	}
	if len(applied) != 1 || !strings.Contains(err.Error(), "0002_saga_outbox_relay") {
		t.Errorf("got %d applied and %q, want the first applied and the second named", len(applied), err)
	}
	exec(t, conn, `DROP DOMAIN saga_outbox_relay`)
	if again := run(t, conn); len(again) != len(migrations.All())-1 || again[0].Version != 2 {
		t.Errorf("after the obstacle was gone, got %v applied", again)
	}
}

func TestRunWithTheLibrary(t *testing.T) {
	onEach(t, func(t *testing.T, version string) {
		conn := pgtest.NewVersion(t, version, pgtest.SQL(librarySchema)).Conn(t)
		insert(t, conn, 10)
		before := catalog(t, conn)
		run(t, conn)
		same(t, "the library's tables", ofLibrary(catalog(t, conn)), before)
		if got := value[int](t, conn, `SELECT count(*) FROM saga_outbox WHERE status = 'pending'`); got != 10 {
			t.Errorf("%d rows, want 10", got)
		}
	})
}

// checkRows makes sure that Tune has lost no row.
func checkRows(t testing.TB, conn *pgx.Conn, want int) {
	t.Helper()
	exec(t, conn, `SET enable_seqscan = off`)
	if got := value[int](t, conn, `SELECT count(*) FROM saga_outbox WHERE created_at > '2000-01-01'`); got != want {
		t.Errorf("%d rows by the index on created_at, want %d", got, want)
	}
	exec(t, conn, `RESET enable_seqscan`)
	if got := value[int](t, conn, `SELECT count(*) FROM saga_outbox`); got != want {
		t.Errorf("%d rows, want %d", got, want)
	}
}

func TestTune(t *testing.T) {
	onEach(t, func(t *testing.T, version string) {
		db := pgtest.NewVersion(t, version, pgtest.SQL(librarySchema), pgtest.Migrated())
		conn := db.Conn(t)
		if share := mark(t, conn, insert(t, conn, 500)); share != 0 {
			t.Errorf("%.2f of the marks were HOT with the library's indexes: this test no longer shows what Tune is for", share)
		}
		wantDid, brin := 3, ""
		if version >= "16" {
			wantDid, brin = 4, "index CREATE INDEX saga_outbox_status ON public.saga_outbox USING brin (status) WITH (pages_per_range='64', autosummarize='on') valid t"
		}
		if did := tune(t, conn); len(did) != wantDid {
			t.Errorf("got %q, want %d things: indexes and a fill factor", did, wantDid)
		}
		tuned := catalog(t, conn)
		for _, want := range []string{
			"index CREATE INDEX idx_outbox_pending ON public.saga_outbox USING btree (created_at) valid t",
			"index CREATE INDEX idx_outbox_claimed_at ON public.saga_outbox USING btree (claimed_at) WHERE (claimed_at IS NOT NULL) valid t",
			"index CREATE INDEX idx_outbox_saga_id ON public.saga_outbox USING btree (saga_id) valid t",
			"table saga_outbox {fillfactor=50}", brin,
		} {
			if want != "" && !slices.Contains(tuned, want) {
				t.Errorf("after Tune there is no %s in\n%s", want, strings.Join(tuned, "\n"))
			}
		}
		if share := mark(t, conn, insert(t, conn, 1000)); share < 0.95 {
			t.Errorf("%.2f of the marks are HOT after Tune, want nearly all", share)
		}
		if did := tune(t, conn); len(did) != 0 {
			t.Errorf("the second Tune did %q", did)
		}
		exec(t, conn, librarySchema)
		if again := run(t, conn); len(again) != 0 {
			t.Errorf("migrations after Tune: %v", again)
		}
		same(t, "second Tune and the library's start", catalog(t, conn), tuned)
		checkRows(t, conn, 1500)
	})
}

// A fill factor that somebody has set is kept.
func TestTuneKeepsFillfactor(t *testing.T) {
	conn := pgtest.New(t, pgtest.SQL(librarySchema), pgtest.SQL(`ALTER TABLE saga_outbox SET (fillfactor = 80)`)).Conn(t)
	if did := tune(t, conn); len(did) == 0 || strings.Contains(strings.Join(did, " "), "filled") {
		t.Errorf("got %q, want indexes only", did)
	}
	if got := value[string](t, conn, `SELECT reloptions::text FROM pg_class WHERE relname = 'saga_outbox'`); got != "{fillfactor=80}" {
		t.Errorf("options %s", got)
	}
}

// CREATE INDEX CONCURRENTLY waits for the writers that are under way. Interrupted then, it leaves
// an index that is not valid.
func TestTuneInterrupted(t *testing.T) {
	onEach(t, func(t *testing.T, version string) {
		db := pgtest.NewVersion(t, version, pgtest.SQL(librarySchema))
		conn := db.Conn(t)
		insert(t, conn, 100)
		writer, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		insert(t, writer.Conn(), 1)

		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		interrupted := db.Conn(t)
		pid := interrupted.PgConn().PID()
		go func() {
			_, err := migrations.Tune(ctx, interrupted)
			ended <- err
		}()
		db.Until(t, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock' AND query LIKE 'CREATE INDEX CONCURRENTLY%')`, pid)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatalf("interrupted Tune: %v", err)
		}
		db.Until(t, `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`, pid)
		if value[bool](t, writer.Conn(), `SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_outbox_pending_tuned'::regclass`) {
			t.Error("the interrupt has left a valid index; this test wants one that is not")
		}
		if got := value[string](t, writer.Conn(), `SELECT pg_get_indexdef('idx_outbox_pending'::regclass)`); !strings.Contains(got, "WHERE ((status)::text = 'pending'::text)") {
			t.Errorf("the index that was to be replaced is now %s", got)
		}
		if err := writer.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}

		// An interrupt between the creation and the renaming leaves one that is.
		exec(t, conn, `CREATE INDEX idx_outbox_claimed_at_tuned ON saga_outbox (claimed_at)`)
		tune(t, conn)
		for _, line := range catalog(t, conn) {
			if strings.Contains(line, "_tuned") || strings.Contains(line, "valid f") {
				t.Errorf("left over: %s", line)
			}
		}
		if share := mark(t, conn, insert(t, conn, 1000)); share < 0.95 {
			t.Errorf("%.2f of the marks are HOT, want nearly all", share)
		}
		checkRows(t, conn, 1101)
	})
}
