package watch

import (
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// The table's rows are counted when nothing is to be caught up with, or when a minute has passed.
func TestTableIsNotCountedWhileCatchingUp(t *testing.T) {
	for name, of := range map[string]struct {
		mode      string
		streaming bool
		unread    relay.LSN
		begun     bool
		since     time.Duration
		want      bool
	}{
		"just started":                           {mode: relay.ModeCDC, want: true},
		"the stream does not begin":              {mode: relay.ModeCDC, since: beginPause},
		"the stream has broken":                  {mode: relay.ModeCDC, begun: true},
		"a backlog":                              {mode: relay.ModeCDC, streaming: true, unread: 2 * relay.CaughtUpBytes, want: true},
		"a backlog for a minute":                 {mode: relay.ModeCDC, streaming: true, unread: 2 * relay.CaughtUpBytes, since: catchUpPause},
		"caught up":                              {mode: relay.ModeCDC, streaming: true},
		"polling":                                {mode: relay.ModePolling},
		"a fallback to polling, nothing is read": {mode: relay.ModePolling, begun: true},
	} {
		t.Run(name, func(t *testing.T) {
			o := &sampler{lookedAt: time.Now().Add(-of.since), begun: of.begun}
			o.sample.info.WALEnd = 1<<40 + of.unread
			if got := o.catchesUp(&relay.WorkSnapshot{Mode: of.mode, Streaming: of.streaming, Read: 1 << 40}); got != of.want {
				t.Errorf("waits: %t, want %t", got, of.want)
			}
		})
	}
}
