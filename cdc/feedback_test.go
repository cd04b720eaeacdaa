package cdc

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// quick are settings that make many reports in a short time. Silence counts only when it is longer
// than a slow disk may stall.
func quick(dsn string) Config {
	cfg := config(dsn)
	cfg.WALSenderTimeout, cfg.StatusInterval = 8*time.Second, 200*time.Millisecond
	return cfg
}

// block makes Admit block until the returned function is called or the context ends. The channel is
// closed when it does.
func (in *intake) block() (entered chan struct{}, release func()) {
	entered, gate := make(chan struct{}, 1000), make(chan struct{})
	in.admit = func(ctx context.Context, _ []relay.Event) error {
		entered <- struct{}{}
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return entered, func() { close(gate) }
}

// The server ends a connection that has not been heard of for wal_sender_timeout. The intake may
// block for longer.
func TestFeedbackWhileAdmitBlocks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		bytes int // of each row; many fill the socket, so that the server waits for us, too
	}{{"little to read", 1}, {"socket full", 100_000}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t, pgtest.Migrated())
			cfg := quick(db.DSN)
			in := newIntake(t)
			entered, release := in.block()
			r := start(t, newSource(t, cfg), db.Name, in)
			const rows = 400
			exec(t, db, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
				SELECT gen_random_uuid(), 's', i, 'Made', jsonb_build_object('x', repeat('x', $2)) FROM generate_series(1, $1) i`, rows, c.bytes)
			<-entered
			time.Sleep(3 * cfg.WALSenderTimeout) // the length of the silence is the case
			r.alive()
			release()
			in.wait(rows)
			insert(t, db, "after")
			in.wait(rows + 1)
			r.alive()
		})
	}
}

// What the server confirms is the watermark, never more, and soon.
func TestConfirmsTheWatermark(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	in := newIntake(t)
	r := start(t, newSource(t, quick(db.DSN)), db.Name, in)
	insert(t, db, "a")
	in.wait(1)
	in.pin()
	pinned := in.Watermark()
	db.Until(t, `SELECT confirmed_flush_lsn = $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2`, pinned.String(), db.Name)

	insert(t, db, "b", "c")
	in.wait(3)
	for range 5 { // reports
		last := ask(t, db, `SELECT reply_time FROM pg_stat_replication WHERE application_name = $1`, applicationFor(db.Name))
		db.Until(t, `SELECT reply_time > $1::text::timestamptz FROM pg_stat_replication WHERE application_name = $2`, last, applicationFor(db.Name))
		insert(t, db, "more")
		if got := confirmed(t, db); got != pinned {
			t.Fatalf("got %s confirmed, want %s", got, pinned)
		}
	}
	now := in.release()
	db.Until(t, `SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2`, now.String(), db.Name)
	if got, want := confirmed(t, db), in.Watermark(); got > want {
		t.Errorf("got %s confirmed, beyond the watermark %s", got, want)
	}
	r.alive()
}

// Traffic that is none of ours keeps WAL only if the slot stays behind it.
func TestIdleOutboxFollowsOtherTraffic(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated(), pgtest.SQL(`CREATE TABLE other (t text)`))
	in := newIntake(t)
	start(t, newSource(t, quick(db.DSN)), db.Name, in)
	for range 3 {
		exec(t, db, `INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 1000)`)
		at := askLSN(t, db, `SELECT pg_current_wal_lsn()`)
		in.waitPassed(at)
		db.Until(t, `SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2`, at.String(), db.Name)
	}
	in.wait(0)
}

// What is in flight when Run has been stopped may take longer to drain than the server waits for
// us. Until Close the watermark is reported, also when the server has filled the socket, which
// nobody reads any more.
func TestFeedbackUntilClose(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		full bool
	}{{"socket empty", false}, {"socket full", true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t, pgtest.Migrated())
			cfg := quick(db.DSN)
			in := newIntake(t)
			r := start(t, newSource(t, cfg), db.Name, in)
			insert(t, db, "a")
			in.wait(1)
			in.pin()
			pinned := in.Watermark()
			insert(t, db, "b", "c")
			in.wait(3)
			r.cancel()
			<-r.done
			if c.full {
				exec(t, db, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
					SELECT gen_random_uuid(), 's', i, 'Made', jsonb_build_object('x', repeat(md5(i::text), 3000)) FROM generate_series(1, 400) i`)
			}
			pid := ask(t, db, `SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1`, db.Name)
			time.Sleep(3 * cfg.WALSenderTimeout) // the length of the silence is the case
			if got := ask(t, db, `SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1`, db.Name); got != pid {
				t.Fatalf("the walsender has gone: got pid %s, want %s", got, pid)
			}
			if got := confirmed(t, db); got != pinned {
				t.Errorf("got %s confirmed, want what was reported at last, %s", got, pinned)
			}
			// What drains is reported at once, not only by Close.
			now := in.release()
			db.Until(t, `SELECT confirmed_flush_lsn = $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2`, now.String(), db.Name)
			if err := r.close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

