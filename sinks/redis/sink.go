package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"

	"github.com/hashicorp/go-hclog"
	goredis "github.com/redis/go-redis/v9"

	"github.com/sagaz-relay/relay/relay"
)

// kind is what the sink is called where it has no name of its own.
const kind = "redis"

// ErrClosed is what Publish returns after and because of Close.
var ErrClosed = errors.New("sink closed")

// Sink adds records to streams. Publish may be called from any number of goroutines.
type Sink struct {
	cfg Config
	log hclog.Logger
	ctx context.Context // ends with cause ErrClosed
	end context.CancelCauseFunc

	mu sync.Mutex
	// Guarded by mu.
	closed     bool
	all, free  []*client
	unfinished map[chan struct{}]struct{} // connections that are given up; each closes its channel
	running    sync.WaitGroup
}

var (
	_ relay.Sink    = (*Sink)(nil)
	_ relay.Checker = (*Sink)(nil)
	_ relay.Placer  = (*Sink)(nil)
)

// New makes a sink. It connects when first needed.
func New(cfg Config, log hclog.Logger) (*Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	quiet()
	s := &Sink{cfg: cfg, log: log, unfinished: make(map[chan struct{}]struct{})}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	return s, nil
}

// quiet ends the library's own log, which goes to standard error. What it reports is in the errors.
var quiet = sync.OnceFunc(func() { goredis.SetLogger(silent{}) })

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// Name returns "redis", or the name that its Config has.
func (s *Sink) Name() string { return s.cfg.Called(kind) }

// Destination is the record's stream.
func (s *Sink) Destination(rec *relay.Record) string { return rec.Topic }

// Place returns the server's address.
func (s *Sink) Place([]*relay.Record) relay.Place {
	place := relay.Place{System: "redis", Partition: -1}
	var port string
	place.Host, port, _ = net.SplitHostPort(s.cfg.hostPort())
	place.Port, _ = strconv.Atoi(port)
	return place
}

// take returns a client that nobody uses, and a context that ends with ctx and with the sink. Give it
// back.
func (s *Sink) take(ctx context.Context) (c *client, joined context.Context, give func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, nil, ErrClosed
	}
	if n := len(s.free); n > 0 {
		c, s.free = s.free[n-1], s.free[:n-1]
	} else {
		c = s.newClient()
		s.all = append(s.all, c)
	}
	s.running.Add(1)
	joined, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(ErrClosed) })
	return c, joined, func() {
		stop()
		cancel(nil)
		if c.broken {
			_ = c.rdb.Close() // it has no connection
		}
		s.mu.Lock()
		if c.broken {
			s.all = slices.DeleteFunc(s.all, func(other *client) bool { return other == c })
		} else {
			s.free = append(s.free, c)
		}
		s.mu.Unlock()
		s.running.Done()
	}, nil
}

// Check connects if need be and asks for a sign of life. It changes nothing there.
func (s *Sink) Check(ctx context.Context) error {
	c, ctx, give, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer give()
	defer c.interruptible(ctx)()
	if err := c.rdb.Ping(ctx).Err(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("ask redis at %s: no answer: %w", s.cfg.hostPort(), context.Cause(ctx))
		}
		return s.cfg.failure(err)
	}
	return nil
}

// Close ends all connections. Calls of Publish that are under way return an error.
func (s *Sink) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.closed = true
	s.mu.Unlock()
	s.end(ErrClosed)
	s.running.Wait()
	var errs []error
	for _, c := range s.all { // nobody else has them any more
		errs = append(errs, c.rdb.Close())
	}
	s.running.Wait() // for those that were unsure
	return errors.Join(errs...)
}
