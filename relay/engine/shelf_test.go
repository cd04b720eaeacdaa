package engine

import (
	"math/rand/v2"
	"testing"
)

// A tally counts like a plain map, around the count where a byte is not enough any more.
func TestTally(t *testing.T) {
	var (
		counts tally
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
