package store

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// standBy notes for all who wait that the table's events are delivered through another slot. It is
// false when nobody waits.
func (x *session) standBy(occupied *relay.OccupiedError) bool {
	r := x.roster
	r.mu.Lock()
	for w := range r.waits {
		was := (*relay.OccupiedError)(nil)
		if errors.As(w.err, &was) && was.Slot == occupied.Slot {
			occupied.Found = was.Found
		}
		w.err = occupied
	}
	waits := len(r.waits)
	r.mu.Unlock()
	if waits > 0 && time.Since(x.warned) > warnEvery {
		x.warned = time.Now()
		fix := "if it is to be the same set, set RELAY_SLOT=" + occupied.Set + "; if the slot is being renamed, stop the relays of the old one"
		if occupied.Set == x.store.cfg.Slot { // the name of the one slot of a table that is not divided
			fix = "stop the relays of the version before, which know no division of the table"
		}
		x.store.log.Warn("standing by: the table's events are delivered through another slot", "slot", x.store.cfg.Slot, "other", occupied.Slot, "owner", occupied.Owner,
			"since", occupied.Taken.UTC().Format(time.RFC3339), "fix", fix)
	}
	return waits > 0
}

// warnEvery is how often the log repeats what a standby waits for.
const warnEvery = 10 * time.Second

// living returns the first of the slots that are not of the set whose owner is alive. That one has
// its lock, or, behind a pooler, was renewed within the time of a lease by our own clock. An owner
// that has a lock and does not renew is frozen: its connections are ended, as for our own slots.
func (x *session) living(ctx context.Context, at time.Time, f *looked, judged map[string]sighting) (*relay.OccupiedError, error) {
	for i := range f.others {
		m := &f.others[i]
		if !m.locked && (!m.seen.pooled || m.seen.left) {
			delete(x.rivals, m.slot)
			continue
		}
		w := x.rivals.of(m.slot)
		stale := w.see(m.seen, at)
		if !m.locked {
			if stale > x.store.cfg.LeaseTTL {
				judged[m.slot] = m.seen
				continue
			}
			return m.occupied(), nil
		}
		if !x.waitedFor("") {
			return m.occupied(), nil
		}
		_, err := x.store.outwait(ctx, x.conn, m.slot, w, at, func(stale time.Duration) {
			x.store.log.Warn("the owner of another slot of the table has not renewed its lease, ending its connections", "slot", m.slot, "owner", m.seen.owner, "for", stale)
		})
		return m.occupied(), err
	}
	return nil, nil
}

// theirs returns why the slots are not ours though nobody owns one. Relays of the RELAY_SLOT whose set
// it is live, and are about to take them, in a restart or while the number of slots is being changed.
// They may also be unable to, so that is not for ever. Or none of them is seen in this moment: their
// connections broke, or are made again after a change. So nobody has to be seen for a while.
func (x *session) theirs(at time.Time, f *looked) *relay.OccupiedError {
	used := func(s slotSeen) bool { return s.seen.epoch > 0 }
	if f.set.Slot == x.store.cfg.Slot || f.theirs == 0 && !slices.ContainsFunc(f.others, used) {
		x.bereft, x.deserted = time.Time{}, time.Time{}
		return nil
	}
	if x.bereft.IsZero() {
		x.bereft = at
	}
	if f.theirs > 0 || x.deserted.IsZero() {
		x.deserted = at
	}
	if at.Sub(x.bereft) > ownerlessLeases*x.store.cfg.LeaseTTL || at.Sub(x.deserted) > desertedFor {
		return nil
	}
	occupied := &relay.OccupiedError{Slot: f.set.Slot, Set: f.set.Slot, Owner: "nobody in this moment", Taken: at, Found: at}
	for i := range f.others {
		if m := &f.others[i]; m.base() == f.set.Slot && m.seen.owner != "" {
			occupied = m.occupied()
			break
		}
	}
	return occupied
}

// ownerlessLeases is for how many times RELAY_LEASE_TTL the slots of other relays that live may have
// no owner, before they are taken over. desertedFor is for how long none of these relays may be
// seen.
const (
	ownerlessLeases = 3
	desertedFor     = 2 * lingers
)
