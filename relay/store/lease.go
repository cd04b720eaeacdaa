package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// lockClass is the first key of the slots' advisory locks; the second is hashtext of the slot:
// "SAGZ" in ASCII.
const lockClass = 0x5341475a

// acquireSQL is the takeover. It takes the row from the owner that was seen with epoch $3. An owner
// without a lock must also still show the renewal $5, which by our own clock is a lease's time ago.
// If another relay was faster, the epoch has changed and nothing is updated. A row that does not
// name its cluster yet gets it here (system.go).
const acquireSQL = `INSERT INTO saga_outbox_relay AS s (slot, epoch, owner, pooled, system_id, timeline)
		VALUES ($1, 1, $2, $4, (SELECT system_identifier FROM pg_control_system()), left(pg_walfile_name(pg_current_wal_lsn()), 8))
	ON CONFLICT (slot) DO UPDATE SET epoch = s.epoch + 1, owner = excluded.owner, pooled = excluded.pooled, taken_at = now(), renewed_at = clock_timestamp(), released_at = NULL, heir = NULL,
			system_id = coalesce(s.system_id, excluded.system_id), timeline = coalesce(s.timeline, excluded.timeline)
		WHERE s.epoch = $3 AND (NOT s.pooled OR s.released_at IS NOT NULL OR extract(epoch FROM s.renewed_at)::text = $5)`

// takenSQL is what the taker of a lease has to know.
const takenSQL = `SELECT epoch, (marked_lsn - '0/0')::bigint, (confirmed_lsn - '0/0')::bigint, sweep_owed, sweep_cause, coalesce(sweep_snapshot, ''),
	EXISTS (SELECT FROM saga_outbox_relay WHERE heir IS NOT NULL) FROM saga_outbox_relay WHERE slot = $1`

// errTaken means that another relay was faster.
var errTaken = errors.New("another relay was faster")

// Acquire implements relay.Store.
func (s *Store) Acquire(ctx context.Context, slot string) (relay.Lease, error) {
	log := s.log.With("slot", slot)
	var l *lease
	troubled := false
	err := relay.Retry(ctx, relay.Backoff{Min: s.cfg.AcquireInterval, Max: 5 * time.Second}, func() (err error) {
		l, err = s.contend(ctx, slot, log)
		s.noteWaiting(slot, err)
		return err
	}, func(err error, wait time.Duration) bool {
		if setup := (*relay.SetupError)(nil); errors.As(err, &setup) {
			return false
		}
		if !troubled {
			log.Warn("waiting for the database to take the lease", "backoff", wait, "error", err)
			troubled = true
		}
		return true
	})
	switch {
	case err == nil:
		return l, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	return nil, err
}

// Waiting implements relay.Store.
func (s *Store) Waiting(slot string) error {
	if err, ok := s.waiting.Load(slot); ok {
		return err.(error)
	}
	return nil
}

// noteWaiting notes what keeps a standby of the slot from taking the lease, were it free; nil for
// nothing.
func (s *Store) noteWaiting(slot string, err error) {
	if err == nil {
		s.waiting.Delete(slot)
	} else {
		s.waiting.Store(slot, err)
	}
}

// contend waits for the lease on one connection, which becomes the lease's.
func (s *Store) contend(ctx context.Context, slot string, log hclog.Logger) (_ *lease, err error) {
	conn, err := s.connect(ctx, "lease "+slot)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeConn(conn)
		}
	}()
	var (
		watched rival
		members = make(rivals)
		ended   sighting // the owner whose connections we have ended
		warned  time.Time
	)
	for {
		sent := time.Now()
		free, seen, err := s.try(ctx, conn, slot)
		if err != nil {
			return nil, err
		}
		stale := watched.see(seen, sent)
		var occupied *relay.OccupiedError
		if free {
			err := errTaken
			if !seen.pooled || seen.left || stale > s.cfg.LeaseTTL {
				var l *lease
				if l, err = s.take(ctx, conn, slot, seen, members, log); err == nil {
					return l, nil
				}
			}
			if !errors.Is(err, errTaken) && !errors.As(err, &occupied) {
				return nil, err
			}
			if err := s.unlock(ctx, conn, slot); err != nil {
				return nil, err
			}
		}
		if occupied != nil {
			if was := (*relay.OccupiedError)(nil); errors.As(s.Waiting(slot), &was) && was.Slot == occupied.Slot {
				occupied.Found = was.Found
			}
			s.noteWaiting(slot, occupied)
			if time.Since(warned) > warnEvery {
				warned = time.Now()
				log.Warn("standing by: the table's events are delivered through another slot", "other", occupied.Slot, "owner", occupied.Owner,
					"since", occupied.Taken.UTC().Format(time.RFC3339), "fix", "if it is to be the same set, set RELAY_SLOT="+occupied.Slot+"; if the slot is being renamed, stop the relays of the old one")
			}
			// Not in step with another standby that waits for the same reason.
			if !relay.Sleep(ctx, s.cfg.AcquireInterval+rand.N(s.cfg.AcquireInterval)) {
				return nil, ctx.Err()
			}
			continue
		}
		ending := false
		switch {
		case seen.pooled: // it has no connections that count
		case s.own(slot, seen.epoch):
			// We know without waiting that it is not renewed any more: its connections are
			// half-open.
			if time.Since(warned) > warnEvery {
				warned = time.Now()
				log.Warn("our own lost lease still holds the slot, ending its connections", "epoch", seen.epoch)
			}
			ending, err = true, s.evict(ctx, conn, slot)
		default:
			ending, err = s.outwait(ctx, conn, slot, &watched, sent, func(stale time.Duration) {
				log.Warn("the owner has not renewed its lease, ending its connections", "owner", seen.owner, "epoch", seen.epoch, "for", stale)
			})
		}
		switch {
		case err != nil:
			return nil, err
		case ending:
			ended = seen
			s.noteWaiting(slot, s.holdsOn(ctx, conn, slot))
		case seen != ended:
			s.noteWaiting(slot, nil)
		}
		if !relay.Sleep(ctx, s.cfg.AcquireInterval) {
			return nil, ctx.Err()
		}
	}
}

