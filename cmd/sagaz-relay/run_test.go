package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
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

// silent is a sink named kafka whose broker answers nothing.
type silent struct{ *sinktest.Script }

func (silent) Check(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

// A broker that does not answer is logged, but not by a relay that is just being stopped.
func TestLookForBrokersAtAStop(t *testing.T) {
	for name, after := range map[string]time.Duration{"Stopped": time.Second, "Runs": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				time.AfterFunc(after, func() { cancel(errors.New("terminated signal received")) })
				var log bytes.Buffer
				defaultSettings().lookForBrokers(ctx, []relay.Sink{silent{sinktest.NewScript("kafka")}}, hclog.New(&hclog.LoggerOptions{Output: &log}))
				if logged := strings.Contains(log.String(), "the broker cannot be used"); logged != (name == "Runs") {
					t.Errorf("the log is %q", log.String())
				}
			})
		})
	}
}
