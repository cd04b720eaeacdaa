package halve

import (
	"math/bits"
	"math/rand/v2"
	"testing"
)

// search offers n records in pieces, and counts the refused ones.
func search(t *testing.T, n int, bad map[int]bool) (refusals int) {
	t.Helper()
	var p Piece
	found := map[int]bool{}
	for next := 0; next < n; {
		end := n
		if most := p.Most(); most > 0 {
			end = min(n, next+most)
		}
		refused := false
		for i := next; i < end; i++ {
			refused = refused || bad[i]
		}
		if !refused {
			p.Taken(end - next)
			next = end
			continue
		}
		refusals++
		if p.Refused(end - next) {
			found[next] = true
			next++
		}
	}
	for i := range bad {
		if !found[i] {
			t.Errorf("%d of %d not found, got %v", i, n, found)
		}
	}
	if len(found) != len(bad) {
		t.Errorf("found %v, want %v", found, bad)
	}
	return refusals
}

func TestOneCulpritAnywhere(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7, 8, 9, 100, 1000} {
		for at := range n {
			if got, most := search(t, n, map[int]bool{at: true}), bits.Len(uint(n))+1; got > most {
				t.Errorf("culprit %d of %d: %d pieces refused, want at most %d", at, n, got, most)
			}
		}
	}
}

func TestManyCulprits(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		n := 1 + rnd.IntN(1200)
		bad := map[int]bool{}
		for range rnd.IntN(12) {
			bad[rnd.IntN(n)] = true
		}
		if got, most := search(t, n, bad), len(bad)*(bits.Len(uint(n))+2); got > most {
			t.Errorf("seed %d: %d culprits of %d: %d pieces refused, want at most %d", seed, len(bad), n, got, most)
		}
	}
	all := map[int]bool{}
	for i := range 1000 {
		all[i] = true
	}
	if got := search(t, 1000, all); got > 1000+11 {
		t.Errorf("nothing but culprits: %d pieces refused of 1000", got)
	}
}
