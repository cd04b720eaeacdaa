// Package pgtest gives a test a PostgreSQL database of its own, on a real server.
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
//	func TestMarks(t *testing.T) {
//		t.Parallel()
//		db := pgtest.New(t, pgtest.Migrated())           // db.Pool, db.Conn(t), db.DSN
//
// The server is shared, the database is not: it is dropped when the test ends, with its replication
// slots. Under `make test` the servers are those in SAGAZ_TEST_POSTGRES_18, SAGAZ_TEST_POSTGRES_14
// and so on (superuser DSNs, as URLs). Where a variable is missing, as when one package is tested
// by hand, the first test that asks starts a server with internal/testbed/pgserver, and Main stops
// it.
//
// New takes the version in SAGAZ_TEST_PG_VERSION, or Newest. A test that must pass on several goes
// over Versions(), which is SAGAZ_TEST_PG_VERSIONS, or 14 and 18. A test that stops or crashes the
// server, or changes its settings, uses OwnServer.
package pgtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sagaz-relay/relay/internal/testbed/pgserver"
	"github.com/sagaz-relay/relay/migrations"
)

const startTimeout = 5 * time.Minute // with a download

// M is what a *testing.M can do.
type M interface{ Run() int }

// Main runs the tests and stops the servers that were started for them. Every package that uses
// pgtest has
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
func Main(m M) { os.Exit(Closing(m).Run()) }

// Closing is Main for a TestMain that has more to do: it wraps m so that Run stops the servers,
// too. To look for leaked goroutines after that: goleak.VerifyTestMain(pgtest.Closing(m)).
func Closing(m M) M { return closing{m} }

type closing struct{ m M }

func (c closing) Run() int {
	defer func() {
		started.Lock()
		defer started.Unlock()
		for _, s := range started.servers {
			if s.server != nil {
				s.server.Close()
			}
		}
		started.servers = nil
	}()
	return c.m.Run()
}

// started are the servers that this process started on demand, by major version.
var started struct {
	sync.Mutex
	servers map[string]*startedServer
}

type startedServer struct {
	once   sync.Once // a start that did not work is not tried again by every test
	server *pgserver.Server
	err    error
}

// Fast are settings for servers with data of no value: they survive a crash of PostgreSQL, not one
// of the machine. There is room for the slots of many tests at once.
func Fast() map[string]string {
	return map[string]string{
		"fsync": "off",
		// as in production: a commit waits for its own WAL to be written
		"synchronous_commit":    "on",
		"full_page_writes":      "off",
		"max_replication_slots": "100",
		"max_wal_senders":       "100",
		"max_connections":       "300",
	}
}

// Newest is for a test of what older versions lack.
const Newest = pgserver.DefaultVersion

// Version is the one that New uses.
func Version() string { return cmp.Or(os.Getenv("SAGAZ_TEST_PG_VERSION"), pgserver.DefaultVersion) }

// Versions are those that a test must pass on.
func Versions() []string {
	return strings.FieldsFunc(cmp.Or(os.Getenv("SAGAZ_TEST_PG_VERSIONS"), "14,18"), func(r rune) bool { return r == ',' || r == ' ' })
}

// Server returns the superuser DSN of the shared server of a major version. Its settings are not
// for a test to change.
func Server(t testing.TB, version string) string {
	t.Helper()
	if dsn := os.Getenv("SAGAZ_TEST_POSTGRES_" + version); dsn != "" {
		return dsn
	}
	started.Lock()
	if started.servers == nil {
		started.servers = make(map[string]*startedServer)
	}
	if started.servers[version] == nil {
		started.servers[version] = &startedServer{}
	}
	s := started.servers[version]
	started.Unlock()
	s.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		s.server, s.err = pgserver.Start(ctx, pgserver.Options{Version: version, Settings: Fast(), Log: os.Stderr})
	})
	if s.err != nil {
		t.Fatalf("%v\n(SAGAZ_TEST_POSTGRES_%s=postgres://… uses a server that runs already)", s.err, version)
	}
	return s.server.DSN("postgres")
}

// OwnServer starts a server for one test, to stop, crash and restart. settings are added to Fast,
// or override it. When the test fails, the end of the server's log is shown.
func OwnServer(t testing.TB, version string, settings map[string]string) *pgserver.Server {
	t.Helper()
	all := Fast()
	for name, value := range settings {
		all[name] = value
	}
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	s, err := pgserver.Start(ctx, pgserver.Options{Version: version, Settings: all})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of PostgreSQL %s ends with\n%s", version, s.LogTail(40))
		}
		if err := s.Close(); err != nil {
			t.Errorf("close PostgreSQL: %v", err)
		}
	})
	return s
}

// DB is a test's own database.
type DB struct {
	Name    string
	DSN     string // as the superuser
	Version string // major version of the server, as asked for; "" for NewAt
	Pool    *pgxpool.Pool
}

// Option changes what New does to a new database.
type Option func(*options)

type options struct {
	prepare  []func(context.Context, *pgx.Conn) error
	encoding string
	migrated bool // before all else
}

// Encoding makes the database in another encoding than UTF8, with locale C, which goes with each.
func Encoding(name string) Option {
	return func(o *options) { o.encoding = name }
}

// Prepare has f called on the new database before the test gets it: to migrate it, or to make
// tables.
func Prepare(f func(context.Context, *pgx.Conn) error) Option {
	return func(o *options) { o.prepare = append(o.prepare, f) }
}

// SQL is Prepare for a script of statements.
func SQL(script string) Option {
	return Prepare(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, script)
		return err
	})
}

// Migrated is Prepare with all of our migrations.
func Migrated() Option {
	return func(o *options) {
		if len(o.prepare) == 0 {
			o.migrated = true
			return
		}
		o.prepare = append(o.prepare, migrate)
	}
}

