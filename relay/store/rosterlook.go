package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// lookSQL reads the set, the members, and the slots: those of the set by the names that they have
// here, and every other slot of the table, but for those that a change of the set makes. $3 is
// RELAY_SLOT.
const lookSQL = `WITH held AS MATERIALIZED (SELECT classid, objid FROM pg_locks WHERE locktype = 'advisory' AND granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND classid IN ($1::bigint::oid, $2::bigint::oid) AND objsubid = 2),
	s AS (SELECT slot, publication, shards, generation, coalesce(target, 0) AS target, coalesce(state, '') AS state, coalesce(switch_lsn, '0/0') AS switch_lsn FROM saga_outbox_set),
	mine AS (SELECT i, $3::text || CASE WHEN s.shards > 1 THEN '_' || i || 'of' || s.shards ELSE '' END AS slot FROM s, generate_series(0, s.shards - 1) AS i)
	SELECT s.slot, s.publication, s.shards, s.generation, s.state, current_setting('server_version_num')::int / 10000,
		coalesce((SELECT array_agg(DISTINCT objid::bigint) FROM held WHERE classid = $2::bigint::oid), '{}'),
		coalesce(m.i, -1), coalesce(m.slot, r.slot), coalesce(r.epoch, 0), coalesce(r.owner, ''), coalesce(extract(epoch FROM r.renewed_at)::text, ''), coalesce(r.pooled, false),
		coalesce(r.released_at IS NOT NULL OR r.heir IS NOT NULL, true), coalesce(r.member, 0), coalesce(r.taken_at, now()), coalesce(r.shard, 0), coalesce(r.shards, 1), s.target,
		coalesce(r.confirmed_lsn, '0/0') >= s.switch_lsn,
		EXISTS (SELECT FROM held WHERE classid = $1::bigint::oid AND objid = (hashtext(coalesce(m.slot, r.slot))::bigint & 4294967295)::oid)
	FROM s CROSS JOIN (mine m FULL JOIN saga_outbox_relay r ON r.slot = m.slot)
	WHERE m.i IS NOT NULL OR r.heir IS NULL AND NOT (s.target > 0 AND r.shards = s.target AND starts_with(r.slot, s.slot))
	ORDER BY m.i NULLS LAST, r.renewed_at DESC, r.slot`

// looked is what one look has found.
type looked struct {
	set     relay.Set // as it is noted
	target  int       // of a change; 0: none is under way
	state   string    // of it
	version int
	members []memberID
	theirs  int        // members of those whose set it is, where we have another RELAY_SLOT
	mine    []slotSeen // of the set, by shard
	others  []slotSeen // that are not of the set, the newest first
}

// slotSeen is a slot.
type slotSeen struct {
	slot   string
	seen   sighting
	taken  time.Time
	locked bool
	shard  int // of so many
	shards int
	passed bool // it has noted a position past the switch of a change
}

// through reports whether all slots have come to the switch of a change of the set, and are to stop.
// One that comes there before the others goes on: its keys' events are not to wait for theirs.
func (f *looked) through() bool {
	return f.state == SetDraining && !slices.ContainsFunc(f.mine, func(s slotSeen) bool { return !s.passed })
}

// stopped reports whether a slot has stopped for a change of the set, so that nobody takes it again.
func (f *looked) stopped(i int) bool {
	return f.through() && f.mine[i].seen.left && !f.mine[i].locked
}

// base is RELAY_SLOT of those who share it.
func (m *slotSeen) base() string {
	if m.shards == 1 {
		return m.slot
	}
	return strings.TrimSuffix(m.slot, fmt.Sprintf("_%dof%d", m.shard, m.shards))
}

// occupied is the error that a relay which is alive owns this slot of the same table.
func (m *slotSeen) occupied() *relay.OccupiedError {
	return &relay.OccupiedError{Slot: m.slot, Set: m.base(), Owner: m.seen.owner, Taken: m.taken, Found: time.Now()}
}

