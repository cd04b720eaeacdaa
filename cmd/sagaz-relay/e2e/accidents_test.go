package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgserver"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay/verify"
	"github.com/sagaz-relay/relay/sinks/file"
)

// scene is a relay that delivers, under load, to a file, when an accident happens to its slot or to
// the way there.
type scene struct {
	*world
	l    *load
	p    *process // the relay of now
	path string
	env  settings
	runs int
}

// sceneBudget is how many events may be in flight: so many may be repeated when a relay or
// PostgreSQL ends without warning.
const sceneBudget = 400

func newScene(t testing.TB, w *world, more settings) *scene {
	t.Helper()
	s := &scene{world: w, path: filepath.Join(t.TempDir(), "events.jsonl")}
	s.env = settings{
		"BROKER_TYPE": "file", "RELAY_FILE_PATH": s.path, "RELAY_BACKOFF_MAX": "500ms", "RELAY_WAL_SENDER_TIMEOUT": "5s",
		"RELAY_INFLIGHT_EVENTS": fmt.Sprint(sceneBudget),
	}.with(more)
	s.l = w.load(loadOptions{topic: "OrderCreated", rate: 300, survives: true})
	s.up()
	s.p.waitStreaming()
	s.l.waitCommitted(100)
	return s
}

// up starts a relay.
func (s *scene) up() {
	s.t.Helper()
	s.runs++
	s.p = s.relay(fmt.Sprintf("relay-%d", s.runs), s.env)
}

// back waits until an event committed now is delivered and marked, and returns how long that takes.
func (s *scene) back() {
	s.t.Helper()
	began, probe := time.Now(), s.l.probe()
	eventually(s.t, patience, "an event committed after the accident is delivered", func() string {
		if status, err := s.statusOf(probe); status != "sent" {
			return s.p.mustRun(fmt.Sprintf("its row is %s (%v)", status, err))
		}
		return ""
	})
	s.t.Logf("%s after the accident an event was delivered and marked", time.Since(began).Round(time.Millisecond))
}

// recovered wants the cause and the number of rows of the gap in the log, and returns that number.
func (s *scene) recovered(cause string) (rows int) {
	s.t.Helper()
	var l line
	eventually(s.t, patience, "the log has the recovery from: "+cause, func() string {
		lines := s.p.logged("recovered: what the slot does not deliver was found in the table")
		for _, l = range lines {
			if l.text("cause") == cause {
				return ""
			}
		}
		return s.p.mustRun(fmt.Sprint(lines))
	})
	if cause == "restored" { // which the store notices, before any slot is looked at
		if len(s.p.logged("the database comes from another cluster")) == 0 {
			s.t.Error("the log does not show that the positions are of another cluster")
		}
	} else if gone := s.p.logged("the slot cannot deliver everything any more"); len(gone) == 0 || gone[0].text("cause") != cause {
		s.t.Errorf("the log does not show why the slot was made again: %v", gone)
	}
	n, ok := l["rows"].(float64)
	if !ok {
		s.t.Errorf("the log does not show how many rows the gap held: %v", l)
	}
	return int(n)
}

// end lets the load end, and wants everything delivered in order, with at most so many duplicates.
func (s *scene) end(duplicates int) {
	s.t.Helper()
	s.l.waitCommitted(100)
	s.p.waitStreaming()
	s.l.finish(s.p)
	s.p.healthy("at the end")
	s.p.stop()
	s.l.judge("file", lineEvents(s.t, func(f func(file.Line) error) error { return file.Read(s.path, f) }), duplicates)
}

// dropSlot ends whoever reads the slot, and drops it before they are back.
func (s *scene) dropSlot() {
	s.t.Helper()
	eventually(s.t, patience, "the slot is dropped", func() string {
		_, err := s.db.Pool.Exec(s.t.Context(), `DO $$ BEGIN
			PERFORM pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = '`+s.slot+`' AND active;
			PERFORM pg_drop_replication_slot('`+s.slot+`');
		END $$`)
		if err != nil {
			return err.Error()
		}
		return ""
	})
}

