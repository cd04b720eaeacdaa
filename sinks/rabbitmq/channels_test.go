package rabbitmq

import (
	"fmt"
	"sync"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// Lanes share channels. One lane's notes of what is under way on a channel must be gone before
// another lane has it: with -race, and by what arrives.
func TestLanesShareChannels(t *testing.T) {
	t.Parallel()
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	s := newSink(t, r.config())
	const lanes, batches, size = 8, 60, 5
	var all sync.WaitGroup
	for lane := range lanes {
		all.Go(func() {
			for n := range batches {
				recs := sinktest.Records(bound, fmt.Sprintf("lane%d", lane), n*size, size)
				if err := s.Publish(soon(t), recs); err != nil {
					t.Errorf("lane %d: %v", lane, err)
					return
				}
			}
		})
	}
	all.Wait()
	if got := r.depth(t); got != lanes*batches*size {
		t.Errorf("%d messages, want %d", got, lanes*batches*size)
	}
}
