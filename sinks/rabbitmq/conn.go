package rabbitmq

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// boundedConn bounds each write. amqp091 writes without a deadline, so a broker that stops reading
// would block a publisher, and with it the library's locks, for ever (amqp091-go#111). It also asks
// the publisher's fence as late as possible, after the library's locks, encoding and buffers.
type boundedConn struct {
	net.Conn
	timeout time.Duration
	fence   atomic.Pointer[func() bool] // nil: nobody publishes

	greeted atomic.Bool // the handshake is done
	read    int         // bytes until then; used by amqp091's reader only

	mu    sync.Mutex
	limit time.Time // guarded by mu: the deadline that amqp091 or TLS asked for; zero: none
	set   time.Time // guarded by mu: the deadline in force
}

const (
	// greetingLimit bounds what a server may send before it has opened the connection. amqp091
	// reads a text as long as the server goes on, and what answers may be no RabbitMQ.
	greetingLimit = 256 << 10
	// frameLimit bounds frames where the broker has no frame_max; RabbitMQ's is 128 KiB.
	frameLimit = 4 << 20
)

var errGreeting = fmt.Errorf("more than %d bytes before the connection was opened: that is no RabbitMQ", greetingLimit)

func (c *boundedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if !c.greeted.Load() {
		if c.read += n; c.read > greetingLimit {
			return 0, errGreeting
		}
	}
	return n, err
}

func (c *boundedConn) Write(b []byte) (int, error) {
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
			return 0, err
		}
		c.set = deadline
	}
	c.mu.Unlock()
	// A process frozen before this line writes nothing when it thaws. One frozen after it has
	// written already.
	if fence := c.fence.Load(); fence != nil && !(*fence)() {
		return 0, relay.ErrFence
	}
	return c.Conn.Write(b)
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
