package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/relay"
)

// Stored is a message as a consumer of the queue sees it.
type Stored struct {
	RoutingKey  string
	MessageID   string
	Value       []byte
	Headers     []relay.Header
	Redelivered bool
}

// ReadBack gives f every message that is ready in the queue, in the order in which a consumer would
// get them, and leaves all of them in it. They are taken without an acknowledgement and given back
// at the end, to their old places. Afterwards each counts as redelivered. A quorum queue also
// counts the deliveries, and drops (or dead-letters) a message beyond its delivery-limit, which
// RabbitMQ 4 sets to 20. Messages that come meanwhile are not read. Of a quorum queue 65535
// messages can be read, which is what the broker sends without an acknowledgement; with more in it
// ReadBack fails.
//
// The queue may have no other consumer: what one has taken and not acknowledged cannot be seen, and
// would come back in between. ReadBack takes the queue for itself, and fails when it has a
// consumer. A stream cannot be read in this way, and fails too. It stops at f's first error.
func ReadBack(ctx context.Context, cfg Config, queue string, f func(Stored) error) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	l, err := connect(ctx, cfg, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	// which gives back what was taken, if the channel has not done it
	defer func() { _ = l.close() }()
	defer context.AfterFunc(ctx, func() { l.kill("read back: context ended") })()
	if err := readBack(ctx, l, queue, f); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("read back queue %q: %w", queue, reason(err))
	}
	return nil
}

func readBack(ctx context.Context, l *link, queue string, f func(Stored) error) error {
	ch, err := l.conn.Channel()
	if err != nil {
		return err
	}
	info, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		return err
	}
	if info.Consumers > 0 {
		return fmt.Errorf("it has %d consumers: stop them first, what they have taken cannot be seen", info.Consumers)
	}
	// Without a limit a quorum queue sends 2000 messages; a classic one sends all. Asking for the
	// rest by basic.get, or by another consumer, would have a quorum queue take them back in
	// another order.
	limit := maxPrefetch
	if info.Messages > maxPrefetch {
		limit = 0
	}
	if err := ch.Qos(limit, 0, false); err != nil {
		return err
	}
	in, err := ch.Consume(queue, "", false, true, false, false, nil)
	if err != nil {
		return err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	silent := 0 // ticks since the last message
	for n := 0; n < info.Messages; {
		select {
		case d, ok := <-in:
			if !ok {
				return errors.New("the broker ended the delivery")
			}
			n, silent = n+1, 0
			if err := f(stored(d)); err != nil {
				return err
			}
		case <-tick.C:
			if silent++; silent < stalled {
				continue
			}
			now, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
			switch {
			case err != nil:
				return err
			case now.Messages == 0:
				return complete(l, ch, queue, n)
			}
			return fmt.Errorf("%d of %d messages came, and no more: a quorum queue sends at most %d without an acknowledgement, and a stream cannot be read in this way", n, info.Messages, maxPrefetch)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return ch.Close()
}

// complete gives the messages back, and fails when the queue then has more than the n that came.
// Others may have expired before they came, or been dropped by a length limit. While we have them
// they do not count, whether they have arrived here or are still on their way.
func complete(l *link, ch *amqp.Channel, queue string, n int) error {
	if err := ch.Close(); err != nil {
		return err
	}
	again, err := l.conn.Channel()
	if err != nil {
		return err
	}
	defer func() { _ = again.Close() }() // nothing was done on it
	info, err := again.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err == nil && info.Messages > n {
		err = fmt.Errorf("%d of %d messages came, and then none for %d s: the broker or this machine is too busy, try again", n, info.Messages, stalled)
	}
	return err
}

const (
	maxPrefetch = 65535 // AMQP's largest
	// stalled is how many seconds without a message mean that no more will come.
	stalled = 10
)

func stored(d amqp.Delivery) Stored {
	s := Stored{RoutingKey: d.RoutingKey, MessageID: d.MessageId, Value: d.Body, Redelivered: d.Redelivered}
	for k, v := range d.Headers {
		if text, ok := v.(string); ok {
			s.Headers = append(s.Headers, relay.Header{Key: k, Value: text})
		}
	}
	return s
}
