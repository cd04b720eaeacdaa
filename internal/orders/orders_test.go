package orders

import (
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
)

// Writers report their commits in any order; the checker gets them by version.
func TestBooks(t *testing.T) {
	l := &Shop{Checker: verify.New(verify.Options{}, "file"), next: make(map[string]int), waiting: make(map[string]map[int]verify.Event)}
	id := func(n int) relay.UUID { return relay.UUID{byte(n)} }
	l.committed([]event{{id: id(2), key: "sku", version: 2}, {id: id(9), key: "order", version: 1}})
	l.committed([]event{{id: id(3), key: "sku", version: 3}})
	if n, _ := l.Checker.Counts("file"); n != 1 {
		t.Errorf("the checker got %d commits, want the order's only", n)
	}
	l.committed([]event{{id: id(1), key: "sku", version: 1}})
	for _, n := range []int{1, 9, 2, 3} {
		key := "sku"
		if n == 9 {
			key = "order"
		}
		l.Checker.Deliver("file", verify.Event{ID: id(n), Key: key})
	}
	if err := l.Checker.Report().Err(); err != nil {
		t.Error(err)
	}
	if len(l.waiting) != 0 {
		t.Errorf("still waiting: %v", l.waiting)
	}
}

func TestPacer(t *testing.T) {
	p := pacer{rate: 1000}
	began := time.Now()
	for range 50 {
		if !p.wait(t.Context(), 4) {
			t.Fatal("stopped")
		}
		p.giveBack(2) // two of the four were rolled back
	}
	if took := time.Since(began); took < 45*time.Millisecond || took > 2*time.Second {
		t.Errorf("100 events at 1000/s took %v, want about 50 ms to 100 ms", took)
	}
}
