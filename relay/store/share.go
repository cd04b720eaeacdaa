package store

import (
	"cmp"
	"slices"
	"time"
)

// How the slots of a set are shared. Each process decides for itself, from what it has seen in the
// database and by its own clock; nobody tells anybody anything. All see the same, so all come to
// the same shares.
//
//   - M members and N slots: each gets N/M of them, and N mod M members get one more: those that
//     have it anyway, then by their ids. So no slot moves without need.
//   - A member with fewer takes free slots, each its own part of them, so that two do not run for
//     one slot. It does not matter if they do: one gets it.
//   - A member with more gives slots back, if another has too few and the members have been the
//     same for a while: in a rolling restart one goes when another has come.
//   - A slot that nobody has taken for freeFor is for anybody. Whoever should have it does not
//     work, or cannot take it. It is kept for a while then, and longer each time, so that two
//     relays do not pass a slot back and forth for ever.
//
// A member that dies in any of these moments leaves a free slot, or one share to be divided anew:
// nothing is remembered but times.

const (
	freeFor     = 3 * time.Second
	unevenFor   = time.Second
	keptMin     = time.Minute
	keptMax     = 10 * time.Minute
	mostGivings = 4 // slots that a member gives back at once
)

// memberID is a process, for as long as it lives.
type memberID uint32

// shares remembers since when things are as they are. It belongs to one goroutine.
type shares struct {
	me      memberID
	members []memberID
	since   time.Time   // the members are these
	uneven  time.Time   // since when we have more than our share, and another has less; zero: not
	free    []time.Time // by shard: since when nobody has it; zero: somebody has it
	kept    []kept      // by shard
}

// kept is until when a slot is kept that was taken though it was another's share.
type kept struct {
	until time.Time
	times int
}

// situation is what a look at the database has found, and what this process does.
type situation struct {
	at time.Time
	// pooled: there are no locks that show who lives. What is free is taken.
	pooled  bool
	members []memberID // that live, in any order; we are one of them, if we are to have slots
	shards  []shardSeen
}

type shardSeen struct {
	owner memberID // whose lock is on it; 0 for none, and for a relay that is no member
	free  bool     // nobody has it
	// Of this process:
	own    bool // it has the slot
	taking bool // it is about to take it
	giving bool // it has begun to give it back
	wanted bool // somebody waits for it here
}

// next is what to do: take slots, some though they are not our share, and give slots back.
type next struct {
	take     []int
	takeLate []int // of them
	give     []int
}

// decide says what to do now.
func (s *shares) decide(now situation) (n next) {
	s.note(now)
	if now.pooled {
		for i := range now.shards {
			if sh := &now.shards[i]; sh.free && sh.wanted && !sh.taking {
				n.take = append(n.take, i)
			}
		}
		return n
	}
	if !slices.Contains(now.members, s.me) {
		s.uneven = time.Time{}
		return n
	}
	quotas, owned := s.quotas(now)
	n.take = s.mayTake(now, quotas, owned)
	for i := range now.shards {
		if sh := &now.shards[i]; sh.free && sh.wanted && !sh.taking && !slices.Contains(n.take, i) && now.at.Sub(s.free[i]) >= freeFor {
			n.take, n.takeLate = append(n.take, i), append(n.takeLate, i)
		}
	}
	n.give = s.toGive(now, quotas, owned)
	return n
}

// note notes since when things are as they are.
func (s *shares) note(now situation) {
	members := slices.Clone(now.members)
	slices.Sort(members)
	if s.since.IsZero() || !slices.Equal(members, s.members) {
		s.members, s.since = members, now.at
	}
	if len(s.free) != len(now.shards) {
		s.free, s.kept = make([]time.Time, len(now.shards)), make([]kept, len(now.shards))
	}
	for i := range now.shards {
		switch sh := &now.shards[i]; {
		case !sh.free || sh.own:
			s.free[i] = time.Time{}
		case s.free[i].IsZero():
			s.free[i] = now.at
		}
	}
}

// took notes that a slot was taken; late if it was not our share.
func (s *shares) took(shard int, late bool, at time.Time) {
	if shard >= len(s.kept) {
		return
	}
	k := &s.kept[shard]
	if !late {
		*k = kept{}
		return
	}
	k.until = at.Add(min(keptMin<<min(k.times, 10), keptMax))
	k.times++
}

// quotas is how many slots each member is to have, and how many it has.
func (s *shares) quotas(now situation) (quotas, owned map[memberID]int) {
	owned, quotas = make(map[memberID]int), make(map[memberID]int)
	for i := range now.shards {
		switch sh := &now.shards[i]; {
		case sh.own || sh.taking:
			owned[s.me]++
		case sh.owner != 0 && sh.owner != s.me:
			owned[sh.owner]++
		}
	}
	m, rest := len(s.members), len(now.shards)%len(s.members)
	for i, member := range s.ranked(owned, len(now.shards)) {
		quotas[member] = len(now.shards) / m
		if i < rest {
			quotas[member]++
		}
	}
	return quotas, owned
}

// ranked are the members in the order in which they get one slot more: those first that have it
// anyway. How many more than that they have does not count, or the order would change with each
// slot that is given back.
func (s *shares) ranked(owned map[memberID]int, shards int) []memberID {
	most := shards/len(s.members) + 1
	ranked := slices.Clone(s.members)
	slices.SortFunc(ranked, func(a, b memberID) int {
		return cmp.Or(min(owned[b], most)-min(owned[a], most), cmp.Compare(a, b))
	})
	return ranked
}

// mayTake are the free slots that are our share.
func (s *shares) mayTake(now situation, quotas, owned map[memberID]int) (take []int) {
	var free []int
	for i := range now.shards {
		if sh := &now.shards[i]; sh.free && !sh.taking && !sh.own {
			free = append(free, i)
		}
	}
	part := 0 // where ours begins
	for _, member := range s.ranked(owned, len(now.shards)) {
		if member == s.me {
			break
		}
		part += max(0, quotas[member]-owned[member])
	}
	for i := range free {
		if len(take) >= quotas[s.me]-owned[s.me] {
			break
		}
		if shard := free[(part+i)%len(free)]; now.shards[shard].wanted {
			take = append(take, shard)
		}
	}
	return take
}

// toGive are slots of ours that another has too few of.
func (s *shares) toGive(now situation, quotas, owned map[memberID]int) (give []int) {
	free, giving, keeping := 0, 0, 0
	for i := range now.shards {
		switch sh := &now.shards[i]; {
		case sh.own && sh.giving:
			giving++
		case sh.own && now.at.Before(s.kept[i].until):
			keeping++
		case sh.free && !sh.taking && !sh.own:
			free++
		}
	}
	lack := 0
	for _, member := range s.members {
		if member != s.me {
			lack += max(0, quotas[member]-owned[member])
		}
	}
	surplus := min(owned[s.me]-keeping-quotas[s.me], lack-free)
	if surplus <= 0 {
		s.uneven = time.Time{}
		return nil
	}
	if s.uneven.IsZero() {
		s.uneven = now.at
	}
	if now.at.Sub(s.uneven) < unevenFor || now.at.Sub(s.since) < unevenFor {
		return nil
	}
	for i := len(now.shards) - 1; i >= 0 && giving < min(surplus, mostGivings); i-- {
		if sh := &now.shards[i]; sh.own && !sh.giving && !now.at.Before(s.kept[i].until) {
			give = append(give, i)
			giving++
		}
	}
	return give
}
