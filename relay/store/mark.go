package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// Every transaction that writes rows or the ledger begins with this statement. The others follow in
// one implicit transaction (the extended protocol without a Sync in between; PostgreSQL docs,
// "Pipelining"). The row lock that it takes keeps the epoch from changing until the commit. It also
// makes all who write the slot's ledger take turns, a person's dead-letter command among them. In
// READ COMMITTED each statement after it takes a fresh snapshot, so it sees all that was written by
// whoever had the lock before. That is why an event is never held behind one that has just gone.
// Mark sees the entry that blocks a key, and makes its own held. Or Resolve has deleted that entry
// before, and Mark sees nothing. Or Resolve comes after, and sees the held one.
const fenceSQL = `UPDATE saga_outbox_relay SET marked_lsn = greatest(marked_lsn, '0/0'::pg_lsn + $3::numeric, CASE WHEN $5::boolean THEN pg_current_wal_insert_lsn() ELSE '0/0' END),
	confirmed_lsn = greatest(confirmed_lsn, '0/0'::pg_lsn + $4::numeric), doubt_since = CASE $6::bigint WHEN 0 THEN doubt_since ELSE nullif($6::bigint, -1) END WHERE slot = $1 AND epoch = $2`

// owned is true in the statements after fenceSQL when it found its row.
const owned = ` AND EXISTS (SELECT FROM saga_outbox_relay WHERE slot = $2 AND epoch = $3)`

const (
	sentSQL   = `UPDATE saga_outbox SET status = 'sent', sent_at = now() WHERE event_id = ANY($1::uuid[])` + owned
	deleteSQL = `DELETE FROM saga_outbox WHERE event_id = ANY($1::uuid[])` + owned
	// A claim that was on the row, ours or a dead worker's, ends with it: "failed" with a claim
	// means that a worker is still at work on the row.
	refusedSQL = `UPDATE saga_outbox o SET status = r.status, retry_count = r.attempts, last_error = r.error, worker_id = NULL, claimed_at = NULL
		FROM unnest($1::uuid[], $4::text[], $5::int[], $6::text[]) AS r (event_id, status, attempts, error)
		WHERE o.event_id = r.event_id AND o.event_id = ANY($1::uuid[])` + owned
	statusSQL = `SELECT event_id, status FROM saga_outbox WHERE event_id = ANY($1::uuid[])`
)

// refusedAtOnce bounds the rows of one refusedSQL: its join may compare each row with each.
const refusedAtOnce = 100

// archiveSQL moves rows; the copy has status sent. Whole rows are moved, so columns that were added
// come along: both tables have the same columns in the same order (docs/contract.md, "Tables").
// OFFSET 0 keeps the row from being built once for each column.
const archiveSQL = `WITH gone AS (DELETE FROM saga_outbox o WHERE event_id = ANY($1::uuid[])` + owned + ` RETURNING o AS was)
	INSERT INTO saga_outbox_archive OVERRIDING SYSTEM VALUE SELECT (m.became).* FROM (
		SELECT jsonb_populate_record(was, jsonb_build_object('status', 'sent', 'sent_at', now())) AS became FROM gone OFFSET 0) m
	ON CONFLICT (event_id) DO UPDATE SET sent_at = excluded.sent_at`

// skipping turns a marking statement into one that skips locked rows.
func skipping(sql string) string {
	return strings.Replace(sql, `event_id = ANY($1::uuid[])`, `event_id = ANY(ARRAY(SELECT event_id FROM saga_outbox WHERE event_id = ANY($1::uuid[]) FOR UPDATE SKIP LOCKED))`, 1)
}

// withoutEntries turns a marking statement into one that skips rows with entries in the ledger.
func withoutEntries(sql string) string { return withoutEntriesOf(sql, ``) }

