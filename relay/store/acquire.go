package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// lockClass is the first key of the slots' advisory locks; the second is hashtext of the slot:
// "SAGZ" in ASCII.
const lockClass = 0x5341475a

// acquireSQL is the takeover of shard $6 of $7, by member $8. It takes the row from the owner that
// was seen with epoch $3. An owner without a lock must also still show the renewal $5, which by our
// own clock is a lease's time ago. If another relay was faster, the epoch has changed and nothing
// is updated. A row that does not name its cluster yet gets it here (system.go). Its time is the
// transaction's beginning: rows that were made before that are older than what it writes (doubt.go).
const acquireSQL = `INSERT INTO saga_outbox_relay AS s (slot, epoch, owner, pooled, shard, shards, member, system_id, timeline)
		VALUES ($1, 1, $2, $4, $6, $7, nullif($8::bigint, 0), (SELECT system_identifier FROM pg_control_system()), left(pg_walfile_name(pg_current_wal_lsn()), 8))
	ON CONFLICT (slot) DO UPDATE SET epoch = s.epoch + 1, owner = excluded.owner, pooled = excluded.pooled, taken_at = now(), renewed_at = now(), released_at = NULL, heir = NULL, shard = excluded.shard, shards = excluded.shards, member = excluded.member,
			system_id = coalesce(s.system_id, excluded.system_id), timeline = coalesce(s.timeline, excluded.timeline)
		WHERE s.epoch = $3 AND (NOT s.pooled OR s.released_at IS NOT NULL OR extract(epoch FROM s.renewed_at)::text = $5)`

// takenSQL is what the taker of a lease has to know. From $2, its time, on it may send what it has
// no mark for, and it may die before its first one.
const takenSQL = `UPDATE saga_outbox_relay r SET doubt_since = coalesce(r.doubt_since, $2)
	FROM (SELECT doubt_since, EXISTS (SELECT FROM saga_outbox_relay WHERE heir IS NOT NULL) AS heirs FROM saga_outbox_relay WHERE slot = $1) before WHERE slot = $1
	RETURNING epoch, (marked_lsn - '0/0')::bigint, (confirmed_lsn - '0/0')::bigint, sweep_owed, sweep_cause, coalesce(sweep_snapshot, ''),
		before.heirs, coalesce(before.doubt_since, 0), (pg_current_wal_insert_lsn() - '0/0')::bigint`

// errTaken means that another relay was faster, errSetBusy that one is taking another slot.
var (
	errTaken   = errors.New("another relay was faster")
	errSetBusy = fmt.Errorf("%w: it takes another slot", errTaken)
)

// Acquire implements relay.Store.
func (s *Store) Acquire(ctx context.Context, shard relay.Shard) (relay.Lease, error) {
	log := s.log.With("slot", shard.Slot)
	w := s.roster.wait(shard)
	acquiring, done := context.WithCancel(ctx)
	defer done()
	ahead := s.connectAhead(acquiring, w)
	var l *lease
	troubled := false
	err := relay.Retry(ctx, relay.Backoff{Min: s.cfg.AcquireInterval, Max: 5 * time.Second}, func() (err error) {
		for {
			p, err := s.roster.next(ctx, w)
			if err != nil {
				return err
			}
			if l, err = s.contend(ctx, <-ahead, shard, p, log); err == nil {
				s.roster.took(w, l, p.late)
				return nil
			}
			if !errors.Is(err, errTaken) {
				s.roster.failed(w, err)
				return err
			}
			s.roster.failed(w, nil)
		}
	}, func(err error, wait time.Duration) bool {
		if setup := (*relay.SetupError)(nil); errors.As(err, &setup) || errors.Is(err, relay.ErrSetChanged) {
			return false
		}
		if !troubled {
			log.Warn("waiting for the database to take the lease", "backoff", wait, "error", err)
			troubled = true
		}
		return true
	})
	if err == nil {
		return l, nil
	}
	s.roster.away(w)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, err
}

// busyFor is how long one who may take a slot waits while another takes one.
const busyFor = time.Second

