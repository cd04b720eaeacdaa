//go:build unix

package pgserver

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func start(t *testing.T, opts Options) *Server {
	t.Helper()
	opts.Log = t.Output()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s, err := Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func query(t *testing.T, s *Server, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var got string
	if err := conn.QueryRow(t.Context(), sql).Scan(&got); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return got
}

func TestStopAndStart(t *testing.T) {
	s := start(t, Options{Settings: map[string]string{"fsync": "off", "application_name": "it's"}})
	for sql, want := range map[string]string{
		"SHOW wal_level":                            "logical",
		"SHOW listen_addresses":                     "127.0.0.1",
		"SHOW fsync":                                "off",
		"SHOW application_name":                     "it's",
		"SELECT current_setting('server_encoding')": "UTF8",
	} {
		if got := query(t, s, sql); got != want {
			t.Errorf("%s: got %q, want %q", sql, got, want)
		}
	}
	query(t, s, "WITH made AS (SELECT pg_create_logical_replication_slot('kept', 'pgoutput')) SELECT 'x' FROM made")
	for _, tc := range []struct {
		name string
		down func() error
	}{
		{"Stop", func() error { return s.Stop(t.Context()) }},
		{"StopImmediate", func() error { return s.StopImmediate(t.Context()) }},
		{"Kill", s.Kill},
	} {
		t.Run(tc.name, func(t *testing.T) {
			busy, err := pgx.Connect(t.Context(), s.DSN("postgres"))
			if err != nil {
				t.Fatal(err)
			}
			defer busy.Close(context.Background())
			if _, err := busy.Exec(t.Context(), "BEGIN"); err != nil { // a client does not delay it
				t.Fatal(err)
			}
			pid, port := s.PostmasterPID(), s.Port()
			children := childrenOf(pid)
			if err := tc.down(); err != nil {
				t.Fatal(err)
			}
			if s.PostmasterPID() != 0 {
				t.Error("still has a pid")
			}
			for _, c := range children {
				if c.alive() {
					t.Errorf("child %d still there", c.pid)
				}
			}
			begin := time.Now()
			if err := s.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Logf("started again in %v", time.Since(begin).Round(time.Millisecond))
			if s.PostmasterPID() == pid || s.Port() != port {
				t.Errorf("got pid %d and port %d, want another pid than %d and port %d", s.PostmasterPID(), s.Port(), pid, port)
			}
			if got := query(t, s, "SELECT count(*)::text FROM pg_replication_slots"); got != "1" {
				t.Errorf("got %s slots, want the one", got)
			}
		})
	}
	if s.LogTail(3) == "" {
		t.Error("log is empty")
	}
	if err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "running already") {
		t.Errorf("second start: got %v", err)
	}
}

// A walsender waits for its client when the server shuts down, and a client that does not read
// makes it wait for ever.
func TestStopOfWhatDoesNotStop(t *testing.T) {
	s := start(t, Options{})
	if err := syscall.Kill(s.PostmasterPID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := s.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want the deadline", err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestDataDirUsedAgain(t *testing.T) {
	dir, err := os.MkdirTemp("", "sagaz-pgserver-test-") // t.TempDir is closed to the user nobody
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s := start(t, Options{DataDir: dir})
	query(t, s, "WITH made AS (SELECT pg_create_physical_replication_slot('kept')) SELECT 'x' FROM made")
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = start(t, Options{DataDir: dir, Settings: map[string]string{"wal_level": "replica"}})
	if got := query(t, s, "SELECT slot_name || ' ' || current_setting('wal_level') FROM pg_replication_slots"); got != "kept replica" {
		t.Fatalf("got %q", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.in("PG_VERSION")); err != nil {
		t.Fatalf("Close removed a data directory that it did not choose: %v", err)
	}
	if _, err := Start(t.Context(), Options{DataDir: dir, Version: "15"}); err == nil || !strings.Contains(err.Error(), "is of PostgreSQL "+DefaultVersion) {
		t.Fatalf("another version: got %v", err)
	}
}

func TestStartReportsWhatIsWrong(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(full+"/letters", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	running := start(t, Options{})
	for _, tc := range []struct {
		name string
		opts Options
		want string
	}{
		{"UnknownVersion", Options{Version: "9"}, "want one of 14"},
		{"ForeignDirectory", Options{DataDir: full}, "not empty"},
		{"BadSetting", Options{Settings: map[string]string{"wal_level": "sideways"}}, "sideways"},
		{"PortTaken", Options{Port: running.Port()}, "Address already in use"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Start(t.Context(), tc.opts)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q in it", err, tc.want)
			}
			t.Log(err)
		})
	}
	if os.Geteuid() == 0 {
		closed, err := os.MkdirTemp("", "sagaz-pgserver-test-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(closed)
		_, err = Start(t.Context(), Options{DataDir: closed + "/data"})
		if err == nil || !strings.Contains(err.Error(), "cannot enter "+closed) {
			t.Fatalf("got %v, want it to name the closed directory", err)
		}
		t.Log(err)
	}
}