// withoutEntriesOf is withoutEntries for those for which a condition holds.
func withoutEntriesOf(sql, and string) string {
	return strings.Replace(sql, `event_id = ANY($1::uuid[])`, `event_id = ANY(ARRAY(SELECT i FROM unnest($1::uuid[]) AS i WHERE NOT `+hasEntries("i", and)+`))`, 1)
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

// markTimeout bounds one transaction; beyond it its rows are locked by something, and the batch is
// tried again.
const markTimeout = 30 * time.Second

// Mark implements relay.Lease. Rows that another session has locked (one left open, the library's
// worker) are skipped and returned, once waiting for them has not helped. When that lasts they are
// parked. A batch that fails for what may be the fault of one of its rows is written in halves, and
// the rows at fault are parked (unmarked.go).
//
// Crashes. Between two halves, those that are committed are marked, or in the ledger. The others
// are pending behind the slot's position, and streamed again. Between a publish and the row's
// entry: streamed again, refused again, and parked then. After the entry: it keeps the row from
// being delivered again.
func (l *lease) Mark(ctx context.Context, b relay.MarkBatch) (later []int, err error) {
	var locked []int
	// Keys with an event that is not marked yet: the parts that follow must not pass it.
	blocked := make(map[string]bool)
	err = l.batched(ctx, "mark", len(b.Marks), func(lo, hi int) error {
		n := notes{confirm: b.Confirm}
		if hi-lo == len(b.Marks) { // a part leaves the others in doubt
			n.doubt = doubtMillis(b.Since)
		}
		some, theirs, err := l.mark(ctx, part{marks: b.Marks[lo:hi], from: lo}, n, blocked)
		if err != nil {
			return err
		}
		later, locked = append(later, some...), append(locked, theirs...)
		for _, i := range some {
			blocked[b.Marks[i].Key] = true
		}
		return nil
	}, func() error {
		return l.probeMarks(ctx, b)
	}, func(lo, hi int, why error) error {
		these := make([]relay.Mark, 0, hi-lo)
		for i := lo; i < hi; i++ {
			if blocked[b.Marks[i].Key] {
				later = append(later, i)
			} else {
				these = append(these, b.Marks[i])
			}
		}
		return l.parkRefused(ctx, these, why)
	})
	if err == nil && (len(locked) > 0 || l.left.watching()) {
		later, err = l.parkLocked(ctx, b.Marks, later, locked)
	}
	if err != nil {
		return nil, fmt.Errorf("mark %d rows: %w", len(b.Marks), err)
	}
	return later, nil
}

// probeMarks runs the statements of a batch without any row.
func (l *lease) probeMarks(ctx context.Context, b relay.MarkBatch) error {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	w := l.store.writes(b.Marks)
	w.hollow()
	return l.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := l.write(ctx, conn, notes{confirm: b.Confirm}, w)
		return err
	})
}

// writes is what a batch of marks means for the tables.
type writes struct {
	upTo  relay.LSN
	atEnd bool // among them are events that no slot has delivered yet

	delivered uuids

	// Rows that get another status than sent, and which.
	refused  uuids
	statuses []string
	attempts []int32
	errors   []string

	entries entries

	// Which statements there are.
	delivers, refuses, parks bool
}

// hollow takes the rows out and leaves the statements.
func (w *writes) hollow() {
	*w = writes{delivered: uuids{}, refused: uuids{}, delivers: w.delivers, refuses: w.refuses, parks: w.parks}
}

// changesRow reports whether a mark changes its row.
func (s *Store) changesRow(m *relay.Mark) bool {
	if len(m.Parked) == 0 || s.cfg.Hybrid {
		return true
	}
	for i := range m.Parked {
		if m.Parked[i].State != relay.StateHeld {
			return true
		}
	}
	return false
}

func (s *Store) writes(marks []relay.Mark) *writes {
	w := &writes{delivered: make(uuids, 0, len(marks))}
	for i := range marks {
		m := &marks[i]
		w.upTo = max(w.upTo, m.CommitLSN)
		w.atEnd = w.atEnd || m.CommitLSN == 0
		if len(m.Parked) == 0 {
			w.delivered = append(w.delivered, m.ID)
			continue
		}
		if s.changesRow(m) {
			status, attempts, text := story(m.Parked)
			w.refused, w.statuses, w.attempts, w.errors = append(w.refused, m.ID), append(w.statuses, status), append(w.attempts, attempts), append(w.errors, text)
		}
	}
	w.entries.gather(marks)
	w.delivers, w.refuses, w.parks = len(w.delivered) > 0, len(w.refused) > 0, len(w.entries.ids) > 0
	return w
}

// story is the status, the attempts and the error that a row gets for its entries.
func story(parked []relay.Parked) (status string, attempts int32, text string) {
	status = "failed"
	var texts []string
	for i := range parked {
		p := &parked[i]
		if p.State == relay.StateHeld {
			continue
		}
		if p.State == relay.StateDead {
			status = "dead_letter"
		}
		attempts = max(attempts, int32(p.Attempts))
		texts = append(texts, p.Sink+": "+p.Error)
	}
	if texts == nil { // only in hybrid mode
		return status, 0, validText(parked[0].Sink + ": waits in saga_outbox_delivery")
	}
	return status, attempts, validText(strings.Join(texts, "; "))
}

