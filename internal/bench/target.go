package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/sagaz-relay/relay/sinks/kafka"
	"github.com/sagaz-relay/relay/sinks/rabbitmq"
)

// target is the topic and queue that the measured events go to, made before and removed after.
type target struct {
	eventType string // also the topic, and the routing key
	relay     Relay

	kafka *kafkago.Client

	rabbit    *amqp.Connection
	channel   *amqp.Channel
	exchange  string
	queue     string
	queueType string
}

func openTarget(ctx context.Context, r Relay) (_ *target, err error) {
	t := &target{relay: r, eventType: fmt.Sprintf("sagaz.bench.%08x", rand.Uint32())}
	defer func() {
		if err != nil {
			_ = t.close() // the first error is the one to return
		}
	}()
	if slices.Contains(r.Sinks, "kafka") {
		if err := t.makeTopic(ctx); err != nil {
			return nil, err
		}
	}
	if slices.Contains(r.Sinks, "rabbitmq") {
		if err := t.makeQueue(); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// partitions is the partitions of the topic: as many as a small cluster's default.
const partitions = 4

func (t *target) makeTopic(ctx context.Context) error {
	client, err := kafkaClient(t.relay.Kafka)
	if err != nil || client == nil {
		return err
	}
	t.kafka = client
	resp, err := client.CreateTopics(ctx, &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{
		Topic: t.eventType, NumPartitions: partitions, ReplicationFactor: -1,
	}}})
	if err == nil {
		err = resp.Errors[t.eventType]
	}
	if err != nil {
		return fmt.Errorf("create topic %s: %w", t.eventType, err)
	}
	return nil
}

func (t *target) makeQueue() (err error) {
	if t.rabbit, t.exchange, err = rabbitConnection(t.relay.RabbitMQ); err != nil {
		return err
	}
	if t.channel, err = t.rabbit.Channel(); err != nil {
		return err
	}
	t.queue, t.queueType = t.eventType, "quorum"
	if err := t.channel.ExchangeDeclare(t.exchange, "topic", true, false, false, false, nil); err != nil {
		return fmt.Errorf("declare exchange %s: %w", t.exchange, err)
	}
	if _, err := t.channel.QueueDeclare(t.queue, true, false, false, false, amqp.Table{"x-queue-type": t.queueType}); err != nil {
		return fmt.Errorf("declare queue %s: %w", t.queue, err)
	}
	return t.channel.QueueBind(t.queue, t.eventType, t.exchange, false, nil)
}

func (t *target) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var errs []error
	if t.kafka != nil {
		resp, err := t.kafka.DeleteTopics(ctx, &kafkago.DeleteTopicsRequest{Topics: []string{t.eventType}})
		if err == nil {
			err = resp.Errors[t.eventType]
		}
		errs = append(errs, err)
	}
	if t.channel != nil && t.queue != "" {
		_, err := t.channel.QueueDelete(t.queue, false, false, false)
		errs = append(errs, err)
	}
	if t.rabbit != nil {
		errs = append(errs, t.rabbit.Close())
	}
	return errors.Join(errs...)
}

// bareRows is enough to measure a bare publisher, which is slow beside the rest.
const bareRows = 100_000

// bare measures what a publisher with confirms and the mandatory flag reaches on the queue, with as
// many messages outstanding as our sink may have, and nothing else to do. Without RabbitMQ there is
// nothing to measure.
func (t *target) bare(ctx context.Context, o Options, printf func(string, ...any)) (*Bare, error) {
	if t.rabbit == nil {
		return nil, nil
	}
	n := min(o.Rows, bareRows)
	if _, err := t.channel.QueuePurge(t.queue, false); err != nil {
		return nil, err
	}
	ch, err := t.rabbit.Channel()
	if err != nil {
		return nil, err
	}
	defer ch.Close() //nolint:errcheck // the connection is closed next
	if err := ch.Confirm(false); err != nil {
		return nil, err
	}
	body := []byte(`{"filler": "` + strings.Repeat("x", o.RowBytes+170) + `"}`)
	window := make(chan *amqp.DeferredConfirmation, bareOutstanding)
	failed := make(chan error, 1)
	go func() {
		for c := range window {
			if acked, err := c.WaitContext(ctx); err != nil || !acked {
				failed <- fmt.Errorf("bare publisher: not confirmed: %w", err)
				return
			}
		}
		failed <- nil
	}()
	started := time.Now()
	for range n {
		c, err := ch.PublishWithDeferredConfirmWithContext(ctx, t.exchange, t.eventType, true, false, amqp.Publishing{
			DeliveryMode: amqp.Persistent, ContentType: "application/json", Body: body,
			Headers: amqp.Table{"event_id": "0", "saga_id": "saga", "event_type": t.eventType, "content_type": "application/json"},
		})
		if err != nil {
			return nil, fmt.Errorf("bare publisher: %w", err)
		}
		window <- c
	}
	close(window)
	if err := <-failed; err != nil {
		return nil, err
	}
	b := &Bare{Queue: t.queueType + " queue", PerSecond: float64(n) / time.Since(started).Seconds()}
	printf("  bare publisher: %.0f events/s", b.PerSecond)
	return b, nil
}

// kafkaClient is for making and deleting the topic. It speaks plain text only: where the brokers
// want more, they create the topic by themselves, and the user deletes it.
func kafkaClient(cfg *kafka.Config) (*kafkago.Client, error) {
	if cfg.SecurityProtocol != "PLAINTEXT" {
		return nil, nil
	}
	addr := strings.TrimPrefix(cfg.Brokers[0], "kafka://")
	return &kafkago.Client{Addr: kafkago.TCP(addr), Timeout: 10 * time.Second}, nil
}

// rabbitConnection is for the queue and for the bare publisher.
func rabbitConnection(cfg *rabbitmq.Config) (conn *amqp.Connection, exchange string, err error) {
	conn, err = amqp.Dial(cfg.URL)
	if err != nil {
		return nil, "", fmt.Errorf("connect to RabbitMQ: %w", err)
	}
	return conn, cfg.Exchange, nil
}
