package doctor

import (
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sagaz-relay/relay/internal/testbed/pgserver"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// expect examines and wants the finding.
func expect(t *testing.T, cfg Config, check string, severity Severity, text string) *Finding {
	t.Helper()
	report := Examine(t.Context(), cfg, nil)
	f := report.finding(check, severity, text)
	if f == nil {
		t.Fatalf("not found: %s %s %q in\n%s", severity, check, text, show(report))
	}
	return f
}

func restart(t *testing.T, server *pgserver.Server) {
	t.Helper()
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Settings that need a restart: what is printed is run, the server restarted, and all is well.
func TestServerSettings(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Version(), map[string]string{"wal_level": "replica", "max_slot_wal_keep_size": "64MB", "max_replication_slots": "1", "max_wal_senders": "1"})
	db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
	cfg := configFor(t, db.DSN)
	exec(t, db.DSN, `SELECT pg_create_physical_replication_slot('somebody', true)`)
	sender := replicationConn(t, db.DSN, "true")

	for _, want := range []struct{ check, text string }{
		{"wal_level", "wal_level is not logical, so there is nothing to stream: wal_level = replica"},
		{"slots free", "1 of max_replication_slots = 1 in use, 1 more needed"},
		{"walsenders", "1 of max_wal_senders = 1 in use, 1 more needed"},
		{"replication", "no walsender is free"},
	} {
		expect(t, cfg, want.check, Degraded, want.text)
		strict := cfg
		strict.Mode = relay.ModeCDC
		expect(t, strict, want.check, Broken, want.text)
		polling := cfg
		polling.Mode = relay.ModePolling
		if report := Examine(t.Context(), polling, nil); report.finding(want.check, Degraded, "") != nil || report.finding(want.check, Broken, "") != nil {
			t.Errorf("polling needs no %s:\n%s", want.check, show(report))
		}
	}
	small := expect(t, cfg, "slot WAL limit", Note, "only 64 MB")
	budget := cfg
	budget.WALBudget = 128 << 20
	over := expect(t, budget, "slot WAL limit", Degraded, "less than RELAY_WAL_BUDGET")
	if !strings.Contains(over.Fix[0].Do, "33554432") {
		t.Errorf("the fix is %+v", over.Fix)
	}
	applyFix(t, db.DSN, small)
	expect(t, cfg, "slot WAL limit", OK, "10 GB")
	exec(t, db.DSN, `ALTER SYSTEM SET max_slot_wal_keep_size = -1`, `SELECT pg_reload_conf()`)
	applyFix(t, db.DSN, expect(t, cfg, "slot WAL limit", Note, "unlimited"))
	expect(t, cfg, "slot WAL limit", OK, "10 GB")

	applyFix(t, db.DSN, expect(t, cfg, "wal_level", Degraded, ""))
	exec(t, db.DSN, `ALTER SYSTEM SET max_replication_slots = 7`, `ALTER SYSTEM SET max_wal_senders = 7`, `SELECT pg_drop_replication_slot('somebody')`)
	agree(t, cfg, Examine(t.Context(), cfg, nil))                             // no walsender
	expect(t, cfg, "slots free", OK, "0 of max_replication_slots = 1 in use") // just enough
	sender.Close(t.Context())
	db.Until(t, `SELECT count(*) = 0 FROM pg_stat_replication`)
	agree(t, cfg, Examine(t.Context(), cfg, nil)) // wal_level
	restart(t, server)
	agree(t, cfg, Examine(t.Context(), cfg, nil))
	expect(t, cfg, "wal_level", OK, "")
	expect(t, cfg, "slots free", OK, "0 of max_replication_slots = 7 in use")
	expect(t, cfg, "walsenders", OK, "0 of max_wal_senders = 7 in use")
	expect(t, cfg, "replication", OK, "wal_sender_timeout 10s")
}

// replicationConn opens a replication connection: "true" for a physical one, "database" for a
// logical one.
func replicationConn(t *testing.T, dsn, kind string) *pgconn.PgConn {
	t.Helper()
	cfg, err := pgconn.ParseConfig(dsn)
	if err != nil {
		t.Fatal("the DSN cannot be read")
	}
	cfg.RuntimeParams["replication"] = kind
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// The server gives a slot up: first it warns, then the slot is lost.
func TestLostSlot(t *testing.T) {
	for _, version := range pgtest.Versions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			server := pgtest.OwnServer(t, version, map[string]string{"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "64MB", "checkpoint_timeout": "1h"})
			db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
			cfg := configFor(t, db.DSN)
			exec(t, db.DSN, `SELECT pg_create_logical_replication_slot('`+cfg.Set.Slot+`', 'pgoutput')`,
				`CREATE TABLE noise AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)`, `SELECT pg_switch_wal()`)
			db.Until(t, `SELECT wal_status = 'unreserved' FROM pg_replication_slots`)
			expect(t, cfg, "slot", Degraded, "about to be lost")
			exec(t, db.DSN, `CHECKPOINT`)
			db.Until(t, `SELECT wal_status = 'lost' FROM pg_replication_slots`)
			f := expect(t, cfg, "slot", Degraded, "the server has given it up")
			applyFix(t, db.DSN, f)
			expect(t, cfg, "slot", Note, "not there yet")
		})
	}
}

// A standby: is the slot kept on it, and may it get ahead of it?
func TestFailover(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Newest, nil)
	db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
	cfg := configFor(t, db.DSN)
	name := cfg.Set.Slot
	exec(t, db.DSN, `SELECT pg_create_physical_replication_slot('standby_1', true)`, `SELECT pg_create_logical_replication_slot('`+name+`', 'pgoutput')`)
	if report := Examine(t.Context(), cfg, nil); report.finding("failover", OK, "") != nil || report.finding("failover", Note, "") != nil {
		t.Errorf("without a standby there is no failover:\n%s", show(report))
	}
	conn := replicationConn(t, db.DSN, "true")
	defer conn.Close(t.Context())
	if report := Examine(t.Context(), cfg, nil); report.finding("failover", OK, "") != nil || report.finding("failover", Note, "") != nil {
		t.Errorf("a connection that sends nothing is no standby:\n%s", show(report))
	}
	conn.Frontend().Send(&pgproto3.Query{String: `START_REPLICATION SLOT standby_1 PHYSICAL 0/1000000`})
	if err := conn.Frontend().Flush(); err != nil {
		t.Fatal(err)
	}
	db.Until(t, `SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state IN ('catchup', 'streaming'))`)

	polling := cfg
	polling.Mode = relay.ModePolling
	neighbour := configFor(t, pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated()).DSN)
	neighbour.Set.Slot = cfg.Set.Slot
	both := neighbour
	both.Mode = relay.ModePolling
	for whose, cfg := range map[string]Config{"a slot that is not read": polling, "a neighbour's slot": neighbour, "a neighbour's that is not read": both} {
		if report := Examine(t.Context(), cfg, nil); report.finding("failover", OK, "") != nil || report.finding("failover", Note, "") != nil {
			t.Errorf("failover of %s:\n%s", whose, show(report))
		}
	}
	applyFix(t, db.DSN, expect(t, cfg, "failover", Note, "not kept on standbys"))
	expect(t, cfg, "slot", Note, "not there yet")
	exec(t, db.DSN, `SELECT pg_create_logical_replication_slot('`+name+`', 'pgoutput', failover => true)`)
	applyFix(t, db.DSN, expect(t, cfg, "failover", Note, "may get ahead of the standby"))
	expect(t, cfg, "failover", OK, "")
}