// warnEvery is how often the log repeats what a standby waits for.
const warnEvery = 10 * time.Second

// sighting is what a standby reads of the owner.
type sighting struct {
	epoch   int64
	owner   string
	renewed string
	pooled  bool
	left    bool // released, or handed to an heir
}

// rival measures, by our own clock, for how long the owner has given no sign of life.
type rival struct {
	last  sighting
	life  string // of the session that has the lock
	since time.Time
}

func (r *rival) see(s sighting, at time.Time) (unchanged time.Duration) {
	if s != r.last || r.since.IsZero() {
		r.last, r.life, r.since = s, "", at
	}
	return at.Sub(r.since)
}

// alive notes what the owner's session shows. Another thing than before is a sign of life.
func (r *rival) alive(life string, at time.Time) {
	if life != "" && r.life != "" && life != r.life {
		r.since = at
	}
	r.life = life
}

// outwait ends the connections of an owner that has the lock, once it has shown no sign of life for
// the time of a lease, and returns whether it has. Before that it looks for such a sign.
func (s *Store) outwait(ctx context.Context, conn *pgx.Conn, slot string, owner *rival, at time.Time, warn func(stale time.Duration)) (ending bool, err error) {
	switch stale := at.Sub(owner.since); {
	case stale > s.cfg.LeaseTTL:
		warn(stale.Round(time.Millisecond))
		owner.since = at
		return true, s.evict(ctx, conn, slot)
	case stale > s.cfg.LeaseTTL/2:
		life, err := s.lives(ctx, conn, slot)
		if err != nil {
			return false, err
		}
		owner.alive(life, at)
	}
	return false, nil
}

// lives returns what changes with each statement of the session that has the slot's lock; nothing
// if we may not see it. An owner that cannot write the slot's row, because another session holds
// it, still asks.
func (s *Store) lives(ctx context.Context, conn *pgx.Conn, slot string) (life string, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	err = conn.QueryRow(ctx, `SELECT coalesce(max(pid || ' ' || query_start), '') FROM pg_stat_activity WHERE pid IN (SELECT pid FROM pg_locks WHERE `+holdsLock("$2")+`)`,
		int64(lockClass), slot).Scan(&life)
	if err != nil {
		return "", fmt.Errorf("look at the owner of slot %q: %w", slot, setup(err))
	}
	return life, nil
}

