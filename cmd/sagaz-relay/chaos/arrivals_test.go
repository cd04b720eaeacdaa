package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
	"github.com/sagaz-relay/relay/sinks/file"
)

const partitions = 3

// maxMessage is max.message.bytes of the round's topics: what "too large" is larger than.
const maxMessage = 64 << 10

// kafkaClient talks to the broker past the link.
func (s *stand) kafkaClient() *kafkago.Client {
	return &kafkago.Client{Addr: kafkago.TCP(s.kafka.Plaintext), Timeout: 10 * time.Second, Transport: &kafkago.Transport{MetadataTTL: 100 * time.Millisecond}}
}

func closeClient(c *kafkago.Client) {
	if t, ok := c.Transport.(*kafkago.Transport); ok {
		t.CloseIdleConnections()
	}
}

func (s *stand) createTopic(ctx context.Context, name string) error {
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

func (s *stand) deleteTopics(ctx context.Context, names ...string) {
	c := s.kafkaClient()
	defer closeClient(c)
	_, _ = c.DeleteTopics(ctx, &kafkago.DeleteTopicsRequest{Topics: names}) // the broker goes, too
}

// allowLarger raises a topic's max.message.bytes.
func (s *stand) allowLarger(ctx context.Context, topic string) error {
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

// inKafka is what a topic holds, partition by partition.
func (s *stand) inKafka(ctx context.Context, topic string) ([]verify.Event, error) {
	c := s.kafkaClient()
	defer closeClient(c)
	var ask []kafkago.OffsetRequest
	for i := range partitions {
		ask = append(ask, kafkago.LastOffsetOf(i))
	}
	res, err := c.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: map[string][]kafkago.OffsetRequest{topic: ask}})
	if err != nil {
		return nil, err
	}
	var all []verify.Event
	for _, p := range res.Topics[topic] {
		if p.Error != nil {
			return nil, p.Error
		}
		for at := int64(0); at < p.LastOffset; {
			before := at
			if all, at, err = fetch(ctx, c, all, topic, p.Partition, at); err != nil {
				return nil, err
			}
			if at == before {
				return nil, fmt.Errorf("topic %s, partition %d: nothing at offset %d of %d", topic, p.Partition, at, p.LastOffset)
			}
		}
	}
	return all, nil
}

// fetch appends the events of a partition from an offset on, as many as come at once, and returns the next offset.
func fetch(ctx context.Context, c *kafkago.Client, all []verify.Event, topic string, partition int, at int64) ([]verify.Event, int64, error) {
	res, err := c.Fetch(ctx, &kafkago.FetchRequest{Topic: topic, Partition: partition, Offset: at, MinBytes: 1, MaxBytes: 16 << 20, MaxWait: 100 * time.Millisecond})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return all, at, err
	}
	for {
		r, err := res.Records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return all, at, nil
		}
		if err != nil {
			return all, at, err
		}
		if r.Offset < at { // a batch is fetched from its beginning
			continue
		}
		at = r.Offset + 1
		text, err := kafkago.ReadAll(r.Key)
		if err != nil {
			return all, at, err
		}
		e := verify.Event{Key: string(text)}
		for _, h := range r.Headers {
			if h.Key == "event_id" {
				if e.ID, err = relay.ParseUUID(string(h.Value)); err != nil {
					return all, at, fmt.Errorf("topic %s, partition %d, offset %d: %w", topic, partition, r.Offset, err)
				}
			}
		}
		all = append(all, e)
	}
}

// onRabbit calls f with a channel of its own.
func (s *stand) onRabbit(f func(*amqp.Channel) error) error {
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
func (s *stand) createQueue(name string, types ...string) error {
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

func (s *stand) bind(queue, eventType string) error {
	return s.onRabbit(func(ch *amqp.Channel) error { return ch.QueueBind(queue, eventType, queue, false, nil) })
}

func (s *stand) deleteQueue(name string) {
	_ = s.onRabbit(func(ch *amqp.Channel) error { // the broker goes, too
		_, _ = ch.QueueDelete(name, false, false, false)
		return ch.ExchangeDelete(name, false, false)
	})
}

// inRabbit takes everything out of a queue. Nobody may publish meanwhile.
func (s *stand) inRabbit(ctx context.Context, queue string) ([]verify.Event, error) {
	var all []verify.Event
	err := s.onRabbit(func(ch *amqp.Channel) error {
		info, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err != nil {
			return err
		}
		deliveries, err := ch.ConsumeWithContext(ctx, queue, "", true, true, false, false, nil)
		if err != nil {
			return err
		}
		for len(all) < info.Messages {
			select {
			case d, ok := <-deliveries:
				if !ok {
					return fmt.Errorf("queue %s: closed after %d of %d messages", queue, len(all), info.Messages)
				}
				e := verify.Event{}
				if e.ID, err = relay.ParseUUID(d.MessageId); err != nil {
					return err
				}
				if e.Key, err = aggregateID(d.Body); err != nil {
					return err
				}
				all = append(all, e)
			case <-ctx.Done():
				return fmt.Errorf("queue %s: %d of %d messages: %w", queue, len(all), info.Messages, ctx.Err())
			}
		}
		return nil
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

func aggregateID(body []byte) (string, error) {
	var b struct {
		AggregateID string `json:"aggregate_id"`
	}
	err := json.Unmarshal(body, &b)
	return b.AggregateID, err
}