// The database is a standby: the relay can do nothing there.
func TestStandby(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Version(), nil)
	db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	signal := filepath.Join(server.DataDir(), "standby.signal")
	if err := os.WriteFile(signal, nil, 0o644); err != nil { //nolint:gosec // another user's server reads it
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := expect(t, configFor(t, db.DSN), "database", Broken, "a standby, which takes no writes")
	for _, err := range starts(t, configFor(t, db.DSN)) {
		if got := f.Summary + "; " + f.Fix[0].Do; err == nil || got != err.Error() {
			t.Errorf("the doctor has %q, the start %v", got, err)
		}
	}
	if !strings.Contains(f.Fix[0].Do, "target_session_attrs=read-write") {
		t.Errorf("the fix is %+v", f.Fix)
	}
	if err := os.Remove(signal); err != nil {
		t.Fatal(err)
	}
	restart(t, server)
	expect(t, configFor(t, db.DSN), "database", OK, "")
}

// No line of pg_hba.conf lets us in: the one that is printed does.
func TestHostLine(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Version(), nil)
	db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
	_, _, dsn := db.Role(t, "REPLICATION")
	file := filepath.Join(server.DataDir(), "pg_hba.conf")
	const superuser = "host all postgres 127.0.0.1/32 scram-sha-256\n"
	u, err := url.Parse(db.DSN)
	if err != nil {
		t.Fatal("the DSN is not a URL")
	}
	write := func(lines string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(lines, "postgres", u.User.Username())), 0o600); err != nil {
			t.Fatal(err)
		}
		exec(t, db.DSN, `SELECT pg_reload_conf()`)
		db.Until(t, `SELECT count(*) = $1 FROM pg_hba_file_rules`, strings.Count(lines, "\n"))
	}
	write(superuser)
	cfg := configFor(t, dsn)
	f := expect(t, cfg, "database", Broken, "no pg_hba.conf entry")
	_, line, ok := strings.Cut(f.Fix[0].Do, ":  ")
	if !ok {
		t.Fatalf("the fix is %+v", f.Fix)
	}
	write(superuser + line + "\n")
	expect(t, cfg, "database", OK, "")
	expect(t, cfg, "replication", OK, "") // it goes for replication connections to a database, too
}

