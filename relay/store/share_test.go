package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// sharing is a set of slots and the processes that share them, in made-up time.
type sharing struct {
	t       *testing.T
	rng     *rand.Rand
	now     time.Time
	owners  []memberID // by shard; 0: free
	procs   []*proc
	moves   int // slots that were given back
	history []string
}

// proc is one process.
type proc struct {
	id      memberID
	shares  shares
	member  bool // its lock is held
	frozen  bool // it does nothing; the others end its sessions in a while
	unable  bool // it takes no slot, though it lives and tries
	ends    time.Time
	look    time.Time // next
	taking  map[int]take
	giving  map[int]time.Time // when it is through
	stopped bool
}

type take struct {
	at   time.Time
	late bool
}

const simTTL = 9 * time.Second

func newSharing(t *testing.T, seed uint64, shards int) *sharing {
	return &sharing{t: t, rng: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1_000_000, 0), owners: make([]memberID, shards)}
}

func (w *sharing) note(format string, args ...any) {
	w.history = append(w.history, fmt.Sprintf("%8s ", w.now.Sub(time.Unix(1_000_000, 0)))+fmt.Sprintf(format, args...))
}

func (w *sharing) join() *proc {
	p := &proc{id: memberID(1 + w.rng.Uint32N(1<<20)), member: true, look: w.now, taking: make(map[int]take), giving: make(map[int]time.Time)}
	p.shares.me = p.id
	w.procs = append(w.procs, p)
	w.note("%d comes", p.id)
	return p
}

// leave is a stop: its lock goes first, its slots when they are drained.
func (w *sharing) leave(p *proc) {
	w.note("%d stops", p.id)
	p.member, p.stopped = false, true
	clear(p.taking)
	for i, owner := range w.owners {
		if owner == p.id {
			p.giving[i] = w.now.Add(time.Duration(w.rng.IntN(500)) * time.Millisecond)
		}
	}
}

// kill frees all that it has.
func (w *sharing) kill(p *proc) {
	w.note("%d dies", p.id)
	for i, owner := range w.owners {
		if owner == p.id {
			w.owners[i] = 0
		}
	}
	w.procs = slices.DeleteFunc(w.procs, func(q *proc) bool { return q == p })
}

func (w *sharing) freeze(p *proc) {
	w.note("%d freezes", p.id)
	p.frozen, p.ends = true, w.now.Add(simTTL)
	clear(p.taking)
}

// run lets time pass.
func (w *sharing) run(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(10 * time.Millisecond) {
		for _, p := range slices.Clone(w.procs) {
			w.step(p)
		}
	}
}

func (w *sharing) step(p *proc) {
	if p.frozen {
		if !w.now.Before(p.ends) && slices.Contains(w.owners, p.id) { // who has no slot is not noticed
			w.kill(p)
		}
		return
	}
	for i, at := range p.giving {
		if !w.now.Before(at) {
			w.owners[i] = 0
			delete(p.giving, i)
			w.note("%d frees %d", p.id, i)
		}
	}
	if p.stopped {
		if len(p.giving) == 0 {
			w.procs = slices.DeleteFunc(w.procs, func(q *proc) bool { return q == p })
		}
		return
	}
	for i, tk := range p.taking {
		if w.now.Before(tk.at) {
			continue
		}
		delete(p.taking, i)
		if w.owners[i] == 0 && !p.unable {
			w.owners[i] = p.id
			p.shares.took(i, tk.late, w.now)
			w.note("%d takes %d, late %t", p.id, i, tk.late)
		}
	}
	if w.now.Before(p.look) {
		return
	}
	p.look = w.now.Add(250*time.Millisecond + time.Duration(w.rng.IntN(50))*time.Millisecond)
	now := situation{at: w.now, shards: make([]shardSeen, len(w.owners))}
	for _, q := range w.procs {
		if q.member {
			now.members = append(now.members, q.id)
		}
	}
	w.rng.Shuffle(len(now.members), func(i, j int) { now.members[i], now.members[j] = now.members[j], now.members[i] })
	for i, owner := range w.owners {
		_, taking := p.taking[i]
		_, giving := p.giving[i]
		now.shards[i] = shardSeen{owner: owner, free: owner == 0, own: owner == p.id, taking: taking, giving: giving, wanted: owner != p.id}
	}
	todo := p.shares.decide(now)
	for _, i := range todo.take {
		p.taking[i] = take{w.now.Add(time.Duration(10+w.rng.IntN(100)) * time.Millisecond), slices.Contains(todo.takeLate, i)}
	}
	for _, i := range todo.give {
		if w.owners[i] != p.id {
			w.t.Fatalf("%d gives back %d, which it does not have", p.id, i)
		}
		w.moves++
		w.note("%d gives %d back", p.id, i)
		p.giving[i] = w.now.Add(time.Duration(10+w.rng.IntN(500)) * time.Millisecond)
	}
}

// counts is how many slots each process has, -1 for none at all.
func (w *sharing) counts() (all []int, free int) {
	for _, p := range w.procs {
		n := 0
		for _, owner := range w.owners {
			if owner == p.id {
				n++
			}
		}
		all = append(all, n)
	}
	for _, owner := range w.owners {
		if owner == 0 {
			free++
		}
	}
	slices.Sort(all)
	return all, free
}