// connectAhead makes the connection for the lease while the roster makes its own, where this relay
// is just starting: most likely the slot is to be ours. When the roster has looked, and it is not,
// the connection is closed again: a standby has none. The channel gives it once, and then nil.
func (s *Store) connectAhead(ctx context.Context, w *waiter) <-chan *pgx.Conn {
	ahead := make(chan *pgx.Conn)
	looked := s.roster.firstLook()
	if looked == nil {
		close(ahead)
		return ahead
	}
	go func() {
		defer close(ahead)
		conn, err := s.connect(ctx, "lease "+w.shard.Slot)
		if err != nil {
			return // the roster reports it
		}
		select {
		case <-looked:
		case <-ctx.Done():
		}
		if ctx.Err() == nil && s.roster.isThrough(w) {
			select {
			case ahead <- conn:
				return
			case <-ctx.Done():
			}
		}
		closeConn(conn)
	}()
	return ahead
}

// contend takes the slot on a connection that becomes the lease's, if it is free. Without one it
// makes one.
func (s *Store) contend(ctx context.Context, conn *pgx.Conn, shard relay.Shard, p permit, log hclog.Logger) (_ *lease, err error) {
	if conn == nil {
		conn, err = s.connect(ctx, "lease "+shard.Slot)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeConn(conn)
		}
	}()
	free, seen, last, err := s.try(ctx, conn, shard.Slot)
	if err != nil {
		return nil, err
	}
	if !free {
		return nil, errTaken
	}
	if !seen.pooled || seen.left || p.judged[shard.Slot] == seen {
		for end := time.Now().Add(busyFor); ; {
			var l *lease
			if l, err = s.take(ctx, conn, shard, seen, last, p.judged, log); err == nil {
				return l, nil
			}
			if !errors.Is(err, errSetBusy) || time.Now().After(end) || !relay.Sleep(ctx, 10*time.Millisecond+rand.N(20*time.Millisecond)) {
				break
			}
		}
	} else {
		err = errTaken
	}
	// A closed connection's backend may linger for a moment.
	return nil, errors.Join(err, s.unlock(ctx, conn, shard.Slot))
}

// heldHere is true in pg_locks for an advisory lock of two keys, the first of them the class, that a
// session of this database has.
func heldHere(class string) string {
	return `locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND classid = ` + class + `::bigint::oid AND objsubid = 2`
}

// holdsLock is true in pg_locks for a slot's advisory lock, when a session has it. $1 is lockClass.
func holdsLock(slot string) string {
	return heldHere("$1") + ` AND objid = (hashtext(` + slot + `)::bigint & 4294967295)::oid`
}

// lockHeld is true while a session has a slot's advisory lock.
func lockHeld(slot string) string {
	return `EXISTS (SELECT FROM pg_locks WHERE ` + holdsLock(slot) + `)`
}

// trySQL looks at the slot's row.
const trySQL = `coalesce(s.epoch, 0), coalesce(s.owner, ''), coalesce(extract(epoch FROM s.renewed_at)::text, ''), coalesce(s.pooled, false), coalesce(s.released_at IS NOT NULL OR s.heir IS NOT NULL, true), coalesce(s.member, 0), coalesce(s.xmin::text, '0')
	FROM (SELECT 1) one LEFT JOIN saga_outbox_relay s ON s.slot = $2`

// try asks for the advisory lock without waiting, because a waiting statement would keep a
// snapshot, which holds back vacuum. Behind a pooler it asks only whether any session has the lock.
// An owner without a lock may be alive all the same: the caller has to watch its renewals.
func (s *Store) try(ctx context.Context, conn *pgx.Conn, slot string) (free bool, seen sighting, last lastWrite, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	ask := `SELECT pg_try_advisory_lock($1::bigint::int, hashtext($2)), `
	if isPooled(conn) {
		ask = `SELECT NOT ` + lockHeld("$2") + `, `
	}
	err = conn.QueryRow(ctx, ask+trySQL, int64(lockClass), slot).Scan(&free, &seen.epoch, &seen.owner, &seen.renewed, &seen.pooled, &seen.left, &seen.member, &last.xid)
	last.renewed = seen.renewed
	if err != nil {
		return false, seen, last, fmt.Errorf("ask for the lease of slot %q: %w", slot, setup(err))
	}
	return free, seen, last, nil
}

// unlock gives the advisory lock back, where we have one.
func (s *Store) unlock(ctx context.Context, conn *pgx.Conn, slot string) error {
	if isPooled(conn) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	_, err := conn.Exec(ctx, `SELECT pg_advisory_unlock($1, hashtext($2))`, int32(lockClass), slot)
	return err
}

