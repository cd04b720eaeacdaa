package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// ErrClosed is what Publish returns after and because of Close.
var ErrClosed = errors.New("sink closed")

// Sink posts records to one URL, or to one for each topic. Publish may be called from any number of
// goroutines.
type Sink struct {
	cfg     Config
	to      *target
	headers http.Header // with each request; not to be changed
	signers []signer
	pace    pace
	slots   chan struct{} // a place in it for each request under way

	transport *http.Transport
	conns     conns

	ctx context.Context // ends with cause ErrClosed
	end context.CancelCauseFunc

	mu      sync.Mutex
	closed  bool           // guarded by mu
	running sync.WaitGroup // Publish and Check; Add under mu
}

var (
	_ relay.Sink    = (*Sink)(nil)
	_ relay.Checker = (*Sink)(nil)
	_ relay.Placer  = (*Sink)(nil)
)

const (
	idleConnection = 30 * time.Second // most servers close them later
	// An HTTP/2 connection over which nothing came for as long as pingAfter is asked for a sign of
	// life, and given up after pingTimeout. A request that times out ends its stream only.
	pingAfter, pingTimeout = 10 * time.Second, 5 * time.Second
	mostHeaderBytes        = 64 << 10 // of an answer
)

// New makes a sink. It connects when first needed.
func New(cfg Config, _ hclog.Logger) (*Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Sink{cfg: cfg, slots: make(chan struct{}, cfg.Concurrency)}
	if s.cfg.slice == 0 {
		s.cfg.slice = time.Second
	}
	s.to, _ = cfg.address() // valid, and so are the others
	s.headers, _ = cfg.headers()
	s.signers, _ = newSigners(cfg.Secrets)
	if s.headers.Get("User-Agent") == "" {
		s.headers.Set("User-Agent", "sagaz-relay")
	}
	if s.to.basic != "" {
		s.headers.Set("Authorization", s.to.basic)
	}
	s.transport = &http.Transport{
		// No proxy: HTTPS_PROXY of the environment is not asked. It would carry events elsewhere
		// than the settings say, and the guard would see its address only.
		DialContext:            s.dial,
		DialTLSContext:         s.dialTLS,
		ForceAttemptHTTP2:      true, // which a dialer of one's own switches off
		DisableCompression:     true, // answers are not read
		MaxIdleConns:           cfg.Concurrency,
		MaxIdleConnsPerHost:    cfg.Concurrency,
		IdleConnTimeout:        idleConnection,
		MaxResponseHeaderBytes: mostHeaderBytes,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	return s, nil
}

// Name returns "webhook", or the name that its Config has.
func (s *Sink) Name() string { return s.cfg.Called("webhook") }

// enter keeps Close waiting until leave is called. It reports whether the sink is open.
func (s *Sink) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running.Add(1)
	return true
}

// Check connects to the receiver, with TLS if the URL has it. It sends no request: what a receiver
// would make of one that is no event is not known.
func (s *Sink) Check(ctx context.Context) error {
	if !s.enter() {
		return ErrClosed
	}
	defer s.running.Done()
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.Timeout, s.noAnswer())
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	dial := s.dial
	if s.to.scheme == "https" {
		dial = s.dialTLS
	}
	conn, err := dial(ctx, "tcp", net.JoinHostPort(s.to.host, s.to.port))
	if err != nil {
		return s.cfg.connectError(s.to, causeOf(ctx, err))
	}
	return conn.Close()
}

// dial opens a connection to an address that the guard allows.
func (s *Sink) dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Control: newGuard(s.to.host, s.cfg.AllowPrivate).control, Resolver: s.cfg.resolver}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return s.conns.add(conn)
}

// dialTLS opens a connection with TLS. It reads the files again, so that renewed certificates need
// no restart.
func (s *Sink) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	cfg, err := s.cfg.tlsFiles().Config()
	if err != nil {
		return nil, err
	}
	if cfg.ServerName == "" {
		cfg.ServerName = s.to.host
	}
	cfg.NextProtos = []string{"h2", "http/1.1"}
	conn, err := s.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // the handshake's error says more
		return nil, err
	}
	return secure, nil
}

// Destination is the topic, which may be a part of the URL.
func (s *Sink) Destination(rec *relay.Record) string { return rec.Topic }

// Place returns the receiver's host.
func (s *Sink) Place([]*relay.Record) relay.Place {
	port, _ := strconv.Atoi(s.to.port) // checked
	return relay.Place{System: "webhook", Partition: -1, Host: s.to.host, Port: port}
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
	s.conns.closeAll()
	s.running.Wait() // its waits end with s.ctx
	s.transport.CloseIdleConnections()
	return nil
}

// conns are the open connections. The transport would leave one on which HTTP/2 is stuck in a write.
type conns struct {
	mu     sync.Mutex
	closed bool               // guarded by mu
	open   map[*conn]struct{} // guarded by mu
}

// conn takes itself out of the set when it is closed.
type conn struct {
	net.Conn
	set *conns
}

func (s *conns) add(c net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close()
		return nil, ErrClosed
	}
	if s.open == nil {
		s.open = make(map[*conn]struct{})
	}
	own := &conn{Conn: c, set: s}
	s.open[own] = struct{}{}
	return own, nil
}

func (c *conn) Close() error {
	c.set.mu.Lock()
	delete(c.set.open, c)
	c.set.mu.Unlock()
	return c.Conn.Close()
}

func (s *conns) closeAll() {
	s.mu.Lock()
	s.closed = true
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for c := range open {
		_ = c.Conn.Close() // whoever uses it sees it closed
	}
}
