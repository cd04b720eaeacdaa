package nats

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// guarded is the socket below the client's buffer. It asks the fences of all batches under way
// right before each write, bounds it, and can be closed while one hangs.
//
// Crashes. The process is frozen with messages in the client's buffer, and thaws when its lease is
// over: the client's flusher calls Write, a fence says no, nothing of the buffer is written, and the
// connection is dropped. Other slots' messages have a transient error then, as when a connection is
// lost. So it is when the batch whose fence says no has nothing in the buffer; that is not known
// here, and it ends at once.
type guarded struct {
	net.Conn
	timeout time.Duration
	fences  *fences
	broken  func(error) // told of a write that was not made
}

// errOthers is the error of messages that were lost with the connection because of another batch.
var errOthers = errors.New("connection closed: it had messages of a slot that is not ours any more, which were not sent")

func (c *guarded) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	if !c.fences.valid() {
		c.broken(errOthers)
		_ = c.Close()
		return 0, relay.ErrFence
	}
	return c.Conn.Write(b)
}

// fences are those of the batches that are under way on a link.
type fences struct {
	mu  sync.Mutex
	all map[*batch]struct{} // guarded by mu
}

func (f *fences) add(b *batch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all[b] = struct{}{}
}

func (f *fences) remove(b *batch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, b)
}

func (f *fences) valid() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for b := range f.all {
		if !b.fence() {
			return false
		}
	}
	return true
}

// dialer opens the sockets of one link. The client calls it for one server after the other.
type dialer struct {
	ctx     context.Context // its end closes the socket, also while the client reads the greeting
	timeout time.Duration   // to open one
	write   time.Duration   // for each write
	fences  *fences
	broken  func(error)

	// Set by Dial, which one goroutine calls.
	conn *guarded
	stop func() bool
	err  error // of the last server that could not be reached: the client reports less
}

// Dial implements the client's CustomDialer.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	if d.stop != nil {
		d.stop()
	}
	nd := net.Dialer{Timeout: d.timeout}
	conn, err := nd.DialContext(d.ctx, network, address)
	if err != nil {
		d.err = err
		return nil, err
	}
	d.conn = &guarded{Conn: conn, timeout: d.write, fences: d.fences, broken: d.broken}
	d.stop = context.AfterFunc(d.ctx, func() { _ = conn.Close() })
	return d.conn, nil
}
