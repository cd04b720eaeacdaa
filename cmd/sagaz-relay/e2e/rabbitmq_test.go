package e2e

import (
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
)

// queue is a durable queue of one test, bound to an exchange of its own.
type queue struct {
	t    testing.TB
	url  string
	name string // of the exchange too
}

// newQueue makes a queue that gets what the routing keys match; "#" is everything.
func newQueue(t testing.TB, url string, bindings ...string) *queue {
	t.Helper()
	q := &queue{t: t, url: url, name: newTopicName()}
	q.on(func(ch *amqp.Channel) error {
		if err := ch.ExchangeDeclare(q.name, "topic", true, false, false, false, nil); err != nil {
			return err
		}
		if _, err := ch.QueueDeclare(q.name, true, false, false, false, nil); err != nil {
			return err
		}
		for _, key := range bindings {
			if err := ch.QueueBind(q.name, key, q.name, false, nil); err != nil {
				return err
			}
		}
		return nil
	})
	t.Cleanup(func() {
		conn, err := amqp.Dial(url)
		if err != nil {
			return // the broker is down, by the test's wish
		}
		defer conn.Close()
		if ch, err := conn.Channel(); err == nil {
			_, _ = ch.QueueDelete(q.name, false, false, false)
			_ = ch.ExchangeDelete(q.name, false, false)
		}
	})
	return q
}

// env are the variables with which a relay publishes to the exchange.
func (q *queue) env() settings {
	return settings{"BROKER_TYPE": "rabbitmq", "RABBITMQ_URL": q.url, "RABBITMQ_EXCHANGE": q.name}
}

func (q *queue) on(f func(*amqp.Channel) error) {
	q.t.Helper()
	conn, err := amqp.Dial(q.url)
	if err != nil {
		q.t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err == nil {
		err = f(ch)
	}
	if err != nil {
		q.t.Fatalf("queue %s: %v", q.name, err)
	}
}

func (q *queue) depth() (n int) {
	q.t.Helper()
	q.on(func(ch *amqp.Channel) error {
		info, err := ch.QueueDeclarePassive(q.name, true, false, false, false, nil)
		n = info.Messages
		return err
	})
	return n
}

// drain takes everything out of the queue. Nobody may publish meanwhile.
func (q *queue) drain() []amqp.Delivery {
	q.t.Helper()
	var all []amqp.Delivery
	q.on(func(ch *amqp.Channel) error {
		info, err := ch.QueueDeclarePassive(q.name, true, false, false, false, nil)
		if err != nil {
			return err
		}
		deliveries, err := ch.Consume(q.name, "", true, true, false, false, nil)
		if err != nil {
			return err
		}
		silence := time.NewTimer(patience)
		defer silence.Stop()
		for len(all) < info.Messages {
			select {
			case d, ok := <-deliveries:
				if !ok {
					q.t.Fatalf("queue %s: closed after %d of %d messages", q.name, len(all), info.Messages)
				}
				all = append(all, d)
			case <-silence.C:
				q.t.Fatalf("queue %s: %d messages, %d came", q.name, info.Messages, len(all))
			}
		}
		return nil
	})
	if n := q.depth(); n != 0 {
		q.t.Fatalf("queue %s: %d messages came while it was read", q.name, n)
	}
	return all
}

// messageEvents are the messages for the checker; the key is in the body.
func messageEvents(t testing.TB, all []amqp.Delivery) []verify.Event {
	t.Helper()
	out := make([]verify.Event, 0, len(all))
	for i := range all {
		id, err := relay.ParseUUID(all[i].MessageId)
		if err != nil {
			t.Fatalf("message %d: message_id: %v", i, err)
		}
		out = append(out, verify.Event{ID: id, Key: decodeBody(t, all[i].Body).AggregateID})
	}
	return out
}
