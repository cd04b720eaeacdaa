package e2e

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// Something does not go on while the relay works: a connection, a process of the server, a row's
// lock, somebody's transaction, a sink. SIGTERM (or SIGHUP) ends the process all the same, within
// the drain timeout and the time that the rest may take.
func TestStopsWhileStuck(t *testing.T) {
	const drain, rest = 3 * time.Second, 10 * time.Second
	cut := func(purpose string) func(*world, *pgtest.Proxy) {
		return func(w *world, p *pgtest.Proxy) {
			eventually(w.t, patience, "the connection is there", func() string {
				if p.StrandNamed("sagaz-relay "+purpose) == 0 {
					return "it is not"
				}
				return ""
			})
		}
	}
	for _, c := range []struct {
		name, mode string
		signal     syscall.Signal
		stick      func(*world, *pgtest.Proxy)
	}{
		{"marks cut", "cdc", syscall.SIGTERM, cut("marks")},
		{"lease cut", "cdc", syscall.SIGHUP, cut("lease")},
		{"looks cut", "cdc", syscall.SIGTERM, cut("facts")},
		{"sweep cut", "polling", syscall.SIGTERM, cut("sweep")},
		{"everything cut", "auto", syscall.SIGTERM, func(_ *world, p *pgtest.Proxy) { p.Freeze() }},
		{"backend stopped", "cdc", syscall.SIGTERM, func(w *world, _ *pgtest.Proxy) {
			pid := value[int](w, `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'sagaz-relay marks%'`)
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				w.t.Fatal(err)
			}
			w.t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
		}},
		{"slot's row locked", "cdc", syscall.SIGTERM, func(w *world, _ *pgtest.Proxy) {
			tx := openTransaction(w.t, w.db.DSN)
			if _, err := tx.Exec(w.t.Context(), `SELECT FROM saga_outbox_relay FOR UPDATE`); err != nil {
				w.t.Fatal(err)
			}
		}},
		{"sink that never answers", "cdc", syscall.SIGTERM, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			proxy := pgtest.NewProxy(t, w.url)
			sink := settings{"BROKER_TYPE": "file", "RELAY_FILE_PATH": filepath.Join(t.TempDir(), "events")}
			if c.stick == nil {
				sink = settings{"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": mute(t)}
			}
			p := w.relay("stuck", sink.with(settings{
				"DATABASE_URL": proxy.DSN, "RELAY_MODE": c.mode, "RELAY_DRAIN_TIMEOUT": drain.String(), "POLL_INTERVAL": "0.1",
			}))
			p.waitReady()
			w.insert(row{key: "a", topic: "Happened"})
			if c.stick != nil {
				eventually(t, patience, "the first event is sent", func() string {
					return p.mustRun(strings.TrimPrefix(value[string](w, `SELECT min(status) FROM saga_outbox`), "sent"))
				})
				c.stick(w, proxy)
			}
			var rows []row
			for i := range 2000 {
				rows = append(rows, row{key: fmt.Sprint("k", i%50), topic: "Happened"})
			}
			w.insert(rows...)
			time.Sleep(time.Second) // so that what can wait does
			began := time.Now()
			p.signal(c.signal)
			if code := p.end(time.Minute); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if took := time.Since(began); took > drain+rest {
				t.Errorf("it ended after %s, want %s at most", took, drain+rest)
			}
		})
	}
}

// mute is the address of a server that takes connections and never sends a byte.
func mute(t testing.TB) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	return l.Addr().String()
}

// openTransaction is somebody's, open until the test ends.
func openTransaction(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.PgConn().Conn().Close() })
	if _, err := conn.Exec(t.Context(), `BEGIN`); err != nil {
		t.Fatal(err)
	}
	return conn
}
