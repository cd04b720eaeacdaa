package kafka

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
)

// A process can be frozen after the sink has found the lease valid and before the request is
// written: while it is composed, or waits for a place on the connection. If it were written when
// the process thaws, it would arrive behind what the next owner has sent. Here the lease ends at
// each question in turn; the last one is asked at the write.
func TestFenceAtWrite(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic := createTopic(t, addr, 1)
	s := newSink(t, addr)
	want := 0
	for questions := 0; ; questions++ {
		if err := s.Publish(testContext(t), []*relay.Record{record(topic, "connect", 10)}); err != nil {
			t.Fatal(err)
		}
		want++
		var left, asked atomic.Int64
		left.Store(int64(questions))
		ctx := relay.WithFence(testContext(t), func() bool { asked.Add(1); return left.Add(-1) >= 0 })
		err := s.Publish(ctx, []*relay.Record{record(topic, "frozen", 10)})
		if err == nil {
			if atWrite := int64(questions); asked.Load() != atWrite {
				t.Errorf("%d questions asked, and the last no of %d kept it back", asked.Load(), atWrite)
			}
			if questions < 2 {
				t.Errorf("sent after %d questions: none was asked at the write", questions)
			}
			return
		}
		if !errors.Is(err, relay.ErrFence) && !errors.Is(err, errGone) {
			t.Errorf("%d questions answered with yes: %v", questions, err)
		}
		if questions > 100 {
			t.Fatal("it never goes out")
		}
		if got := len(consume(t, addr, topic)); got != want {
			t.Fatalf("%d questions answered with yes and then no: %d records arrived", questions, got-want)
		}
	}
}
