package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
	"github.com/sagaz-relay/relay/sinks/file"
	"github.com/sagaz-relay/relay/sinks/kafka"
	"github.com/sagaz-relay/relay/sinks/rabbitmq"
)

const partitions = 3

// maxMessage is max.message.bytes of the round's topics: what "too large" is larger than.
const maxMessage = 64 << 10

// kafkaClient talks to the broker past the link.
func (s *testbed) kafkaClient() *kafkago.Client {
	return &kafkago.Client{Addr: kafkago.TCP(s.kafka.Plaintext), Timeout: 10 * time.Second, Transport: &kafkago.Transport{MetadataTTL: 100 * time.Millisecond}}
}

func closeClient(c *kafkago.Client) {
	if t, ok := c.Transport.(*kafkago.Transport); ok {
		t.CloseIdleConnections()
	}
}

func (s *testbed) createTopic(ctx context.Context, name string) error {
	c := s.kafkaClient()
	defer closeClient(c)
	res, err := c.CreateTopics(ctx, &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{
		Topic: name, NumPartitions: partitions, ReplicationFactor: 1,
		ConfigEntries: []kafkago.ConfigEntry{{ConfigName: "max.message.bytes", ConfigValue: fmt.Sprint(maxMessage)}},
	}}})
	if err == nil {
		err = res.Errors[name]
	}
	if errors.Is(err, kafkago.TopicAlreadyExists) {
		return nil // made by a request whose answer was lost
	}
	return err
}

func (s *testbed) deleteTopics(ctx context.Context, names ...string) {
	c := s.kafkaClient()
	defer closeClient(c)
	_, _ = c.DeleteTopics(ctx, &kafkago.DeleteTopicsRequest{Topics: names}) // the broker goes, too
}

// allowLarger raises a topic's max.message.bytes.
func (s *testbed) allowLarger(ctx context.Context, topic string) error {
	c := s.kafkaClient()
	defer closeClient(c)
	res, err := c.IncrementalAlterConfigs(ctx, &kafkago.IncrementalAlterConfigsRequest{Resources: []kafkago.IncrementalAlterConfigsRequestResource{{
		ResourceType: kafkago.ResourceTypeTopic, ResourceName: topic,
		Configs: []kafkago.IncrementalAlterConfigsRequestConfig{{Name: "max.message.bytes", Value: fmt.Sprint(16 * maxMessage), ConfigOperation: kafkago.ConfigOperationSet}},
	}}})
	if err != nil {
		return err
	}
	for _, r := range res.Resources {
		if r.Error != nil {
			return r.Error
		}
	}
	return nil
}

// inKafka is what topics hold, partition by partition.
func (s *testbed) inKafka(ctx context.Context, topics []string) (all []verify.Event, err error) {
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{s.kafka.Plaintext}
	err = kafka.ReadBack(ctx, cfg, topics, time.Time{}, func(r kafka.Stored) error {
		e := verify.Event{Key: r.Key}
		for _, h := range r.Headers {
			if h.Key == "event_id" {
				if e.ID, err = relay.ParseUUID(h.Value); err != nil {
					return fmt.Errorf("topic %s, partition %d, offset %d: %w", r.Topic, r.Partition, r.Offset, err)
				}
			}
		}
		all = append(all, e)
		return nil
	})
	return all, err
}

// onRabbit calls f with a channel of its own.
func (s *testbed) onRabbit(f func(*amqp.Channel) error) error {
	conn, err := amqp.DialConfig(s.rabbit.URL, amqp.Config{Dial: amqp.DefaultDial(5 * time.Second)})
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	return f(ch)
}

// createQueue makes an exchange and a queue of the same name that gets the event types.
func (s *testbed) createQueue(name string, types ...string) error {
	return s.onRabbit(func(ch *amqp.Channel) error {
		if err := ch.ExchangeDeclare(name, "topic", true, false, false, false, nil); err != nil {
			return err
		}
		if _, err := ch.QueueDeclare(name, true, false, false, false, nil); err != nil {
			return err
		}
		for _, key := range types {
			if err := ch.QueueBind(name, key, name, false, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *testbed) bind(queue, eventType string) error {
	return s.onRabbit(func(ch *amqp.Channel) error { return ch.QueueBind(queue, eventType, queue, false, nil) })
}

func (s *testbed) deleteQueue(name string) {
	_ = s.onRabbit(func(ch *amqp.Channel) error { // the broker goes, too
		_, _ = ch.QueueDelete(name, false, false, false)
		return ch.ExchangeDelete(name, false, false)
	})
}

// inRabbit is what a queue holds.
func (s *testbed) inRabbit(ctx context.Context, queue string) (all []verify.Event, err error) {
	cfg := rabbitmq.DefaultConfig()
	cfg.URL = s.rabbit.URL
	err = rabbitmq.ReadBack(ctx, cfg, queue, func(m rabbitmq.Stored) error {
		var e verify.Event
		if e.ID, err = relay.ParseUUID(m.MessageID); err != nil {
			return err
		}
		var body struct {
			AggregateID string `json:"aggregate_id"`
		}
		err = json.Unmarshal(m.Value, &body)
		e.Key = body.AggregateID
		all = append(all, e)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = s.onRabbit(func(ch *amqp.Channel) error { // what was read is in the queue still
		info, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err == nil && info.Messages != len(all) {
			err = fmt.Errorf("queue %s: %d messages, %d were read", queue, info.Messages, len(all))
		}
		return err
	})
	return all, err
}

// inFile is what the sink file wrote.
func inFile(path string) ([]verify.Event, error) {
	var all []verify.Event
	err := file.Read(path, func(l file.Line) error {
		all = append(all, verify.Event{ID: l.EventID, Key: l.Key})
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return all, err
}
