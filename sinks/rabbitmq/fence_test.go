package rabbitmq

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// A process can be frozen after the sink has found the lease valid and before amqp091 writes:
// behind its locks, in its encoder. What it would write when it thaws would arrive behind what the
// next owner has sent. Here the lease ends at each question in turn.
func TestFenceAtWrite(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	s := newSink(t, r.config())
	large := sinktest.NewRecord(bound, "large", 0, 100_000) // amqp091 writes it in several pieces
	for _, rec := range []*relay.Record{sinktest.NewRecord(bound, "small", 0, 10), large} {
		before := r.depth(t)
		questions := 0
		for ; ; questions++ {
			if err := s.Publish(soon(t), []*relay.Record{sinktest.NewRecord(bound, "connect", 0, 10)}); err != nil {
				t.Fatal(err)
			}
			before++
			var left atomic.Int64
			left.Store(int64(questions))
			ctx := relay.WithFence(soon(t), func() bool { return left.Add(-1) >= 0 })
			err := s.Publish(ctx, []*relay.Record{rec})
			if err == nil {
				break
			}
			if !errors.Is(err, relay.ErrFence) {
				t.Errorf("%s, %d questions answered with yes: %v, want ErrFence", rec.Key, questions, err)
			}
			if errors.Is(err, context.DeadlineExceeded) || questions > 100 {
				t.Fatal("it never goes out")
			}
			if got := r.depth(t); got != before {
				t.Fatalf("%s, %d questions answered with yes and then no: %d messages arrived", rec.Key, questions, got-before)
			}
		}
		if questions < 2 {
			t.Errorf("%s went out after %d questions: none was asked at the write", rec.Key, questions)
		}
	}
}
