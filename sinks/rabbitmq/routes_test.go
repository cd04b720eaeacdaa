package rabbitmq

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/brokertest"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestCheckRoutes(t *testing.T) {
	broker := ownBroker(t)
	r := newRoom(t, broker.URL, nil)
	routes := []relay.Route{{EventType: bound, RoutingKey: bound}, {EventType: "Other", RoutingKey: "other.key"}, {EventType: "Long", RoutingKey: strings.Repeat("k", 256)}}
	check := func(cfg Config, wantErr error, want map[string][]string) {
		t.Helper()
		problems, err := newSink(t, cfg).CheckRoutes(soon(t), routes)
		if !errors.Is(err, wantErr) {
			t.Errorf("got error %v, want %v", err, wantErr)
		}
		for _, p := range problems {
			parts, ok := want[p.Route.EventType]
			if !ok {
				t.Errorf("unexpected problem %+v", p)
			}
			for _, part := range parts {
				if !strings.Contains(p.Problem+"; "+p.Fix, part) {
					t.Errorf("%s: %q, %q does not say %q", p.Route.EventType, p.Problem, p.Fix, part)
				}
			}
			if strings.Contains(fmt.Sprint(p), "limited-secret") {
				t.Errorf("a password shows in %+v", p)
			}
		}
		if len(problems) != len(want) {
			t.Errorf("got %d problems, want %d: %+v", len(problems), len(want), problems)
		}
	}
	long := []string{"256 bytes", "RELAY_ROUTING_KEY"}
	check(r.config(), ErrBindingsUnknown, map[string][]string{"Long": long})
	if got := r.depth(t); got != 0 {
		t.Errorf("%d messages: the check published something", got)
	}

	cfg := r.config()
	cfg.ExchangeType = "direct"
	wrongType := []string{"RABBITMQ_EXCHANGE_TYPE", "PRECONDITION_FAILED"}
	check(cfg, ErrBindingsUnknown, map[string][]string{bound: wrongType, "Other": wrongType, "Long": wrongType})
	cfg.Declare = false
	check(cfg, ErrBindingsUnknown, map[string][]string{"Long": long})

	cfg = r.config()
	cfg.Exchange += "-missing"
	missing := []string{"NOT_FOUND", "rabbitmqadmin declare exchange name=" + cfg.Exchange + " type=topic", "or start the relay"}
	check(cfg, nil, map[string][]string{bound: append(missing, "routing_key="+bound), "Other": append(missing, "routing_key=other.key"), "Long": missing})
	if err := admin(t, r.url).ExchangeDeclarePassive(cfg.Exchange, "topic", true, false, false, false, nil); err == nil {
		t.Error("the check made the exchange")
	}

	ctl := func(args ...string) {
		t.Helper()
		if _, err := broker.Ctl(soon(t), args...); err != nil {
			t.Fatal(err)
		}
	}
	ctl("add_user", "routes", "limited-secret")
	defer ctl("delete_user", "routes")
	ctl("set_permissions", "routes", ".*", ".*", ".*")
	ctl("set_topic_permissions", "routes", r.name, "^"+bound+"$", ".*")
	cfg = r.config()
	cfg.URL = strings.Replace(cfg.URL, broker.User+":"+broker.Password, "routes:limited-secret", 1)
	check(cfg, ErrBindingsUnknown, map[string][]string{"Other": {"ACCESS_REFUSED", "set_topic_permissions", "other.key"}, "Long": long})
	ctl("clear_topic_permissions", "routes")
	ctl("set_permissions", "routes", ".*", "^$", ".*")
	refused := []string{"ACCESS_REFUSED", "set_permissions"}
	check(cfg, ErrBindingsUnknown, map[string][]string{bound: refused, "Other": refused, "Long": long})
	if got := r.depth(t); got != 0 {
		t.Errorf("%d messages: the check published something", got)
	}
}

// The sink goes on after a check, over the same connection; a broker that is away is told by its address.
func TestCheckRoutesBeside(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	s, log := newLoggedSink(t, r.config())
	for i := range 3 {
		if _, err := s.CheckRoutes(soon(t), []relay.Route{{RoutingKey: bound}, {RoutingKey: unbound}}); !errors.Is(err, ErrBindingsUnknown) {
			t.Error(err)
		}
		if err := s.Publish(soon(t), sinktest.Records(bound, "k", i, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), "connected"); n != 1 || r.depth(t) != 3 {
		t.Errorf("%d connections and %d messages, want 1 and 3", n, r.depth(t))
	}
	cfg := r.config()
	cfg.URL = "amqp://user:hidden-secret@127.0.0.1:1/"
	_, err := newSink(t, cfg).CheckRoutes(soon(t), nil)
	passing(t, err, "127.0.0.1:1")
	noSecret(t, err.Error())
}

// What CheckRoutes relies on: a message within a transaction that is rolled back reaches no queue and is returned to nobody, but for
// the right to send it. Were it returned, bindings could be asked for.
func TestTransactionTellsNoBinding(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	ch := admin(t, r.url)
	returns := ch.NotifyReturn(make(chan amqp.Return, 2))
	if err := ch.Tx(); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{bound, unbound} {
		if err := ch.Publish(r.name, key, true, false, amqp.Publishing{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := ch.TxRollback(); err != nil {
		t.Fatal(err)
	}
	if len(returns) != 0 || r.depth(t) != 0 {
		t.Errorf("%d returns and %d messages, want none", len(returns), r.depth(t))
	}
}
