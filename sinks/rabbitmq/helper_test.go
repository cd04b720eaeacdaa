package rabbitmq

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestMain(m *testing.M) {
	code := brokertest.Run(m)
	if private.broker != nil {
		if err := private.broker.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// private is the broker of this package alone, which its tests may stop and configure.
var private struct {
	once   sync.Once
	broker *brokertest.RabbitMQServer
	err    error
}

func ownBroker(t testing.TB) *brokertest.RabbitMQServer {
	t.Helper()
	private.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		private.broker, private.err = brokertest.StartRabbitMQ(ctx, brokertest.RabbitMQOptions{})
	})
	if private.err != nil {
		t.Fatal(private.err)
	}
	return private.broker
}

// patience bounds everything in these tests that must happen in the end.
const patience = time.Minute

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// admin returns a channel of a connection of its own.
func admin(t testing.TB, url string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// room is an exchange of one test, with one queue for the routing key OrderCreated.
type room struct {
	url   string
	name  string // of the exchange and of the queue
	admin *amqp.Channel
}

const (
	bound   = "OrderCreated"
	unbound = "nobody.listens"
)

func newRoom(t testing.TB, url string, queueArgs amqp.Table) *room {
	t.Helper()
	r := &room{url: url, name: "test-" + strings.ToLower(rand.Text()[:12]), admin: admin(t, url)}
	r.declare(t, queueArgs)
	t.Cleanup(func() {
		// By a new connection: the test may have restarted the broker.
		conn, err := amqp.Dial(url)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		ch, err := conn.Channel()
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := ch.QueueDelete(r.name, false, false, false); err != nil {
			t.Error(err)
			return
		}
		if err := ch.ExchangeDelete(r.name, false, false); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *room) declare(t testing.TB, queueArgs amqp.Table) {
	t.Helper()
	if err := r.admin.ExchangeDeclare(r.name, "topic", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.admin.QueueDeclare(r.name, true, false, false, false, queueArgs); err != nil {
		t.Fatal(err)
	}
	r.bind(t)
}

func (r *room) bind(t testing.TB) {
	t.Helper()
	if err := r.admin.QueueBind(r.name, bound, r.name, false, nil); err != nil {
		t.Fatal(err)
	}
}

func (r *room) depth(t testing.TB) int {
	t.Helper()
	q, err := r.admin.QueueDeclarePassive(r.name, true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return q.Messages
}

// consumers is how many read the room's queue.
func (r *room) consumers(t testing.TB) int {
	t.Helper()
	q, err := r.admin.QueueDeclarePassive(r.name, true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return q.Consumers
}

func (r *room) config() Config {
	cfg := DefaultConfig()
	cfg.URL, cfg.Exchange = r.url, r.name
	return cfg
}

// deliveries takes out what is in the queue now.
func (r *room) deliveries(t testing.TB) []amqp.Delivery {
	t.Helper()
	ch := admin(t, r.url)
	q, err := ch.QueueDeclarePassive(r.name, true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	in, err := ch.Consume(r.name, "", true, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]amqp.Delivery, 0, q.Messages)
	timeout := time.After(patience)
	for len(out) < q.Messages {
		select {
		case d, ok := <-in:
			if !ok {
				t.Fatalf("consumer cancelled after %d of %d", len(out), q.Messages)
			}
			out = append(out, d)
		case <-timeout:
			t.Fatalf("got %d of %d messages", len(out), q.Messages)
		}
	}
	if err := ch.Close(); err != nil { // the queue may have a consumer again
		t.Fatal(err)
	}
	return out
}

func (r *room) consume(t testing.TB) []sinktest.Delivered {
	t.Helper()
	var out []sinktest.Delivered
	for _, d := range r.deliveries(t) {
		got := sinktest.Delivered{Topic: d.RoutingKey, Value: d.Body}
		for k, v := range d.Headers {
			text, ok := v.(string)
			if !ok {
				t.Errorf("header %q is a %T, want a string", k, v)
			}
			got.Headers = append(got.Headers, relay.Header{Key: k, Value: text})
		}
		out = append(out, got)
	}
	return out
}

// sinkLog collects what the sinks of this package's tests log; no secret may be in it.
type sinkLog struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (l *sinkLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(b)
}

func (l *sinkLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.String()
}

func newSink(t testing.TB, cfg Config) *Sink {
	s, _ := newLoggedSink(t, cfg)
	return s
}

// newLoggedSink makes a sink that is closed with the test, and gives its log.
func newLoggedSink(t testing.TB, cfg Config) (*Sink, *sinkLog) {
	t.Helper()
	out := &sinkLog{}
	s, err := New(cfg, hclog.New(&hclog.LoggerOptions{Name: "sink.rabbitmq", Level: hclog.Trace, Output: out}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // tests that look at the error close themselves
	return s, out
}

// proxy is between sink and broker; it can stop the bytes, and cut connections.
type proxy struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	gates [2]chan struct{} // closed: bytes pass; [0] to the broker, [1] to the sink
	done  sync.WaitGroup
}

const (
	toBroker = 0
	toSink   = 1
)

// newProxy returns a proxy and the broker's URL by way of it.
func newProxy(t testing.TB, brokerURL string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(brokerURL)
	if err != nil {
		t.Fatal("broker URL does not parse")
	}
	p := &proxy{target: u.Host, conns: map[net.Conn]struct{}{}}
	for i := range p.gates {
		p.gates[i] = make(chan struct{})
		close(p.gates[i])
	}
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	p.done.Go(p.accept)
	t.Cleanup(func() {
		_ = p.listener.Close()
		p.resume()
		p.cut()
		p.done.Wait()
	})
	u.Host = p.listener.Addr().String()
	return p, u.String()
}

func (p *proxy) accept() {
	for {
		in, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.done.Go(func() {
			defer func() { _ = in.Close() }()
			out, err := net.Dial("tcp", p.target)
			if err != nil {
				return
			}
			defer func() { _ = out.Close() }()
			p.mu.Lock()
			p.conns[in], p.conns[out] = struct{}{}, struct{}{}
			p.mu.Unlock()
			defer func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				delete(p.conns, in)
				delete(p.conns, out)
			}()
			var both sync.WaitGroup
			both.Go(func() { p.pass(out, in, toBroker) })
			both.Go(func() { p.pass(in, out, toSink) })
			both.Wait()
		})
	}
}

func (p *proxy) pass(dst, src net.Conn, direction int) {
	defer func() { _ = dst.Close() }()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		p.mu.Lock()
		gate := p.gates[direction]
		p.mu.Unlock()
		<-gate
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				_ = src.Close()
				return
			}
		}
		if err != nil {
			if err != io.EOF {
				_ = src.Close()
			}
			return
		}
	}
}

// stall stops bytes in these directions until resume.
func (p *proxy) stall(directions ...int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range directions {
		select {
		case <-p.gates[d]:
			p.gates[d] = make(chan struct{})
		default:
		}
	}
}

func (p *proxy) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, gate := range p.gates {
		select {
		case <-gate:
		default:
			close(gate)
		}
	}
}

// cut drops all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// eventually polls until is returns true.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
		if is() {
			tick.Stop()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}
