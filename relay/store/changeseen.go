package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// ownerOf is the owner of the row r for the lock of the slot, empty when the lease is free.
func ownerOf(slot string) string {
	return `CASE WHEN ` + lockHeld(slot) + ` OR r.pooled AND r.released_at IS NULL AND r.renewed_at > now() - interval '1 minute' THEN coalesce(r.owner, '') ELSE '' END`
}

// seeChangeSQL is how far the old slots $2 are: $3 is the switch, $4 the generation of the set. It
// finds nothing when the change is through by now.
var seeChangeSQL = `SELECT n.slot, ` + ownerOf("n.slot") + `, greatest(0, $3::numeric - (nullif(r.confirmed_lsn, '0/0') - '0/0'))::bigint, NOT ` + goesOn() + `,
	coalesce(extract(epoch FROM now() - (SELECT since FROM saga_outbox_set)), 0)::float8` +
	strings.Replace(fromOldSQL, " ORDER BY", " WHERE EXISTS (SELECT FROM saga_outbox_set WHERE generation = $4 AND target IS NOT NULL) ORDER BY", 1)

// ReadChange returns how far the change of the number of slots is that is under way, nil without
// one. The set is what ReadSet has returned, or nil.
func ReadChange(ctx context.Context, conn *pgx.Conn, set *TableSet) (*relay.SetChange, error) {
	if set == nil || set.Target == 0 {
		return nil, nil
	}
	change := &relay.SetChange{From: set.Shards, Target: set.Target, State: set.State, Switch: set.Switch, Changer: set.Changer, Trouble: set.Trouble}
	rows, err := conn.Query(ctx, seeChangeSQL, int64(lockClass), set.Slots(), int64(set.Switch), set.Generation)
	if err == nil {
		var old relay.OldSlot
		var seconds float64
		_, err = pgx.ForEachRow(rows, []any{&old.Slot, &old.Owner, &old.Left, &old.Stopped, &seconds}, func() error {
			change.Began = time.Now().Add(-time.Duration(seconds * float64(time.Second)))
			if set.State == SetDraining {
				change.Old = append(change.Old, old)
			}
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("look how far the change of the number of slots is: %w", setup(err))
	}
	if change.Began.IsZero() { // it is through
		return nil, nil
	}
	if !change.Through() { // those that were released are taken again
		for i := range change.Old {
			change.Old[i].Stopped = false
		}
	}
	return change, nil
}

// seeChange notes how far a change is, for all who ask, and logs which of our slots it waits for.
func (x *session) seeChange(ctx context.Context, f *looked) error {
	var change *relay.SetChange
	if f.target > 0 {
		set, err := ReadSet(ctx, x.conn)
		if err == nil {
			change, err = ReadChange(ctx, x.conn, set)
		}
		if err != nil {
			return err
		}
	}
	r := x.roster
	r.mu.Lock()
	r.change = change
	held := make(map[string]bool)
	for l := range r.held {
		held[l.slot] = l.Err() == nil
	}
	r.mu.Unlock()
	x.logHoldUp(change, held)
	return nil
}

// logHoldUp logs once in a while which of our slots a change waits for, once that lasts.
func (x *session) logHoldUp(change *relay.SetChange, held map[string]bool) {
	ours := false
	if change != nil {
		for i := range change.Old {
			o := &change.Old[i]
			if o.Stopped || !held[o.Slot] || o.Left != nil && *o.Left == 0 && !change.Through() {
				continue
			}
			ours = true
			if x.holdsUp.IsZero() {
				x.holdsUp = time.Now()
			}
			if since := time.Since(x.holdsUp); since > waitsLong && time.Since(x.holdUpLogged[o.Slot]) > warnEvery {
				x.holdUpLogged[o.Slot] = time.Now()
				args := []any{"slot", o.Slot, "switch", change.Switch, "for", since.Round(time.Second)}
				if o.Left != nil {
					args = append(args, "bytes_left", *o.Left)
				}
				x.store.log.Info("the change of the number of slots waits for a slot of this relay", args...)
			}
		}
	}
	if !ours {
		x.holdsUp = time.Time{}
		clear(x.holdUpLogged)
	}
}

// Changing implements relay.Store.
func (s *Store) Changing() *relay.SetChange {
	r := s.roster
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.change
}