// Whatever the stream does when it is stopped, it stops, and the server has taken what it has
// reported.
func TestStops(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		run  func(t *testing.T, db *pgtest.DB, in *intake, cancel func())
	}{
		{"idle", func(t *testing.T, _ *pgtest.DB, _ *intake, cancel func()) { cancel() }},
		{"idle after events", func(t *testing.T, db *pgtest.DB, in *intake, cancel func()) {
			insert(t, db, "b", "c")
			in.wait(3)
			cancel()
		}},
		{"in the middle of a transaction", func(t *testing.T, db *pgtest.DB, in *intake, cancel func()) {
			in.admit = func(context.Context, []relay.Event) error { cancel(); return nil }
			exec(t, db, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
				SELECT gen_random_uuid(), 's', i, 'Made', '{}' FROM generate_series(1, 50000) i`)
		}},
		{"blocked in Admit", func(t *testing.T, db *pgtest.DB, in *intake, cancel func()) {
			entered, _ := in.block()
			insert(t, db, "b", "c", "d")
			<-entered
			cancel()
		}},
		{"blocked in Admit with the socket full", func(t *testing.T, db *pgtest.DB, in *intake, cancel func()) {
			entered, _ := in.block()
			exec(t, db, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
				SELECT gen_random_uuid(), 's', i, 'Made', jsonb_build_object('x', repeat('x', 100000)) FROM generate_series(1, 300) i`)
			<-entered
			cancel()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t, pgtest.Migrated())
			cfg := config(db.DSN)
			// no report but the last one
			cfg.WALSenderTimeout, cfg.StatusInterval = 10*time.Minute, 3*time.Minute
			src := newSource(t, cfg)
			in := newIntake(t)
			r := start(t, src, db.Name, in)
			insert(t, db, "a")
			events := in.wait(1)
			in.until("end of the transaction", func() bool { return in.passed > events[0].CommitLSN })
			var begin time.Time
			c.run(t, db, in, func() {
				if begin.IsZero() {
					begin = time.Now()
				}
				r.cancel()
			})
			select {
			case <-r.done:
			case <-time.After(patience):
				t.Fatal("Run does not return")
			}
			if took := time.Since(begin); took > soon {
				t.Errorf("Run took %s to return", took)
			}
			if !errors.Is(r.err, context.Canceled) {
				t.Errorf("Run: got %v, want %v", r.err, context.Canceled)
			}
			if confirmed(t, db) >= in.Watermark() {
				t.Error("it has been reported already, so the last report would not show")
			}
			if err := r.close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if got, want := confirmed(t, db), in.Watermark(); got != want {
				t.Errorf("got %s confirmed, want the watermark %s", got, want)
			}
			if got := ask(t, db, `SELECT active FROM pg_replication_slots WHERE slot_name = $1`, db.Name); got != "false" {
				t.Error("the slot is in use after Close")
			}
			next := newIntake(t)
			st, err := src.Open(t.Context(), whole(db.Name), 0) // at once, without a second try
			if err != nil {
				t.Fatalf("open again: %v", err)
			}
			if err := st.Close(t.Context()); err != nil {
				t.Errorf("close what has not run: %v", err)
			}
			start(t, src, db.Name, next)
			insert(t, db, "last")
			all := next.until("last event", func() bool {
				return len(next.events) > 0 && next.events[len(next.events)-1].AggregateID == "last"
			})
			want := ask(t, db, `SELECT count(*) FROM saga_outbox WHERE aggregate_id <> 'a'`)
			if c.name == "idle after events" {
				want = "1"
			}
			if got := ask(t, db, `SELECT $1::int`, len(all)); got != want {
				t.Errorf("got %s events after the second start, want %s", got, want)
			}
		})
	}
}