// take turns the lock into a lease: the epoch grows, which fences the owner before. It returns
// errTaken when another relay was faster, and relay.ErrSetChanged when the shard is not of the set
// any more. last is what the owner before has written, judged are owners without a lock whose time is
// over.
func (s *Store) take(ctx context.Context, conn *pgx.Conn, shard relay.Shard, seen sighting, last lastWrite, judged map[string]sighting, log hclog.Logger) (*lease, error) {
	slot := shard.Slot
	if err := s.endMarks(ctx, conn, slot); err != nil {
		return nil, err
	}
	if err := s.knowSystem(ctx, conn, slot, seen.epoch, log); err != nil {
		return nil, err
	}
	l := newLease(s, shard, log, conn)
	l.left.entries = true // of an earlier owner
	if err := s.taking.Take(ctx); err != nil {
		return nil, err
	}
	var sent time.Time
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) (err error) {
		sent, err = s.takeRow(ctx, conn, tx, l, seen, last, judged)
		return err
	})
	s.taking.Give()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	l.renewed.Store(&sent)
	if err := l.prepareRenewals(ctx); err != nil {
		return nil, err
	}
	if err := l.openMarks(ctx); err != nil {
		return nil, err
	}
	s.conns.join()
	// It runs as long as the lease.
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	l.renewing.Go(func() { l.renew(renewing) })
	if shard.Index == 0 {
		l.renewing.Go(func() { l.dropAbandoned(renewing) })
	}
	s.leases.Store(slot, l)
	return l, nil
}

// takeRow takes the slot's row in a transaction, and what other slots of the table have left. It
// returns when it began to.
func (s *Store) takeRow(ctx context.Context, conn *pgx.Conn, tx pgx.Tx, l *lease, seen sighting, last lastWrite, judged map[string]sighting) (sent time.Time, err error) {
	bounded, cancel := context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	if err := s.lockSet(bounded, tx, l.shard); err != nil {
		return sent, err
	}
	others, err := s.others(bounded, tx, l.shard, judged)
	if err != nil {
		return sent, err
	}
	for i := range others {
		if err := s.endMarks(bounded, conn, others[i].slot); err != nil {
			return sent, err
		}
		if err := s.knowSystem(bounded, conn, others[i].slot, others[i].seen.epoch, l.log); err != nil {
			return sent, err
		}
	}
	if err := s.inherit(ctx, tx, l.shard, others, l.log); err != nil {
		return sent, err
	}
	sent = time.Now()
	bounded, cancel = context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	tag, err := tx.Exec(bounded, acquireSQL, l.slot, s.storable(s.cfg.Owner), seen.epoch, isPooled(conn), seen.renewed, l.shard.Index, l.shard.Set.Shards, int64(s.roster.me.Load()))
	if err == nil && tag.RowsAffected() == 0 {
		return sent, errTaken
	}
	for i := 0; err == nil && i < len(others); i++ {
		err = s.inheritRows(bounded, tx, l.shard, &others[i])
	}
	var marked, confirmed, since, end int64
	r := &l.recovery
	if err == nil {
		err = tx.QueryRow(bounded, takenSQL, l.slot, doubtMillis(sent)).Scan(&l.epoch, &marked, &confirmed, &r.Owed, &r.Cause, &r.Snapshot, &l.heirs, &since, &end)
	}
	if err != nil {
		return sent, fmt.Errorf("take the lease of slot %q: %w", l.slot, setup(err))
	}
	l.markedLSN.Store(uint64(marked))
	r.Confirmed = relay.LSN(confirmed)
	l.before, l.inDoubt = last, inDoubt(since, relay.LSN(end))
	l.owedSnapshot.Store(null(r.Snapshot))
	return sent, nil
}

// endMarks ends the marking session of the owner before. Frozen in the middle of sending a batch,
// that session would keep the lock of the slot's row, which its fence took, until its connection is
// dead. The server waits for the rest of the batch, and no timeout applies to that.
func (s *Store) endMarks(ctx context.Context, conn *pgx.Conn, slot string) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	_, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = $1 AND pg_has_role(usesysid, 'USAGE') AND (NOT $2::boolean OR state <> 'idle')`, applicationName("marks "+slot), isPooled(conn))
	if err != nil {
		return fmt.Errorf("end the marking session of the former owner of slot %q: %w", slot, setup(err))
	}
	return nil
}
