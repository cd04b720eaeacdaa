package main

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// partitions of each topic: as many as a small cluster's default.
const partitions = 4

// topic is a target in Kafka.
type topic struct {
	addr, name string
	client     *kgo.Client
	admin      *kadm.Client
}

func openTopic(ctx context.Context, addr, name string) (*topic, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka: %w", err)
	}
	t := &topic{addr: addr, name: name, client: client, admin: kadm.NewClient(client)}
	if _, err := t.admin.CreateTopic(ctx, partitions, 1, nil, name); err != nil {
		client.Close()
		return nil, fmt.Errorf("create topic: %w", err)
	}
	return t, nil
}

func (t *topic) stored(ctx context.Context) (int, error) {
	offsets, err := t.admin.ListEndOffsets(ctx, t.name)
	if err == nil {
		err = offsets.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the topic's end: %w", err)
	}
	n := int64(0)
	offsets.Each(func(o kadm.ListedOffset) { n += o.Offset })
	return int(n), nil
}

func (t *topic) consume(ctx context.Context, each func(body []byte, headers []string)) (<-chan error, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(t.addr), kgo.ConsumeTopics(t.name), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(time.Second))
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka: %w", err)
	}
	ended := make(chan error, 1)
	go func() {
		defer client.Close()
		for ctx.Err() == nil {
			fetches := client.PollFetches(ctx)
			for _, f := range fetches.Errors() {
				if ctx.Err() == nil {
					ended <- fmt.Errorf("consume: %w", f.Err)
					return
				}
			}
			fetches.EachRecord(func(r *kgo.Record) {
				headers := make([]string, len(r.Headers))
				for i, h := range r.Headers {
					headers[i] = h.Key
				}
				each(r.Value, headers)
			})
		}
		ended <- nil
	}()
	return ended, nil
}

func (t *topic) close(ctx context.Context) error {
	_, err := t.admin.DeleteTopic(ctx, t.name)
	t.client.Close()
	if err != nil {
		return fmt.Errorf("delete topic: %w", err)
	}
	return nil
}
