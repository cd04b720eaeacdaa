package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A process that was asked to end does, whatever hangs.
func TestEndAnyway(t *testing.T) {
	for _, tt := range []struct {
		name       string
		asked, out bool // it was asked to end, it ended in time
		want       bool
	}{
		{"NotTold", false, false, false}, {"EndsInTime", true, true, false}, {"DoesNotEnd", true, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				forced := false
				ended := endAnyway(ctx, time.Minute, func() { forced = true })
				if tt.asked {
					cancel()
				}
				time.Sleep(30 * time.Second)
				if tt.out {
					ended()
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				if forced != tt.want {
					t.Errorf("forced: %t, want %t", forced, tt.want)
				}
				if !tt.out {
					ended()
				}
				synctest.Wait()
			})
		})
	}
}