// look returns nil when there is no set.
func (x *session) look(ctx context.Context) (*looked, error) {
	rows, err := x.conn.Query(ctx, lookSQL, int64(lockClass), int64(memberClass), x.store.cfg.Slot)
	if err != nil {
		return nil, fmt.Errorf("look who has which slot: %w", setup(err))
	}
	var (
		f       *looked
		set     relay.Set
		members []int64
		state   string
		version int
		target  int
		shard   int
		s       slotSeen
	)
	_, err = pgx.ForEachRow(rows, []any{
		&set.Slot, &set.Publication, &set.Shards, &set.Generation, &state, &version, &members, &shard, &s.slot, &s.seen.epoch, &s.seen.owner, &s.seen.renewed,
		&s.seen.pooled, &s.seen.left, &s.seen.member, &s.taken, &s.shard, &s.shards, &target, &s.passed, &s.locked,
	}, func() error {
		if f == nil {
			f = &looked{set: set, target: target, state: state, version: version}
			for _, id := range members {
				if uint32(id)>>16 == x.roster.family() {
					f.members = append(f.members, memberID(id))
				} else if uint32(id)>>16 == familyOf(set.Slot) {
					f.theirs++
				}
			}
		}
		if shard < 0 {
			f.others = append(f.others, s)
		} else {
			f.mine = append(f.mine, s)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look who has which slot: %w", setup(err))
	}
	return f, nil
}

// learn lets those know who wait for it what the set is now. They hear of the names that we use.
func (x *session) learn(ctx context.Context, f *looked) {
	r, cfg := x.roster, &x.store.cfg
	set := relay.Set{Slot: cfg.Slot, Publication: cfg.Publication, Shards: f.set.Shards, Generation: f.set.Generation}
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	if r.set != set {
		if r.set.Shards > 0 {
			close(r.changed)
			r.changed = make(chan struct{})
		}
		r.set = set
		if set.Shards != cfg.Shards && f.target != cfg.Shards {
			fix := fmt.Sprintf("set RELAY_SHARDS=%d", set.Shards)
			if Divisible(f.version, cfg.Shards) == nil {
				fix += fmt.Sprintf("; or, to change it for the table, run: sagaz-relay migrate --shards %d", cfg.Shards)
			}
			x.store.log.Warn("the table's events are divided among another number of slots than RELAY_SHARDS says: the database's counts", "shards", set.Shards, "RELAY_SHARDS", cfg.Shards, "fix", fix)
		}
	}
	r.known = true
	for w := range r.waits {
		if w.wanting && !sameSet(w.shard, set) {
			w.refuse(relay.ErrSetChanged)
		}
	}
}

// sameSet reports whether a shard is one of the set. Generation 0 is any.
func sameSet(shard relay.Shard, set relay.Set) bool {
	return shard.Set.Shards == set.Shards && shard.Set.Slot == set.Slot && (shard.Set.Generation == 0 || shard.Set.Generation == set.Generation) && shard.Index < set.Shards
}

// act watches the owners, lets those through whose slots are to be ours, and has others given back.
func (x *session) act(ctx context.Context, at time.Time, f *looked) error {
	p := permit{judged: make(map[string]sighting)}
	occupied, err := x.living(ctx, at, f, p.judged)
	if err != nil {
		return err
	}
	if occupied == nil {
		occupied = x.theirs(at, f)
	} else {
		x.bereft, x.deserted = time.Time{}, time.Time{}
	}
	if occupied != nil && x.standBy(occupied) {
		x.roster.speakForNone()
		return nil
	}
	now := situation{at: at, pooled: isPooled(x.conn), members: f.members, shards: make([]shardSeen, len(f.mine))}
	holdsOn, noOwner := make([]error, len(f.mine)), make([]bool, len(f.mine))
	for i := range f.mine {
		s := &f.mine[i]
		sh := &now.shards[i]
		sh.free, holdsOn[i], err = x.watch(ctx, at, s, p.judged)
		if err != nil {
			return err
		}
		if !sh.free && s.locked {
			sh.owner = memberID(s.seen.member)
		}
		noOwner[i] = sh.free
		sh.free = sh.free && !f.stopped(i)
	}
	x.unowned(now, f, noOwner)
	x.decide(now, holdsOn, p, f)
	return nil
}

// waitedFor reports whether anybody waits for a slot here, or for any.
func (x *session) waitedFor(slot string) bool {
	r := x.roster
	r.mu.Lock()
	defer r.mu.Unlock()
	for w := range r.waits {
		if slot == "" || w.shard.Slot == slot {
			return true
		}
	}
	return false
}

// watch looks at a slot of the set that somebody waits for here: whether it is free, and else
// whether its owner is alive. holdsOn is why it is not free though its owner is no more.
func (x *session) watch(ctx context.Context, at time.Time, s *slotSeen, judged map[string]sighting) (free bool, holdsOn, err error) {
	store := x.store
	if !s.locked && (!s.seen.pooled || s.seen.left) {
		// Whoever has the lock next is not as old as this row: it has to change it first.
		delete(x.rivals, s.slot)
		return true, nil, nil
	}
	w := x.rivals.of(s.slot)
	stale := w.see(s.seen, at)
	if !s.locked {
		if stale <= store.cfg.LeaseTTL {
			return false, nil, nil
		}
		judged[s.slot] = s.seen
		return true, nil, nil
	}
	if !x.waitedFor(s.slot) {
		return false, nil, nil
	}
	ending := false
	log := store.log.With("slot", s.slot)
	if !s.seen.pooled { // else it has no connections that count
		// We know without waiting that our own lost lease is not renewed any more: its connections
		// are half-open. It may be another relay that has the lock by now, and is about to take the
		// slot.
		if ending, err = store.evictOwn(ctx, x.conn, s.slot, s.seen.epoch); ending && s.seen != x.ended[s.slot] {
			log.Warn("our own lost lease still holds the slot, ending its connections", "epoch", s.seen.epoch)
		}
	}
	if err == nil && !ending && !s.seen.pooled {
		ending, err = store.outwait(ctx, x.conn, s.slot, w, at, func(stale time.Duration) {
			log.Warn("the owner has not renewed its lease, ending its connections", "owner", s.seen.owner, "epoch", s.seen.epoch, "for", stale)
		})
	}
	if err != nil {
		return false, nil, err
	}
	if ending {
		x.ended[s.slot] = s.seen
	}
	if s.seen == x.ended[s.slot] {
		holdsOn = store.holdsOn(ctx, x.conn, s.slot)
	}
	return false, holdsOn, nil
}

// decide asks share.go, and does what it says.
func (x *session) decide(now situation, holdsOn []error, p permit, f *looked) {
	r := x.roster
	r.mu.Lock()
	defer r.mu.Unlock()
	// The set is another one where this goroutine is about to end, and the next has looked already.
	if r.left || f.set.Shards != r.set.Shards || f.set.Generation != r.set.Generation {
		return
	}
	waits := make([]*waiter, len(now.shards))
	for w := range r.waits {
		i := w.shard.Index
		if !sameSet(w.shard, r.set) {
			continue
		}
		waits[i] = w
		sh := &now.shards[i]
		sh.wanted, sh.taking = w.wanting && len(w.through) == 0, w.taking || len(w.through) > 0
		if w.wanting || !now.shards[i].free {
			w.err = holdsOn[i]
		}
	}
	held := make([]*lease, len(now.shards))
	for l, h := range r.held {
		if l.Err() == nil && sameSet(h.shard, r.set) {
			if held[h.shard.Index] = l; !h.noted {
				h.noted = true
				x.shares.took(h.shard.Index, h.late, now.at)
			}
			sh := &now.shards[h.shard.Index]
			sh.own, sh.giving, sh.taking = true, l.yields(), false
		}
	}
	if f.through() {
		for _, l := range held {
			if l != nil && !l.yields() {
				l.log.Info("giving the slot back: the number of slots is being changed", "epoch", l.epoch)
				l.giveBack()
			}
		}
	}
	if x.changing && f.target == 0 && held[0] != nil {
		relay.Wake(held[0].abandoned)
	}
	x.changing = f.target > 0
	n := x.shares.decide(now)
	for _, i := range n.take {
		w := waits[i]
		p.late = slices.Contains(n.takeLate, i)
		w.taking = true
		w.through <- p
	}
	for _, i := range n.give {
		held[i].log.Info("giving the slot back: another relay has too few", "epoch", held[i].epoch)
		held[i].giveBack()
	}
}