// holdsOn returns an error that names the session which still has the slot's lock, though it was
// asked to end; nil when there is no such session.
func (s *Store) holdsOn(ctx context.Context, conn *pgx.Conn, slot string) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	var pid *int32
	err := conn.QueryRow(ctx, `SELECT min(pid) FROM pg_locks WHERE `+holdsLock("$2"), int64(lockClass), slot).Scan(&pid)
	if err != nil || pid == nil {
		return nil // the next try reports it
	}
	return fmt.Errorf("backend %d holds the lock of slot %q for an owner that is no more, and does not end: is its process stopped?", *pid, slot)
}

// holdsLock is true in pg_locks for a slot's advisory lock, when a session has it. $1 is lockClass.
func holdsLock(slot string) string {
	return `locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND classid = $1::bigint::oid AND objid = (hashtext(` + slot + `)::bigint & 4294967295)::oid AND objsubid = 2`
}

// lockHeld is true while a session has a slot's advisory lock.
func lockHeld(slot string) string {
	return `EXISTS (SELECT FROM pg_locks WHERE ` + holdsLock(slot) + `)`
}

// trySQL looks at the slot's row.
const trySQL = `coalesce(s.epoch, 0), coalesce(s.owner, ''), coalesce(extract(epoch FROM s.renewed_at)::text, ''), coalesce(s.pooled, false), coalesce(s.released_at IS NOT NULL OR s.heir IS NOT NULL, true)
	FROM (SELECT 1) one LEFT JOIN saga_outbox_relay s ON s.slot = $2`