func migrate(ctx context.Context, conn *pgx.Conn) error {
	_, err := migrations.Run(ctx, conn)
	return err
}

// New makes a database on the shared server of Version; without an option it is empty.
func New(t testing.TB, opts ...Option) *DB {
	t.Helper()
	return NewVersion(t, Version(), opts...)
}

// NewVersion is New on a given major version.
func NewVersion(t testing.TB, version string, opts ...Option) *DB {
	t.Helper()
	db := NewAt(t, Server(t, version), opts...)
	db.Version = version
	return db
}

// NewAt is New on any server, given as a superuser DSN: pgtest.NewAt(t, server.DSN("postgres")) for
// an OwnServer.
func NewAt(t testing.TB, superuser string, opts ...Option) *DB {
	t.Helper()
	db := newAt(t, superuser, opts...)
	t.Cleanup(func() {
		db.Pool.Close()
		db.drop(t, superuser)
	})
	return db
}

// newAt makes a database that stays.
func newAt(t testing.TB, superuser string, opts ...Option) *DB {
	t.Helper()
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if o.migrated && o.encoding != "" { // the template has another one
		o.migrated, o.prepare = false, append([]func(context.Context, *pgx.Conn) error{migrate}, o.prepare...)
	}
	db := &DB{Name: databaseName(t.Name())}
	u, err := url.Parse(superuser)
	if err != nil || u.Scheme == "" {
		// it is not shown: it has a password
		t.Fatal("the superuser DSN of the test server is not a URL (postgres://…)")
	}
	u.Path = "/" + db.Name
	db.DSN = u.String()

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := create(ctx, superuser, db.Name, o); err != nil {
		t.Fatalf("create database: %v", err)
	}
	if len(o.prepare) > 0 {
		conn, err := pgx.Connect(ctx, db.DSN)
		if err != nil {
			t.Fatalf("connect to new database: %v", err)
		}
		defer conn.Close(ctx)
		for _, prepare := range o.prepare {
			if err := prepare(ctx, conn); err != nil {
				t.Fatalf("prepare database: %v", err)
			}
		}
	}
	if db.Pool, err = pgxpool.New(ctx, db.DSN); err != nil {
		t.Fatalf("connect to new database: %v", err)
	}
	return db
}

// Conn opens a connection that is closed when the test ends.
func (db *DB) Conn(t testing.TB) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.DSN)
	if err != nil {
		t.Fatalf("connect to %s: %v", db.Name, err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// patience is for what a server does in its own time, on a machine that has much else to do.
const patience = 3 * time.Minute

// Until waits until a query's one boolean is true.
func (db *DB) Until(t testing.TB, sql string, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		var is bool
		err := db.Pool.QueryRow(ctx, sql, args...).Scan(&is)
		if is {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("after %s it is still not true: %s %v (%v)", patience, sql, args, err)
		}
	}
}

// Role makes a role with the given attributes ("REPLICATION", or "" for none), which may log in and
// owns nothing, and returns its name, its password and the DSN that connects as it. It is dropped
// when the test ends.
func (db *DB) Role(t testing.TB, attributes string) (name, password, dsn string) {
	t.Helper()
	name, password = "r_"+strings.ToLower(rand.Text()[:10]), rand.Text()
	if err := admin(t.Context(), db.DSN, fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD '%s' %s`, name, password, attributes)); err != nil {
		t.Fatalf("create role: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := admin(ctx, db.DSN, `REASSIGN OWNED BY `+name+` TO CURRENT_USER`, `DROP OWNED BY `+name, `DROP ROLE `+name); err != nil && !t.Failed() {
			t.Errorf("drop role: %v", err)
		}
	})
	u, err := url.Parse(db.DSN)
	if err != nil {
		t.Fatal("the DSN of the test database is not a URL") // it is not shown: it has a password
	}
	u.User = url.UserPassword(name, password)
	return name, password, u.String()
}

// drop removes the database's slots and origins and then the database. A slot keeps its database
// from being dropped, and a walsender that streams from a slot keeps the slot; so walsenders first.
// A client may reconnect in between, so this is done more than once.
func (db *DB) drop(t testing.TB, superuser string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if conn, err := pgx.Connect(ctx, superuser); err != nil {
		if t.Failed() {
			return // the test has reported what is wrong, maybe with the server down
		}
		t.Errorf("drop database %s: connect: %v (a test with its own server leaves it running)", db.Name, err)
		return
	} else {
		conn.Close(ctx)
	}
	var err error
	for range 50 {
		// A session that has an origin keeps it from being dropped.
		_ = admin(ctx, superuser, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '`+db.Name+`' AND application_name LIKE 'sagaz-relay marks %'`)
		if err = admin(ctx, superuser,
			// The database may refuse all new sessions: only we need it from here on.
			`ALTER DATABASE "`+db.Name+`" ALLOW_CONNECTIONS false`,
			`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = '`+db.Name+`' AND active_pid IS NOT NULL`,
			`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '`+db.Name+`' AND NOT active`,
			`SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin, pg_database WHERE datname = '`+db.Name+`' AND starts_with(roname, 'sagaz_relay_' || pg_database.oid || '_')`,
			`DROP DATABASE "`+db.Name+`" WITH (FORCE)`,
		); err == nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Errorf("drop database %s: %v", db.Name, err)
}

func admin(ctx context.Context, dsn string, statements ...string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// databaseName shows in pg_stat_activity which test it is, and is never the same twice.
func databaseName(test string) string {
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(test), "_"), "_")
	return "t_" + name[:min(len(name), 45)] + "_" + strings.ToLower(rand.Text()[:8])
}