// write runs the mark transaction and returns how many rows it found.
func (l *lease) write(ctx context.Context, conn *pgx.Conn, n notes, w *writes) (found int, err error) {
	if w.onlyDelivers() && !l.marks.skip && l.store.nearSQL() != "" && l.marks.near.pays(len(w.delivered), l.store.nearLeast) {
		if err := l.marks.near.ask(ctx, conn); err != nil {
			return 0, err
		}
		if !l.marks.near.never {
			found, err = l.writeNear(ctx, conn, n, w)
			refused, final := nearRefusal(err)
			if !refused {
				return found, err
			}
			l.marks.near.failed(final)
			found = 0
		}
	}
	variant := func(sql string) string { return sql }
	if l.marks.skip {
		variant = skipping
	}
	tx := l.fenced(fence{upTo: w.upTo, notes: n, atEnd: w.atEnd})
	if w.parks {
		w.entries.queue(tx, l)
	}
	if w.delivers {
		tx.queue(&found, variant(l.store.deliveredSQL()), w.delivered, l.slot, l.epoch)
	}
	if w.refuses {
		errors := l.store.allStorable(w.errors)
		for lo := 0; lo == 0 || lo < len(w.refused); lo += refusedAtOnce {
			hi := min(lo+refusedAtOnce, len(w.refused))
			tx.queue(&found, variant(refusedSQL), w.refused[lo:hi], l.slot, l.epoch, w.statuses[lo:hi], w.attempts[lo:hi], errors[lo:hi])
		}
	}
	return found, tx.run(ctx, conn)
}

// onlyDelivers reports whether all rows get the same mark.
func (w *writes) onlyDelivers() bool { return w.delivers && !w.refuses && !w.parks }

// writeNear is write for such rows, which are looked for on their pages.
func (l *lease) writeNear(ctx context.Context, conn *pgx.Conn, n notes, w *writes) (found int, err error) {
	tx := l.fenced(fence{upTo: w.upTo, notes: n, atEnd: w.atEnd})
	tx.queue(nil, nearSettingsSQL)
	var there, others int
	tx.query([]any{&there, &others}, func() error {
		l.marks.near.saw(there, len(w.delivered))
		return nil
	}, l.store.nearSQL(), w.delivered, l.slot, l.epoch, w.delivered.samples(nearSamples))
	err = tx.run(ctx, conn)
	return there + others, err
}

// missing finds out, after fewer rows were marked than asked for, which of them are not visible
// yet, and which are there (locked). The others are gone: deleted by another session, or by an
// earlier attempt whose answer was lost.
//
// A transaction's WAL is streamed as soon as it is flushed. Its rows are visible to others only
// when it leaves the list of running transactions, after the wait for synchronous standbys. So an
// event can be published before its row can be marked. Taking the snapshot before the look at the
// rows makes the answer safe: whoever had ended by then had its rows visible to the look.
func (l *lease) missing(ctx context.Context, conn *pgx.Conn, of part) (later, locked []int, err error) {
	running, err := takeSnapshot(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	status, err := statuses(ctx, conn, idsOf(of.marks))
	if err != nil {
		return nil, nil, err
	}
	for i := range of.marks {
		m, at := &of.marks[i], of.place(i)
		s, visible := status[m.ID]
		switch {
		case !l.store.changesRow(m):
		// It was locked, or became visible after the mark had looked.
		case visible && !l.store.shows(m, s):
			later, locked = append(later, at), append(locked, at)
		case !visible && running.hides(m.XID):
			later = append(later, at)
		}
	}
	return later, locked, nil
}

// idsOf are the events' ids.
func idsOf(marks []relay.Mark) uuids {
	ids := make(uuids, 0, len(marks))
	for i := range marks {
		ids = append(ids, marks[i].ID)
	}
	return ids
}

// shows reports whether a row with this status can be one that has its mark.
func (s *Store) shows(m *relay.Mark, status string) bool {
	if len(m.Parked) > 0 {
		return status == "failed" || status == "dead_letter"
	}
	return s.cfg.Mark == MarkUpdate && status == "sent"
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

// validText makes a text that a text column takes: UTF-8 without NUL, and not endless.
func validText(s string) string {
	const longest = 2000
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "")
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + " …"
	}
	return s
}
