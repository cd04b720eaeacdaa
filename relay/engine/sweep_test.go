package engine

import (
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// A look at the newest rows takes a key only if nothing older of it can be waiting out of sight.
func TestWholeKeys(t *testing.T) {
	since := relay.TimestampOf(time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC))
	at := func(d time.Duration, key string) relay.Event {
		return relay.Event{AggregateID: key, CreatedAt: since + relay.Timestamp(d.Microseconds())}
	}
	keysOf := func(events []relay.Event) (keys string) {
		for _, ev := range events {
			keys += ev.AggregateID
		}
		return keys
	}
	filter, left := wholeKeys(since, 2*time.Minute)
	if got := keysOf(filter([]relay.Event{at(time.Second, "a"), at(time.Minute, "b"), at(119*time.Second, "a"), at(2*time.Minute, "c")})); got != "c" {
		t.Errorf("first piece: took %q, want c", got)
	}
	if got := keysOf(filter([]relay.Event{at(3*time.Minute, "a"), at(4*time.Minute, "b"), at(5*time.Minute, "d"), at(6*time.Minute, "c")})); got != "dc" {
		t.Errorf("second piece: took %q, want dc", got)
	}
	if left() != 2 {
		t.Errorf("%d keys left out, want 2", left())
	}
	all, _ := wholeKeys(0, time.Hour)
	if got := keysOf(all([]relay.Event{at(0, "a"), at(0, "b")})); got != "ab" {
		t.Errorf("look at the whole table: took %q, want ab", got)
	}
}