// try asks for the advisory lock without waiting, because a waiting statement would keep a
// snapshot, which holds back vacuum. Behind a pooler it asks only whether any session has the lock.
// An owner without a lock may be alive all the same: the caller has to watch its renewals.
func (s *Store) try(ctx context.Context, conn *pgx.Conn, slot string) (free bool, seen sighting, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	ask := `SELECT pg_try_advisory_lock($1::bigint::int, hashtext($2)), `
	if isPooled(conn) {
		ask = `SELECT NOT ` + lockHeld("$2") + `, `
	}
	err = conn.QueryRow(ctx, ask+trySQL, int64(lockClass), slot).Scan(&free, &seen.epoch, &seen.owner, &seen.renewed, &seen.pooled, &seen.left)
	if err != nil {
		return false, seen, fmt.Errorf("ask for the lease of slot %q: %w", slot, setup(err))
	}
	return free, seen, nil
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

// evict ends the backends that hold the slot's advisory lock.
func (s *Store) evict(ctx context.Context, conn *pgx.Conn, slot string) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	_, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE pid <> pg_backend_pid() AND `+holdsLock("$2"), int64(lockClass), slot)
	if err != nil {
		return fmt.Errorf("end the frozen owner of slot %q: %w", slot, setup(err))
	}
	return nil
}

// take turns the lock into a lease: the epoch grows, which fences the owner before. It returns
// errTaken when another relay was faster, and a relay.OccupiedError when a relay that is alive owns
// another slot of the table.
func (s *Store) take(ctx context.Context, conn *pgx.Conn, slot string, seen sighting, members rivals, log hclog.Logger) (*lease, error) {
	if err := s.endMarks(ctx, conn, slot); err != nil {
		return nil, err
	}
	if err := s.knowSystem(ctx, conn, slot, seen.epoch, log); err != nil {
		return nil, err
	}
	l := newLease(s, slot, log, conn)
	l.left.entries = true // of an earlier owner
	var sent time.Time
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) (err error) {
		sent, err = s.takeRow(ctx, conn, tx, l, seen, members)
		return err
	})
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
	// It runs as long as the lease.
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	l.renewing.Go(func() { l.renew(renewing) })
	if l.heirs {
		l.renewing.Go(func() { l.dropAbandoned(renewing) })
	}
	s.leases.Store(slot, l)
	return l, nil
}

// takeRow takes the slot's row in a transaction, and what other slots of the table have left. It
// returns when it began to.
func (s *Store) takeRow(ctx context.Context, conn *pgx.Conn, tx pgx.Tx, l *lease, seen sighting, members rivals) (sent time.Time, err error) {
	bounded, cancel := context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	others, err := s.others(bounded, tx, l.slot)
	if err != nil {
		return sent, err
	}
	alive, err := s.living(bounded, conn, others, members, time.Now())
	if err != nil {
		return sent, err
	}
	if alive != nil {
		return sent, alive.occupied()
	}
	for i := range others {
		if err := s.endMarks(bounded, conn, others[i].slot); err != nil {
			return sent, err
		}
		if err := s.knowSystem(bounded, conn, others[i].slot, others[i].seen.epoch, l.log); err != nil {
			return sent, err
		}
	}
	if err := s.inherit(ctx, tx, l.slot, others, l.log); err != nil {
		return sent, err
	}
	sent = time.Now()
	bounded, cancel = context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	tag, err := tx.Exec(bounded, acquireSQL, l.slot, s.storable(s.cfg.Owner), seen.epoch, isPooled(conn), seen.renewed)
	if err == nil && tag.RowsAffected() == 0 {
		return sent, errTaken
	}
	for i := 0; err == nil && i < len(others); i++ {
		_, err = tx.Exec(bounded, inheritSQL, l.slot, others[i].slot)
	}
	var marked, confirmed int64
	r := &l.recovery
	if err == nil {
		err = tx.QueryRow(bounded, takenSQL, l.slot).Scan(&l.epoch, &marked, &confirmed, &r.Owed, &r.Cause, &r.Snapshot, &l.heirs)
	}
	if err != nil {
		return sent, fmt.Errorf("take the lease of slot %q: %w", l.slot, setup(err))
	}
	l.markedLSN.Store(uint64(marked))
	r.Confirmed = relay.LSN(confirmed)
	l.owedSnapshot.Store(null(r.Snapshot))
	return sent, nil
}

// own reports whether the slot's newest epoch is that of a lease which this process had and has
// given up.
func (s *Store) own(slot string, epoch int64) bool {
	found, ok := s.leases.Load(slot)
	if !ok {
		return false
	}
	l := found.(*lease)
	select {
	case <-l.lost:
		return l.epoch == epoch
	default:
		return false
	}
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

// lease implements relay.Lease. The lock is on conn, which only renew and Release use. Marks and
// look-ups have a connection of their own, so that a long one cannot delay a renewal.
type lease struct {
	store     *Store
	slot      string
	log       hclog.Logger
	epoch     int64
	markedLSN atomic.Uint64

	recovery     relay.Recovery         // as it was when the lease was taken
	heirs        bool                   // then, slots had heirs
	owedSnapshot atomic.Pointer[string] // of the owed sweep; nil when nothing is noted

	conn     *pgx.Conn
	renewed  atomic.Pointer[time.Time] // when the last renewal that succeeded was sent
	stop     context.CancelFunc        // ends renew; by Release
	renewing sync.WaitGroup

	lose sync.Once
	lost chan struct{}
	err  error // readable once lost is closed

	marks    marks
	conns    conns
	facts    patience
	sweeping struct{ whole, window, piece patience }
	pruning  pruning
	streaks  streaks
	left     leftovers
}

func newLease(s *Store, slot string, log hclog.Logger, conn *pgx.Conn) *lease {
	l := &lease{store: s, slot: slot, log: log, conn: conn, lost: make(chan struct{})}
	l.marks.turn, l.pruning.turn = relay.NewTurn(), relay.NewTurn()
	set := func(p *patience, least, most time.Duration) { p.least, p.most = least, most }
	set(&l.marks.patience, markLeast, markTimeout)
	set(&l.facts, factLeast, factMost)
	set(&l.sweeping.whole, sweepLeast, sweepMost)
	set(&l.sweeping.window, windowLeast, sweepMost)
	set(&l.sweeping.piece, windowLeast, sweepMost)
	set(&l.pruning.patience, windowLeast, sweepMost)
	return l
}

var _ relay.Lease = (*lease)(nil)

func (l *lease) Epoch() int64          { return l.epoch }
func (l *lease) MarkedLSN() relay.LSN  { return relay.LSN(l.markedLSN.Load()) }
func (l *lease) Lost() <-chan struct{} { return l.lost }

func (l *lease) Err() error {
	select {
	case <-l.lost:
		return l.err
	default:
		return nil
	}
}

// Valid implements relay.Lease: it turns false a sixth of the time before another relay may take
// the slot. Go's monotonic clock runs on while a process is stopped.
func (l *lease) Valid() bool {
	select {
	case <-l.lost:
		return false
	default:
		return time.Since(*l.renewed.Load()) < l.store.cfg.LeaseTTL*5/6
	}
}

func (l *lease) losing(err error) {
	l.lose.Do(func() {
		l.err = err
		close(l.lost)
	})
}

// renew shows the standbys that we are alive, until ctx ends or the lease is lost.
func (l *lease) renew(ctx context.Context) {
	every := l.store.cfg.LeaseTTL / 3
	for {
		// In between it listens. No notification is expected, but the server reports when it ends
		// the connection. With the connection goes the lock, which another relay may have the
		// moment after.
		wait, cancel := context.WithTimeout(ctx, every)
		_, err := l.conn.WaitForNotification(wait)
		over := wait.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !over:
			l.losing(fmt.Errorf("listen on the connection of slot %q's lease: %w", l.slot, err))
			return
		case !over:
			continue
		}
		// One renewal may take until the lease's end, no longer; and not long once the lease is
		// being released.
		sent := time.Now()
		bounded, cancel := context.WithDeadline(context.WithoutCancel(ctx), l.renewed.Load().Add(l.store.cfg.LeaseTTL*5/6))
		released := context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, cancel) })
		ours, err := l.renewOnce(bounded)
		released()
		cancel()
		switch {
		case err != nil:
			l.losing(fmt.Errorf("renew the lease of slot %q: %w", l.slot, err))
			return
		case !ours:
			l.losing(relay.ErrFenced)
			return
		}
		l.renewed.Store(&sent)
	}
}

// renewOnce writes that we are alive, and reports whether the slot is still ours.
//
// A transaction of ours may hold the row's lock: a mark whose commit waits for a disk or a standby,
// or whose backend was stopped. Then we only look whether the epoch is ours. A standby sees on the
// backend that holds the slot's lock that it has asked (Store.lives). Behind a pooler there is no
// such backend, so there the wait has the whole of the time.
func (l *lease) renewOnce(ctx context.Context) (ours bool, err error) {
	tag, err := l.conn.Exec(ctx, `UPDATE saga_outbox_relay SET renewed_at = clock_timestamp() WHERE slot = $1 AND epoch = $2`, l.slot, l.epoch)
	if !isLocked(err) || isPooled(l.conn) {
		return tag.RowsAffected() > 0, err
	}
	l.log.Debug("the lease was renewed without writing it: the slot's row is locked")
	err = l.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM saga_outbox_relay WHERE slot = $1 AND epoch = $2)`, l.slot, l.epoch).Scan(&ours)
	return ours, err
}

