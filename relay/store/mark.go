package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
)

// marks is the lease's connection for marks and look-ups. It is made again when it breaks; the lease does not depend on it.
type marks struct {
	mu     sync.Mutex // one statement at a time; guards conn
	conn   *pgx.Conn
	closed bool
	skip   bool // somebody holds the locks of rows that we want: mark the others
}

// Every mark batch is: this statement, then the marks, in one implicit transaction (the extended protocol without a Sync in
// between; PostgreSQL docs, "Pipelining"). The row lock that it takes holds the epoch still until the commit.
const fenceSQL = `UPDATE saga_outbox_relay SET marked_lsn = greatest(marked_lsn, '0/0'::pg_lsn + $3::numeric) WHERE slot = $1 AND epoch = $2`

// owned is true in the statements after fenceSQL when it found its row.
const owned = ` AND EXISTS (SELECT FROM saga_outbox_relay WHERE slot = $2 AND epoch = $3)`

const (
	sentSQL    = `UPDATE saga_outbox SET status = 'sent', sent_at = now() WHERE event_id = ANY($1::uuid[])` + owned
	deleteSQL  = `DELETE FROM saga_outbox WHERE event_id = ANY($1::uuid[])` + owned
	refusedSQL = `UPDATE saga_outbox o SET status = CASE WHEN o.retry_count + 1 >= $4 THEN 'dead_letter' ELSE 'failed' END,
		retry_count = o.retry_count + 1, last_error = r.error
		FROM unnest($1::uuid[], $5::text[]) AS r (event_id, error) WHERE o.event_id = r.event_id AND o.event_id = ANY($1::uuid[])` + owned
	statusSQL = `SELECT event_id, status FROM saga_outbox WHERE event_id = ANY($1::uuid[])`
	// The library's worker says failed for a moment before it says pending or dead_letter, with its claim still on the row; a
	// refusal of ours is on a row without one.
	settledSQL = `SELECT event_id, CASE WHEN status = 'failed' AND worker_id IS NOT NULL THEN 'claimed' ELSE status END, coalesce(worker_id, ''),
		coalesce(extract(epoch FROM claimed_at - now())::float8, '-infinity') FROM saga_outbox WHERE event_id = ANY($1::uuid[])`
)

// archiveSQL moves rows; the copy says sent. Whole rows are moved, so columns that somebody added come along: both tables
// have the same columns in the same order (CONTRACT, "Tables"). OFFSET 0 keeps the row from being built once for each column.
const archiveSQL = `WITH gone AS (DELETE FROM saga_outbox o WHERE event_id = ANY($1::uuid[])` + owned + ` RETURNING o AS was)
	INSERT INTO saga_outbox_archive SELECT (m.became).* FROM (
		SELECT jsonb_populate_record(was, jsonb_build_object('status', 'sent', 'sent_at', now())) AS became FROM gone OFFSET 0) m
	ON CONFLICT (event_id) DO UPDATE SET sent_at = excluded.sent_at`

// skipping makes of a marking statement one that passes over rows whose locks somebody holds.
func skipping(sql string) string {
	return strings.Replace(sql, `event_id = ANY($1::uuid[])`, `event_id IN (SELECT event_id FROM saga_outbox WHERE event_id = ANY($1::uuid[]) FOR UPDATE SKIP LOCKED)`, 1)
}

func (s *Store) statements() []string {
	return []string{fenceSQL, s.deliveredSQL(), refusedSQL, statusSQL, settledSQL}
}

func (s *Store) deliveredSQL() string {
	switch s.cfg.Mark {
	case MarkDelete:
		return deleteSQL
	case MarkArchive:
		return archiveSQL
	default:
		return sentSQL
	}
}

// openMarks makes the connection.
func (l *lease) openMarks(ctx context.Context) error {
	conn, err := l.store.connect(ctx, "marks "+l.slot)
	if err != nil {
		return setup(err)
	}
	// A transaction of ours is one round trip. If we are frozen in the middle of it, its locks must not outlive us for long.
	// And its wait for a row must not hold the slot's row for long, which the renewal of the lease wants.
	ttl := l.store.cfg.LeaseTTL.Milliseconds()
	if _, err := conn.Exec(ctx, fmt.Sprintf(`SET idle_in_transaction_session_timeout = %d; SET lock_timeout = %d; SET jit = off`, ttl/3, ttl/9)); err != nil {
		closeConn(conn)
		return fmt.Errorf("prepare the marking session: %w", err)
	}
	l.setOrigin(ctx, conn)
	l.marks.conn = conn
	return nil
}

