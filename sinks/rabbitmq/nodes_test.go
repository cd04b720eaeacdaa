package rabbitmq

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// Whichever node is down, a connect finds another, with user, vhost and TLS of the URL; and an order
// by chance divides relays among those that live. When none does, the error names all of them.
func TestNodes(t *testing.T) {
	broker := brokertest.RabbitMQ(t)
	r := newRoom(t, broker.URL, nil)
	const dead = "127.0.0.1:1" // nothing listens there
	at := func(raw, host string) string {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal("the URL is none")
		}
		u.Host = host
		return u.String()
	}
	hostOf := func(raw string) string {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal("the URL is none")
		}
		return u.Host
	}
	want, used := 0, map[string]int{}
	publish := func(cfg Config) {
		t.Helper()
		s, log := newLoggedSink(t, cfg)
		if err := s.Publish(soon(t), sinktest.Records(bound, "k", want, 2)); err != nil {
			t.Fatal(err)
		}
		want += 2
		for _, line := range strings.Split(log.String(), "\n") {
			if _, after, ok := strings.Cut(line, "connected: broker="); ok {
				broker, _, _ := strings.Cut(after, " ")
				used[broker]++
			}
		}
		noSecret(t, log.String())
	}
	for range 4 { // one in 16 begins with the dead one each time, and none of the four
		cfg := r.config()
		cfg.URL, cfg.Hosts = at(broker.URL, dead), []string{hostOf(broker.URL), hostOf(broker.URL)}
		publish(cfg)
		cfg = r.config()
		cfg.Hosts = []string{dead}
		publish(cfg)
		cfg = r.config()
		cfg.URL, cfg.TLSCAFile, cfg.Hosts = at(broker.TLSURL, dead), broker.CAFile, []string{strings.Replace(hostOf(broker.TLSURL), "127.0.0.1", "localhost", 1)}
		publish(cfg)
	}
	clear(used)
	both := r.config()
	both.Hosts = []string{strings.Replace(hostOf(broker.URL), "127.0.0.1", "localhost", 1)}
	for range 40 { // all by one: once in 2^39
		publish(both)
	}
	if len(used) != 2 {
		t.Errorf("connected to %v", used)
	}
	sinktest.CheckOrder(t, r.consume(t), map[string]int{"k": want}, false)

	none := r.config()
	none.URL, none.Hosts = at(broker.URL, dead), []string{"localhost:1"}
	s, log := newLoggedSink(t, none)
	err := s.Publish(soon(t), sinktest.Records(bound, "k", want, 1))
	transient(t, err, "connect to amqp://"+dead, "connect to amqp://localhost:1")
	if setup := (*relay.SetupError)(nil); !errors.As(err, &setup) || setup.Fix == "" {
		t.Errorf("no fix in %v", err)
	}
	if strings.Contains(err.Error()+log.String(), broker.Password) {
		t.Errorf("the password shows in %q or the log", err)
	}
}
