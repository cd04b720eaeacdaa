package store

import (
	"context"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// roster is this process among those that share the table's slots: which there are, who has which,
// and which of them we are to have (share.go). It is one goroutine with one connection. It works
// while somebody waits for a slot, has one, or wants to know when the set changes.
//
// Its session holds the lock of a member, and so shows that we live and are to have a share, and those
// of our sinks. Every
// RELAY_ACQUIRE_INTERVAL one query reads the set, the slots' rows and the locks. Whoever waits in
// Acquire is let through when its slot is to be ours, and takes it with a connection of its own,
// under the slot's lock and in a transaction that looks at everything again (set.go). What the
// roster finds is never more than advice about when to try.
//
// The crashes:
//
//   - the process dies: its locks go with its sessions, so its slots are free and its share is the
//     others';
//   - it freezes: its renewals stop, and the others end the sessions that hold its slots' locks and
//     its member's lock (rival.go). One that has no slot is noticed because its roster asks nothing
//     any more (silent.go). Until then its share is taken late (share.go);
//   - the roster's connection breaks: the leases have their own, and go on. The others give us no
//     more slots meanwhile, and we take none. After it has connected again, all is read again;
//   - before and after a slot is given back: it is ours until it is released, as at any stop, and
//     then free.
type roster struct {
	store *Store
	me    atomic.Uint32 // a memberID, from the first lock on
	wake  chan struct{} // to look now

	mu       sync.Mutex // guards what follows
	waits    map[*waiter]struct{}
	held     map[*lease]*holding
	watchers int                // those who want to know when the set changes
	left     bool               // we are on our way out
	stop     context.CancelFunc // ends the goroutine; nil: none runs
	ended    chan struct{}      // closed when it has
	looks    int                // that were begun
	looked   chan struct{}      // closed when the next look is through
	failure  error              // of the last look
	set      relay.Set
	known    bool          // the set is, by a look of the goroutine that runs
	changed  chan struct{} // closed when the set is another one
	change   *relay.SetChange
	unowned  []relay.Shard // slots without an owner that we speak for
}

// holding is what the roster knows of a lease of ours.
type holding struct {
	shard relay.Shard
	late  bool // it was not our share
	noted bool // share.go knows of it
}

// waiter is somebody in Acquire.
type waiter struct {
	shard   relay.Shard
	since   int         // looks that had begun before it came
	wanting bool        // it waits to be let through
	taking  bool        // it was
	through chan permit // to it
	refused chan error
	err     error // why it could not take the slot if that were free
}

// permit lets somebody try to take a slot.
type permit struct {
	judged map[string]sighting // owners without a lock whose time is over, by slot
	late   bool                // the slot is not our share
}

// memberClass is the class of the members' advisory locks: "SAGM" in ASCII. The second key is the
// member.
const memberClass = 0x5341474d

// sinkClass is the class of the advisory locks of sinks: "SAGD" in ASCII. The second key is hashtext
// of the sink's name. Members share them (Store.Delivers); RenameSink wants two for itself.
const sinkClass = 0x53414744

// isMember is true in pg_locks for a member's lock.
func isMember(class, member string) string {
	return heldHere(class) + ` AND objid = ` + member + `::bigint::oid`
}

func newRoster(s *Store) *roster {
	return &roster{
		store: s, wake: make(chan struct{}, 1), waits: make(map[*waiter]struct{}), held: make(map[*lease]*holding),
		looked: make(chan struct{}), changed: make(chan struct{}),
	}
}

// family is the half of a member's id that those with the same RELAY_SLOT have in common. Relays
// with another one have no share of our slots.
func (r *roster) family() uint32 { return familyOf(r.store.cfg.Slot) }

func familyOf(slot string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(slot))
	sum := h.Sum32()
	return sum>>16 ^ sum&0xffff
}

func (r *roster) anyMember() uint32 { return r.family()<<16 | (1 + rand.Uint32N(1<<16-1)) }

