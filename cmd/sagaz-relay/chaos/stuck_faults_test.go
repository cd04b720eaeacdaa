package chaos

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// stuckFaults are things that do not fail but do not go on: what waits for them has to notice by
// itself, and nothing else may wait.
func stuckFaults() []*fault {
	cut := func(purpose, repeats string) *fault {
		return &fault{
			name: "cut-" + purpose, weight: 2, least: time.Second, most: 12 * time.Second, seat: true, repeats: repeats,
			do: func(r *round, s step) error { return r.cutOnly(s, "sagaz-relay "+purpose) },
		}
	}
	return []*fault{
		// What is published and cannot be marked is published again if the relay has to stop before
		// it can.
		cut("marks", allSinks), cut("lease", allSinks), cut("sweep", ""), cut("facts", ""),
		{name: "backend-stop", weight: 2, least: time.Second, most: 7 * time.Second, repeats: allSinks, do: (*round).stopBackend},
		{name: "long-lock", weight: 1, least: 15 * time.Second, most: 20 * time.Second, locks: true, do: (*round).lockRows},
		{name: "xact-elsewhere", weight: 2, least: 2 * time.Second, most: 8 * time.Second, do: (*round).openElsewhere},
	}
}

// cutOnly lets nothing through to or from a relay's connections of one purpose. Nothing is closed.
func (r *round) cutOnly(s step, purpose string) error {
	l := r.testbed.toPG[r.seatOf(s).index]
	l.fault.Lock()
	defer l.fault.Unlock()
	l.mute(purpose)
	time.Sleep(s.hold)
	l.mute("")
	return nil
}

// stopBackend stops the server's process for one of the relays' connections.
func (r *round) stopBackend(s step) error {
	r.testbed.pgMu.Lock() // a server that ends must not leave a stopped process behind
	defer r.testbed.pgMu.Unlock()
	pids, err := query[int32](r, `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'sagaz-relay%' ORDER BY pid`)
	if err != nil || len(pids) == 0 {
		return err
	}
	pid := int(pids[s.pick%uint64(len(pids))])
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return ignoreGone(err)
	}
	time.Sleep(s.hold)
	return ignoreGone(syscall.Kill(pid, syscall.SIGCONT))
}

// ignoreGone leaves out that a process has ended.
func ignoreGone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// openElsewhere is a transaction in another database, open while the slot has to be made again.
func (r *round) openElsewhere(s step) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.hold+30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.testbed.pg.DSN("postgres"))
	if err != nil {
		return nil // the server is away, and so is the fault
	}
	defer closeQuietly(conn)
	if _, err := conn.Exec(ctx, `BEGIN`); err != nil {
		return nil
	}
	var xid string
	if err := conn.QueryRow(ctx, `SELECT pg_current_xact_id()::text`).Scan(&xid); err != nil {
		return nil
	}
	if err := r.dropSlot(s); err != nil {
		return fmt.Errorf("drop the slot while transaction %s is open elsewhere: %w", xid, err)
	}
	time.Sleep(s.hold)
	return nil // closing the connection ends it
}
