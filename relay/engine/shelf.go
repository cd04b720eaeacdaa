package engine

import (
	"math"
	"math/bits"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// shelf is what a pipeline knows, in memory, of one sink's part of the ledger. It knows which keys
// have entries there, so that later events of theirs go there too. It knows whether the sink is
// isolated, so that all events do. It is exact about sinks and keeps keys by hash, in a few
// megabytes whatever the size of the ledger (see tally). Another key in the bucket of a blocked one
// goes through the ledger too, and waits there for what was parked before it.
//
// An entry is counted from the moment at which a lane decides to park it, long before it is
// written. It is counted until the transaction that takes it out has committed. So a lane that
// finds a key's count at 0 knows that everything before was delivered, or given up.
//
// Crashes: the counts are read from the ledger again by the next owner (Ledger.Blocking), before
// its first event.
type shelf struct {
	sink string
	wake chan struct{} // capacity one: there may be something to drain
	// stopping is closed when the relay is being stopped: what fails goes to the ledger, to be
	// there when the next owner comes.
	stopping chan struct{}

	mu     sync.Mutex // guards what follows
	counts tally
	under  map[uint32]uint32 // of counts: entries that are being offered in a round
	total  int               // entries that are counted
	// unconfirmed are the positions of entries that a mark has not confirmed yet. Such an entry may
	// be in the ledger all the same, when the answer to the mark was lost or its row is not visible
	// yet. It is not offered: the mark that comes again would make it a second time. True means
	// that it is counted in total; its event is in flight as well.
	unconfirmed map[int64]bool
	rounds      int // that have ended

	down    bool // the sink has failed for too long
	overWAL bool // the slot retains too much WAL because of this sink
	since   time.Time
}

// shelfBuckets are so many that a million blocked keys send one other key in five through the
// ledger; ten thousand send one in 400. The slots of a set share them out, as they do the keys.
const shelfBuckets = 1 << 22

// shelfMask has the bits of a key's hash that are its bucket, for one of so many slots.
func shelfMask(shards int) uint32 { return 1<<(bits.Len(uint(shelfBuckets/shards))-1) - 1 }

func newShelf(sink string, mask uint32) *shelf {
	return &shelf{sink: sink, wake: make(chan struct{}, 1), stopping: make(chan struct{}), counts: tally{mask: mask}}
}

// bucketOf is the bucket of a key.
func (s *shelf) bucketOf(keyHash uint32) uint32 { return keyHash & s.counts.mask }

// admission is what a lane may do with an event from the stream.
type admission int

const (
	offer   admission = iota // nothing before it is in the ledger
	toShelf                  // park it
	// What is before it is being offered just now: wait for the end of that round.
	toDefer
)

// admit is called with mu held.
func (s *shelf) admit(keyHash uint32) admission {
	if s.down || s.overWAL {
		return toShelf
	}
	if s.total == 0 {
		return offer
	}
	b := s.bucketOf(keyHash)
	switch n := s.counts.of(b); {
	case n == 0:
		return offer
	case n == s.under[b]:
		return toDefer
	default:
		return toShelf
	}
}

// park counts an entry that is to be made. It is called with mu held.
func (s *shelf) park(f *flight) {
	s.add(f.keyHash, 1)
	s.expect(f.position, true)
}

// parkRefused is park for an event that was refused: a dead letter that its key passes is not
// counted.
func (s *shelf) parkRefused(f *flight, p *relay.Parked) {
	if p.Detached {
		s.expect(f.position, false)
		return
	}
	s.park(f)
}

// expect notes an entry that is to be made. It is called with mu held.
func (s *shelf) expect(position int64, counted bool) {
	if s.unconfirmed == nil {
		s.unconfirmed = make(map[int64]bool)
	}
	s.unconfirmed[position] = counted
}

// written notes that these events' entries are made, and reports whether there were any.
func (s *shelf) written(batch []*flight) (any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unconfirmed) == 0 {
		return false
	}
	before := len(s.unconfirmed)
	for _, f := range batch {
		delete(s.unconfirmed, f.position)
	}
	return len(s.unconfirmed) < before
}