// begin lets the goroutine run. It is called with mu held.
func (r *roster) begin() {
	if r.stop != nil || r.left {
		relay.Wake(r.wake)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	r.stop, r.ended, r.known, r.failure = stop, ended, false, nil
	go func() {
		defer close(ended)
		(&session{roster: r, store: r.store, shares: shares{me: memberID(r.me.Load())}, rivals: make(rivals), ended: make(map[string]sighting), holdUpLogged: make(map[string]time.Time)}).run(ctx)
	}()
}

// end ends it when nobody needs it any more, and returns what is closed when it has. It is called
// with mu held.
func (r *roster) end() <-chan struct{} {
	if len(r.waits)+len(r.held)+r.watchers > 0 && !r.left {
		relay.Wake(r.wake) // who lives, and who has what, may have changed
		return nil
	}
	if r.stop != nil {
		r.stop()
		r.stop, r.unowned = nil, nil
	}
	return r.ended
}

// Leave implements relay.Store.
func (s *Store) Leave() {
	r := s.roster
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = true
	r.end()
}

// Set implements relay.Store.
func (s *Store) Set(ctx context.Context) (relay.Set, <-chan struct{}, error) {
	r := s.roster
	r.mu.Lock()
	r.watchers++
	before := r.looks
	r.begin()
	r.mu.Unlock()
	away := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.watchers--
		r.end()
	}
	for {
		r.mu.Lock()
		set, known, changed, looked, failure, looks := r.set, r.known, r.changed, r.looked, r.failure, r.looks
		r.mu.Unlock()
		if known {
			go func() { // until then we want to know
				defer away()
				select {
				case <-changed:
				case <-ctx.Done():
				}
			}()
			return set, changed, nil
		}
		if problem := (*relay.SetupError)(nil); looks > before && errors.As(failure, &problem) {
			away()
			return relay.Set{}, nil, failure
		}
		select {
		case <-looked:
		case <-ctx.Done():
			away()
			return relay.Set{}, nil, context.Cause(ctx)
		}
	}
}

// wait notes that somebody waits for a slot, until away.
func (r *roster) wait(shard relay.Shard) *waiter {
	w := &waiter{shard: shard, wanting: true, through: make(chan permit, 1), refused: make(chan error, 1)}
	r.mu.Lock()
	defer r.mu.Unlock()
	w.since = r.looks
	r.waits[w] = struct{}{}
	r.begin()
	return w
}

// away ends the wait, without a lease.
func (r *roster) away(w *waiter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.waits, w)
	r.end()
}

// firstLook is closed when the first look of the roster is through, if it has not been yet.
func (r *roster) firstLook() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known || r.failure != nil {
		return nil
	}
	return r.looked
}

// isThrough reports whether somebody who waits was let through, and still is about to take its
// slot.
func (r *roster) isThrough(w *waiter) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return w.taking
}

// next waits until the slot is to be taken.
func (r *roster) next(ctx context.Context, w *waiter) (permit, error) {
	r.mu.Lock()
	w.wanting, w.taking = true, false
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		w.wanting = false
		r.mu.Unlock()
	}()
	select {
	case p := <-w.through:
		return p, nil
	case err := <-w.refused:
		return permit{}, err
	case <-ctx.Done():
		return permit{}, ctx.Err()
	}
}

// failed notes why the slot could not be taken; nil for that it was another's.
func (r *roster) failed(w *waiter, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w.taking, w.err = false, err
}

// took makes of the wait a lease.
func (r *roster) took(w *waiter, l *lease, late bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.waits, w)
	r.held[l] = &holding{shard: l.shard, late: late}
}

// released notes that a lease has ended. When it was the last one, and nobody waits for another, it
// waits until the roster has ended, too.
func (r *roster) released(ctx context.Context, l *lease) {
	r.mu.Lock()
	_, was := r.held[l]
	delete(r.held, l)
	var ended <-chan struct{}
	if was {
		ended = r.end()
	}
	r.mu.Unlock()
	if ended != nil {
		select {
		case <-ended:
		case <-ctx.Done():
		}
	}
}

// Waiting implements relay.Store.
func (s *Store) Waiting(slot string) error {
	r := s.roster
	r.mu.Lock()
	defer r.mu.Unlock()
	for w := range r.waits {
		if w.shard.Slot != slot {
			continue
		}
		if w.err != nil {
			return w.err
		}
		return r.failure
	}
	return nil
}

// member reports whether we are to have a share: somebody waits for a slot, or we have one.
func (r *roster) member() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waits) > 0 {
		return true
	}
	for l := range r.held {
		if l.Err() == nil {
			return true
		}
	}
	return false
}
