package e2e

import (
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/relay"
)

// The owner loses the network to PostgreSQL, and keeps that to the broker: nothing is closed,
// nothing gets through. Another relay takes the slot within 15 s; from then on the first one
// publishes nothing, neither while it is cut off nor when the network is back. The two publish to a
// topic each, which shows what came from which.
func TestOwnerCutOff(t *testing.T) {
	t.Parallel()
	const (
		budget   = 300
		promised = 15 * time.Second
	)
	w := newWorld(t)
	broker := brokertest.Kafka(t)
	first, second := newTopic(t, broker.Plaintext, 1), newTopic(t, broker.Plaintext, 1)
	proxy := pgtest.NewProxy(t, w.url)
	env := settings{"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext, "RELAY_INFLIGHT_EVENTS": "300", "RELAY_RETENTION": "1h"}
	cut := w.relayOf(program.Plain(t), "cut", env.with(settings{"DATABASE_URL": proxy.DSN, "RELAY_TOPIC": first.name}))
	cut.waitStreaming()
	other := w.relayOf(program.Plain(t), "other", env.with(settings{"RELAY_TOPIC": second.name}))
	other.waitReady()
	f := &fleet{world: w}
	l := w.load(loadOptions{topic: "OrderCreated", rate: 300})
	l.waitCommitted(200)

	proxy.Freeze()
	h := handover{asked: time.Now(), probe: l.probe()}
	h.waitDelivered(f)
	if role := other.role(); role != relay.Owner {
		t.Errorf("the other relay is %s", role)
	}
	l.waitCommitted(200)
	lost := cut.waitLog("lease lost, standing by") // by its own clock: nothing reaches it
	t.Logf("the first owner: %s", lost.text("error"))
	end := first.ends()[0]

	proxy.Thaw()
	eventually(t, patience, "the first owner is a standby", func() string {
		if role := cut.role(); role != relay.Standby {
			return cut.mustRun(string(role))
		}
		return ""
	})
	cut.waitReady()
	l.waitCommitted(200)
	if now := first.ends()[0]; now != end {
		t.Errorf("the first owner published %d events after its lease was past", now-end)
	}
	l.finish(other)
	a, b := first.read(), second.read()
	if last, next := a[len(a)-1].at, b[0].at; last.After(next) {
		t.Errorf("the first owner published until %s, the second one from %s on", last, next)
	}
	t.Logf("%d events from the first owner, %d from the second", len(a), len(b))
	within(t, "from the cut to the next owner's delivery", took(t, b, []handover{h}), promised)
	l.judge("kafka", append(events(t, a), events(t, b)...), budget)

	// It is as good a standby as any other.
	other.stop()
	last := handover{probe: l.probe()}
	last.waitDelivered(f)
	cut.stop()
}
