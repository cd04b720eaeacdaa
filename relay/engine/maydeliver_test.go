package engine_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// before is what the fake database knows of deliveries before this relay.
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

func TestSinksByDefault(t *testing.T) {
	byDefault := func(cfg *engine.Config) {
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

	// It ends before it asks for the lease, so the one that has it goes on, and a rollout stops at
	// the first new pod.
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

	// Another relay had the slot while this one was a standby, and delivered
	// elsewhere.
	bubble(t, "RefusesWithTheLease", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.takenOver()
		r := start(t, w, byDefault, sink)
		time.Sleep(time.Second) // it has asked, and is a standby
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

	// Sinks that were named on purpose are used, and the change is logged.
	bubble(t, "NamedSinksAreOnlyLogged", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.sinks = []string{"kafka", "rabbitmq"}
		r := start(t, w, oneLane, sink)
		w.commit("a")
		time.Sleep(10 * time.Second)
		if n := r.log.count("a sink was removed"); n != 1 || len(sink.Offered()) == 0 || w.before.asked > 0 {
			t.Errorf("logged %d times, %d batches offered, asked %d times", n, len(sink.Offered()), w.before.asked)
		}
	})
}