func TestServerGone(t *testing.T) {
	t.Parallel()
	t.Run("walsender terminated", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t, pgtest.Migrated())
		src := newSource(t, config(db.DSN))
		in := newIntake(t)
		r := start(t, src, db.Name, in)
		insert(t, db, "a")
		in.wait(1)
		exec(t, db, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, db.Name)
		err := r.ended()
		var setup *relay.SetupError
		if err == nil || errors.As(err, &setup) {
			t.Errorf("Run: got %v, want an error that passes", err)
		}
		insert(t, db, "b")
		next := newIntake(t)
		start(t, src, db.Name, next)
		events := next.until("b", func() bool {
			return len(next.events) > 0 && next.events[len(next.events)-1].AggregateID == "b"
		})
		if got := keys(events); got != "b" && got != "a b" { // a, if it had not been reported
			t.Errorf("got %s", got)
		}
	})
	// The server has not heard of us for wal_sender_timeout: it closes the connection, but that
	// does not get through either.
	t.Run("wal_sender_timeout", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t, pgtest.Migrated())
		proxy := pgtest.NewProxy(t, db.DSN)
		src := newSource(t, quick(proxy.DSN))
		in := newIntake(t)
		in.pin()
		r := start(t, src, db.Name, in)
		insert(t, db, "a")
		in.wait(1)
		proxy.Freeze()
		insert(t, db, "b")
		db.Until(t, `SELECT NOT active FROM pg_replication_slots WHERE slot_name = $1`, db.Name)
		proxy.Thaw()
		err := r.ended()
		var setup *relay.SetupError
		if err == nil || errors.As(err, &setup) || errors.Is(err, context.Canceled) {
			t.Errorf("Run: got %v, want an error that passes", err)
		}
		next := newIntake(t)
		start(t, src, db.Name, next)
		if got := keys(next.wait(2)); got != "a b" {
			t.Errorf("got %s, want a b", got)
		}
	})
	t.Run("connection reset", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t, pgtest.Migrated())
		proxy := pgtest.NewProxy(t, db.DSN)
		r := start(t, newSource(t, config(proxy.DSN)), db.Name, newIntake(t))
		proxy.Cut()
		if err := r.ended(); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("Run: got %v", err)
		}
	})
	for _, blocked := range []bool{false, true} {
		t.Run(map[bool]string{false: "silence", true: "silence after Admit blocked"}[blocked], func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t, pgtest.Migrated())
			proxy := pgtest.NewProxy(t, db.DSN)
			cfg := quick(proxy.DSN)
			src := newSource(t, cfg)
			in := newIntake(t)
			release := func() {}
			var entered chan struct{}
			if blocked {
				entered, release = in.block()
			}
			r := start(t, src, db.Name, in)
			insert(t, db, "a")
			if blocked {
				<-entered
			} else {
				in.wait(1)
			}
			proxy.Freeze()
			begin := time.Now()
			release()
			select {
			case <-r.done:
			case <-time.After(patience):
				t.Fatal("Run does not notice that the server is silent")
			}
			if took := time.Since(begin); took < cfg.WALSenderTimeout/2 || took > 5*cfg.WALSenderTimeout {
				t.Errorf("Run returned after %s, want about %s", took, cfg.WALSenderTimeout)
			}
			if r.err == nil || errors.Is(r.err, context.Canceled) {
				t.Errorf("Run: got %v", r.err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			begin = time.Now()
			r.once.Do(func() {
				if err := r.stream.Close(ctx); err == nil {
					t.Error("Close returned that a silent server has taken its report")
				}
			})
			if took := time.Since(begin); took > soon {
				t.Errorf("Close took %s", took)
			}
			proxy.Cut()
			proxy.Thaw()
			// the server lets go of the slot after wal_sender_timeout, too
			start(t, src, db.Name, newIntake(t))
		})
	}
}

// A server that sends nothing at all does not keep Run from stopping.
func TestStopsInSilence(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	proxy := pgtest.NewProxy(t, db.DSN)
	cfg := config(proxy.DSN)
	cfg.WALSenderTimeout, cfg.StatusInterval = 10*time.Minute, 3*time.Minute
	in := newIntake(t)
	r := start(t, newSource(t, cfg), db.Name, in)
	insert(t, db, "a")
	in.wait(1)
	proxy.Freeze()
	r.cancel()
	select {
	case <-r.done:
	case <-time.After(20 * time.Second):
		t.Error("Run does not return")
	}
	proxy.Thaw() // for Close
	if err := r.stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: got %v, want %v", err, context.Canceled)
	}
}
