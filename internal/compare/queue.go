package main

import (
	"context"
	"errors"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"
)

// queue is a target in RabbitMQ: an exchange, and a quorum queue that gets everything.
type queue struct {
	url, name string
	conn      *amqp.Connection
	channel   *amqp.Channel
}

func openQueue(url, name string) (_ *queue, err error) {
	q := &queue{url: url, name: name}
	if q.conn, err = amqp.Dial(url); err != nil {
		return nil, fmt.Errorf("connect to RabbitMQ: %w", err)
	}
	if q.channel, err = q.conn.Channel(); err != nil {
		return nil, err
	}
	if err := q.channel.ExchangeDeclare(name, "topic", true, false, false, false, nil); err != nil {
		return nil, fmt.Errorf("declare exchange: %w", err)
	}
	if _, err := q.channel.QueueDeclare(name, true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
		return nil, fmt.Errorf("declare queue: %w", err)
	}
	return q, q.channel.QueueBind(name, "#", name, false, nil)
}

func (q *queue) stored(context.Context) (int, error) {
	state, err := q.channel.QueueDeclarePassive(q.name, true, false, false, false, nil)
	if err != nil {
		return 0, fmt.Errorf("ask for the queue's length: %w", err)
	}
	return state.Messages, nil
}

func (q *queue) consume(ctx context.Context, each func(body []byte, headers []string)) (<-chan error, error) {
	conn, err := amqp.Dial(q.url)
	if err != nil {
		return nil, fmt.Errorf("connect to RabbitMQ: %w", err)
	}
	channel, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	if err := channel.Qos(2000, 0, false); err != nil {
		return nil, err
	}
	messages, err := channel.Consume(q.name, "", false, false, false, false, nil)
	if err != nil {
		return nil, fmt.Errorf("consume: %w", err)
	}
	ended := make(chan error, 1)
	go func() {
		defer conn.Close() //nolint:errcheck // what it brought is acknowledged
		unacknowledged := 0
		for {
			select {
			case <-ctx.Done():
				ended <- nil
				return
			case m, ok := <-messages:
				if !ok {
					ended <- errors.New("consume: RabbitMQ has closed the channel")
					return
				}
				headers := make([]string, 0, len(m.Headers))
				for name := range m.Headers {
					headers = append(headers, name)
				}
				each(m.Body, headers)
				if unacknowledged++; unacknowledged >= 500 || len(messages) == 0 {
					if err := m.Ack(true); err != nil {
						ended <- fmt.Errorf("acknowledge: %w", err)
						return
					}
					unacknowledged = 0
				}
			}
		}
	}()
	return ended, nil
}

func (q *queue) close(context.Context) error {
	_, err := q.channel.QueueDelete(q.name, false, false, false)
	return errors.Join(err, q.channel.ExchangeDelete(q.name, false, false), q.conn.Close())
}

// rabbitVersion is what the server says of itself.
func (s *servers) rabbitVersion() string {
	conn, err := amqp.Dial(s.rabbit.URL)
	if err != nil {
		return "unknown"
	}
	defer conn.Close() //nolint:errcheck // read only
	version, _ := conn.Properties["version"].(string)
	return version
}
