package relay

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestBackoff(t *testing.T) {
	b := Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	for range 200 { // the jitter is random
		b.Reset()
		for i, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000} {
			want *= time.Millisecond
			if got := b.Next(); got > want || got < want-want/3-1 {
				t.Fatalf("wait %d: got %s, want %s less up to a third", i+1, got, want)
			}
		}
	}
}

func TestBackoffJitters(t *testing.T) {
	seen := make(map[time.Duration]bool)
	for range 100 {
		b := Backoff{Min: time.Second, Max: time.Second}
		seen[b.Next()] = true
	}
	if len(seen) < 50 {
		t.Errorf("100 first waits had %d different lengths: many relays would knock at once", len(seen))
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if !Sleep(t.Context(), time.Minute) || time.Since(start) != time.Minute {
			t.Errorf("slept %s, want a minute", time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if Sleep(ctx, time.Minute) || time.Since(start) != time.Second {
			t.Errorf("slept %s after the context ended", time.Since(start)-time.Second)
		}
	})
}
