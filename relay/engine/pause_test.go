package engine

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			end, done, took time.Duration // 0: never
			closed          bool
		}{
			{took: time.Minute},
			{end: time.Second, done: time.Hour, took: time.Second},
			{end: time.Hour, done: 2 * time.Second, took: 2 * time.Second, closed: true},
			{end: time.Hour, done: time.Hour, took: time.Minute},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			var done chan struct{}
			if c.done > 0 {
				done = make(chan struct{})
				time.AfterFunc(c.end, cancel)
				time.AfterFunc(c.done, func() { close(done) })
			}
			start := time.Now()
			if closed := pause(ctx, time.Minute, done); closed != c.closed || time.Since(start) != c.took {
				t.Errorf("got %t after %s, want %t after %s", closed, time.Since(start), c.closed, c.took)
			}
			cancel()
		}
		time.Sleep(2 * time.Hour) // until the timers have fired
	})
}
