package cdc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// preparing is a server that takes prepared transactions, and that no other test waits for.
func preparing(t *testing.T, version string) (superuser string) {
	return pgtest.OwnServer(t, version, map[string]string{"max_prepared_transactions": "5", "wal_level": "logical"}).DSN("postgres")
}

// Making a slot waits for transactions of any database, open ones and prepared ones, and names
// them.
func TestHolders(t *testing.T) {
	eachVersion(t, nil, func(t *testing.T, version string) {
		superuser := preparing(t, version)
		db, other := pgtest.NewAt(t, superuser, pgtest.Migrated()), pgtest.NewAt(t, superuser)
		for _, c := range []struct {
			name, begin, end, want string
			prepared               bool
		}{
			{"prepared", `BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'forgot''ten'`, `ROLLBACK PREPARED 'forgot''ten'`, `the prepared transaction "forgot'ten"`, true},
			{"open", `SET application_name = 'report'; BEGIN; SELECT pg_current_xact_id()`, `COMMIT`, `application "report"`, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				conn := other.Conn(t)
				if _, err := conn.PgConn().Exec(t.Context(), c.begin).ReadAll(); err != nil {
					t.Fatal(err)
				}
				end := func() {
					if _, err := conn.Exec(context.WithoutCancel(t.Context()), c.end); err != nil {
						t.Error(err)
					}
				}
				log := &logText{}
				src, err := New(config(db.DSN), hclog.New(&hclog.LoggerOptions{Output: log}))
				if err != nil {
					t.Fatal(err)
				}
				slot := db.Name + "_" + c.name
				made := make(chan error, 1)
				go func() {
					_, err := src.EnsureSlot(t.Context(), whole(slot))
					made <- err
				}()
				var h relay.Holder
				for until := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
					holders, err := src.Holders(t.Context(), slot)
					if strings.Contains(relay.SayHolders(holders), c.want) && holders[0].Age > 0 && strings.Contains(log.String(), "making the slot waits") {
						h = holders[0]
						break
					}
					if time.Now().After(until) {
						end()
						t.Fatalf("it waits for %s (%v), want %s; the log is %s", relay.SayHolders(holders), err, c.want, log)
					}
				}
				if h.Database != other.Name || h.User == "" || (h.PID == 0) != c.prepared || h.PID != 0 && h.PID != int(conn.PgConn().PID()) {
					t.Errorf("got %+v", h)
				}
				end()
				if err := <-made; err != nil {
					t.Fatal(err)
				}
				exec(t, db, `SELECT pg_drop_replication_slot($1)`, slot)
			})
		}
	})
}

// logText is what was logged.
type logText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Statements that alter the publication and leave it as it is need no new slot, which would wait
// for as long as a transaction is open somewhere.
func TestPublicationAlteredHarmlessly(t *testing.T) {
	eachVersion(t, nil, func(t *testing.T, version string) {
		superuser := preparing(t, version)
		other := pgtest.NewAt(t, superuser)
		for _, change := range []string{
			`ALTER PUBLICATION sagaz_outbox SET (publish = 'insert')`,
			`ALTER PUBLICATION sagaz_outbox SET (publish = 'insert, update')`,
		} {
			for _, streaming := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, streaming %t", change, streaming), func(t *testing.T) {
					db := pgtest.NewAt(t, superuser, pgtest.Migrated())
					a := &accident{t: t, db: db, src: newSource(t, config(db.DSN)), in: newIntake(t)}
					a.src.lookEvery = 50 * time.Millisecond
					a.run = start(t, a.src, db.Name, a.in)
					insert(t, db, "before")
					a.in.wait(1)
					conn := other.Conn(t)
					if _, err := conn.PgConn().Exec(t.Context(), `BEGIN; SELECT pg_current_xact_id()`).ReadAll(); err != nil {
						t.Fatal(err)
					}
					committed := make(chan struct{})
					// or else the test would wait as the relay does
					timeout := time.AfterFunc(patience/2, func() {
						close(committed)
						_, _ = conn.Exec(context.WithoutCancel(t.Context()), `COMMIT`)
					})
					if streaming {
						exec(t, db, change)
						wantGone(t, a.run.ended(), db.Name, relay.GonePublication, "carries the same")
					} else {
						known := a.down()
						exec(t, db, change)
						wantGone(t, a.open(a.src, known), db.Name, relay.GonePublication, "carries the same")
					}
					a.recovers(a.src)
					if !timeout.Stop() {
						<-committed
						t.Error("it needs a new slot, which waits for somebody's transaction")
					}
					_, _ = conn.Exec(t.Context(), `COMMIT`)
				})
			}
		}
	})
}

// A relay that was frozen in the middle of making a slot again drops nothing of its successor's
// when it thaws.
func TestFrozenInCreate(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t, pgtest.Migrated())
	src := newSource(t, config(db.DSN))
	if _, err := src.Create(t.Context(), whole(db.Name)); err != nil {
		t.Fatal(err)
	}
	sess, err := src.connect(t.Context(), db.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer sess.conn.Close(t.Context())
	seen, err := sess.slotState(t.Context(), db.Name)
	if err != nil {
		t.Fatal(err)
	}
	lost := relay.WithFence(t.Context(), func() bool { return false })
	if err := sess.dropSlot(lost, db.Name, seen); !errors.Is(err, relay.ErrLeaseLost) {
		t.Errorf("without a lease: got %v", err)
	}
	dropSlot(t, db) // by its successor
	if err := sess.dropSlot(t.Context(), db.Name, seen); err != nil {
		t.Errorf("it is gone already: got %v", err)
	}
	exec(t, db, `SELECT pg_logical_emit_message(true, 'test', 'x')`) // so that it is elsewhere
	if _, err := newSource(t, config(db.DSN)).Create(t.Context(), whole(db.Name)); err != nil {
		t.Fatal(err)
	}
	if err := sess.dropSlot(t.Context(), db.Name, seen); !errors.Is(err, relay.ErrSlotBusy) {
		t.Errorf("it was made again: got %v", err)
	}
	if got := ask(t, db, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, db.Name); got != "1" {
		t.Error("the successor's slot was dropped")
	}
}
