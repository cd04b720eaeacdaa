package engine_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// With the defaults, an event for which no queue is bound waits a quarter of an hour for somebody
// who binds one; what is the event's own fault does not.
func TestUnroutablePatience(t *testing.T) {
	defaults := func(cfg *engine.Config) {
		cfg.UnroutablePatience = engine.DefaultConfig().UnroutablePatience
	}
	for _, c := range []struct {
		reason relay.Reason
		most   time.Duration // until it is a dead letter
		least  time.Duration
		offers int // at least
	}{
		{relay.ReasonUnroutable, 24 * time.Minute, 15 * time.Minute, 18},
		{relay.ReasonUnknownTopic, 24 * time.Minute, 15 * time.Minute, 18},
		{relay.ReasonTooLarge, 20 * time.Second, 0, 5},
		{relay.ReasonRejected, 20 * time.Second, 0, 5},
		{relay.ReasonEncode, 20 * time.Second, 0, 5},
		{relay.ReasonNacked, 20 * time.Second, 0, 5},
	} {
		bubble(t, string(c.reason), func(t *testing.T) {
			w, sink := newWorld(t), sinktest.NewScript("rabbitmq")
			sink.OnEvent(id("a1")).Refuse(c.reason, errNoQueue)
			start(t, w, defaults, sink)
			began := time.Now()
			w.commit("a", "a")
			var last time.Time
			for n := 1; n < c.offers; n++ {
				if err := sink.WaitOffered(t.Context(), n); err != nil {
					t.Fatal(err)
				}
				if pause := time.Since(last); n > 1 && pause > 61*time.Second+2*time.Second {
					t.Errorf("offer %d came after %s", n, pause)
				}
				last = time.Now()
			}
			for !strings.HasPrefix(w.status("a1"), "dead_letter") && time.Since(began) < time.Hour {
				time.Sleep(time.Second)
			}
			if took := time.Since(began); took < c.least || took > c.most {
				t.Errorf("a dead letter after %s, want between %s and %s", took, c.least, c.most)
			}
			w.untilStatus("sent", "a2")
		})
	}
	bubble(t, "BoundInTime", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("rabbitmq")
		unbound := sink.OnEvent(id("a1")).Refuse(relay.ReasonUnroutable, errNoQueue)
		start(t, w, defaults, sink)
		w.commit("a", "a")
		time.Sleep(14 * time.Minute)
		unbound.Stop()
		w.untilStatus("sent", "a1", "a2")
		wantTaken(t, sink, "a1 a2")
	})
}

// A sink is isolated: the age of the oldest pending event goes on, it does not begin again with the
// entry in the ledger.
func TestOldestPendingOverIsolation(t *testing.T) {
	bubble(t, "Isolation", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.Down(errBroker)
		r := start(t, w, nil, sink)
		time.Sleep(10 * time.Second) // 0 of the bubble's clock means that the time is not known
		committed := time.Now()
		w.commit("a", "b")
		for range 90 {
			time.Sleep(time.Second)
			synctest.Wait()
			got, _ := r.metric("outbox_oldest_pending_seconds")
			if age := time.Since(committed).Seconds(); age > 3 && (got < age-2 || got > age+1) {
				t.Errorf("the oldest pending event is %.0f s old, the metric is %.0f", age, got)
			}
		}
		if got := w.entriesOf("kafka"); got != "a1 ready, b1 ready" {
			t.Errorf("ledger: %s", got)
		}
		sink.Down(nil)
		w.untilStatus("sent", "a1", "b1")
		time.Sleep(20 * time.Second)
		if got, _ := r.metric("outbox_oldest_pending_seconds"); got > 1 {
			t.Errorf("with nothing pending it is %.0f", got)
		}
	})
}