// Whatever happens to the slot, nothing is lost and order holds: the rows are in the table, and the
// relay finds them there.
func TestSlotAccidents(t *testing.T) {
	for _, a := range []struct {
		name  string
		down  bool // while no relay runs
		cause string
		do    func(s *scene)
	}{
		{"slot dropped while streaming", false, "missing", (*scene).dropSlot},
		{"slot dropped while down", true, "missing", (*scene).dropSlot},
		{"publication dropped while streaming", false, "publication", func(s *scene) { s.exec(`DROP PUBLICATION sagaz_outbox`) }},
		{"publication dropped while down", true, "publication", func(s *scene) { s.exec(`DROP PUBLICATION sagaz_outbox`) }},
		{"publication dropped and made again while down", true, "publication", func(s *scene) {
			s.exec(`DROP PUBLICATION sagaz_outbox`)
			s.l.waitCommitted(50)
			s.migrate()
		}},
		{"table out of the publication and back", true, "publication", func(s *scene) {
			s.exec(`ALTER PUBLICATION sagaz_outbox DROP TABLE saga_outbox`)
			s.l.waitCommitted(50)
			s.exec(`ALTER PUBLICATION sagaz_outbox ADD TABLE saga_outbox`)
		}},
		{"slot advanced by somebody", true, "moved", func(s *scene) {
			s.l.waitCommitted(50)
			s.exec(`SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, s.slot)
		}},
		{"slot dropped and made again by somebody", true, "moved", func(s *scene) {
			s.dropSlot()
			s.l.waitCommitted(50)
			s.exec(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, s.slot)
		}},
	} {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, newWorld(t), nil)
			if a.down {
				s.p.stop()
			}
			a.do(s)
			if a.down {
				s.l.waitCommitted(50)
				s.up()
			}
			s.back()
			rows := s.recovered(a.cause)
			t.Logf("the gap held %d rows", rows)
			if a.down && rows < 50 {
				t.Errorf("the gap held %d rows, want at least those that were committed while nobody listened", rows)
			}
			s.end(0)
		})
	}
}

// A slot that would have to keep more WAL than it may is given up by the server.
func TestSlotInvalidated(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Version(), map[string]string{"max_slot_wal_keep_size": "1MB"})
	s := newScene(t, newWorldAt(t, server.DSN("postgres")), nil)
	s.p.stop()
	for range 20 {
		s.l.waitCommitted(20)
		s.exec(`SELECT pg_switch_wal()`)
		s.exec(`CHECKPOINT`)
		if value[string](s.world, `SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1`, s.slot) == "lost" {
			break
		}
	}
	s.up()
	s.back()
	if rows := s.recovered("lost"); rows < 20 {
		t.Errorf("the gap held %d rows, want at least those that were committed while nobody listened", rows)
	}
	s.end(0)
}

// The connections break, or are as good as broken. The slot is as it was.
func TestConnectionAccidents(t *testing.T) {
	t.Run("walsender terminated", func(t *testing.T) {
		t.Parallel()
		s := newScene(t, newWorld(t), nil)
		for range 3 {
			s.exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, s.slot)
			s.back()
			s.p.waitStreaming()
		}
		if n := len(s.p.logged("the slot cannot deliver everything any more")); n > 0 {
			t.Errorf("%d times the slot was made again, though it was there", n)
		}
		s.end(0)
	})
	// Nothing is closed, nothing gets through: both ends find out by the clock.
	t.Run("connections go silent", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		proxy := pgtest.NewProxy(t, w.url)
		s := newScene(t, w, settings{"DATABASE_URL": proxy.DSN})
		proxy.Strand()
		s.back()
		s.end(sceneBudget)
	})
}

// A database that is restored from a dump has the tables of the time of the dump, and no slots; its
// WAL counts from somewhere else. The relay runs all the time, and sees its server go away and
// another come back.
func TestRestoredFromDump(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	server := pgtest.OwnServer(t, pgtest.Version(), nil)
	dir, err := os.MkdirTemp("", "sagaz-restored-") // where the user that PostgreSQL runs as can go
	if err != nil {
		t.Fatal(err)
	}
	var other *pgserver.Server
	t.Cleanup(func() { // after the database
		defer os.RemoveAll(dir)
		if other != nil {
			if err := other.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	w := newWorldAt(t, server.DSN("postgres"))
	for range 5 { // so that the other server's WAL is far behind
		w.exec(`CREATE TABLE wal (); DROP TABLE wal`)
		w.exec(`SELECT pg_switch_wal()`)
	}
	s := newScene(t, w, nil)
	// what is committed after the dump the restore loses, and no relay can help that
	s.l.stop()
	w.waitNonePending(s.p) // what is pending in the dump comes again
	d := w.dump(ctx, 30)
	s.l.check.Commit(d.unseen...)
	other = w.restore(ctx, d, server, dir)
	w.db.Pool.Reset()
	s.l.start()
	s.back()
	if rows := s.recovered("restored"); rows < len(d.unseen) {
		t.Errorf("the gap held %d rows, want at least %d", rows, len(d.unseen))
	}
	s.end(sceneBudget)
}

// dumped is what a dump holds: the tables' rows in COPY's text format, by table.
type dumped struct {
	tables map[string][]byte
	unseen []verify.Event // rows that no relay has seen
}

// dump reads all tables as of one moment, as pg_dump does, with some pending rows that no slot
// delivers.
func (w *world) dump(ctx context.Context, unseen int) dumped {
	w.t.Helper()
	d := dumped{tables: make(map[string][]byte)}
	tx, err := w.db.Pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		w.t.Fatal(err)
	}
	defer tx.Rollback(ctx) //nolint:errcheck // that is what is meant: on this server those rows never were
	for range unseen {
		e := verify.Event{ID: newID(), Key: "in the dump alone"}
		d.unseen = append(d.unseen, e)
		if _, err := tx.Exec(ctx, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, created_at)
			VALUES ($1, 'saga', $2, 'OrderCreated', '{}', clock_timestamp())`, [16]byte(e.ID), e.Key); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, table := range []string{"saga_outbox", "saga_outbox_archive", "saga_outbox_delivery", "saga_outbox_relay"} {
		var rows bytes.Buffer
		if _, err := tx.Conn().PgConn().CopyTo(ctx, &rows, `COPY `+table+` TO STDOUT`); err != nil {
			w.t.Fatalf("dump %s: %v", table, err)
		}
		d.tables[table] = rows.Bytes()
	}
	return d
}

// restore makes a new server in dir, fills it, and puts it in the old one's place: same port, roles
// and passwords.
func (w *world) restore(ctx context.Context, d dumped, old *pgserver.Server, dir string) *pgserver.Server {
	w.t.Helper()
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatalf("restore: %v", err)
		}
	}
	server, err := pgserver.Start(ctx, pgserver.Options{Version: old.Version(), DataDir: dir, Settings: pgtest.Fast()})
	must(err)
	u, err := url.Parse(old.DSN(""))
	must(err)
	password, _ := u.User.Password()
	adminSQL(w.t, server.DSN("postgres"), fmt.Sprintf("CREATE ROLE %s LOGIN REPLICATION PASSWORD '%s'", w.role, w.password))
	adminSQL(w.t, server.DSN("postgres"), fmt.Sprintf("CREATE DATABASE %q OWNER %s", w.db.Name, w.role))
	adminSQL(w.t, server.DSN("postgres"), fmt.Sprintf("ALTER ROLE postgres PASSWORD '%s'", password))
	must(os.WriteFile(filepath.Join(dir, "sagaz.password"), []byte(password), 0o600))
	before := w.url
	u, err = url.Parse(w.url)
	must(err)
	u.Host = fmt.Sprintf("127.0.0.1:%d", server.Port())
	w.url = u.String()
	w.migrate()
	conn, err := pgx.Connect(ctx, w.url)
	must(err)
	_, err = conn.Exec(ctx, `DELETE FROM saga_outbox_relay`)
	must(err)
	for table, rows := range d.tables {
		_, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(rows), `COPY `+table+` FROM STDIN`)
		must(err)
	}
	must(conn.Close(ctx))
	must(server.Stop(ctx))
	w.url = before
	must(old.Stop(ctx))
	server, err = pgserver.Start(ctx, pgserver.Options{Version: old.Version(), DataDir: dir, Port: old.Port(), Settings: pgtest.Fast()})
	must(err)
	return server
}

// The primary dies and its standby takes its place, with the relay's slot or without. Commits wait
// for the standby, so none is lost.
func TestFailover(t *testing.T) {
	for _, synced := range []bool{true, false} {
		t.Run(map[bool]string{true: "with the slot", false: "without the slot"}[synced], func(t *testing.T) {
			t.Parallel()
			pair := pgtest.NewPair(t, map[string]string{"synchronous_standby_names": "*"})
			w := bareWorldAt(t, pair.DSN("postgres"))
			w.migrate()
			s := newScene(t, w, settings{"RELAY_SLOT_FAILOVER": fmt.Sprint(synced)})
			if synced {
				pair.WaitSynced(t, w.slot)
			}
			s.l.waitCommitted(100)
			pair.Failover(t)
			w.db.Pool.Reset()
			s.back()
			if synced {
				if n := len(s.p.logged("the slot cannot deliver everything any more")); n > 1 {
					t.Errorf("%d times the slot was made again", n)
				}
			} else {
				t.Logf("the gap held %d rows", s.recovered("missing"))
			}
			s.end(sceneBudget)
		})
	}
}
