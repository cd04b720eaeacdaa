package relay_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// before is what the fake database says of deliveries before this relay.
type before struct {
	sent  bool
	errs  []error // what the next answers are
	asked int
}

func (w store) Before(context.Context, string) (relay.Before, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before.asked++
	if len(w.before.errs) > 0 {
		err := w.before.errs[0]
		w.before.errs = w.before.errs[1:]
		return relay.Before{}, err
	}
	return relay.Before{Sinks: w.sinks, Sent: w.before.sent}, nil
}

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

func TestSinksByDefault(t *testing.T) {
	byDefault := func(cfg *relay.Config) {
		oneLane(cfg)
		cfg.SinksByDefault = &relay.SinksByDefault{}
	}
	refused := func(t *testing.T, r *rig) {
		t.Helper()
		select {
		case <-r.done:
		case <-time.After(time.Minute):
			t.Fatal("it runs")
		}
		var setup *relay.SetupError
		if !errors.As(r.err, &setup) {
			t.Errorf("Run returned %v, want a *SetupError", r.err)
		}
	}

	// It ends before it asks for the lease, so the one that has it goes on, and a rollout stops at the first new pod.
	bubble(t, "RefusesBeforeTheLease", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.sinks = []string{"rabbitmq"}
		r := start(t, w, byDefault, sink)
		w.commit("a")
		refused(t, r)
		if len(w.trace) > 0 || len(sink.Offered()) > 0 {
			t.Errorf("it did %v, and offered %d batches", w.trace, len(sink.Offered()))
		}
		if got := strings.Join(w.sinks, ","); got != "rabbitmq" {
			t.Errorf("it noted %s", got)
		}
	})

	// Another relay had the slot while this one stood by, and delivered elsewhere.
	bubble(t, "RefusesWithTheLease", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.takenOver()
		r := start(t, w, byDefault, sink)
		time.Sleep(time.Second) // it has asked, and stands by
		w.mu.Lock()
		w.sinks = []string{"file"}
		w.mu.Unlock()
		w.commit("a")
		w.givenBack()
		refused(t, r)
		if len(sink.Offered()) > 0 || strings.Join(w.sinks, ",") != "file" {
			t.Errorf("it offered %d batches, and noted %v", len(sink.Offered()), w.sinks)
		}
	})

	// What it cannot find out it waits for; then it works.
	bubble(t, "WaitsForTheAnswer", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.before.errs = []error{errConnection, errConnection}
		r := start(t, w, byDefault, sink)
		w.commit("a")
		time.Sleep(time.Minute)
		if len(sink.Offered()) == 0 || w.before.asked < 4 {
			t.Errorf("%d batches offered, asked %d times", len(sink.Offered()), w.before.asked)
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})

	// Somebody's will is done, and told.
	bubble(t, "NamedSinksAreOnlyTold", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.sinks = []string{"kafka", "rabbitmq"}
		r := start(t, w, oneLane, sink)
		w.commit("a")
		time.Sleep(10 * time.Second)
		if n := r.log.count("a sink was removed"); n != 1 || len(sink.Offered()) == 0 || w.before.asked > 0 {
			t.Errorf("told %d times, %d batches offered, asked %d times", n, len(sink.Offered()), w.before.asked)
		}
	})
}
