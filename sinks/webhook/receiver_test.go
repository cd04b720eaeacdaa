package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// patience bounds everything in these tests that must happen in the end.
const patience = time.Minute

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// receiver is an HTTP server that keeps what it is sent, as long as its network is well.
type receiver struct {
	t      testing.TB
	addr   string
	secure *tls.Config

	// answer, if set, answers a request, and reports whether it is taken.
	answer func(w http.ResponseWriter, r *http.Request, body []byte) bool

	server  *http.Server
	serving sync.WaitGroup

	mu       sync.Mutex
	requests []*request    // guarded by mu; those that were taken
	asked    int           // guarded by mu; all requests
	open     []*serverConn // guarded by mu
	stalled  chan struct{} // guarded by mu; nil: not stalled
}

type request struct {
	*http.Request
	body []byte
}

// newReceiver starts a server on this machine, with TLS (and HTTP/2) if there is a certificate.
func newReceiver(t testing.TB, secure *tls.Config) *receiver {
	t.Helper()
	r := &receiver{t: t, addr: "127.0.0.1:0", secure: secure}
	r.start()
	t.Cleanup(r.stop)
	return r
}

func (r *receiver) start() {
	r.t.Helper()
	ln, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	r.server = &http.Server{
		Handler: http.HandlerFunc(r.serve), TLSConfig: r.secure.Clone(), ErrorLog: hclog.NewNullLogger().StandardLogger(nil),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if secure, ok := c.(*tls.Conn); ok {
				c = secure.NetConn()
			}
			return context.WithValue(ctx, connKey{}, c)
		},
	}
	r.serving.Go(func() {
		if r.secure != nil {
			_ = r.server.ServeTLS(&listener{ln, r}, "", "")
		} else {
			_ = r.server.Serve(&listener{ln, r})
		}
	})
}

func (r *receiver) stop() {
	_ = r.server.Close()
	r.cut()
	r.serving.Wait()
}

type connKey struct{}

func (r *receiver) serve(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	r.mu.Lock()
	r.asked++
	answer := r.answer
	r.mu.Unlock()
	taken := path.Base(req.URL.Path) != "refused"
	switch {
	case answer != nil:
		taken = answer(w, req, body)
	case !taken:
		w.WriteHeader(http.StatusUnprocessableEntity)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// What a cut connection had brought did not arrive.
	if taken && !req.Context().Value(connKey{}).(*serverConn).dead {
		r.requests = append(r.requests, &request{req, body})
	}
}

func (r *receiver) got() []*request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

func (r *receiver) set(answer func(w http.ResponseWriter, r *http.Request, body []byte) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

// status has all requests answered so.
func (r *receiver) status(code int, header ...string) {
	r.set(func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		return code >= 200 && code < 300
	})
}

// cut ends all connections.
func (r *receiver) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.open {
		c.dead = true
		_ = c.Conn.Close()
	}
	r.open = nil
}

// stall lets nothing pass. The connections of that time are dead when it is over.
func (r *receiver) stall() (resume func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	over := make(chan struct{})
	r.stalled = over
	for _, c := range r.open {
		c.dead = true
	}
	return sync.OnceFunc(func() {
		r.mu.Lock()
		r.stalled = nil
		r.mu.Unlock()
		close(over)
		r.cut()
	})
}

type listener struct {
	net.Listener
	of *receiver
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	own := &serverConn{Conn: c, of: l.of, dead: l.of.stalled != nil}
	l.of.open = append(l.of.open, own)
	return own, nil
}

type serverConn struct {
	net.Conn
	of   *receiver
	dead bool // guarded by of.mu
}

func (c *serverConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.of.mu.Lock()
	dead, stalled := c.dead, c.of.stalled
	c.of.mu.Unlock()
	if dead && stalled != nil {
		<-stalled
	}
	if dead {
		return 0, net.ErrClosed
	}
	return n, err
}

// Write lets no answer out to a request that did not arrive.
func (c *serverConn) Write(p []byte) (int, error) {
	c.of.mu.Lock()
	dead := c.dead
	c.of.mu.Unlock()
	if dead {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

func (r *receiver) url() string {
	if r.secure != nil {
		return "https://" + r.addr + "/events/" + topicField
	}
	return "http://" + r.addr + "/events/" + topicField
}

// config is for a sink that has all the time.
func (r *receiver) config() Config {
	cfg := DefaultConfig()
	cfg.URL = r.url()
	cfg.slice = time.Hour
	return cfg
}

func newSink(t testing.TB, cfg Config) *Sink {
	t.Helper()
	s, err := New(cfg, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// open makes a sink that is closed when the test ends.
func open(t testing.TB, cfg Config) *Sink {
	t.Helper()
	s := newSink(t, cfg)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// consume is what the suite wants to see: names and values as they were in the record.
func (r *receiver) consume(t testing.TB) []sinktest.Delivered {
	ours := []string{"content-length", "content-type", "user-agent", "webhook-id", "webhook-timestamp", "webhook-signature"}
	var all []sinktest.Delivered
	for _, req := range r.got() {
		d := sinktest.Delivered{Topic: path.Base(req.URL.Path), Value: req.body}
		for name, values := range req.Header {
			name = strings.ToLower(name)
			if slices.Contains(ours, name) {
				continue
			}
			name, err := url.PathUnescape(strings.ReplaceAll(name, "event-", "event_"))
			value, err2 := url.PathUnescape(values[0])
			if err := errors.Join(err, err2); err != nil {
				t.Errorf("header %s: %v", name, err)
			}
			d.Headers = append(d.Headers, relay.Header{Key: name, Value: value})
		}
		all = append(all, d)
	}
	return all
}

// serverTLS is a certificate for this machine, and the file of who signed it.
func serverTLS(t testing.TB) (*tls.Config, brokertest.Certs) {
	t.Helper()
	certs, err := brokertest.NewCerts(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(certs.ServerCert, certs.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, certs
}

// outcomes are the errors of a batch, record by record.
func outcomes(t testing.TB, n int, err error) []error {
	t.Helper()
	if err == nil {
		return make([]error, n)
	}
	var be *relay.BatchError
	if !errors.As(err, &be) || len(be.Errs) != n {
		t.Fatalf("got %v, want a BatchError with %d entries", err, n)
	}
	return be.Errs
}