// Something between us and the server that shares out its connections.
func TestPooler(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	for _, tt := range []struct {
		kind, text string
	}{
		{"refuses", "it refuses settings at the start of a session"},
		{"loses", "settings at the start of a session are lost"},
		{"swaps", "the session is not the one"},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			cfg := configFor(t, pooler(t, db.DSN, tt.kind))
			if f := expect(t, cfg, "pooler", Degraded, tt.text); !strings.Contains(f.Fix[0].Do, "RELAY_MODE=polling") {
				t.Errorf("the fix is %+v", f.Fix)
			}
			cfg.Mode = relay.ModeCDC
			expect(t, cfg, "pooler", Broken, tt.text)
			cfg.Mode = relay.ModePolling
			expect(t, cfg, "pooler", Note, tt.text)
			cfg.DatabaseURL = db.DSN
			expect(t, cfg, "pooler", OK, "none in between")
		})
	}
}

// pooler starts a proxy that does to the start of a session what poolers do, and returns the DSN by
// way of it.
func pooler(t *testing.T, dsn, kind string) string {
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal("the DSN is not a URL")
	}
	server := u.Host
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() { listener.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer client.Close()
				pool(client, server, kind)
			})
		}
	})
	u.Host = listener.Addr().String()
	return u.String()
}

func pool(client net.Conn, server, kind string) {
	_ = client.SetDeadline(time.Now().Add(time.Minute))
	backend := pgproto3.NewBackend(client, client)
	var startup *pgproto3.StartupMessage
	for startup == nil {
		msg, err := backend.ReceiveStartupMessage()
		if err != nil {
			return
		}
		switch m := msg.(type) {
		case *pgproto3.StartupMessage:
			startup = m
		default: // SSLRequest
			if _, err := client.Write([]byte("N")); err != nil {
				return
			}
		}
	}
	if _, asked := startup.Parameters["tcp_keepalives_idle"]; asked && kind == "refuses" {
		backend.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "08P01", Message: "unsupported startup parameter: tcp_keepalives_idle"})
		_ = backend.Flush()
		return
	}
	if kind == "loses" {
		delete(startup.Parameters, "tcp_keepalives_idle")
	}
	upstream, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer upstream.Close()
	raw, err := startup.Encode(nil)
	if err != nil {
		return
	}
	if _, err := upstream.Write(raw); err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(upstream, client)
		upstream.Close()
	}()
	for { // messages: a type, a length that counts itself, the rest
		var head [5]byte
		if _, err := io.ReadFull(upstream, head[:]); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(upstream, body); err != nil {
			return
		}
		if head[0] == 'K' && kind == "swaps" { // BackendKeyData
			binary.BigEndian.PutUint32(body, binary.BigEndian.Uint32(body)+1)
		}
		if _, err := client.Write(append(head[:], body...)); err != nil {
			return
		}
	}
}
