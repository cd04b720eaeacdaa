package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// Sink publishes records to one exchange. Publish may be called from any number of goroutines.
type Sink struct {
	cfg Config
	log hclog.Logger
	// properties are those of cfg.
	properties []property
	ctx        context.Context // ends with cause ErrClosed
	end        context.CancelCauseFunc

	routes routes
	// nacks are those of each event. A nack is transient at first: a queue that is full for a
	// moment, a leader that is being elected. When an event was nacked at 5 offers and over 5 s, it
	// is refused, so that it waits in the ledger and other keys go on. It stays so until it is
	// confirmed: an offer out of the ledger that is nacked again is refused at once.
	nacks    tally
	culprits culprits

	noControl atomic.Bool // the broker knows no transactions, as it seems

	searchTurn relay.Turn // who has it may open a connection of its own

	mu sync.Mutex
	// Guarded by mu.
	closed     bool
	link       *link       // nil, or maybe dead
	connecting *connecting // under way
	running    sync.WaitGroup
}

type connecting struct {
	done chan struct{} // closed when the rest is set
	link *link
	err  error
}

var (
	_ relay.Sink    = (*Sink)(nil)
	_ relay.Checker = (*Sink)(nil)
)

// New makes a sink. It connects when first needed.
func New(cfg Config, log hclog.Logger) (*Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	properties, err := parseProperties(cfg.Properties)
	if err != nil {
		return nil, err
	}
	s := &Sink{
		properties: properties,
		cfg:        cfg, log: log, routes: routes{started: time.Now()}, searchTurn: relay.NewTurn(),
		nacks: tally{times: 5, span: 5 * time.Second}, culprits: culprits{tally: tally{times: unclearTimes, span: unclearSpan}},
	}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	return s, nil
}

// Name returns "rabbitmq", or the name that its Config has.
func (s *Sink) Name() string { return s.cfg.Called("rabbitmq") }

// Publish publishes the batch and waits for the broker's confirms.
func (s *Sink) Publish(ctx context.Context, recs []*relay.Record) error {
	if len(recs) == 0 {
		return nil
	}
	ctx, stop := s.join(ctx)
	defer stop()
	l, err := s.ready(ctx)
	if err != nil {
		return err
	}
	// All waits end with ctx too, but a write into a full socket does not.
	b := newBatch(ctx, s, l, recs)
	finished := make(chan struct{})
	defer close(finished)
	defer context.AfterFunc(ctx, func() {
		timer := time.NewTimer(time.Second)
		defer timer.Stop()
		select {
		case <-finished:
		case <-timer.C:
			b.current.Load().kill("a write blocked a publish whose context had ended")
		}
	})()
	b.run(ctx)
	if b.timer != nil {
		b.timer.Stop()
	}
	return b.result()
}

// Check connects if need be and asks the broker about the exchange. It changes nothing there.
func (s *Sink) Check(ctx context.Context) error {
	ctx, stop := s.join(ctx)
	defer stop()
	l, err := s.connected(ctx)
	if err != nil {
		return err
	}
	if reason, _ := l.blockedNow(); reason != "" {
		return fmt.Errorf("connection blocked by the broker: %s", reason)
	}
	// The question has a goroutine of its own, because amqp091's know no context, and lanes that
	// publish on the connection must not wait for it.
	answer := make(chan error, 1)
	l.mu.Lock()
	ok := l.spawn(func() {
		c := routeCheck{link: l, cfg: s.cfg, patience: rpcTimeout}
		answer <- c.exchange()
	})
	l.mu.Unlock()
	if !ok {
		return ErrClosed
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("check exchange %q: no answer: %w", s.cfg.Exchange, context.Cause(ctx))
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

// ready returns a link on which something may be published, connecting if need be.
func (s *Sink) ready(ctx context.Context) (*link, error) {
	l, err := s.connected(ctx)
	if err != nil {
		return nil, err
	}
	if err := l.ready(ctx); err != nil {
		return nil, err
	}
	return l, nil
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
		_ = old.close() // it is lost already; this waits for what it leaves behind
	}
	l, err := connect(s.ctx, s.cfg, s.log)
	s.routes.forget()
	if err == nil {
		s.log.Info("connected", "broker", l.address, "exchange", s.cfg.Exchange)
	}
	s.mu.Lock()
	s.connecting = nil
	closed := s.closed
	if err == nil && !closed {
		s.link = l
	}
	s.mu.Unlock()
	if err == nil && closed {
		err = errors.Join(ErrClosed, l.close())
		l = nil
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
	var err error
	if l != nil {
		if err = l.close(); err != nil {
			err = fmt.Errorf("close the connection: %w", reason(err))
		}
	}
	s.running.Wait()
	return err
}
