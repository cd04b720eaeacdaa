package pgtest

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgserver"
)

// Pair is a primary and its hot standby, of PostgreSQL 17 or later, set up for logical replication
// to survive a failover: the standby copies the slots that have failover = true.
//
//	both run -- Failover --> Primary dead, Standby takes writes
//
// Its methods are for one goroutine at a time.
type Pair struct {
	Primary, Standby *pgserver.Server

	databases []*DB
}

const standbySlot = "standby" // the physical one

// NewPair starts a pair for one test, of Version(), or Newest if that is older than 17. settings
// are both servers', added to Fast. When the test fails, the ends of the servers' logs are shown.
func NewPair(t testing.TB, settings map[string]string) *Pair {
	t.Helper()
	version := Version()
	if version < "17" {
		version = Newest
	}
	all := map[string]string{"synchronized_standby_slots": standbySlot}
	maps.Copy(all, settings)
	p := &Pair{Primary: OwnServer(t, version, all)}
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	var err error
	// As a primary, the standby would wait for a standby of its own.
	alone := map[string]string{"synchronized_standby_slots": "", "synchronous_standby_names": ""}
	if p.Standby, err = p.Primary.NewStandby(ctx, standbySlot, alone); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of the standby ends with\n%s", p.Standby.LogTail(40))
		}
		if err := p.Standby.Close(); err != nil {
			t.Errorf("close the standby: %v", err)
		}
	})
	return p
}

// DSN connects as the superuser to whichever of the two takes writes.
func (p *Pair) DSN(database string) string {
	u, err := url.Parse(p.Primary.DSN(database))
	if err != nil {
		panic(err) // we have made it
	}
	u.Host = fmt.Sprintf("127.0.0.1:%d,127.0.0.1:%d", p.Primary.Port(), p.Standby.Port())
	q := u.Query()
	q.Set("target_session_attrs", "read-write")
	u.RawQuery = q.Encode()
	return u.String()
}

// New makes a database. Its DSN and Pool lead to whichever server takes writes; it goes with the
// servers.
func (p *Pair) New(t testing.TB, opts ...Option) *DB {
	t.Helper()
	db := newAt(t, p.DSN("postgres"), opts...)
	t.Cleanup(db.Pool.Close)
	p.databases = append(p.databases, db)
	return db
}

// WaitSynced waits until the standby has a copy of a slot that outlives a failover and is no
// further back than the slot is now. Somebody has to read the slot meanwhile, if it is not at the
// end of the WAL. The copy begins where the standby's own catalog begins, and is temporary until
// the slot has come there.
func (p *Pair) WaitSynced(t testing.TB, slot string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	primary, standby := p.connect(t, p.Primary), p.connect(t, p.Standby)
	defer primary.Close(context.WithoutCancel(ctx))
	defer standby.Close(context.WithoutCancel(ctx))
	var at string
	if err := primary.QueryRow(ctx, `SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1`, slot).Scan(&at); err != nil {
		t.Fatalf("look at slot %s of the primary: %v", slot, err)
	}
	for {
		// An idle primary writes nothing that would let a slot's catalog move on.
		_, err := primary.Exec(ctx, `SELECT pg_log_standby_snapshot()`)
		var synced bool
		if err == nil {
			err = standby.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND synced AND NOT temporary
				AND invalidation_reason IS NULL AND confirmed_flush_lsn >= $2::text::pg_lsn)`, slot, at).Scan(&synced)
		}
		if synced {
			return
		}
		// The standby's worker looks less and less often when there is nothing to copy, every 30 s
		// at last; a signal wakes it up.
		_, _ = standby.Exec(ctx, `SELECT pg_reload_conf()`)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			var state string
			_ = standby.QueryRow(context.WithoutCancel(ctx), `SELECT coalesce(string_agg(to_jsonb(s)::text, ' '), 'no slot') FROM pg_replication_slots s`).Scan(&state)
			t.Fatalf("after %s the standby has no copy of slot %s at %s: %s (%v)", patience, slot, at, state, err)
		}
	}
}

// WaitReplayed waits until the standby shows everything that was committed on the primary before.
func (p *Pair) WaitReplayed(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	primary, standby := p.connect(t, p.Primary), p.connect(t, p.Standby)
	defer primary.Close(context.WithoutCancel(ctx))
	defer standby.Close(context.WithoutCancel(ctx))
	var end string
	if err := primary.QueryRow(ctx, `SELECT pg_current_wal_flush_lsn()::text`).Scan(&end); err != nil {
		t.Fatalf("look at the primary's WAL: %v", err)
	}
	for {
		var replayed bool
		err := standby.QueryRow(ctx, `SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn`, end).Scan(&replayed)
		if replayed {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("after %s the standby has not replayed %s (%v)", patience, end, err)
		}
	}
}

// Failover kills the primary, if it runs, and promotes the standby. What the standby has not
// received is lost. To lose nothing, call WaitReplayed before it, or set synchronous_standby_names
// = '*' for the primary.
func (p *Pair) Failover(t testing.TB) {
	t.Helper()
	if err := p.Primary.Kill(); err != nil {
		t.Fatal(err)
	}
	p.Promote(t)
}

// Promote promotes the standby and waits until it takes writes. The databases' pools drop their
// connections to the primary.
func (p *Pair) Promote(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.Standby.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	for _, db := range p.databases {
		db.Pool.Reset()
	}
}

func (p *Pair) connect(t testing.TB, s *pgserver.Server) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}