// prepareRenewals sets up the session for them, after the epoch was moved. A renewal is only about
// this moment, so its commit need not wait for the server's disk, nor for its standbys.
func (l *lease) prepareRenewals(ctx context.Context) error {
	if isPooled(l.conn) {
		return nil
	}
	_, err := l.conn.Exec(ctx, fmt.Sprintf(`SET lock_timeout = %d; SET synchronous_commit = off`, l.store.cfg.LeaseTTL.Milliseconds()/9))
	if err != nil {
		return fmt.Errorf("prepare the session of slot %q's lease: %w", l.slot, err)
	}
	return nil
}

// Release implements relay.Lease. The lock goes with the connection, whatever else fails.
func (l *lease) Release(ctx context.Context) error {
	l.stop()
	l.renewing.Wait()
	l.losing(errors.New("released"))
	l.marks.close(ctx)
	l.conns.close()
	conn, err := l.conn, error(nil)
	if isPooled(conn) && conn.IsClosed() { // the row would stay ours until its time is over
		conn, err = l.store.connect(ctx, "lease "+l.slot)
	}
	if err == nil && !conn.IsClosed() {
		_, err = conn.Exec(ctx, `UPDATE saga_outbox_relay SET released_at = now() WHERE slot = $1 AND epoch = $2`, l.slot, l.epoch)
		if err == nil {
			// Explicitly, because a closed connection's backend may linger for a moment.
			err = l.store.unlock(ctx, conn, l.slot)
		}
		closeConn(conn)
	}
	if err != nil {
		return fmt.Errorf("release the lease of slot %q: %w", l.slot, err)
	}
	return nil
}

// closeConn ends a connection without waiting long for a server that may be gone.
func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
