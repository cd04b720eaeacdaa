package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// lives are what the sessions have shown that hold advisory locks of a class, by the locks' second
// key, and since when, by our own clock.
type lives map[uint32]life

type life struct {
	shown string
	since time.Time
}

// livesSQL is what changes with each statement of those sessions; nothing where we may not see that.
var livesSQL = `SELECT objid::bigint, pid, coalesce(pid || ' ' || query_start, '') FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE ` + heldHere("$1")

// look notes what they show now. It returns the backends of those that have shown nothing new for
// more than limit, and since when the first of them has not. Those are counted for which of is true;
// nil: all.
func (l *lives) look(ctx context.Context, conn *pgx.Conn, class int64, at time.Time, limit time.Duration, of func(key uint32) bool) (silent []int32, since time.Time, err error) {
	var (
		key   int64
		pid   int32
		shown string
		now   = make(lives)
	)
	rows, err := conn.Query(ctx, livesSQL, class)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&key, &pid, &shown}, func() error {
			if of != nil && !of(uint32(key)) {
				return nil
			}
			one := (*l)[uint32(key)]
			if shown == "" || shown != one.shown {
				one = life{shown, at}
			}
			if now[uint32(key)] = one; at.Sub(one.since) > limit {
				if silent = append(silent, pid); since.IsZero() || one.since.Before(since) {
					since = one.since
				}
			}
			return nil
		})
	}
	if err != nil {
		return nil, since, fmt.Errorf("look for sessions that are silent: %w", setup(err))
	}
	*l = now
	return silent, since, nil
}

// endSessions ends backends.
func endSessions(ctx context.Context, conn *pgx.Conn, pids []int32) error {
	if _, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid`, pids); err != nil {
		return fmt.Errorf("end silent sessions: %w", setup(err))
	}
	return nil
}

// endSilent ends the sessions of members that have asked nothing for the time of a lease, though a
// roster asks several times a second: their processes are frozen. One that owns a slot is noticed by
// its renewals. Of one that owns none nothing else would show it, and it would have a share of the
// slots that it does not take. It comes back as another member when it wakes up.
func (x *session) endSilent(ctx context.Context, at time.Time) error {
	ttl := x.store.cfg.LeaseTTL
	if !x.locked || at.Sub(x.livesAsked) < ttl/4 {
		return nil
	}
	x.livesAsked = at
	silent, _, err := x.lives.look(ctx, x.conn, memberClass, at, ttl, func(member uint32) bool {
		return member>>16 == x.roster.family() && memberID(member) != x.shares.me
	})
	if err != nil || silent == nil {
		return err
	}
	x.store.log.Warn("relays show no sign of life: ending their sessions, so that the others have their shares", "backends", silent, "for", ttl)
	return endSessions(ctx, x.conn, silent)
}
