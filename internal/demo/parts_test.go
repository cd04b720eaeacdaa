package demo

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
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

func TestScreen(t *testing.T) {
	for _, width := range []int{30, 40, 60, 80, 132} {
		var out bytes.Buffer
		s := &screen{w: &out, width: func() int { return width }, live: true, marks: [2]string{"✗", "✓"}}
		p := newProgress(s, func() int { return 1234567 }, newStopwatch())
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
