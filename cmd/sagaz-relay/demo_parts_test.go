package main

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
)

func TestDurations(t *testing.T) {
	var d durations
	if got := d.quantile(0.5); got != 0 {
		t.Errorf("of none: got %v", got)
	}
	var all []time.Duration
	for range 5000 {
		took := time.Duration(rand.ExpFloat64() * float64(20*time.Millisecond))
		all = append(all, took)
		d.add(took)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.99, 1} {
		want := max(all[max(0, int(q*5000)-1)], shortestClass)
		if got := d.quantile(q); got < want || float64(got) > 1.04*float64(want) {
			t.Errorf("quantile %v: got %v, want %v or up to 4%% more", q, got, want)
		}
	}
	before := d
	d.add(time.Hour)
	if recent := d.since(&before); recent.n != 1 || recent.quantile(0.5) < 2*time.Minute {
		t.Errorf("since: got %d, %v", recent.n, recent.quantile(0.5))
	}
}

// Writers tell of their commits in any order; the checker is told by version.
func TestDemoBooks(t *testing.T) {
	l := &demoLoad{checker: verify.New(verify.Options{}, "file"), next: make(map[string]int), waiting: make(map[string]map[int]verify.Event)}
	id := func(n int) relay.UUID { return relay.UUID{byte(n)} }
	l.committed([]demoEvent{{id: id(2), key: "sku", version: 2}, {id: id(9), key: "order", version: 1}})
	l.committed([]demoEvent{{id: id(3), key: "sku", version: 3}})
	if n, _ := l.checker.Counts("file"); n != 1 {
		t.Errorf("the checker was told of %d commits, want the order's only", n)
	}
	l.committed([]demoEvent{{id: id(1), key: "sku", version: 1}})
	for _, n := range []int{1, 9, 2, 3} {
		key := "sku"
		if n == 9 {
			key = "order"
		}
		l.checker.Deliver("file", verify.Event{ID: id(n), Key: key})
	}
	if err := l.checker.Report().Err(); err != nil {
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

func TestScreen(t *testing.T) {
	for _, width := range []int{30, 40, 60, 80, 132} {
		var out bytes.Buffer
		s := &screen{w: &out, width: func() int { return width }, live: true, marks: [2]string{"✗", "✓"}}
		p := newProgress(s, &demoLoad{counts: loadCounts{events: 1234567}}, newStopwatch())
		p.tick.Stop()
		p.show(12*time.Second, 123456)
		s.clearLive()
		s.item(false, "commit order within each key", "12,345 keys, 3 events out of order")
		text := strings.NewReplacer("\x1b[K", "", "\r", "\n").Replace(out.String())
		t.Logf("%d columns:%s", width, text)
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > max(width, 34) {
				t.Errorf("%d columns: %d are too many: %q", width, n, line)
			}
		}
		if !strings.Contains(text, "1,234,567") {
			t.Errorf("%d columns: the count is cut off: %q", width, text)
		}
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", -1000: "-1,000", -100: "-100", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}
