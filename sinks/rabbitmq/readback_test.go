package rabbitmq

import (
	"context"
	"errors"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// Reading back leaves everything where it was: it can be done again, and a consumer then gets all
// of it in order.
func TestReadBack(t *testing.T) {
	for _, kind := range []string{"classic", "quorum"} {
		t.Run(kind, func(t *testing.T) {
			r := newRoom(t, brokertest.RabbitMQ(t).URL, amqp.Table{"x-queue-type": kind})
			s := newSink(t, r.config())
			// A quorum queue notices a little later that the consumer of the read before has gone.
			readBack := func(ctx context.Context, f func(Stored) error) error {
				t.Helper()
				eventually(t, "the broker has seen its consumer go", func() bool { return r.consumers(t) == 0 })
				return ReadBack(ctx, r.config(), r.name, f)
			}
			if err := readBack(soon(t), func(Stored) error { return errors.New("it is empty") }); err != nil {
				t.Fatal(err)
			}
			batch := sinktest.Interleave(sinktest.Records(bound, "a", 0, 1500), sinktest.Records(bound, "b", 0, 1500))
			if err := s.Publish(soon(t), batch); err != nil {
				t.Fatal(err)
			}
			for round := range 2 {
				var got []Stored
				if err := readBack(soon(t), func(s Stored) error { got = append(got, s); return nil }); err != nil {
					t.Fatal(err)
				}
				if len(got) != len(batch) {
					t.Fatalf("round %d: %d messages, want %d", round, len(got), len(batch))
				}
				for i, s := range got {
					if rec := batch[i]; s.MessageID != rec.EventID.String() || s.RoutingKey != bound || string(s.Value) != string(rec.Value) || len(s.Headers) != len(rec.Headers) || s.Redelivered != (round > 0) {
						t.Fatalf("round %d, message %d: %s %v, want %s", round, i, s.MessageID, s.Redelivered, rec.EventID)
					}
				}
			}
			// Stopped half way.
			stop, n := errors.New("enough"), 0
			err := readBack(soon(t), func(Stored) error {
				if n++; n == 10 {
					return stop
				}
				return nil
			})
			if !errors.Is(err, stop) {
				t.Errorf("got %v, want the caller's error", err)
			}
			ctx, cancel := context.WithCancelCause(soon(t))
			err = readBack(ctx, func(Stored) error { cancel(stop); return nil })
			if !errors.Is(err, stop) {
				t.Errorf("got %v, want the context's cause", err)
			}
			eventually(t, "everything is back in the queue", func() bool { return r.depth(t) == len(batch) })
			var left []sinktest.Delivered
			for _, d := range r.deliveries(t) {
				left = append(left, sinktest.Delivered{Topic: d.RoutingKey, Value: d.Body})
			}
			sinktest.CheckOrder(t, left, map[string]int{"a": 1500, "b": 1500}, false)
		})
	}
}

func TestReadBackRefuses(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	none := func(Stored) error { return nil }
	transient(t, ReadBack(soon(t), r.config(), r.name+"-missing", none), "NOT_FOUND", r.name+"-missing")

	ch := admin(t, r.url)
	if _, err := ch.Consume(r.name, "", false, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	transient(t, ReadBack(soon(t), r.config(), r.name, none), "consumers", "stop them")
	if err := ch.Close(); err != nil {
		t.Fatal(err)
	}

	// While it is read it may have no other consumer.
	if err := newSink(t, r.config()).Publish(soon(t), sinktest.Records(bound, "a", 0, 1)); err != nil {
		t.Fatal(err)
	}
	err := ReadBack(soon(t), r.config(), r.name, func(Stored) error {
		if _, err := admin(t, r.url).Consume(r.name, "", true, false, false, false, nil); err == nil {
			t.Error("another consumer got in between")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}

	stream := r.name + "-stream"
	ch = admin(t, r.url)
	if _, err := ch.QueueDeclare(stream, true, false, false, false, amqp.Table{"x-queue-type": "stream"}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := ch.QueueDelete(stream, false, false, false); err != nil {
			t.Error(err)
		}
	}()
	if err := ch.PublishWithContext(soon(t), "", stream, true, false, amqp.Publishing{Body: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream holds a message", func() bool {
		info, err := ch.QueueDeclarePassive(stream, true, false, false, false, nil)
		return err == nil && info.Messages == 1
	})
	transient(t, ReadBack(soon(t), r.config(), stream, none), "0 of 1 messages", "stream")
}