// certain reports which of the entries may be offered.
func (s *shelf) certain(entries []relay.Entry) []bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	yes := make([]bool, len(entries))
	for i := range entries {
		_, unconfirmed := s.unconfirmed[entries[i].Position]
		yes[i] = !unconfirmed
	}
	return yes
}

// add counts entries. It is called with mu held.
func (s *shelf) add(keyHash uint32, entries int) {
	s.counts.add(s.bucketOf(keyHash), entries)
	s.total += entries
}

// reset forgets all counts.
func (s *shelf) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts, s.total = tally{mask: s.counts.mask}, 0
}

// begin notes the entries that are being offered in a round.
func (s *shelf) begin(entries []relay.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.under = make(map[uint32]uint32)
	for i := range entries {
		if !entries[i].Detached {
			s.under[s.bucketOf(entries[i].KeyHash)]++
		}
	}
}

// end notes that a round is over, and which of its entries do not block their keys any more.
func (s *shelf) end(freed []*relay.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range freed {
		if e.Detached {
			continue
		}
		// A person may have made an entry by hand, which nobody counted.
		if b := s.bucketOf(e.KeyHash); s.total > 0 && s.counts.of(b) > 0 {
			s.counts.add(b, -1)
			s.total--
		}
	}
	s.under = nil
	s.rounds++
}

// isolate diverts everything to the ledger, because the sink is down or because the slot retains
// too much WAL because of it. It reports whether it had not been isolated.
func (s *shelf) isolate(overWAL bool) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first = !s.down && !s.overWAL
	if first {
		s.since = time.Now()
	}
	if overWAL {
		s.overWAL = true
	} else {
		s.down = true
	}
	relay.Wake(s.wake)
	return first
}

// up ends an isolation for the reason given. It reports whether the sink is not isolated any more,
// and for how long it was.
func (s *shelf) up(overWAL bool) (ended bool, after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.down || s.overWAL
	if overWAL {
		s.overWAL = false
	} else {
		s.down = false
	}
	return was && !s.down && !s.overWAL, time.Since(s.since)
}

// state returns what the shelf knows.
func (s *shelf) state() (entries int, down, overWAL bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total, s.down, s.overWAL
}

// snapshot is what the outside may know. What is not in the ledger of the entries that are counted
// is of events in flight.
func (s *shelf) snapshot() relay.ShelfSnapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.total
	for _, counted := range s.unconfirmed {
		if counted {
			n--
		}
	}
	return relay.ShelfSnapshot{Entries: s.total, InLedger: max(0, n), Isolated: s.down || s.overWAL}
}

// isolated reports whether everything goes to the ledger.
func (s *shelf) isolated() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down || s.overWAL
}

// stop makes failing lanes give their events to the ledger at once.
func (s *shelf) stop() { close(s.stopping) }

func (s *shelf) isStopping() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// tally counts by bucket. A byte each is enough for nearly all of them, however large the ledger:
// what is more is a key that has been blocked for long.
type tally struct {
	mask  uint32            // the highest bucket
	small []uint8           // nil as long as nothing was counted; manyEntries: see large
	large map[uint32]uint32 // the counts from manyEntries on
}

const manyEntries = math.MaxUint8

func (t *tally) of(bucket uint32) uint32 {
	if n := t.small[bucket]; n < manyEntries {
		return uint32(n)
	}
	return t.large[bucket]
}

func (t *tally) add(bucket uint32, n int) {
	if t.small == nil {
		t.small, t.large = make([]uint8, t.mask+1), make(map[uint32]uint32)
	}
	sum := uint32(int(t.of(bucket)) + n)
	if sum < manyEntries {
		t.small[bucket] = uint8(sum)
		delete(t.large, bucket)
	} else {
		t.small[bucket] = manyEntries
		t.large[bucket] = sum
	}
}
