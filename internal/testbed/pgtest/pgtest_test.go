package pgtest

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

func TestMain(m *testing.M) { Main(m) }

func TestParallelDatabases(t *testing.T) {
	seen := make(chan string, 100)
	t.Run("group", func(t *testing.T) {
		for _, version := range Versions() {
			for i := range 4 {
				t.Run(fmt.Sprintf("PostgreSQL %s, %d", version, i), func(t *testing.T) {
					t.Parallel()
					db := NewVersion(t, version, SQL("CREATE TABLE here (n int)"))
					var is, server, encoding string
					err := db.Pool.QueryRow(t.Context(), `SELECT current_database(), current_setting('server_version_num')::int / 10000,
						pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()`).Scan(&is, &server, &encoding)
					if err != nil {
						t.Fatal(err)
					}
					if is != db.Name || server != version || encoding != "UTF8" {
						t.Fatalf("got database %s, version %s, %s, want %s, %s, UTF8", is, server, encoding, db.Name, version)
					}
					if _, err := db.Conn(t).Exec(t.Context(), "INSERT INTO here VALUES (1)"); err != nil {
						t.Fatal(err)
					}
					seen <- db.Name
				})
			}
		}
	})
	close(seen)
	names := map[string]bool{}
	for name := range seen {
		names[name] = true
	}
	if got, want := len(names), 4*len(Versions()); got != want {
		t.Fatalf("got %d different databases, want %d", got, want)
	}
}

// A test may end while its slot streams. Neither the slot nor the database stays.
func TestDropsWhatStreams(t *testing.T) {
	superuser := Server(t, Version())
	var name string
	t.Run("streams", func(t *testing.T) {
		db := New(t)
		name = db.Name
		conn, err := pgconn.Connect(t.Context(), db.DSN+"&replication=database")
		if err != nil {
			t.Fatal(err)
		}
		for _, cmd := range []string{
			"CREATE PUBLICATION all_of_it FOR ALL TABLES",
			`CREATE_REPLICATION_SLOT "slot_of_` + name + `" LOGICAL pgoutput`,
		} {
			if _, err := conn.Exec(t.Context(), cmd).ReadAll(); err != nil {
				t.Fatalf("%s: %v", cmd, err)
			}
		}
		conn.Frontend().SendQuery(&pgproto3.Query{String: `START_REPLICATION SLOT "slot_of_` + name +
			`" LOGICAL 0/0 (proto_version '1', publication_names 'all_of_it')`})
		if err := conn.Frontend().Flush(); err != nil {
			t.Fatal(err)
		}
		if answer, err := conn.ReceiveMessage(t.Context()); err != nil {
			t.Fatalf("start replication: %v", err)
		} else if _, ok := answer.(*pgproto3.CopyBothResponse); !ok {
			t.Fatalf("start replication: got %T", answer)
		}
		var active bool
		if err := db.Pool.QueryRow(t.Context(), "SELECT active FROM pg_replication_slots WHERE database = $1", name).Scan(&active); err != nil {
			t.Fatal(err)
		}
		if !active {
			t.Fatal("the slot does not stream")
		}
		// or it is collected and closed, while the test wants to leave it open
		t.Cleanup(func() { runtime.KeepAlive(conn) })
	})
	conn, err := pgx.Connect(t.Context(), superuser)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var left int
	if err := conn.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = $1)
		+ (SELECT count(*) FROM pg_database WHERE datname = $1)`, name).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if left != 0 {
		t.Fatalf("%d slots and databases left of %s", left, name)
	}
}

func TestOwnServer(t *testing.T) {
	server := OwnServer(t, Version(), map[string]string{"max_replication_slots": "3"})
	db := NewAt(t, server.DSN("postgres"), SQL("CREATE TABLE kept AS SELECT 7 AS n"))
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var n int
	var slots string
	if err := db.Conn(t).QueryRow(t.Context(), "SELECT n, current_setting('max_replication_slots') FROM kept").Scan(&n, &slots); err != nil {
		t.Fatal(err)
	}
	if n != 7 || slots != "3" {
		t.Fatalf("got %d, %s, want 7, 3", n, slots)
	}
}