// wantFair fails unless every slot is owned and no process has two more than another.
func (w *sharing) wantFair(when string) {
	w.t.Helper()
	all, free := w.counts()
	if len(all) > 0 && (free > 0 || all[len(all)-1]-all[0] > 1) {
		w.t.Fatalf("%s: %d slots are free, the processes have %v\n%s", when, free, all, w.tail())
	}
}

func (w *sharing) tail() string {
	s := ""
	for _, line := range w.history[max(0, len(w.history)-40):] {
		s += line + "\n"
	}
	return s
}

// evenIn is the time in which shares are even after something has happened.
const evenIn = 5 * time.Second

// Processes come and go: each time shares are even in time, and as few slots move as can.
func TestSharesEvenOut(t *testing.T) {
	for _, shards := range []int{1, 2, 3, 4, 5, 8, 64} {
		for seed := range uint64(15) {
			w := newSharing(t, seed, shards)
			for range 1 + w.rng.IntN(10) {
				w.join()
			}
			w.run(evenIn)
			w.wantFair("at the start")
			if w.moves > 0 {
				t.Fatalf("%d slots, seed %d: %d were given back at the start, when all were free\n%s", shards, seed, w.moves, w.tail())
			}
			for range 6 {
				before, had := w.moves, slices.Clone(w.owners)
				need := 0
				p := (*proc)(nil)
				if len(w.procs) > 0 {
					p = w.procs[w.rng.IntN(len(w.procs))]
				}
				limit := evenIn
				switch what := w.rng.IntN(4); {
				case p == nil || what == 0:
					w.join()
					need = shards / len(w.procs)
				case what == 1:
					w.leave(p)
				case what == 2:
					w.kill(p)
				case what == 3:
					w.freeze(p)
					limit += simTTL
				}
				if shards == 64 { // each gives back a few at a time
					limit += evenIn
				}
				w.run(limit)
				if p != nil && p.frozen { // that had no slot, and would be there for ever
					w.procs = slices.DeleteFunc(w.procs, func(q *proc) bool { return q == p })
				}
				w.wantFair("in time")
				if moves := w.moves - before; moves > need {
					t.Fatalf("%d slots, seed %d: %d were given back, %d had to be: %v became %v\n%s", shards, seed, moves, need, had, w.owners, w.tail())
				}
				had, before = slices.Clone(w.owners), w.moves
				w.run(30 * time.Second)
				if !slices.Equal(had, w.owners) || w.moves != before {
					t.Fatalf("%d slots, seed %d: slots move though nothing happens: %v became %v\n%s", shards, seed, had, w.owners, w.tail())
				}
			}
		}
	}
}

// Whatever happens, and however much of it at once: a while after the last of it shares are even,
// and stay.
func TestSharesAfterAnything(t *testing.T) {
	for seed := range uint64(60) {
		shards := 1 + int(seed%9)
		w := newSharing(t, seed, shards)
		w.join()
		for range 60 {
			w.run(time.Duration(w.rng.IntN(2500)) * time.Millisecond)
			if len(w.procs) == 0 || w.rng.IntN(3) == 0 && len(w.procs) < 12 {
				w.join()
				continue
			}
			p := w.procs[w.rng.IntN(len(w.procs))]
			if p.stopped || p.frozen {
				continue
			}
			switch w.rng.IntN(4) {
			case 0:
				w.leave(p)
			case 1:
				w.kill(p)
			case 2:
				w.freeze(p)
			case 3:
				p.unable = !p.unable
			}
		}
		w.run(simTTL + time.Second)
		w.procs = slices.DeleteFunc(w.procs, func(p *proc) bool { return p.frozen })
		for _, p := range w.procs {
			p.unable = false
		}
		w.join()
		w.run(keptMax + time.Minute) // what was taken late is kept for so long at the most
		w.wantFair("at the end")
		had := slices.Clone(w.owners)
		w.run(time.Minute)
		if !slices.Equal(had, w.owners) {
			t.Fatalf("seed %d: slots move though nothing happens: %v became %v\n%s", seed, had, w.owners, w.tail())
		}
	}
}

// A member that lives and takes nothing: the others take its share within seconds, and do not give
// it back each moment.
func TestSharesOfAMemberThatCannot(t *testing.T) {
	for seed := range uint64(10) {
		w := newSharing(t, seed, 4)
		w.join()
		w.run(evenIn)
		w.join().unable = true
		w.run(10 * time.Second)
		if _, free := w.counts(); free > 0 {
			t.Fatalf("seed %d: %d slots are free\n%s", seed, free, w.tail())
		}
		var without time.Duration // that any slot was free
		for range 360 {
			w.run(10 * time.Second)
			if _, free := w.counts(); free > 0 {
				without += 10 * time.Second
			}
		}
		// Tried again after 1, 2, 4, 8, and each 10 minutes, for two slots: each time it is three
		// seconds until the other has them back.
		if w.moves > 2*12 || without > 3*time.Minute {
			t.Errorf("seed %d: in an hour %d slots were given to who takes none, %s with a free one\n%s", seed, w.moves, without, w.tail())
		}
	}
}
