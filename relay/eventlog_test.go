package relay

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// At INFO the lines of single events cost nothing but the question, whatever the size of a batch.
func TestEventLinesAreFreeAtInfo(t *testing.T) {
	log := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Info}).Named("relay").With("slot", "s")
	flights := make([]flight, 100)
	batch := make([]*flight, len(flights))
	parks := make([]*Parked, len(flights))
	for i := range flights {
		batch[i], parks[i] = &flights[i], &Parked{Sink: "kafka", State: StateHeld}
		flights[i].rec.Headers = []Header{{"correlation_id", "c"}}
	}
	entry := &Entry{}
	outcomes := []Outcome{{Entry: entry, Fate: FateDelivered}}
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
