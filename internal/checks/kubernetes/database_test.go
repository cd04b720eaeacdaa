package kubernetes

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgserver"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(brokertest.Closing(m)) }

// database is a PostgreSQL of the version and with the settings of the StatefulSet, and its
// scripts.
type database struct {
	*pgserver.Server
	scripts string // directory
	secrets string // directory: what the pod has mounted
}

// newDatabase starts the server; args of the StatefulSet that PostgreSQL does not take turn every
// test here red.
func newDatabase(t *testing.T, more map[string]string) *database {
	t.Helper()
	all := file(t, "postgresql.yaml")
	image := find[*appsv1.StatefulSet](t, all, "postgresql").Spec.Template.Spec.Containers[0].Image
	_, version, _ := strings.Cut(image, ":")
	return newDatabaseOf(t, version, more)
}

func newDatabaseOf(t *testing.T, version string, more map[string]string) *database {
	t.Helper()
	all := file(t, "postgresql.yaml")
	settings := parameters(t, all)
	for name, value := range more {
		settings[name] = value
	}
	db := &database{Server: pgtest.OwnServer(t, version, settings), scripts: t.TempDir(), secrets: t.TempDir()}
	for name, text := range find[*corev1.ConfigMap](t, all, "postgresql-scripts").Data {
		write(t, db.scripts, name, text)
	}
	return db
}

func write(t testing.TB, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
}

// environment leads psql and its like to the server, as the superuser.
func (db *database) environment(t *testing.T) []string {
	t.Helper()
	super, err := pgx.ParseConfig(db.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		"PATH=" + os.Getenv("PATH"), "SECRETS_DIR=" + db.secrets, "POSTGRES_USER=postgres",
		"PGHOST=127.0.0.1", fmt.Sprintf("PGPORT=%d", db.Port()), "PGPASSWORD=" + super.Password,
	}
}

// script runs one of the StatefulSet's scripts as its pod would, only that the server is found by
// TCP.
func (db *database) script(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("bash", append([]string{filepath.Join(db.scripts, name)}, args...)...)
	cmd.Env = db.environment(t)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// at is the connection string with the server's real address.
func (db *database) at(t *testing.T, connection string) string {
	t.Helper()
	u, err := url.Parse(connection)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = fmt.Sprintf("127.0.0.1:%d", db.Port())
	return u.String()
}

// connect logs in as an application does.
func (db *database) connect(t *testing.T, connection string) (*pgx.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, db.at(t, connection))
	if err == nil {
		t.Cleanup(func() { conn.Close(context.WithoutCancel(t.Context())) })
	}
	return conn, err
}

