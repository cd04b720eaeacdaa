package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// What waits on a slot is reported by its owner. For slots without an owner one of the members
// does: all of them see the same members and locks, so all agree on who it is, within
// RELAY_ACQUIRE_INTERVAL. Behind a pooler nobody knows who lives, and nobody counts.

// unownedFor is for how long a slot has no owner before what waits on it is counted: most are taken
// at once, and their new owners count.
const unownedFor = 500 * time.Millisecond

// unowned notes which slots have had no owner for a while, if it is us who speaks for them.
func (x *session) unowned(now situation, f *looked, noOwner []bool) {
	if len(x.ownerless) != len(noOwner) {
		x.ownerless = make([]time.Time, len(noOwner))
	}
	speaks := !now.pooled && x.locked && len(now.members) > 0 && slices.Min(now.members) == x.shares.me
	r := x.roster
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unowned = nil
	for i, none := range noOwner {
		switch {
		case !none:
			x.ownerless[i] = time.Time{}
		case x.ownerless[i].IsZero():
			x.ownerless[i] = now.at
		}
		// One that is through for a change of the set is not taken.
		waits := none && (f.stopped(i) || now.at.Sub(x.ownerless[i]) >= unownedFor)
		if waits && speaks && !r.left && r.set.Shards == f.set.Shards {
			r.unowned = append(r.unowned, r.set.Shard(i))
		}
	}
}

// speakForNone is for when nothing is known, and when relays of another set deliver the table's
// events, and count them.
func (r *roster) speakForNone() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unowned = nil
}

// Unowned implements relay.Store.
func (s *Store) Unowned() []relay.Shard {
	s.roster.mu.Lock()
	defer s.roster.mu.Unlock()
	return slices.Clone(s.roster.unowned)
}

// UnownedEvents implements relay.Store. It takes a connection for this one time: a standby has one
// alone.
func (s *Store) UnownedEvents(ctx context.Context, shard relay.Shard, limit int) (events int, err error) {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	var conn *pgx.Conn
	if conn, err = s.connect(ctx, "count "+shard.Slot); err == nil {
		defer closeConn(conn)
		var rows, entries int
		if err = conn.QueryRow(ctx, backlogSQL(shard), limit).Scan(&rows); err == nil {
			err = conn.QueryRow(ctx, `SELECT count(*) FROM saga_outbox_delivery WHERE slot = $1 AND NOT detached`, shard.Slot).Scan(&entries)
		}
		events = rows + entries
	}
	if err != nil {
		return 0, fmt.Errorf("count what waits on slot %q, which nobody owns: %w", shard.Slot, err)
	}
	return events, nil
}