// setOrigin gives the session a replication origin, so that a server from 16 on drops our own updates before decoding them
// (the slot is read with origin 'none'). It needs EXECUTE on the functions; without it all works the same, only slower. An
// origin serves one session at a time, and a predecessor's may linger, so there are two.
func (l *lease) setOrigin(ctx context.Context, conn *pgx.Conn) {
	var errs []error
	for _, suffix := range []string{"a", "b"} {
		name := "sagaz_relay_" + l.slot + "_" + suffix
		_, err := conn.Exec(ctx, `SELECT CASE WHEN NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = $1) THEN pg_replication_origin_create($1) END`, name)
		if err == nil {
			_, err = conn.Exec(ctx, `SELECT pg_replication_origin_session_setup($1)`, name)
		}
		if err == nil {
			return
		}
		errs = append(errs, err)
	}
	l.log.Info("marking without a replication origin, so the server decodes our marks too", "error", errors.Join(errs...),
		"mend", "as a superuser, grant EXECUTE on pg_replication_origin_create(text), pg_replication_origin_session_setup(text) and SELECT on pg_replication_origin")
}

func (m *marks) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	if m.conn != nil {
		closeConn(m.conn)
	}
}

// with runs f on the connection, which it makes again first if need be.
func (l *lease) with(ctx context.Context, f func(*pgx.Conn) error) error {
	l.marks.mu.Lock()
	defer l.marks.mu.Unlock()
	if l.marks.closed {
		return relay.ErrLeaseLost
	}
	if l.marks.conn == nil || l.marks.conn.IsClosed() {
		if err := l.openMarks(ctx); err != nil {
			return err
		}
	}
	return f(l.marks.conn)
}

// markTimeout bounds one transaction; beyond it something holds its rows' locks, and the batch is tried again.
const markTimeout = 30 * time.Second

// codeLockNotAvailable is the SQLSTATE of a wait that lock_timeout has ended.
const codeLockNotAvailable = "55P03"