// TestRole: the script makes what connection-string names, whatever is in it, and the role can do
// all that the relay needs.
func TestRole(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, map[string]string{"log_statement": "all", "log_min_duration_statement": "0"})
	for _, tt := range []struct{ name, connection, role, database string }{
		{"Plain", "postgresql://saga_user:secret-plain@postgresql:5432/saga_db", "saga_user", "saga_db"},
		{"ToBeQuoted", "postgres://Saga%20%22User%22:it%27s%20%24%28secret%29%20%60x%60%20%5Cn%20%25d%20%22q%22%3B--@postgres/saga%27s%20%22DB%22?sslmode=prefer", `Saga "User"`, `saga's "DB"`},
		{"AllSigns", "postgresql://signs:p%40s%2Fs%3Aw%3Fo%23r%5Bd%5D%25%C3%A4%E2%82%AC@postgresql:5432/signs", "signs", "signs"},
		{"BareSigns", "postgresql://bare:secret!$&'()*+,;=:x@postgresql:5432/bare", "bare", "bare"},
		{"NoDatabase", "postgresql://lonely:secret-lonely@postgresql", "lonely", "lonely"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			write(t, db.secrets, "connection-string", tt.connection+"\n")
			for range 2 { // again is harmless
				if out, err := db.script(t, "role.sh"); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			conn, err := db.connect(t, tt.connection)
			if err != nil {
				t.Fatal(err)
			}
			var role, name, owner string
			if err := conn.QueryRow(t.Context(), `SELECT current_user, datname, pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()`).Scan(&role, &name, &owner); err != nil {
				t.Fatal(err)
			}
			if role != tt.role || name != tt.database || owner != tt.role {
				t.Errorf("role %q in database %q of %q, want %q in %q", role, name, owner, tt.role, tt.database)
			}
			for _, statement := range []string{
				`CREATE TABLE saga_outbox (id int)`,
				`CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox`,
				`SELECT pg_replication_origin_create(current_database())`, // the name is the whole server's
				`SELECT pg_replication_origin_session_setup(current_database())`,
				`SELECT FROM pg_replication_origin`,
			} {
				if _, err := conn.Exec(t.Context(), statement); err != nil {
					t.Errorf("%s: %v", statement, err)
				}
			}
			config, err := pgconn.ParseConfig(db.at(t, tt.connection))
			if err != nil {
				t.Fatal(err)
			}
			config.RuntimeParams["replication"] = "database"
			stream, err := pgconn.ConnectConfig(t.Context(), config)
			if err != nil {
				t.Fatalf("replication connection: %v", err)
			}
			defer stream.Close(t.Context())
			if _, err := stream.Exec(t.Context(), `CREATE_REPLICATION_SLOT x TEMPORARY LOGICAL pgoutput`).ReadAll(); err != nil {
				t.Errorf("create a slot: %v", err)
			}
			for _, part := range []string{config.Password, "secret"} {
				if log := db.LogTail(100000); strings.Contains(log, part) {
					t.Errorf("the server's log has %q", part)
				}
			}
			// The superuser's rights are not among what it got.
			if _, err := conn.Exec(t.Context(), `CREATE ROLE other`); err == nil {
				t.Error("the role may make roles")
			}
		})
	}

	t.Run("DatabaseOfSomebodyElse", func(t *testing.T) {
		super, err := db.connect(t, db.DSN("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := super.Exec(t.Context(), `CREATE DATABASE there`); err != nil {
			t.Fatal(err)
		}
		write(t, db.secrets, "connection-string", "postgresql://owner:secret-owner@postgresql:5432/there")
		if out, err := db.script(t, "role.sh"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var owner string
		if err := super.QueryRow(t.Context(), `SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'there'`).Scan(&owner); err != nil || owner != "owner" {
			t.Errorf("owned by %s, %v", owner, err)
		}
	})

	t.Run("NewPassword", func(t *testing.T) {
		write(t, db.secrets, "connection-string", "postgresql://saga_user:another@postgresql:5432/saga_db")
		if out, err := db.script(t, "role.sh"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if _, err := db.connect(t, "postgresql://saga_user:secret-plain@postgresql:5432/saga_db"); err == nil {
			t.Error("the old password works")
		}
		if _, err := db.connect(t, "postgresql://saga_user:another@postgresql:5432/saga_db"); err != nil {
			t.Error(err)
		}
	})
}

// TestStart: the entrypoint is called with what it needs, and not at all when the secret is no
// good: a database that was made without its role would stay without it.
func TestStart(t *testing.T) {
	t.Parallel()
	set := find[*appsv1.StatefulSet](t, file(t, "postgresql.yaml"), "postgresql")
	scripts := t.TempDir()
	for name, text := range find[*corev1.ConfigMap](t, file(t, "postgresql.yaml"), "postgresql-scripts").Data {
		write(t, scripts, name, text)
	}
	write(t, scripts, "docker-entrypoint.sh", "#!/bin/sh\necho \"$@\"\necho \"password ${POSTGRES_PASSWORD}\"\necho \"file $POSTGRES_PASSWORD_FILE\"\n")
	start := func(t *testing.T, secret map[string]string, env ...string) (string, error) {
		secrets := t.TempDir()
		for name, text := range secret {
			write(t, secrets, name, text)
		}
		c := set.Spec.Template.Spec.Containers[0]
		command := append([]string{}, c.Command...)
		for i := range command {
			command[i] = strings.Replace(command[i], mountOf(c, "scripts"), scripts, 1)
		}
		cmd := exec.Command(command[0], append(command[1:], c.Args...)...)
		cmd.Env = append([]string{"PATH=" + scripts + ":" + os.Getenv("PATH"), "SECRETS_DIR=" + secrets}, env...)
		out, err := cmd.CombinedOutput()
		return strings.ReplaceAll(string(out), secrets, ""), err
	}

	const good = "postgresql://saga_user:change-me@postgresql:5432/saga_db"
	passwords := make(map[string]bool)
	for range 2 {
		out, err := start(t, map[string]string{"connection-string": good})
		lines := strings.Split(out, "\n")
		if err != nil || len(lines) != 4 || !strings.HasPrefix(lines[0], "postgres -c wal_level=logical") || len(lines[1]) < len("password ")+40 || lines[2] != "file " {
			t.Fatalf("%v: %s", err, out)
		}
		passwords[lines[1]] = true
	}
	if len(passwords) != 2 {
		t.Error("the made-up password is always the same")
	}
	out, err := start(t, map[string]string{"connection-string": good, "postgres-password": "x"})
	if err != nil || !strings.HasSuffix(out, "password \nfile /postgres-password\n") {
		t.Errorf("%v: %s", err, out)
	}

	for _, tt := range []struct{ name, connection, says string }{
		{"Empty", "", "no URL of PostgreSQL"},
		{"Keywords", "host=postgresql user=saga_user password=hush", "no URL of PostgreSQL"},
		{"OtherScheme", "mysql://saga_user:hush@postgresql/saga_db", "no URL of PostgreSQL"},
		{"NoUser", "postgresql://postgresql:5432/saga_db", "no user"},
		{"NoPassword", "postgresql://saga_user@postgresql:5432/saga_db", "no password"},
		{"EmptyPassword", "postgresql://saga_user:@postgresql:5432/saga_db", "no password"},
		{"PercentAtTheEnd", "postgresql://saga_user:hush%2@postgresql:5432/saga_db", "a % without two hexadecimal digits"},
		{"BarePercent", "postgresql://saga_user:hush%zz@postgresql:5432/saga_db", "a % without two hexadecimal digits"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := start(t, map[string]string{"connection-string": tt.connection})
			if err == nil || !strings.Contains(out, tt.says) || !strings.Contains(out, "sagaz-db-credentials") || strings.Count(out, "\n") != 1 || strings.Contains(out, "hush") {
				t.Errorf("got %v, %s; want one line with %q and no password", err, out, tt.says)
			}
		})
	}
	t.Run("ExamplePasswordInProduction", func(t *testing.T) {
		c := find[*appsv1.StatefulSet](t, decode(t, "production", build(t, "overlays/production")), "postgresql").Spec.Template.Spec.Containers[0]
		refuse := "REFUSE_EXAMPLE_PASSWORD=" + variable(c, "REFUSE_EXAMPLE_PASSWORD")
		example := find[*corev1.Secret](t, file(t, "secrets-example.yaml"), "sagaz-db-credentials").StringData["connection-string"]
		if out, err := start(t, map[string]string{"connection-string": example}, refuse); err == nil || !strings.Contains(out, "the password is the example's") {
			t.Errorf("got %v, %s", err, out)
		}
		if out, err := start(t, map[string]string{"connection-string": strings.Replace(example, "change-me", "mine", 1)}, refuse); err != nil {
			t.Errorf("got %v, %s", err, out)
		}
	})
}
