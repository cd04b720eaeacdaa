package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
	"github.com/sagaz-relay/relay/sinks/file"
)

const (
	killRounds = 5
	// killBudget is RELAY_INFLIGHT_EVENTS: no kill may cause more duplicates than that.
	killBudget = 400
)

// after is what was true after a kill: rows that are sent will not be delivered again, so none of
// their events may be found behind what the sink had by then.
type after struct {
	sent map[relay.UUID]bool
	had  []int64 // by partition, or one number for a sink that is one sequence
}

// A relay is killed at random moments under load. Nothing is lost, order holds, and what is
// delivered again is what was in flight: not marked.
func TestKill(t *testing.T) {
	t.Parallel()
	t.Run("kafka and rabbitmq", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		broker := brokertest.Kafka(t)
		k := newTopic(t, broker.Plaintext, 4)
		q := newQueue(t, brokertest.RabbitMQ(t).URL, "#")
		var kafka, rabbit []after
		l := w.killRounds(k.name, q.env().with(settings{"BROKER_TYPE": "kafka,rabbitmq", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext}), func(sent map[relay.UUID]bool) {
			kafka = append(kafka, after{sent, k.ends()})
			rabbit = append(rabbit, after{sent, []int64{int64(q.depth())}})
		})
		arrivals := k.read()
		for _, a := range arrivals {
			for round, then := range kafka {
				if a.offset >= then.had[a.partition] && then.sent[a.id(t)] {
					t.Errorf("event %s was marked sent before kill %d, and delivered to kafka after it", a.id(t), round)
				}
			}
		}
		l.judge("kafka", events(t, arrivals), killRounds*killBudget)
		messages := messageEvents(t, q.drain())
		notAgain(t, messages, rabbit)
		l.judge("rabbitmq", messages, killRounds*killBudget)
	})
	t.Run("file", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		path := filepath.Join(t.TempDir(), "events.jsonl")
		read := func() []verify.Event {
			if _, err := os.Stat(path); os.IsNotExist(err) {
				return nil // killed before the first event
			}
			return lineEvents(t, func(f func(file.Line) error) error { return file.Read(path, f) })
		}
		var thens []after
		l := w.killRounds("OrderCreated", settings{"BROKER_TYPE": "file", "RELAY_FILE_PATH": path}, func(sent map[relay.UUID]bool) {
			thens = append(thens, after{sent, []int64{int64(len(read()))}})
		})
		got := read()
		notAgain(t, got, thens)
		l.judge("file", got, killRounds*killBudget)
	})
}

func notAgain(t *testing.T, got []verify.Event, thens []after) {
	t.Helper()
	for i, e := range got {
		for round, then := range thens {
			if int64(i) >= then.had[0] && then.sent[e.ID] {
				t.Errorf("event %s was marked sent before kill %d, and delivered after it", e.ID, round)
			}
		}
	}
}

// killRounds kills a relay again and again, and lets the last one finish. killed gets the rows that
// are sent after each.
func (w *world) killRounds(topic string, env settings, killed func(sent map[relay.UUID]bool)) *load {
	w.t.Helper()
	rnd := newRand(w.t)
	l := w.load(loadOptions{topic: topic})
	env = env.with(settings{"RELAY_INFLIGHT_EVENTS": fmt.Sprint(killBudget), "RELAY_BACKOFF_MAX": "500ms"})
	for i := range killRounds {
		p := w.relay(fmt.Sprintf("relay-%d", i), env)
		if i > 0 { // the first one at any moment of its start
			p.waitStreaming()
		}
		// Not to wait for anything: this is the random moment.
		time.Sleep(time.Duration(rnd.IntN(1000)) * time.Millisecond)
		p.crash()
		w.waitGone()
		sent := w.sentIDs()
		w.t.Logf("kill %d: %d committed, %d marked", i, l.committed(), len(sent))
		killed(sent)
	}
	p := w.relay("relay-last", env)
	p.waitStreaming()
	l.finish(p)
	p.stop()
	return l
}
