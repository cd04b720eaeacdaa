package relay_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

// TestCheckSinks goes through what a relay may find that has its sinks by default.
func TestCheckSinks(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before relay.Before
		hint   string
		says   []string // nothing: it may deliver
	}{
		{name: "NothingBefore"},
		{name: "TheSame", before: relay.Before{Sinks: []string{"kafka"}}},
		{name: "TheSameThoughAnotherHasAnAddress", before: relay.Before{Sinks: []string{"kafka"}}, hint: "RABBITMQ_URL"},
		{name: "AnotherBroker", before: relay.Before{Sinks: []string{"rabbitmq"}}, says: []string{"BROKER_TYPE is not set, which means kafka", "delivered to rabbitmq", "BROKER_TYPE=rabbitmq to go on", "BROKER_TYPE=kafka to deliver there"}},
		{name: "OneOfTwo", before: relay.Before{Sinks: []string{"kafka", "rabbitmq"}}, says: []string{"delivered to kafka,rabbitmq", "BROKER_TYPE=kafka,rabbitmq to go on"}},
		{name: "TwoAddresses", hint: "RABBITMQ_URL in RELAY_SECRETS_DIR", says: []string{"RABBITMQ_URL in RELAY_SECRETS_DIR is set", "set BROKER_TYPE to the broker"}},
		{name: "RowsOfAnotherWorker", before: relay.Before{Sent: true}, says: []string{"another worker has sent rows of saga_outbox", "that worker's environment"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := relay.CheckSinks([]string{"kafka"}, relay.SinksByDefault{Hint: tt.hint}, tt.before)
			if len(tt.says) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var setup *relay.SetupError
			if !errors.As(err, &setup) || setup.Streaming {
				t.Fatalf("got %v, want a *SetupError", err)
			}
			for _, want := range tt.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}
