package relay

import (
	"testing"
	"time"
)

// A look at the newest rows takes a key only if nothing older of it can be waiting out of sight.
func TestWholeKeys(t *testing.T) {
	since := TimestampOf(time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC))
	at := func(d time.Duration, key string) Event {
		return Event{AggregateID: key, CreatedAt: since + Timestamp(d.Microseconds())}
	}
	keysOf := func(events []Event) (keys string) {
		for _, ev := range events {
			keys += ev.AggregateID
		}
		return keys
	}
	filter, left := wholeKeys(since, 2*time.Minute)
	if got := keysOf(filter([]Event{at(time.Second, "a"), at(time.Minute, "b"), at(119*time.Second, "a"), at(2*time.Minute, "c")})); got != "c" {
		t.Errorf("first piece: took %q, want c", got)
	}
	if got := keysOf(filter([]Event{at(3*time.Minute, "a"), at(4*time.Minute, "b"), at(5*time.Minute, "d"), at(6*time.Minute, "c")})); got != "dc" {
		t.Errorf("second piece: took %q, want dc", got)
	}
	if left() != 2 {
		t.Errorf("%d keys left out, want 2", left())
	}
	all, _ := wholeKeys(0, time.Hour)
	if got := keysOf(all([]Event{at(0, "a"), at(0, "b")})); got != "ab" {
		t.Errorf("look at the whole table: took %q, want ab", got)
	}
}

// A look is made as often as its cost allows, and one that had to wait does not put off the next for long.
func TestSchedule(t *testing.T) {
	var s schedule
	wait := func() time.Duration { return time.Until(s.next).Round(10 * time.Millisecond) }
	if !s.due() {
		t.Error("the first look is not due at once")
	}
	s.after(100*time.Millisecond, time.Second, 500, lookCeiling)
	if got := wait(); got != 50*time.Second || s.due() {
		t.Errorf("after a look of 100 ms: next in %s, want 50s", got)
	}
	s.after(time.Millisecond, time.Second, 500, lookCeiling)
	if got := wait(); got != time.Second {
		t.Errorf("after a look of 1 ms: next in %s, want the pause", got)
	}
	s.after(3*time.Second, time.Second, 500, lookCeiling) // it waited for something
	if got := wait(); got != time.Second {
		t.Errorf("after a slow look among quick ones: next in %s, want the pause", got)
	}
	for range 3 {
		s.after(3*time.Second, time.Second, 500, lookCeiling)
	}
	if got := wait(); got != lookCeiling {
		t.Errorf("after slow looks only: next in %s, want %s", got, lookCeiling)
	}
}
