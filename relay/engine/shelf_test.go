package engine

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

// A tally counts like a plain map, around the count where a byte is not enough any more.
func TestTally(t *testing.T) {
	var (
		counts = tally{mask: shelfMask(1)}
		twin   = make(map[uint32]int)
		rng    = rand.New(rand.NewPCG(1, 2))
	)
	buckets := []uint32{0, 1, 77, shelfBuckets - 1}
	for range 100_000 {
		b := buckets[rng.IntN(len(buckets))]
		n := []int{1, 1, -1, 300, -300}[rng.IntN(5)]
		if twin[b]+n < 0 {
			continue
		}
		counts.add(b, n)
		twin[b] += n
		if got := counts.of(b); int(got) != twin[b] {
			t.Fatalf("bucket %d counts %d, want %d", b, got, twin[b])
		}
	}
	for _, b := range buckets {
		counts.add(b, -twin[b])
	}
	if len(counts.large) != 0 {
		t.Errorf("%d large counts are left of nothing", len(counts.large))
	}
}

// What the store counts of the ledger, by the low bits of the hashes, is in the bucket that a lane
// asks for, whatever the number of slots is: an event behind an entry is not offered.
func TestShelfOfAnyNumberOfSlots(t *testing.T) {
	for shards := 1; shards <= relay.MaxShards; shards++ {
		mask := shelfMask(shards)
		if all := int(mask+1) * shards; all > shelfBuckets || 2*all < shelfBuckets {
			t.Errorf("%d slots: %d buckets each", shards, mask+1)
		}
		for i := range 20 {
			s := newShelf("kafka", mask)
			hash := relay.KeyHash(fmt.Sprint("order-", i))
			s.add(hash&mask, 1) // ledger.load
			if got := s.admit(hash); got != toShelf {
				t.Fatalf("%d slots: an event behind an entry of its key: got %d, want %d", shards, got, toShelf)
			}
		}
	}
}
