package rabbitmq

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
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
					t.Errorf("%s: %q, %q does not have %q", p.Route.EventType, p.Problem, p.Fix, part)
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
	missing := []string{"NOT_FOUND", "rabbitmqadmin --vhost=/ declare exchange name=" + cfg.Exchange + " type=topic", "or start the relay"}
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

// The sink goes on after a check, over the same connection; the error for a broker that is away has
// its address.
func TestCheckRoutesAndPublish(t *testing.T) {
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
	transient(t, err, "127.0.0.1:1")
	noSecret(t, err.Error())
}

// What CheckRoutes relies on: a message within a transaction that is rolled back reaches no queue
// and is not returned, but is checked for the right to send it. If it were returned, bindings could
// be asked for.
func TestTransactionShowsNoBinding(t *testing.T) {
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

// A check changes nothing at the broker: on a fresh vhost it finds no exchange however often it is
// made, and makes none. What it advises names the vhost, and works.
func TestCheckOfAFreshVhost(t *testing.T) {
	broker := ownBroker(t)
	ctl := func(args ...string) {
		t.Helper()
		if _, err := broker.Ctl(soon(t), args...); err != nil {
			t.Fatal(err)
		}
	}
	ctl("add_vhost", "fresh one")
	defer ctl("delete_vhost", "fresh one")
	ctl("set_permissions", "--vhost", "fresh one", broker.User, ".*", ".*", ".*")
	cfg := DefaultConfig()
	cfg.URL = strings.TrimSuffix(broker.URL, "/") + "/fresh%20one"
	s := newSink(t, cfg)
	routes := []relay.Route{{EventType: "a", RoutingKey: "a"}}
	for range 3 {
		problems, err := s.CheckRoutes(soon(t), routes)
		if err != nil || len(problems) != 1 || !strings.Contains(problems[0].Fix, "--vhost='fresh one' declare exchange") {
			t.Errorf("routes: %+v, %v", problems, err)
		}
		if err := s.Check(soon(t)); err != nil {
			t.Errorf("check: %v", err)
		}
	}
	if err := admin(t, cfg.URL).ExchangeDeclarePassive(cfg.Exchange, "topic", true, false, false, false, nil); err == nil {
		t.Error("the check made the exchange")
	}
	cfg.Declare = false
	if err := newSink(t, cfg).Check(soon(t)); err == nil || !strings.Contains(err.Error(), "RELAY_RABBITMQ_DECLARE") {
		t.Errorf("without declaring: %v", err)
	}
	if err := admin(t, cfg.URL).ExchangeDeclare(cfg.Exchange, "direct", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(soon(t)); err == nil || !strings.Contains(err.Error(), "RABBITMQ_EXCHANGE_TYPE") {
		t.Errorf("an exchange of another type: %v", err)
	}
}

// Each reason for which no connection is made has its own error, with what to do about it.
func TestWhyThereIsNoConnection(t *testing.T) {
	broker := ownBroker(t)
	ctl := func(args ...string) {
		t.Helper()
		if _, err := broker.Ctl(soon(t), args...); err != nil {
			t.Fatal(err)
		}
	}
	ctl("add_user", "stranger", "hidden-secret")
	defer ctl("delete_user", "stranger")
	silent := scriptedListener(t)
	for name, tc := range map[string]struct {
		url  func(string) string
		want []string
		not  string
	}{
		"wrong password": {func(u string) string { return strings.Replace(u, ":"+broker.Password+"@", ":hidden-wrong@", 1) }, []string{"refused the login", "authenticate_user"}, "firewall"},
		"no such vhost":  {func(u string) string { return strings.TrimSuffix(u, "/") + "/no%20where" }, []string{"refused the vhost", "add_vhost 'no where'", "set_permissions --vhost 'no where'"}, "firewall"},
		"no rights in it": {func(u string) string {
			return strings.Replace(u, broker.User+":"+broker.Password, "stranger:hidden-secret", 1)
		}, []string{"refused the vhost", "set_permissions --vhost /"}, "firewall"},
		"nothing listens":   {func(string) string { return "amqp://u:hidden@127.0.0.1:1/" }, []string{"nothing listens"}, "firewall"},
		"no such host":      {func(string) string { return "amqp://u:hidden@no-such-host.invalid/" }, []string{"does not resolve"}, "firewall"},
		"TLS where none is": {func(u string) string { return strings.Replace(u, "amqp://", "amqps://", 1) }, []string{"does not speak TLS"}, "firewall"},
		"silence":           {func(string) string { return "amqp://u:hidden@" + silent + "/" }, []string{"no answer in time", "firewall"}, "login"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.URL = tc.url(broker.URL)
			s, log := newLoggedSink(t, cfg)
			err := s.Check(soon(t))
			transient(t, err, tc.want...)
			var setup *relay.SetupError
			if !errors.As(err, &setup) || setup.Fix == "" || strings.Contains(err.Error(), tc.not) {
				t.Errorf("got %q, want a setup error without %q", err, tc.not)
			}
			if text := strings.ReplaceAll(err.Error()+log.String(), broker.User, ""); strings.Contains(text, "hidden") || strings.Contains(text, broker.Password) {
				t.Errorf("a credential shows in %q", text)
			}
		})
	}
}
