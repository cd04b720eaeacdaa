package store

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// park writes entries of a sink, n of them.
func park(t *testing.T, db *pgtest.DB, sink string, n int) {
	t.Helper()
	exec(t, db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state)
		SELECT gen_random_uuid(), $1, 'outbox', i, 'k' || i, i, 'T', 'dead' FROM generate_series(1, $2::int) i`, sink, n)
}

// leave is what a relay that was stopped has left of a sink: n entries, and its name.
func leave(t *testing.T, db *pgtest.DB, sink string, n int) {
	t.Helper()
	park(t, db, sink, n)
	exec(t, db, `INSERT INTO saga_outbox_relay (slot, epoch, owner, sinks, released_at) VALUES ('outbox', 1, '', $1, now())`, sink)
}

// ledgerAndNoted is the ledger as "sink=entries …", and what the slots' owners have noted.
func ledgerAndNoted(t *testing.T, db *pgtest.DB) string {
	t.Helper()
	return value[string](t, db.Pool, `SELECT coalesce((SELECT string_agg(sink || '=' || n, ' ' ORDER BY sink) FROM (SELECT sink, count(*) n FROM saga_outbox_delivery GROUP BY 1) c), '')
		|| ' noted ' || coalesce((SELECT string_agg(coalesce(sinks, ''), ';' ORDER BY slot) FROM saga_outbox_relay), '')`)
}

func wantEntries(t *testing.T, db *pgtest.DB, want string) {
	t.Helper()
	if got := ledgerAndNoted(t, db); got != want {
		t.Errorf("the database has %q, want %q", got, want)
	}
}

func TestRenameSink(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for name, s := range map[string]*Store{"direct": newStore(t, testConfig(db), nil), "pooler": behindPooler(t, db, nil)} {
			t.Run(name, func(t *testing.T) {
				exec(t, db, `DELETE FROM saga_outbox_relay`)
				exec(t, db, `DELETE FROM saga_outbox_delivery`)
				conn := db.Conn(t)
				rename := func(from, to string) (SinkRenamed, error) {
					return RenameSink(t.Context(), conn, from, to, s.cfg.LeaseTTL)
				}
				refused := func(from, to, why string) {
					t.Helper()
					before := ledgerAndNoted(t, db)
					if _, err := rename(from, to); !errors.Is(err, ErrRename) || !strings.Contains(err.Error(), why) {
						t.Errorf("%s to %s: got %v, want a refusal with %q", from, to, err, why)
					}
					wantEntries(t, db, before)
				}
				park(t, db, "kafka", 5)
				park(t, db, relay.MarkSink, 1)
				l := acquire(t, s, "outbox")
				refused("kafka", "orders", "delivers to sink kafka") // it may be, as it has noted nothing
				if _, err := l.NoteSinks(t.Context(), []string{"file", "kafka"}); err != nil {
					t.Fatal(err)
				}
				refused("kafka", "orders", "delivers to sink kafka")
				refused("rabbitmq", "kafka", "delivers to sink kafka")
				refused("rabbitmq", "orders", "took slot outbox less than")
				exec(t, db, `UPDATE saga_outbox_relay SET taken_at = now() - interval '1 hour'`)
				park(t, db, "rabbitmq", 2)
				if done, err := rename("rabbitmq", "audit"); err != nil || done.Entries != 2 || len(done.Slots) != 0 {
					t.Errorf("beside a relay that knows neither name: %+v, %v", done, err)
				}
				release(t, l)
				refused("kafka", "audit", "has entries of sink audit already")
				refused("kafka", "kafka", "both names are the same")
				refused(relay.MarkSink, "orders", "is no sink")
				refused("kafka", relay.MarkSink, "is no sink")
				refused("pigeon", "orders", "neither the ledger nor")
				if done, err := rename("kafka", "orders"); err != nil || done.Entries != 5 || len(done.Slots) != 1 {
					t.Errorf("got %+v, %v", done, err)
				}
				wantEntries(t, db, "audit=2 orders=5 saga_outbox=1 noted file,orders")
				refused("kafka", "orders", "has entries of sink orders already")
				if done, err := rename("file", "lines"); err != nil || done.Entries != 0 || len(done.Slots) != 1 {
					t.Errorf("only noted: %+v, %v", done, err)
				}
				wantEntries(t, db, "audit=2 orders=5 saga_outbox=1 noted lines,orders")
			})
		}
	})
}

// Whatever ends a rename before its commit has changed nothing: here the server ends its session in
// the middle of the entries.
func TestRenameSinkCutOff(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		leave(t, db, "kafka", 1000)
		holder := db.Conn(t)
		holding, err := holder.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := holding.Exec(t.Context(), `SELECT FROM saga_outbox_delivery WHERE position = 990 FOR UPDATE`); err != nil {
			t.Fatal(err)
		}
		conn := db.Conn(t)
		pid := int(conn.PgConn().PID())
		ended := make(chan error, 1)
		go func() {
			_, err := RenameSink(context.WithoutCancel(t.Context()), conn, "kafka", "orders", time.Second)
			ended <- err
		}()
		db.Until(t, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock' AND query LIKE 'UPDATE saga_outbox_delivery%')`, pid)
		kill(t, db, pid)
		if err := <-ended; err == nil {
			t.Error("the rename whose session was ended reports no error")
		}
		if err := holding.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantEntries(t, db, "kafka=1000 noted kafka")
		if done, err := RenameSink(t.Context(), db.Conn(t), "kafka", "orders", time.Second); err != nil || done.Entries != 1000 {
			t.Errorf("again: %+v, %v", done, err)
		}
		wantEntries(t, db, "orders=1000 noted orders")
	})
}

