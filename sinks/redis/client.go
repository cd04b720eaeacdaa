package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/sagaz-relay/relay/relay"
)

// client is one connection to Redis, for one Publish at a time. The library makes it anew when it is
// lost.
type client struct {
	rdb *goredis.Client

	// Owned by who has the client.
	fence func() bool // nil: what is written are questions
	// broken: it could not connect. The library would try again by itself, and report the old error
	// meanwhile.
	broken bool

	conn atomic.Pointer[guarded] // the latest
}

// interruptible has what the client waits for end with ctx, of which the library looks at the
// deadline only. stop has to be called when the client waits for nothing any more.
func (c *client) interruptible(ctx context.Context) (stop func()) {
	done := make(chan struct{})
	after := context.AfterFunc(ctx, func() {
		defer close(done)
		if conn := c.conn.Load(); conn != nil {
			conn.interrupt()
		}
	})
	return func() {
		if !after() {
			<-done
			if conn := c.conn.Load(); conn != nil { // it is of no more use
				_ = conn.Close()
			}
		}
	}
}

// guarded is the socket below the client. It asks the fence right before each write, and knows
// whether the outcome of something that it carried is unknown.
type guarded struct {
	net.Conn
	raw    *net.TCPConn
	client *client
	leave  func(*guarded) // takes over the socket of one that is unsure
	once   sync.Once
	unsure atomic.Bool

	mu          sync.Mutex
	interrupted bool // guarded by mu
}

// interrupt ends reads and writes, for good.
func (g *guarded) interrupt() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.interrupted = true
	_ = g.raw.SetDeadline(time.Unix(1, 0))
}

// SetReadDeadline is the library's, before each read.
func (g *guarded) SetReadDeadline(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.interrupted {
		return nil
	}
	return g.raw.SetReadDeadline(t)
}

// SetWriteDeadline is the library's, before each write.
func (g *guarded) SetWriteDeadline(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.interrupted {
		return nil
	}
	return g.raw.SetWriteDeadline(t)
}

// SetDeadline is both.
func (g *guarded) SetDeadline(t time.Time) error {
	return errors.Join(g.SetReadDeadline(t), g.SetWriteDeadline(t))
}

func (g *guarded) Write(b []byte) (int, error) {
	if fence := g.client.fence; fence != nil {
		if !fence() {
			return 0, relay.ErrFence
		}
		g.unsure.Store(true)
	}
	return g.Conn.Write(b)
}

// Close is called by the library when it gives the connection up, and when the client is closed.
func (g *guarded) Close() (err error) {
	g.once.Do(func() {
		if g.unsure.Load() {
			g.leave(g)
			return
		}
		err = g.Conn.Close()
	})
	return err
}

// newClient makes a client. It connects when it is used.
func (s *Sink) newClient() *client {
	c := &client{}
	options, err := s.cfg.options()
	if err != nil { // it was valid when the sink was made
		panic(err)
	}
	options.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := s.dial(ctx, network, addr)
		if err != nil {
			c.broken = true
			return nil, &dialError{err}
		}
		conn.client = c
		c.conn.Store(conn)
		return conn, nil
	}
	options.MaxRetries, options.DialerRetries = -1, 1 // the lane retries
	// One is used. The library counts failures against the size, and dials by itself beyond it.
	options.PoolSize, options.MinIdleConns, options.ConnMaxIdleTime = 100, 0, -1
	options.DialTimeout, options.ReadTimeout, options.WriteTimeout, options.PoolTimeout = s.cfg.Timeout, s.cfg.Timeout, s.cfg.Timeout, s.cfg.Timeout
	options.ContextTimeoutEnabled = true
	// Nothing but what we ask for: the user need have no more rights than these.
	options.Protocol, options.DisableIdentity = 2, true
	options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	c.rdb = goredis.NewClient(options)
	return c
}

// dialError is an error of opening the connection, in which the library has no part.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

func (s *Sink) dial(ctx context.Context, network, addr string) (*guarded, error) {
	nd := net.Dialer{Timeout: s.cfg.Timeout}
	conn, err := nd.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	g := &guarded{Conn: conn, raw: conn.(*net.TCPConn), leave: s.leave}
	if !s.cfg.secure() {
		return g, nil
	}
	files, err := s.cfg.tls()
	if err == nil {
		secured := tls.Client(conn, files)
		g.Conn = secured
		ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
		defer cancel()
		err = secured.HandshakeContext(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return g, nil
}

// errUnfinished is the error of records that wait for an earlier connection.
var errUnfinished = errors.New("not sent: what an earlier connection carried may not have been worked off yet")

// leave finishes a connection whose records have no outcome. It has told Redis that nothing more
// comes, and waits until Redis has closed its side, so that it has worked off what it was sent.
func (s *Sink) leave(g *guarded) {
	done := make(chan struct{})
	s.mu.Lock()
	s.unfinished[done] = struct{}{}
	s.running.Go(func() {
		defer func() {
			s.mu.Lock()
			delete(s.unfinished, done)
			s.mu.Unlock()
			close(done)
		}()
		defer context.AfterFunc(s.ctx, func() { _ = g.raw.SetDeadline(time.Unix(1, 0)) })()
		if s.ctx.Err() == nil {
			_ = g.raw.SetDeadline(time.Now().Add(3 * s.cfg.Timeout))
			_ = g.raw.CloseWrite()
			_, _ = io.Copy(io.Discard, g.raw)
		}
		_ = g.raw.SetLinger(0) // what has not left this machine is not to leave it any more
		_ = g.raw.Close()
	})
	s.mu.Unlock()
}

// finished waits until no connection is unfinished.
func (s *Sink) finished(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	for {
		var wait chan struct{}
		s.mu.Lock()
		for done := range s.unfinished {
			wait = done
			break
		}
		s.mu.Unlock()
		if wait == nil {
			return nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", errUnfinished, context.Cause(ctx))
		}
	}
}