// Mark implements relay.Lease. Rows whose locks somebody holds (a session left open, the library's worker) are passed over, for later,
// once waiting for them has not helped.
func (l *lease) Mark(ctx context.Context, b relay.MarkBatch) (later []int, err error) {
	marks := b.Marks
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	err = l.with(ctx, func(conn *pgx.Conn) error {
		found, err := l.write(ctx, conn, marks)
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == codeLockNotAvailable && !l.marks.skip {
			l.marks.skip = true
			found, err = l.write(ctx, conn, marks)
		}
		if err != nil {
			return err
		}
		if found < len(marks) {
			later, err = l.missing(ctx, conn, marks)
		}
		l.marks.skip = l.marks.skip && len(later) > 0
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mark %d rows: %w", len(marks), err)
	}
	return later, nil
}

// write runs the mark transaction and returns how many rows it found.
func (l *lease) write(ctx context.Context, conn *pgx.Conn, marks []relay.Mark) (found int, err error) {
	var (
		upTo              relay.LSN
		delivered         = make(uuids, 0, len(marks))
		refused           uuids
		errorsOf          []string
		batch             pgx.Batch
		deliver, refusing = false, false
	)
	for i := range marks {
		upTo = max(upTo, marks[i].CommitLSN)
		if len(marks[i].Parked) == 0 {
			delivered = append(delivered, marks[i].ID)
			continue
		}
		refused = append(refused, marks[i].ID)
		errorsOf = append(errorsOf, validText(marks[i].Parked[0].Sink+": "+marks[i].Parked[0].Error))
	}
	variant := func(sql string) string { return sql }
	if l.marks.skip {
		variant = skipping
	}
	batch.Queue(fenceSQL, l.slot, l.epoch, int64(upTo))
	if deliver = len(delivered) > 0; deliver {
		batch.Queue(variant(l.store.deliveredSQL()), delivered, l.slot, l.epoch)
	}
	if refusing = len(refused) > 0; refusing {
		batch.Queue(variant(refusedSQL), refused, l.slot, l.epoch, l.store.cfg.MaxRetries, errorsOf)
	}
	results := conn.SendBatch(ctx, &batch)
	defer func() { err = errors.Join(err, results.Close()) }()
	fence, err := results.Exec()
	if err != nil {
		return 0, err
	}
	if fence.RowsAffected() == 0 {
		return 0, relay.ErrFenced
	}
	for _, queued := range []bool{deliver, refusing} {
		if !queued {
			continue
		}
		tag, err := results.Exec()
		if err != nil {
			return 0, err
		}
		found += int(tag.RowsAffected())
	}
	return found, nil
}

// missing finds out, after fewer rows were marked than asked for, which of them are not visible yet. The others are gone: deleted
// by somebody, or by an earlier attempt whose answer was lost.
//
// A transaction's WAL is streamed as soon as it is flushed; its rows are visible to others only when it leaves the list of running
// transactions, after the wait for synchronous standbys. So an event can be published before its row can be marked.
// Taking the snapshot before the look at the rows makes the answer safe: whoever had ended by then had its rows visible to the look.
func (l *lease) missing(ctx context.Context, conn *pgx.Conn, marks []relay.Mark) (later []int, err error) {
	running, err := takeSnapshot(ctx, conn)
	if err != nil {
		return nil, err
	}
	ids := make(uuids, 0, len(marks))
	for i := range marks {
		ids = append(ids, marks[i].ID)
	}
	status, err := statuses(ctx, conn, ids)
	if err != nil {
		return nil, err
	}
	for i := range marks {
		s, visible := status[marks[i].ID]
		switch {
		case visible && !l.store.shows(&marks[i], s): // it was locked, or became visible after the mark had looked
			later = append(later, i)
		case !visible && running.hides(marks[i].XID):
			later = append(later, i)
		}
	}
	return later, nil
}

// shows reports whether a row with this status can be one that has its mark.
func (s *Store) shows(m *relay.Mark, status string) bool {
	if len(m.Parked) > 0 {
		return status == "failed" || status == "dead_letter"
	}
	return s.cfg.Mark == MarkUpdate && status == "sent"
}

// snapshot is PostgreSQL's pg_snapshot: which transactions have not ended.
type snapshot struct {
	xmax    uint64 // the first transaction that had not begun
	running []uint64
}

func takeSnapshot(ctx context.Context, conn *pgx.Conn) (snapshot, error) {
	var s snapshot
	err := conn.QueryRow(ctx, `SELECT pg_snapshot_xmax(s)::text::bigint, ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s) AS x)
		FROM pg_current_snapshot() AS s`).Scan(&s.xmax, &s.running)
	if err != nil {
		return s, fmt.Errorf("take a snapshot: %w", err)
	}
	return s, nil
}

// hides reports whether the rows of a transaction are invisible because it has not ended. 0 stands for a transaction
// that ended long ago. The stream gives the lower 32 bits only; the rest is that of xmax, or one off.
func (s *snapshot) hides(xid uint32) bool {
	if xid == 0 {
		return false
	}
	const half, whole = 1 << 31, 1 << 32
	full := s.xmax&^(whole-1) | uint64(xid)
	switch {
	case full > s.xmax+half:
		full -= whole
	case full+half < s.xmax:
		full += whole
	}
	return full >= s.xmax || slices.Contains(s.running, full)
}

func statuses(ctx context.Context, conn *pgx.Conn, ids uuids) (map[relay.UUID]string, error) {
	rows, err := conn.Query(ctx, statusSQL, ids)
	if err != nil {
		return nil, fmt.Errorf("look rows up: %w", err)
	}
	found := make(map[relay.UUID]string, len(ids))
	var id [16]byte
	var status string
	_, err = pgx.ForEachRow(rows, []any{&id, &status}, func() error {
		found[id] = status
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look rows up: %w", err)
	}
	return found, nil
}

// lookUp is statuses for Settled: it refuses to answer while other workers' claims are fresh.
func (l *lease) lookUp(ctx context.Context, conn *pgx.Conn, ids uuids) (map[relay.UUID]string, error) {
	rows, err := conn.Query(ctx, settledSQL, ids)
	if err != nil {
		return nil, err
	}
	var (
		found          = make(map[relay.UUID]string, len(ids))
		claims         relay.ClaimedError
		id             [16]byte
		status, worker string
		claimed        float64 // seconds since, negative
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &status, &worker, &claimed}, func() error {
		found[id] = status
		left := l.store.cfg.ClaimTimeout.Seconds() + claimed
		if status == "claimed" && left > 0 {
			claims.Rows++
			claims.Worker = worker
			claims.AtMost = max(claims.AtMost, time.Duration(left*float64(time.Second)).Round(time.Millisecond))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if claims.Rows > 0 {
		return nil, &claims
	}
	return found, nil
}

// Settled implements relay.Lease. A row that is not there was deleted or archived by its mark, or by a person, unless its
// transaction is still invisible, as in Mark: then it is not settled.
func (l *lease) Settled(ctx context.Context, events []relay.Event) ([]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	settled := make([]bool, len(events))
	err := l.with(ctx, func(conn *pgx.Conn) error {
		running, err := takeSnapshot(ctx, conn)
		if err != nil {
			return err
		}
		ids := make(uuids, len(events))
		for i := range events {
			ids[i] = events[i].ID
		}
		status, err := l.lookUp(ctx, conn, ids)
		if err != nil {
			return err
		}
		for i := range events {
			if s, visible := status[events[i].ID]; visible {
				settled[i] = s == "sent" || s == "dead_letter" || s == "failed"
			} else {
				settled[i] = !running.hides(events[i].XID)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up %d events: %w", len(events), err)
	}
	return settled, nil
}

// validText makes a text that a text column takes: UTF-8 without NUL, and not endless.
func validText(s string) string {
	const longest = 2000
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "")
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + " …"
	}
	return s
}
