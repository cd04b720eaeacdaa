package rabbitmq

import (
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// Where records go, without the user's name and password.
func TestPlace(t *testing.T) {
	cfg := DefaultConfig()
	cfg.URL, cfg.Exchange = "amqps://user:swordfish@mq.example:5671/vhost", "events"
	s, err := New(cfg, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	rec := &relay.Record{Topic: "other", RoutingKey: "order.created"}
	if got := s.Destination(rec); got != "events:order.created" {
		t.Errorf("destination %q", got)
	}
	want := relay.Place{System: "rabbitmq", RoutingKey: "order.created", Partition: -1, Host: "mq.example", Port: 5671}
	if got := s.Place([]*relay.Record{rec, rec}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
