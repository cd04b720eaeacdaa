package rabbitmq

import (
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// Which texts real brokers send is asked in TestTooLargeForBroker and TestPermissions; here are
// those of other versions, and what must not be taken for one.
func TestBlame(t *testing.T) {
	cfg := DefaultConfig()
	small, big := sinktest.NewRecord("a.b", "k", 0, 10), sinktest.NewRecord("a.c", "k", 0, 1000)
	for _, tc := range []struct {
		name  string
		err   *amqp.Error
		limit int64
		big   relay.Reason // why the big record is refused; empty: it is not
	}{
		{"none", nil, 0, ""},
		{"3.8 to 3.13", &amqp.Error{Code: 406, Reason: "PRECONDITION_FAILED - message size 1048 larger than configured max size 500"}, 500, relay.ReasonTooLarge},
		{"hard limit", &amqp.Error{Code: 406, Reason: "PRECONDITION_FAILED - message size 1048 larger than max size 500"}, 500, relay.ReasonTooLarge},
		{"4", &amqp.Error{Code: 406, Reason: "PRECONDITION_FAILED - message size 1048 is larger than configured max size 500"}, 500, relay.ReasonTooLarge},
		{"another precondition", &amqp.Error{Code: 406, Reason: "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'x'"}, 0, ""},
		{"the same text with another code", &amqp.Error{Code: 541, Reason: "message size 1048 larger than configured max size 500"}, 0, ""},
		{"topic", &amqp.Error{Code: 403, Reason: "ACCESS_REFUSED - access to topic 'a.c' in exchange 'x' in vhost '/' refused for user 'u'"}, 0, relay.ReasonRejected},
		{"topic, newer", &amqp.Error{Code: 403, Reason: "ACCESS_REFUSED - write access to topic 'a.c' in exchange 'x' in vhost '/' refused for user 'u'"}, 0, relay.ReasonRejected},
		{"exchange", &amqp.Error{Code: 403, Reason: "ACCESS_REFUSED - access to exchange 'x' in vhost '/' refused for user 'u'"}, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			refuse, limit := cfg.blame(tc.err)
			if limit != tc.limit || (refuse != nil) != (tc.big != "") {
				t.Fatalf("got limit %d, blame %v", limit, refuse != nil)
			}
			if refuse == nil {
				return
			}
			if err := refuse(small); err != nil {
				t.Errorf("small record: %v", err)
			}
			if r, ok := relay.Refused(refuse(big)); !ok || r.Reason != tc.big {
				t.Errorf("big record: %v, want reason %q", r, tc.big)
			}
		})
	}
}

// No body and no key of a record gets into an error.
func TestErrorsShowNoPayload(t *testing.T) {
	rec := sinktest.NewRecord(unbound, "hidden-key", 0, 0)
	rec.Value = []byte("hidden body")
	refuse, _ := DefaultConfig().blame(&amqp.Error{Code: 406, Reason: "message size 11 larger than max size 5"})
	for _, err := range []error{refuse(rec), unroutable("x", rec.RoutingKey, "NO_ROUTE")} {
		if strings.Contains(err.Error(), "hidden") {
			t.Errorf("%q shows the record", err)
		}
	}
}
