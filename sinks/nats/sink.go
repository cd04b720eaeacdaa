package nats

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// kind is what the sink is called where it has no name of its own.
const kind = "nats"

// ErrClosed is what Publish returns after and because of Close.
var ErrClosed = errors.New("sink closed")

// Sink publishes records to JetStream. Publish may be called from any number of goroutines.
type Sink struct {
	cfg Config
	log hclog.Logger
	ctx context.Context // ends with cause ErrClosed
	end context.CancelCauseFunc

	mu sync.Mutex
	// Guarded by mu.
	closed     bool
	link       *link       // nil, or maybe dead
	connecting *connecting // under way
	running    sync.WaitGroup
}

// connecting is an attempt to connect that lanes share.
type connecting struct {
	done chan struct{} // closed when the rest is set
	link *link
	err  error
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
	s := &Sink{cfg: cfg, log: log}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	return s, nil
}

// Name returns "nats", or the name that its Config has.
func (s *Sink) Name() string { return s.cfg.Called(kind) }

// Destination is the record's subject.
func (s *Sink) Destination(rec *relay.Record) string { return rec.Topic }

// Place returns the server's address, if there is only one.
func (s *Sink) Place([]*relay.Record) relay.Place {
	place := relay.Place{System: "nats", Partition: -1}
	var port string
	place.Host, port = s.cfg.hostPort()
	place.Port, _ = strconv.Atoi(port)
	return place
}

// Publish publishes the batch and waits for the streams' acknowledgements.
func (s *Sink) Publish(ctx context.Context, recs []*relay.Record) error {
	if len(recs) == 0 {
		return nil
	}
	ctx, stop := s.join(ctx)
	defer stop()
	l, err := s.connected(ctx)
	if err != nil {
		return err
	}
	b := newBatch(s, l, recs, relay.Fence(ctx))
	l.fences.add(b)
	defer s.leave(b)
	// All waits end with ctx too, but a write into a full socket does not.
	finished := make(chan struct{})
	defer close(finished)
	defer context.AfterFunc(ctx, func() {
		timer := time.NewTimer(time.Second)
		defer timer.Stop()
		select {
		case <-finished:
		case <-timer.C:
			l.kill(errors.New("connection closed: a write blocked a publish whose context had ended"))
		}
	})()
	b.run(ctx)
	return b.result()
}

// leave takes a batch's fence off its link. What the batch has given up may be in the client's buffer
// still, and must not be written when its lease is over; so its fence stays until the buffer was.
func (s *Sink) leave(b *batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !b.left || s.closed || !b.link.alive() {
		b.link.fences.remove(b)
		return
	}
	s.running.Go(func() {
		_ = b.link.nc.FlushTimeout(s.cfg.AckTimeout) // an error: the link is lost, or hangs and is closed
		b.link.fences.remove(b)
	})
}

// Check connects if need be, and asks whether the account has JetStream. It changes nothing there.
func (s *Sink) Check(ctx context.Context) error {
	ctx, stop := s.join(ctx)
	defer stop()
	l, err := s.connected(ctx)
	if err != nil {
		return err
	}
	// In a goroutine of its own: the client's lock may be with a write that hangs.
	return s.apart(ctx, func() error { return l.check(ctx) })
}

// apart runs a question to the servers and returns no later than ctx. What it leaves behind ends
// with the link, and Close waits for it.
func (s *Sink) apart(ctx context.Context, question func() error) error {
	answer := make(chan error, 1)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.running.Go(func() { answer <- question() })
	s.mu.Unlock()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("ask %s: no answer: %w", s.cfg.addresses(), context.Cause(ctx))
	}
}

// join returns a context that ends with ctx and with the sink.
func (s *Sink) join(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// connected returns the connection, or makes one; lanes that come at the same time share the
// attempt.
func (s *Sink) connected(ctx context.Context) (*link, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	if s.link != nil && s.link.alive() {
		defer s.mu.Unlock()
		return s.link, nil
	}
	c := s.connecting
	if c == nil {
		c = &connecting{done: make(chan struct{})}
		s.connecting = c
		old := s.link
		s.link = nil
		s.running.Go(func() { s.connect(c, old) })
	}
	s.mu.Unlock()
	select {
	case <-c.done:
		return c.link, c.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// connect replaces the connection that was lost, if there was one.
func (s *Sink) connect(c *connecting, old *link) {
	defer close(c.done)
	if old != nil {
		old.close() // it is lost already; this waits for what it leaves behind
	}
	l, err := connect(s.ctx, s.cfg, s.log)
	if err == nil {
		s.log.Info("connected", "broker", l.nc.ConnectedAddr(), "server", l.nc.ConnectedServerName())
	}
	s.mu.Lock()
	s.connecting = nil
	closed := s.closed
	if err == nil && !closed {
		s.link = l
	}
	s.mu.Unlock()
	if err == nil && closed {
		l.close()
		l, err = nil, ErrClosed
	}
	c.link, c.err = l, err
}

// Close ends the connection. Calls of Publish that are under way return an error.
func (s *Sink) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.closed = true
	l := s.link
	s.mu.Unlock()
	s.end(ErrClosed)
	if l != nil {
		l.close()
	}
	s.running.Wait()
	return nil
}
