package rabbitmq

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// boundedConn bounds each write. amqp091 writes without a deadline, so a broker that stops reading
// would block a publisher, and with it the library's locks, for ever (amqp091-go#111). It also asks
// the publisher's fence as late as possible, after the library's locks, encoding and buffers.
//
// And it gathers. amqp091 writes each message to the network by itself, which wakes the broker for
// each: a fifth of what a message costs us, and 6 % of what it costs the broker
// (docs/measurements.md). Here messages gather until there are gatherBytes of them, or until
// somebody is about to wait for the broker (flush), or amqp091 writes something else, so that
// nothing is waited for that was not written.
//
// Crashes. The process dies while messages are gathered: the broker has nothing of them, they have
// no confirm, their rows are pending. A lease ends meanwhile: the fences of all whose messages are
// gathered are asked before the write, and when one says no, nothing of it is written and the
// connection is dropped, so other slots' messages have a transient error, as when a connection is
// lost. A write fails: a part of a frame may be on its way, so nothing is written after it.
type boundedConn struct {
	net.Conn
	timeout time.Duration
	fence   atomic.Pointer[func() bool] // nil: nobody publishes

	greeted atomic.Bool // the handshake is done
	read    int         // bytes until then; used by amqp091's reader only

	writing relay.Turn // who has it writes, or adds to what is gathered
	// Owned by who has that turn.
	gathered []byte
	fences   []*func() bool // of those whose messages are gathered
	broken   error          // why nothing is written any more

	mu    sync.Mutex
	limit time.Time // guarded by mu: the deadline that amqp091 or TLS asked for; zero: none
	set   time.Time // guarded by mu: the deadline in force
}

const (
	// greetingLimit bounds what a server may send before it has opened the connection. amqp091
	// reads a text as long as the server goes on, and what answers may be no RabbitMQ.
	greetingLimit = 256 << 10
	// gatherBytes is some 80 messages. More than that brings no more.
	gatherBytes = 64 << 10
	// gatherKept is the largest buffer that is kept.
	gatherKept = 1 << 20
	// frameLimit bounds frames where the broker has no frame_max; RabbitMQ's is 128 KiB.
	frameLimit = 4 << 20
)

var errGreeting = fmt.Errorf("more than %d bytes before the connection was opened: that is no RabbitMQ", greetingLimit)

func newBoundedConn(conn net.Conn, timeout time.Duration) *boundedConn {
	return &boundedConn{Conn: conn, timeout: timeout, writing: relay.NewTurn()}
}

func (c *boundedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if !c.greeted.Load() {
		if c.read += n; c.read > greetingLimit {
			return 0, errGreeting
		}
	}
	return n, err
}

// Write takes what amqp091 has written. While somebody publishes it gathers; anything else is
// written at once, behind what is gathered.
func (c *boundedConn) Write(b []byte) (int, error) {
	_ = c.writing.Take(context.Background()) // who has it writes, which is bounded
	defer c.writing.Give()
	if c.broken != nil {
		return 0, c.broken
	}
	fence := c.fence.Load()
	if fence != nil && !slices.Contains(c.fences, fence) {
		c.fences = append(c.fences, fence)
	}
	if c.gathered = append(c.gathered, b...); fence == nil || len(c.gathered) >= gatherBytes {
		if err := c.writeGathered(); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// flush writes what is gathered. After an error the connection cannot be used any more.
func (c *boundedConn) flush() error {
	_ = c.writing.Take(context.Background())
	defer c.writing.Give()
	return c.writeGathered()
}

func (c *boundedConn) writeGathered() error {
	if c.broken != nil || len(c.gathered) == 0 {
		return c.broken
	}
	c.broken = c.writeNow(c.gathered, c.fences)
	clear(c.fences)
	c.gathered, c.fences = c.gathered[:0], c.fences[:0]
	if cap(c.gathered) > gatherKept {
		c.gathered = nil
	}
	return c.broken
}

func (c *boundedConn) writeNow(b []byte, fences []*func() bool) error {
	now := time.Now()
	c.mu.Lock()
	deadline := now.Add(c.timeout)
	if !c.limit.IsZero() && c.limit.Before(deadline) {
		deadline = c.limit
	}
	// Renewed when a tenth of it is over: setting a deadline costs as much as a small write.
	if c.set.IsZero() || deadline.Before(c.set) || deadline.Sub(c.set) > c.timeout/10 {
		if err := c.Conn.SetWriteDeadline(deadline); err != nil {
			c.mu.Unlock()
			return err
		}
		c.set = deadline
	}
	c.mu.Unlock()
	// A process frozen before this line writes nothing when it thaws. One frozen after it has
	// written already.
	for _, fence := range fences {
		if !(*fence)() {
			return relay.ErrFence
		}
	}
	_, err := c.Conn.Write(b)
	return err
}

func (c *boundedConn) SetDeadline(t time.Time) error {
	if err := c.SetWriteDeadline(t); err != nil {
		return err
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *boundedConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit, c.set = t, t
	return c.Conn.SetWriteDeadline(t)
}
