package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/watch"
)

// owner is a relay in this process that owns its slot.
type owner struct {
	t     *testing.T
	db    *pgtest.DB
	relay *watch.Watch
	// Of all looks so far, in seconds.
	stalled, waited float64
}

// newOwner migrates the database and runs a relay on it until the test ends.
func newOwner(t *testing.T, db *pgtest.DB) *owner {
	t.Helper()
	env := map[string]string{
		"DATABASE_URL": db.DSN, "RELAY_SLOT": db.Name, "WORKER_ID": "owner", "BROKER_TYPE": "file", "RELAY_FILE_PATH": filepath.Join(t.TempDir(), "events.jsonl"), "METRICS_PORT": "0",
		"RELAY_WAL_SENDER_TIMEOUT": "6s", "RELAY_MODE": "cdc",
	}
	s, err := loadSettings(func(name string) (string, bool) { v, ok := env[name]; return v, ok }, nil, "")
	if err == nil {
		err = s.all()
	}
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	running, ended := make(chan *watch.Watch, 1), make(chan error, 1)
	go func() { ended <- serve(ctx, s, newLogger(log, 0), func(r *watch.Watch, _ string) { running <- r }) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("the relay's log:\n%s", text)
		}
		_ = log.Close()
	})
	o := &owner{t: t, db: db, relay: <-running}
	o.until("it streams", func(s watch.SlotStatus) bool { return s.Streaming })
	return o
}

// until looks at the status until the condition holds. At no look the relay may be anything but
// ready, once it streams.
func (o *owner) until(what string, is func(watch.SlotStatus) bool) {
	o.t.Helper()
	const patience = 3 * time.Minute
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		st := o.relay.Status()
		var s watch.SlotStatus
		if len(st.Slots) > 0 {
			s = st.Slots[0]
		}
		o.stalled, o.waited = max(o.stalled, s.Stalled), max(o.waited, s.Waits)
		if s.Streaming {
			for _, p := range st.Problems() {
				o.t.Errorf("until %s: not ready: %s", what, p)
			}
		}
		if is(s) {
			return
		}
		if time.Since(began) > patience {
			o.t.Fatalf("not within %s: %s; %+v", patience, what, s)
		}
	}
}

func (o *owner) exec(sql string, args ...any) {
	o.t.Helper()
	if _, err := o.db.Pool.Exec(o.t.Context(), sql, args...); err != nil {
		o.t.Fatal(err)
	}
}

// foreign commits so many thousands of rows to another table in one transaction: some 70 bytes of
// WAL each.
func (o *owner) foreign(thousands int) {
	o.t.Helper()
	o.exec(`CREATE TABLE ballast (a bigint)`)
	o.exec(`INSERT INTO ballast SELECT n FROM generate_series(1, 1000) AS n, generate_series(1, $1::int)`, thousands)
}

// deliver commits an event and waits until it is marked.
func (o *owner) deliver(n uint64) {
	o.t.Helper()
	o.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 's', 'a', 'Happened', '{}')`)
	o.until(fmt.Sprint(n, " events are marked"), func(s watch.SlotStatus) bool { return s.Marked == n })
}

// For a server that sends nothing new for long, though WAL is written, we wait; that is no
// standstill of ours. Here it is because logical slots must not be ahead of a standby that is away
// (synchronized_standby_slots), which can be had for as long as one likes. A large transaction in
// another table is the same to us, and decoded too fast on a good machine to be seen.
func TestWaitingForTheServerIsNoStandstill(t *testing.T) {
	server := pgtest.OwnServer(t, pgtest.Newest, nil)
	db := pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated())
	o := newOwner(t, db)
	o.deliver(1)
	o.exec(`SELECT pg_create_physical_replication_slot('standby', true)`)
	o.exec(`ALTER SYSTEM SET synchronized_standby_slots = 'standby'`)
	o.exec(`SELECT pg_reload_conf()`)
	db.Until(t, `SELECT current_setting('synchronized_standby_slots') = 'standby'`)
	o.foreign(20)
	o.until("it waits for the server", func(s watch.SlotStatus) bool { return s.WaitsFor == relay.WaitsForServer && s.Waits > 15 })
	// The server's signs of life come within RELAY_WAL_SENDER_TIMEOUT, or the stream would have
	// ended; we look at them every second.
	t.Logf("waited for the server for %.1f s, stood still for %.1f s at most", o.waited, o.stalled)
	if o.stalled > 10 {
		t.Errorf("it takes %.1f s for its own standstill", o.stalled)
	}
	o.exec(`ALTER SYSTEM RESET synchronized_standby_slots`)
	o.exec(`SELECT pg_reload_conf()`)
	o.deliver(2)
	o.until("it is over", func(s watch.SlotStatus) bool { return s.WaitsFor == "" })
}

// Somebody writes a large transaction to another table. The server decodes all of it when it ends,
// and sends nothing of it; what is committed meanwhile comes after that. At no moment is the relay
// unready.
func TestForeignTransaction(t *testing.T) {
	o := newOwner(t, pgtest.New(t, pgtest.Migrated()))
	o.deliver(1)
	o.foreign(1000)
	o.deliver(2)
	t.Logf("waited for the server for %.1f s, stood still for %.1f s at most", o.waited, o.stalled)
}
