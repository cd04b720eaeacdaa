package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go/logging"

	"github.com/sagaz-relay/relay/relay"
)

// ErrClosed is what Publish returns after and because of Close.
var ErrClosed = errors.New("sink closed")

// service is SQS or SNS.
type service interface {
	// place is the queue's URL, or the topic's ARN, for an event's topic. Its error is a record's
	// outcome.
	place(ctx context.Context, topic string) (string, error)
	// forget is called when a place does not exist.
	forget(place string)
	// send sends a request. The error is the request's; failed has those of single entries, by
	// their index.
	send(ctx context.Context, place string, entries []*entry) (failed map[int]error, err error)
	// look asks about a place, which changes nothing.
	look(ctx context.Context, place string) error
	// most is how many bytes a message, and a request, may have.
	most() int
}

// Sink sends records to queues or topics. Publish may be called from any number of goroutines.
type Sink struct {
	name      string
	service   service
	trouble   trouble
	timeout   time.Duration
	slice     time.Duration // after which a batch is returned in part
	slots     chan struct{} // a place in it for each request under way
	transport *http.Transport

	ctx context.Context // ends with cause ErrClosed
	end context.CancelCauseFunc

	mu      sync.Mutex
	closed  bool           // guarded by mu
	running sync.WaitGroup // Publish and Check; Add under mu
}

var (
	_ relay.Sink         = (*Sink)(nil)
	_ relay.Checker      = (*Sink)(nil)
	_ relay.RouteChecker = (*Sink)(nil)
	_ relay.Placer       = (*Sink)(nil)
)

// newSink makes the parts that both kinds have.
func newSink(name string, t trouble, concurrency int, timeout, slice time.Duration) *Sink {
	if slice == 0 {
		slice = time.Second
	}
	s := &Sink{name: name, trouble: t, timeout: timeout, slice: slice, slots: make(chan struct{}, concurrency)}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	return s
}

// load finds credentials and region as the SDK does, and makes our connections as it would make them
// (AWS_CA_BUNDLE, the environment's proxy).
func (s *Sink) load(region string) (aws.Config, error) {
	options := []func(*config.LoadOptions) error{
		config.WithHTTPClient(awshttp.NewBuildableClient()),
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }), // the lane retries
		config.WithLogger(logging.Nop{}),
	}
	if region != "" {
		options = append(options, config.WithRegion(region))
	}
	cfg, err := config.LoadDefaultConfig(s.ctx, options...)
	if err != nil {
		return cfg, fmt.Errorf("read the configuration of AWS's SDK (AWS_PROFILE, ~/.aws/config): %w", err)
	}
	if cfg.Region == "" {
		return cfg, errors.New(s.trouble.prefix + "_REGION: not set, nor is AWS_REGION, nor has a profile a region: want a name such as eu-west-1")
	}
	s.transport = cfg.HTTPClient.(*awshttp.BuildableClient).GetTransport() // a copy
	s.transport.MaxIdleConns, s.transport.MaxIdleConnsPerHost, s.transport.IdleConnTimeout = cap(s.slots), cap(s.slots), 30*time.Second
	cfg.HTTPClient = &fencedClient{http.Client{Transport: s.transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	return cfg, nil
}

// fencedClient asks the fence right before a request goes out, when it is signed.
type fencedClient struct{ http.Client }

// Do is http.Client's, behind the fence.
func (c *fencedClient) Do(r *http.Request) (*http.Response, error) {
	if !relay.Fence(r.Context())() {
		return nil, relay.ErrFence
	}
	return c.Client.Do(r)
}

// Name returns the sink's kind, or the name that its Config has.
func (s *Sink) Name() string { return s.name }

// enter returns a context that ends with ctx and with the sink, and keeps Close waiting until leave
// is called.
func (s *Sink) enter(ctx context.Context) (own context.Context, leave func(), err error) {
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, ErrClosed
	}
	s.running.Add(1)
	own, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(ErrClosed) })
	return own, func() {
		stop()
		cancel(nil)
		s.running.Done()
	}, nil
}

// Check asks for the queue or topic. Where each event's topic has one of its own, it asks for one
// that need not exist.
func (s *Sink) Check(ctx context.Context) error {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := s.withTimeout(ctx)
	defer cancel()
	place, err := s.service.place(ctx, checkTopic)
	if err == nil {
		err = s.service.look(ctx, place)
	}
	if refused, ok := relay.Refused(err); ok {
		if refused.Reason == relay.ReasonUnknownTopic && s.trouble.templated {
			return nil // it has answered, and there is none of that name
		}
		return refused.Err
	}
	return err
}

// checkTopic is the topic that Check asks for.
const checkTopic = "sagaz-relay-check"

// CheckRoutes asks for each route's queue or topic.
func (s *Sink) CheckRoutes(ctx context.Context, routes []relay.Route) (problems []relay.RouteProblem, err error) {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	asked := make(map[string]error)
	for _, r := range routes {
		problem, known := asked[r.Topic]
		if !known {
			place, err := s.service.place(ctx, r.Topic)
			if err == nil {
				err = s.service.look(ctx, place)
			}
			if _, refused := relay.Refused(err); err != nil && !refused {
				return problems, err
			}
			asked[r.Topic], problem = err, err
		}
		if refused, ok := relay.Refused(problem); ok {
			problems = append(problems, relay.RouteProblem{Route: r, Problem: refused.Err.Error(), Fix: s.trouble.say("make it, a FIFO one, and let the relay's role send to it; or change _QUEUE")})
		}
	}
	return problems, nil
}

// Destination is the event's topic, which may be a part of the queue's or topic's name.
func (s *Sink) Destination(rec *relay.Record) string { return named(s.trouble.template, rec.Topic) }

// Place returns what is known without asking AWS.
func (s *Sink) Place([]*relay.Record) relay.Place {
	return relay.Place{System: s.trouble.system, Partition: -1}
}

// withTimeout bounds one request.
func (s *Sink) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.timeout, fmt.Errorf("no answer within %s (%s): %w", s.timeout, s.trouble.say("_TIMEOUT"), context.DeadlineExceeded))
}

// Close ends all requests and connections.
func (s *Sink) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.closed = true
	s.mu.Unlock()
	s.end(ErrClosed)
	s.running.Wait() // its waits end with s.ctx
	s.transport.CloseIdleConnections()
	return nil
}
