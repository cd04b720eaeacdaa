package watch

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// At INFO the lines of single events cost nothing but the question, whatever the size of a batch.
func TestEventLinesAreFreeAtInfo(t *testing.T) {
	log := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Info}).Named("relay").With("slot", "s")
	flights := make([]relay.Flight, 100)
	batch := make([]*relay.Flight, len(flights))
	parks := make([]*relay.Parked, len(flights))
	for i := range flights {
		batch[i], parks[i] = &flights[i], &relay.Parked{Sink: "kafka", State: relay.StateHeld}
		flights[i].Record.Headers = []relay.Header{{Key: "correlation_id", Value: "c"}}
	}
	entry := &relay.Entry{}
	outcomes := []relay.Outcome{{Entry: entry, Fate: relay.FateDelivered}}
	err := errors.New("broker away")
	got := testing.AllocsPerRun(100, func() {
		logReceived(log, batch)
		logPublished(log, "kafka", batch, 1, time.Second)
		logNotTaken(log, "kafka", batch, 1, err)
		logParked(log, batch, parks)
		logMarked(log, batch)
		logRetried(log, "kafka", batch)
		logResolved(log, nil, "kafka", outcomes)
	})
	if got != 0 {
		t.Errorf("%g allocations", got)
	}
}