// No relay takes a slot while a sink is being renamed: the one that waits finds the new name noted.
func TestNoTakeoverDuringARename(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		leave(t, db, "kafka", 3)
		conn := db.Conn(t)
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := renameSink(t.Context(), tx, "kafka", "orders", time.Second); err != nil {
			t.Fatal(err)
		}
		s := newStore(t, testConfig(db), nil)
		s.cfg.Slot = "outbox"
		took := make(chan relay.Lease, 1)
		go func() {
			l, err := s.Acquire(t.Context(), relay.Alone("outbox", ""))
			if err != nil {
				t.Error(err)
			}
			took <- l
		}()
		db.Until(t, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE '%lease outbox%' AND query LIKE '%pg_try_advisory_xact_lock%')`)
		select {
		case <-took:
			t.Error("a relay has the slot in the middle of a rename")
		default:
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		l := <-took
		if l == nil {
			return
		}
		before, err := l.NoteSinks(t.Context(), []string{"orders"})
		if err != nil || strings.Join(before, ",") != "orders" {
			t.Errorf("it finds noted %v, %v", before, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := l.Release(ctx, true); err != nil {
			t.Error(err)
		}
	})
}

// A standby has noted nothing: the owner of the slot has other sinks. It would take the slot with the
// old name, or deliver to the new one without knowing its ledger. So both names are refused as long as
// it waits. One that comes while a sink is being renamed shows its sinks after that.
func TestStandbyWithTheSink(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		park(t, db, "kafka", 3)
		owner := newStore(t, testConfig(db), nil)
		owner.Delivers([]string{"file"})
		l := acquire(t, owner, "outbox")
		defer release(t, l)
		if _, err := l.NoteSinks(t.Context(), []string{"file"}); err != nil {
			t.Fatal(err)
		}
		exec(t, db, `UPDATE saga_outbox_relay SET taken_at = now() - interval '1 hour'`)
		shown := func(sink string, n int) {
			t.Helper()
			db.Until(t, `SELECT count(*) = $3::int FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = $1::bigint::oid AND objid = (hashtext($2)::bigint & 4294967295)::oid AND mode = 'ShareLock'`, int64(sinkClass), sink, n)
		}
		waits := func(sinks ...string) (stop func()) {
			s := newStore(t, testConfig(db), nil)
			s.cfg.Slot = "outbox"
			s.Delivers(sinks)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				if l, err := s.Acquire(ctx, relay.Alone("outbox", "")); err == nil {
					t.Error("a standby has the slot")
					_ = l.Release(context.WithoutCancel(ctx), true)
				}
			}()
			return func() {
				cancel()
				<-ended
				for _, sink := range sinks {
					shown(sink, 0)
				}
			}
		}
		conn := db.Conn(t)
		refused := func(from, to, sink string) {
			t.Helper()
			if _, err := RenameSink(t.Context(), conn, from, to, owner.cfg.LeaseTTL); !errors.Is(err, ErrRename) || !strings.Contains(err.Error(), "delivers to sink "+sink) {
				t.Errorf("%s to %s: got %v", from, to, err)
			}
			wantEntries(t, db, "kafka=3 noted file")
		}
		shown("file", 1)
		refused("kafka", "file", "file")
		stop := waits("audit", "kafka")
		shown("kafka", 1)
		refused("kafka", "orders", "kafka")
		refused("pigeon", "audit", "audit")
		stop()

		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := renameSink(t.Context(), tx, "kafka", "orders", owner.cfg.LeaseTTL); err != nil {
			t.Fatal(err)
		}
		stop = waits("audit", "orders")
		db.Until(t, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE '%roster outbox%' AND query LIKE '%pg_advisory_unlock_shared%')`)
		shown("audit", 0)
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		shown("audit", 1)
		shown("orders", 1)
		stop()
		wantEntries(t, db, "orders=3 noted file")
	})
}
