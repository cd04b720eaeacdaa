package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/program"
)

// gate is an address in front of a server that hangs up on everybody until it is opened.
type gate struct {
	net.Listener
	server string
	open   atomic.Bool
	turned atomic.Int32 // away
}

func newGate(t *testing.T, server string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Listener: l, server: server}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if !g.open.Load() {
				g.turned.Add(1)
				c.Close()
				continue
			}
			s, err := net.Dial("tcp", server)
			if err != nil {
				c.Close()
				continue
			}
			go func() { defer s.Close(); defer c.Close(); _, _ = io.Copy(s, c) }()
			go func() { defer s.Close(); defer c.Close(); _, _ = io.Copy(c, s) }()
		}
	}()
	return g
}

// A database that is not there when the relay starts: one line of the log reports it and names the
// variable. The relay stays alive and not ready, and reports why; when the database comes, it
// begins.
func TestDatabaseComesLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := toFile(t)
	u, err := url.Parse(w.url)
	if err != nil {
		t.Fatal("the URL is none")
	}
	g := newGate(t, u.Host)
	u.Host = g.Addr().String()
	p := w.relay("relay", d.env.with(settings{"DATABASE_URL": u.String()}))
	eventually(t, patience, "it tries several times", func() string {
		if n := g.turned.Load(); n < 8 { // two or more of them are one try
			return p.mustRun(fmt.Sprintf("%d times", n))
		}
		return ""
	})
	if code, body := p.get("/health/ready"); code != http.StatusServiceUnavailable || !strings.Contains(string(body), "DATABASE_URL") || !strings.Contains(string(body), u.Host) {
		t.Errorf("/health/ready: %d %s: want 503, with the variable and the address", code, body)
	}
	if code, body := p.get("/health/live"); code != http.StatusOK {
		t.Errorf("/health/live: %d %s: want 200", code, body)
	}
	waiting := p.logged("waiting for the database")
	if len(waiting) != 1 {
		t.Errorf("it is logged %d times, want once", len(waiting))
	}
	for _, want := range []string{"DATABASE_URL", u.Host} {
		if text := fmt.Sprint(waiting[0]); !strings.Contains(text, want) {
			t.Errorf("the log does not name %s: %s", want, text)
		}
	}
	if text := waiting[0].text("error"); strings.Contains(text, "\n") {
		t.Errorf("the error has several lines: %q", text)
	}
	g.open.Store(true)
	p.waitReady()
	p.waitLog("the database answers")
	id := w.insert(row{key: "k", topic: "T"})[0]
	w.waitNonePending(p)
	if status, _ := w.fate(id); status != "sent" {
		t.Errorf("the row is %s", status)
	}
	p.stop()
}

// A broker that is not there when the relay starts: the log reports it before there is any event,
// once, and names the variable. The relay is ready: it does what can be done, and a restart would
// not fix the broker.
func TestBrokerMissingAtStart(t *testing.T) {
	t.Parallel()
	for broker, c := range map[string]struct{ variable, value, address string }{
		"kafka":    {"KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1", "127.0.0.1:1"},
		"rabbitmq": {"RABBITMQ_URL", "amqp://relay:pw-broker-secret@127.0.0.1:1/", "127.0.0.1:1"},
	} {
		t.Run(broker, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			start := time.Now()
			p := launch(t, program.Path(t), "relay", w.env().with(settings{"BROKER_TYPE": broker, c.variable: c.value}), append(w.secrets(), "pw-broker-secret"), "run")
			l := p.waitLog("the broker cannot be used")
			t.Logf("logged after %s: %v", time.Since(start).Round(time.Millisecond), l)
			if l.text("level") != "WARNING" || l.text("sink") != broker || !strings.Contains(l.text("fix"), c.variable) || !strings.Contains(l.text("error"), c.address) {
				t.Errorf("the line does not name sink, variable and address: %v", l)
			}
			p.waitReady()
			p.stop()
			if n := len(p.logged("the broker cannot be used")); n != 1 {
				t.Errorf("it is logged %d times, want once", n)
			}
		})
	}
}
