package nats

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/natstest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// A process can be frozen after the sink has found the lease valid and before the client writes: it
// gathers in a buffer, which another goroutine writes. What it would write when it thaws would arrive
// behind what the next owner has sent. Here the lease ends at each question in turn.
func TestFenceAtWrite(t *testing.T) {
	server := natstest.Start(t, "")
	subject := newStream(t, server.URL, nil)
	s := newSink(t, config(server))
	want := 0
	for _, size := range []int{10, 100_000} { // which the client writes at once, without its flusher
		rec := sinktest.NewRecord(subject, "k", 0, size)
		questions := int64(0)
		for ; ; questions++ {
			if err := s.Publish(soon(t), []*relay.Record{sinktest.NewRecord(subject, "connect", 0, 10)}); err != nil {
				t.Fatal(err)
			}
			want++
			var left atomic.Int64
			left.Store(questions)
			err := s.Publish(relay.WithFence(soon(t), func() bool { return left.Add(-1) >= 0 }), []*relay.Record{rec})
			if err == nil {
				want++
				break
			}
			if !errors.Is(err, relay.ErrFence) {
				t.Errorf("%d bytes, %d questions answered with yes: %v, want ErrFence", size, questions, err)
			}
			if questions > 20 {
				t.Fatal("it never goes out")
			}
		}
		if questions < 2 {
			t.Errorf("%d bytes went out after %d questions: none was asked at the write", size, questions)
		}
	}
	if got := len(consume(t, server.URL, subject)); got != want {
		t.Errorf("%d messages arrived, want %d: some in spite of the fence", got, want)
	}
}

// A publish that has ended leaves messages in the client's buffer when the server takes none. They
// must not go out later, when its lease is over.
func TestFenceOfWhatWasLeftBehind(t *testing.T) {
	server := natstest.Start(t, "")
	subject := newStream(t, server.URL, nil)
	s := newSink(t, config(server))
	if err := s.Publish(soon(t), sinktest.Records(subject, "connect", 0, 1)); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	l := s.link
	s.mu.Unlock()
	var valid atomic.Bool
	valid.Store(true)
	b := newBatch(s, l, sinktest.Records(subject, "k", 0, 1), valid.Load)
	b.left = true
	l.fences.add(b)
	s.leave(b)
	eventually(t, "its fence is taken off when the buffer is written", func() bool {
		l.fences.mu.Lock()
		defer l.fences.mu.Unlock()
		return len(l.fences.all) == 0
	})
	thaw := server.Freeze(t) // no answer to the flush
	l.fences.add(b)
	s.leave(b)
	valid.Store(false)
	// The flush, or this, is the first to write; the other one finds the connection closed.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.Publish(ctx, sinktest.Records(subject, "other", 0, 1)); err == nil || !errors.Is(l.reason(), errOthers) {
		t.Errorf("%v, %v: a write went out while the lease of what may be in the buffer is over", err, l.reason())
	}
	thaw()
	if _, err := sinktest.Offer(soon(t), s, sinktest.Records(subject, "other", 0, 1)); err != nil {
		t.Error(err)
	}
}
