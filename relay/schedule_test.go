package relay

import (
	"testing"
	"time"
)

// A look is made as often as its cost allows, and one that had to wait does not put off the next
// for long.
func TestSchedule(t *testing.T) {
	const lookCeiling = 10 * time.Minute
	var s Schedule
	wait := func() time.Duration { return time.Until(s.next).Round(10 * time.Millisecond) }
	if !s.Due() {
		t.Error("the first look is not due at once")
	}
	s.After(10*time.Millisecond, time.Second, 500, lookCeiling)
	if got := wait(); got != 5*time.Second || s.Due() {
		t.Errorf("after a look of 10 ms: next in %s, want 5s", got)
	}
	var first Schedule
	for n, want := range []time.Duration{untilKnown, untilKnown, lookCeiling} {
		first.After(3*time.Second, time.Second, 500, lookCeiling) // it may have waited, too
		if got := time.Until(first.next).Round(10 * time.Millisecond); got != want {
			t.Errorf("after look %d that took 3 s: next in %s, want %s", n, got, want)
		}
	}
	s.After(time.Millisecond, time.Second, 500, lookCeiling)
	if got := wait(); got != time.Second {
		t.Errorf("after a look of 1 ms: next in %s, want the pause", got)
	}
	s.After(3*time.Second, time.Second, 500, lookCeiling) // it waited for something
	if got := wait(); got != time.Second {
		t.Errorf("after a slow look among quick ones: next in %s, want the pause", got)
	}
	for range 3 {
		s.After(3*time.Second, time.Second, 500, lookCeiling)
	}
	if got := wait(); got != lookCeiling {
		t.Errorf("after slow looks only: next in %s, want %s", got, lookCeiling)
	}
}
