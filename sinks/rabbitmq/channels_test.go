package rabbitmq

import (
	"fmt"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

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

// RabbitMQ keeps for each channel which node leads a quorum queue, and nacks for ever what comes by a
// channel that has a dead one. So a channel with a nack is not used again, and others are.
func TestChannelWithANack(t *testing.T) {
	t.Parallel()
	r := newRoom(t, brokertest.RabbitMQ(t).URL, amqp.Table{"x-max-length": int32(1), "x-overflow": "reject-publish"})
	s := newSink(t, r.config())
	idle := func() *channel {
		t.Helper()
		l, err := s.connected(soon(t))
		if err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.idle) == 0 {
			return nil
		}
		return l.idle[0]
	}
	publish := func(from int) error {
		t.Helper()
		return s.Publish(soon(t), sinktest.Records(bound, "k", from, 1))
	}
	if err := publish(0); err != nil {
		t.Fatal(err)
	}
	first := idle()
	if first == nil {
		t.Fatal("no channel is kept")
	}
	for n := 0; ; n++ { // a queue is full some messages later than its limit says
		if n == 100 {
			t.Fatal("the queue is never full")
		}
		if err := publish(1 + n); err != nil {
			transient(t, err, "nacked")
			break
		}
		if idle() != first {
			t.Error("without a nack another channel is taken")
		}
	}
	if idle() != nil {
		t.Error("the channel with a nack is kept")
	}
	r.deliveries(t)
	for n := 0; publish(200) != nil; n++ {
		if n == 100 {
			t.Fatal("nothing is taken any more")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if c := idle(); c == nil || c == first {
		t.Error("no new channel was taken")
	}
}
