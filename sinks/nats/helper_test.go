package nats

import (
	"bytes"
	"context"
	"crypto/rand"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/internal/testbed/natstest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestMain(m *testing.M) {
	natstest.Main()
	goleak.VerifyTestMain(m, serverGoroutines...)
}

// serverGoroutines wait for a server's process.
var serverGoroutines = []goleak.Option{goleak.IgnoreAnyFunction("github.com/sagaz-relay/relay/internal/testbed/child.Start.func1")}

// patience bounds everything in these tests that must happen in the end.
const patience = time.Minute

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// admin is a client of the test, next to the sink's. It ends when done is called, with its
// goroutines.
func admin(t testing.TB, address string, options ...nats.Option) (js jetstream.JetStream, done func()) {
	t.Helper()
	closed := make(chan struct{})
	nc, err := nats.Connect(address, append(options, nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))...)
	if err != nil {
		t.Fatal(err)
	}
	if js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	return js, func() {
		nc.Close()
		<-closed
	}
}

// newStream makes a stream with one subject of its own, which it returns.
func newStream(t testing.TB, address string, change func(*jetstream.StreamConfig), options ...nats.Option) (subject string) {
	t.Helper()
	js, done := admin(t, address, options...)
	defer done()
	name := "test-" + strings.ToLower(rand.Text()[:12])
	cfg := jetstream.StreamConfig{Name: name, Subjects: []string{"events." + name}}
	if change != nil {
		change(&cfg)
	}
	if _, err := js.CreateStream(soon(t), cfg); err != nil {
		t.Fatal(err)
	}
	return cfg.Subjects[0]
}

// streamOf is the name of the stream that newStream has made for a subject.
func streamOf(subject string) string { return strings.TrimPrefix(subject, "events.") }

// consume reads what the stream of a subject has of it.
func consume(t testing.TB, address, subject string, options ...nats.Option) (got []sinktest.Delivered) {
	t.Helper()
	js, done := admin(t, address, options...)
	defer done()
	ctx := soon(t)
	name, err := js.StreamNameBySubject(ctx, subject)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := js.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)()
	for left := consumer.CachedInfo().NumPending; left > 0; left-- {
		m, err := messages.Next()
		if err != nil {
			t.Fatal(err)
		}
		d := sinktest.Delivered{Topic: m.Subject(), Value: m.Data()}
		for name, values := range m.Headers() {
			value := values[0]
			if strings.HasPrefix(name, "Nats-") {
				continue
			}
			if encoded, ok := strings.CutSuffix(name, "*"); ok { // RFC 8187, docs/messages.md
				for text, into := range map[string]*string{encoded: &name, strings.TrimPrefix(value, "UTF-8''"): &value} {
					if *into, err = url.PathUnescape(text); err != nil {
						t.Fatal(err)
					}
				}
			}
			d.Headers = append(d.Headers, relay.Header{Key: name, Value: value})
		}
		got = append(got, d)
	}
	return got
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

func config(s *natstest.Server) Config {
	cfg := DefaultConfig()
	cfg.Servers = []string{s.URL}
	return cfg
}

func newSink(t testing.TB, cfg Config) *Sink {
	t.Helper()
	s, _ := newLoggedSink(t, cfg)
	return s
}

func newLoggedSink(t testing.TB, cfg Config) (*Sink, *sinkLog) {
	t.Helper()
	out := &sinkLog{}
	s, err := New(cfg, hclog.New(&hclog.LoggerOptions{Name: "sink.nats", Level: hclog.Trace, Output: out}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // the suite closes by itself
	return s, out
}

// cut closes the sink's socket under it.
func cut(s *Sink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != nil {
		_ = s.link.raw.Close()
	}
}

// refusal fails the test unless err refuses the first record of a batch for that reason.
func refusal(t testing.TB, err error, reason relay.Reason, text string) *relay.RefusedError {
	t.Helper()
	r, ok := relay.Refused(err)
	if !ok || r.Reason != reason || !strings.Contains(err.Error(), text) {
		t.Fatalf("got %v, want it refused as %s with %q", err, reason, text)
	}
	return r
}

// transient fails the test unless err leaves the batch to be offered again, with that text.
func transient(t testing.TB, err error, text string) {
	t.Helper()
	if _, refused := relay.Refused(err); err == nil || refused || !strings.Contains(err.Error(), text) {
		t.Fatalf("got %v, want a transient error with %q", err, text)
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
