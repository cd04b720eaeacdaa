package rabbitmq

import (
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// writeLog is a network connection of which only writes are asked.
type writeLog struct {
	net.Conn
	writes []string
	err    error
}

func (w *writeLog) SetWriteDeadline(time.Time) error { return nil }

func (w *writeLog) Write(b []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	w.writes = append(w.writes, string(b))
	return len(b), nil
}

// gathering returns a connection and what publishes on it, and what amqp091 writes by itself.
func gathering(t *testing.T) (w *writeLog, c *boundedConn, publish func(fence *func() bool, message string) error, other func(string) error) {
	w = &writeLog{}
	c = newBoundedConn(w, time.Second)
	other = func(text string) error {
		n, err := c.Write([]byte(text))
		if err == nil && n != len(text) {
			t.Errorf("wrote %d bytes of %d", n, len(text))
		}
		return err
	}
	publish = func(fence *func() bool, message string) error {
		c.fence.Store(fence)
		defer c.fence.Store(nil)
		return other(message)
	}
	return w, c, publish, other
}

func fenceOf(valid *atomic.Bool) *func() bool {
	f := func() bool { return valid.Load() }
	return &f
}

func wantWrites(t *testing.T, w *writeLog, want ...string) {
	t.Helper()
	if !slices.Equal(w.writes, want) {
		t.Errorf("written: %q, want %q", w.writes, want)
	}
}

// Messages go to the network together, in order, and never behind what amqp091 writes after them.
func TestGather(t *testing.T) {
	w, c, publish, other := gathering(t)
	valid := new(atomic.Bool)
	valid.Store(true)
	for _, err := range []error{other("hello"), publish(fenceOf(valid), "1"), publish(fenceOf(valid), "2")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	wantWrites(t, w, "hello")
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	wantWrites(t, w, "hello", "12")
	for _, err := range []error{c.flush(), publish(fenceOf(valid), "3"), other("close"), c.flush()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	wantWrites(t, w, "hello", "12", "3close")
	large := strings.Repeat("x", gatherBytes)
	if err := errors.Join(publish(fenceOf(valid), "4"), publish(fenceOf(valid), large)); err != nil {
		t.Fatal(err)
	}
	wantWrites(t, w, "hello", "12", "3close", "4"+large)
}

// A lease ends while messages are gathered, one's own or that of another slot: nothing of them is
// written, whoever writes next, and nothing after them.
func TestGatherFence(t *testing.T) {
	for _, tt := range []struct {
		name  string
		write func(c *boundedConn, other func(string) error) error
	}{
		{"Flush", func(c *boundedConn, _ func(string) error) error { return c.flush() }},
		{"Heartbeat", func(_ *boundedConn, other func(string) error) error { return other("heartbeat") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, c, publish, other := gathering(t)
			ours, theirs := new(atomic.Bool), new(atomic.Bool)
			ours.Store(true)
			theirs.Store(true)
			if err := errors.Join(publish(fenceOf(theirs), "theirs"), publish(fenceOf(ours), "ours")); err != nil {
				t.Fatal(err)
			}
			theirs.Store(false)
			if err := tt.write(c, other); !errors.Is(err, relay.ErrFence) {
				t.Errorf("got %v, want ErrFence", err)
			}
			theirs.Store(true) // too late: a part of what was gathered is gone
			for what, err := range map[string]error{"publish": publish(fenceOf(ours), "more"), "flush": c.flush(), "other": other("close")} {
				if !errors.Is(err, relay.ErrFence) {
					t.Errorf("%s after that: got %v, want ErrFence", what, err)
				}
			}
			wantWrites(t, w)
		})
	}
}

// After a write that failed nothing is written: a part of a frame may be missing.
func TestGatherBroken(t *testing.T) {
	w, c, publish, other := gathering(t)
	valid := new(atomic.Bool)
	valid.Store(true)
	if err := publish(fenceOf(valid), "1"); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	w.err = broken
	if err := c.flush(); !errors.Is(err, broken) {
		t.Errorf("flush: got %v", err)
	}
	w.err = nil
	for what, err := range map[string]error{"publish": publish(fenceOf(valid), "2"), "flush": c.flush(), "other": other("close")} {
		if !errors.Is(err, broken) {
			t.Errorf("%s after that: got %v", what, err)
		}
	}
	wantWrites(t, w)
}

// A batch goes out in a few writes, and all of it arrives, in order.
func TestPublishGathers(t *testing.T) {
	b := newScripted(t, func([]byte, bool) (int, string, bool) { return 0, "", false })
	s := newSink(t, b.config())
	warm := sinktest.Records("t", "k", 0, 2)
	if err := s.Publish(soon(t), warm); err != nil { // the route is good from now on
		t.Fatal(err)
	}
	const n = 500
	recs := sinktest.Records("t", "k", 2, n)
	size := 0
	for _, rec := range recs {
		size += len(rec.Value) + 300
	}
	// The fence is asked once for each message, and once for each write.
	var questions atomic.Int64
	ctx := relay.WithFence(soon(t), func() bool {
		questions.Add(1)
		return true
	})
	if err := s.Publish(ctx, recs); err != nil {
		t.Fatal(err)
	}
	got := b.delivered()
	if len(got) != n+len(warm) {
		t.Fatalf("%d messages arrived, want %d", len(got), n+len(warm))
	}
	for i, rec := range append(warm, recs...) {
		if string(got[i].Value) != string(rec.Value) {
			t.Fatalf("message %d is %s, want %s", i, got[i].Value, rec.Value)
		}
	}
	if writes, most := questions.Load()-n, int64(size/gatherBytes+2); writes < 1 || writes > most {
		t.Errorf("%d messages in %d writes, want at most %d", n, writes, most)
	}
}
