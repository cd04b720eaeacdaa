package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
	"github.com/sagaz-relay/relay/sinks/kafka"
)

// topic is a Kafka topic of one test. It is stamped by the broker's clock, so that a test can see
// when a record arrived.
type topic struct {
	t      testing.TB
	addr   string
	name   string
	client *kafkago.Client
	parts  int
}

// arrival is a record as a consumer sees it.
type arrival struct {
	partition int
	offset    int64
	key       string
	noKey     bool
	value     []byte
	headers   []relay.Header
	at        time.Time // appended
}

func newTopicName() string { return "e2e-" + strings.ToLower(rand.Text()[:12]) }

func newTopic(t testing.TB, addr string, partitions int) *topic {
	t.Helper()
	return newNamedTopic(t, addr, newTopicName(), partitions)
}

func newNamedTopic(t testing.TB, addr, name string, partitions int) *topic {
	t.Helper()
	k := openTopic(t, addr, name, partitions)
	// a broker that has just started has no controller for a moment
	k.retry("create topic "+k.name, func(ctx context.Context) error {
		res, err := k.client.CreateTopics(ctx, &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{
			Topic: k.name, NumPartitions: partitions, ReplicationFactor: 1,
			ConfigEntries: []kafkago.ConfigEntry{{ConfigName: "message.timestamp.type", ConfigValue: "LogAppendTime"}},
		}}})
		if err == nil {
			err = res.Errors[k.name]
		}
		if errors.Is(err, kafkago.TopicAlreadyExists) { // the answer to an earlier try was lost
			return nil
		}
		return err
	})
	return k
}

// openTopic is newTopic for one that somebody else makes.
func openTopic(t testing.TB, addr, name string, partitions int) *topic {
	t.Helper()
	transport := &kafkago.Transport{MetadataTTL: 100 * time.Millisecond}
	t.Cleanup(transport.CloseIdleConnections)
	k := &topic{t: t, addr: addr, name: name, parts: partitions, client: &kafkago.Client{Addr: kafkago.TCP(addr), Timeout: 20 * time.Second, Transport: transport}}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		// the broker may be down
		_, _ = k.client.DeleteTopics(ctx, &kafkago.DeleteTopicsRequest{Topics: []string{k.name}})
	})
	return k
}

// retry calls f until it works: a topic that was just made, or a broker that was just started, has
// no leaders for a moment.
func (k *topic) retry(what string, f func(context.Context) error) {
	k.t.Helper()
	eventually(k.t, patience, what, func() string {
		ctx, cancel := context.WithTimeout(k.t.Context(), 20*time.Second)
		defer cancel()
		if err := f(ctx); err != nil {
			return err.Error()
		}
		return ""
	})
}

// set changes a setting of the topic.
func (k *topic) set(name, value string) {
	k.t.Helper()
	k.retry("set "+name, func(ctx context.Context) error {
		res, err := k.client.IncrementalAlterConfigs(ctx, &kafkago.IncrementalAlterConfigsRequest{Resources: []kafkago.IncrementalAlterConfigsRequestResource{{
			ResourceType: kafkago.ResourceTypeTopic, ResourceName: k.name,
			Configs: []kafkago.IncrementalAlterConfigsRequestConfig{{Name: name, Value: value, ConfigOperation: kafkago.ConfigOperationSet}},
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
	})
}

// ends returns the offset behind the last record, by partition.
func (k *topic) ends() []int64 {
	k.t.Helper()
	ends := make([]int64, k.parts)
	var ask []kafkago.OffsetRequest
	for i := range k.parts {
		ask = append(ask, kafkago.LastOffsetOf(i))
	}
	k.retry("offsets of "+k.name, func(ctx context.Context) error {
		res, err := k.client.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: map[string][]kafkago.OffsetRequest{k.name: ask}})
		if err != nil {
			return err
		}
		for _, p := range res.Topics[k.name] {
			if p.Error != nil {
				return p.Error
			}
			ends[p.Partition] = p.LastOffset
		}
		return nil
	})
	return ends
}

// read returns everything that the topic holds, partition by partition.
func (k *topic) read() (all []arrival) {
	k.t.Helper()
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{k.addr}
	k.retry("reading "+k.name, func(ctx context.Context) error {
		all = nil
		return kafka.ReadBack(ctx, cfg, []string{k.name}, time.Time{}, func(s kafka.Stored) error {
			all = append(all, arrival{s.Partition, s.Offset, s.Key, s.NoKey, s.Value, s.Headers, s.Time})
			return nil
		})
	})
	return all
}

// events are the arrivals for the checker.
func events(t testing.TB, all []arrival) []verify.Event {
	t.Helper()
	out := make([]verify.Event, 0, len(all))
	for i := range all {
		out = append(out, verify.Event{ID: all[i].id(t), Key: all[i].key})
	}
	return out
}

// id is the event's, by its header.
func (a *arrival) id(t testing.TB) relay.UUID {
	t.Helper()
	id, err := relay.ParseUUID(a.header("event_id"))
	if err != nil {
		t.Fatalf("partition %d, offset %d: header event_id: %v", a.partition, a.offset, err)
	}
	return id
}

func (a *arrival) header(name string) string {
	for _, h := range a.headers {
		if h.Key == name {
			return h.Value
		}
	}
	return ""
}
