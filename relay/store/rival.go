package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// sighting is what a standby reads of the owner.
type sighting struct {
	epoch   int64
	owner   string
	renewed string
	pooled  bool
	left    bool // released, or handed to an heir
	member  int64
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
		return true, s.evict(ctx, conn, slot, owner.last.member)
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

// evict ends the backends that hold the slot's advisory lock, and those that show that its owner is
// a member: one that is frozen is to have no share either. No member: 0.
func (s *Store) evict(ctx context.Context, conn *pgx.Conn, slot string, member int64) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	_, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE pid <> pg_backend_pid() AND (`+holdsLock("$2")+` OR `+isMember("$3", "$4")+`)`,
		int64(lockClass), slot, int64(memberClass), member)
	if err != nil {
		return fmt.Errorf("end the frozen owner of slot %q: %w", slot, setup(err))
	}
	return nil
}

// evictOwn ends the backend of a lease that this process had and has lost, if the slot's newest
// epoch is that one's and its backend still has the lock.
func (s *Store) evictOwn(ctx context.Context, conn *pgx.Conn, slot string, epoch int64) (ended bool, err error) {
	found, ok := s.leases.Load(slot)
	if !ok {
		return false, nil
	}
	l := found.(*lease)
	if l.Err() == nil || l.epoch != epoch {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.LeaseTTL)
	defer cancel()
	tag, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE pid = $3::bigint AND `+holdsLock("$2"), int64(lockClass), slot, int64(l.conn.PgConn().PID()))
	if err != nil {
		return false, fmt.Errorf("end the connection of the lost lease of slot %q: %w", slot, setup(err))
	}
	return tag.RowsAffected() > 0, nil
}

// rivals watches the slots' owners by our own clock.
type rivals map[string]*rival

func (r rivals) of(slot string) *rival {
	if r[slot] == nil {
		r[slot] = &rival{}
	}
	return r[slot]
}
