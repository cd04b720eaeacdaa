package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/createtopics"
	"github.com/segmentio/kafka-go/protocol/describeconfigs"
	"github.com/segmentio/kafka-go/protocol/initproducerid"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/sagaz-relay/relay/relay"
)

// control asks what any broker can answer (topics, producer ids, limits), one question at a time.
// It has a connection of its own, so that a question never waits behind records.
type control struct {
	dialer *dialer
	addrs  func() []string

	cluster atomic.Pointer[string] // its id in the last answer about metadata

	turn relay.Turn // who has it owns conn
	conn *wire
	addr string
}

func newControl(d *dialer, addrs func() []string) *control {
	return &control{dialer: d, addrs: addrs, turn: relay.NewTurn()}
}

// ask sends a request that may be repeated without harm. A connection that was idle may turn out
// closed, and then the request goes over a new one.
func (c *control) ask(ctx context.Context, req protocol.Message) (protocol.Message, error) {
	if err := c.turn.Take(ctx); err != nil {
		return nil, err
	}
	defer c.turn.Give()
	if c.conn != nil {
		res, err := c.exchange(ctx, req)
		if err == nil || ctx.Err() != nil {
			return res, err
		}
	}
	addrs := c.addrs()
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	var errs []error
	for _, addr := range addrs {
		conn, _, err := c.dialer.dial(ctx, addr)
		if err == nil {
			c.conn, c.addr = conn, addr
			var res protocol.Message
			if res, err = c.exchange(ctx, req); err == nil {
				return res, nil
			}
		}
		if ctx.Err() != nil {
			return nil, err
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// exchange uses conn, and drops it when that fails.
func (c *control) exchange(ctx context.Context, req protocol.Message) (protocol.Message, error) {
	conn := c.conn
	_ = conn.SetDeadline(time.Now().Add(c.dialer.cfg.RequestTimeout))
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	res, err := conn.RoundTrip(req)
	if !stop() && err == nil { // the deadline may hit the next question
		_ = conn.Close()
		c.conn = nil
		return res, nil
	}
	if err != nil {
		_ = conn.Close()
		c.conn = nil
		if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("ask kafka at %s: %w", c.addr, hint(err, c.dialer.cfg, asking))
	}
	return res, nil
}

// close is called when no question is under way and none will come.
func (c *control) close() {
	_ = c.turn.Take(context.Background()) // never ends before it has it
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
	c.turn.Give()
}

// topics asks about the topics by name, never about all, since a cluster may have thousands. Asking
// creates them where the broker does that by itself.
func (c *control) topics(ctx context.Context, names []string) (*metadata.Response, error) {
	if names == nil {
		names = []string{} // null would mean all
	}
	return c.metadata(ctx, &metadata.Request{TopicNames: names, AllowAutoTopicCreation: true})
}

// metadata asks, and refuses what no cluster is like.
func (c *control) metadata(ctx context.Context, req *metadata.Request) (*metadata.Response, error) {
	res, err := c.ask(ctx, req)
	if err != nil {
		return nil, err
	}
	m := res.(*metadata.Response)
	if err := plausible(m); err != nil {
		return nil, err
	}
	c.cluster.Store(&m.ClusterID)
	return m, nil
}

const (
	// maxBrokers is far above any cluster; each costs a goroutine here.
	maxBrokers = 5000
	// maxGap is how far the number of a partition may be above how many are listed: brokers list
	// all of them.
	maxGap = 1024
)

// plausible refuses what no cluster is like, before anything is made of it.
func plausible(m *metadata.Response) error {
	if n := len(m.Brokers); n > maxBrokers {
		return fmt.Errorf("kafka answered with %d brokers, want at most %d", n, maxBrokers)
	}
	for i := range m.Topics {
		t := &m.Topics[i]
		for j := range t.Partitions {
			if p := int(t.Partitions[j].PartitionIndex); p < 0 || p >= len(t.Partitions)+maxGap {
				return fmt.Errorf("kafka answered with partition %d of topic %.249q, which has %d", p, t.Name, len(t.Partitions))
			}
		}
	}
	return nil
}

// wouldCreate asks whether the cluster would create a topic, without creating it. The answer has
// what an answer about metadata does not: that the name collides with another topic's, or that a
// policy forbids it. It returns 0 and "" when the cluster would create it, or does not answer.
func (c *control) wouldCreate(ctx context.Context, name string) (code kafkago.Error, text string) {
	res, err := c.ask(ctx, &createtopics.Request{
		Topics:    []createtopics.RequestTopic{{Name: name, NumPartitions: 1, ReplicationFactor: 1}},
		TimeoutMs: int32(c.dialer.cfg.RequestTimeout.Milliseconds()), ValidateOnly: true,
	})
	if err != nil {
		return 0, ""
	}
	for _, t := range res.(*createtopics.Response).Topics {
		if t.Name == name {
			return kafkago.Error(t.ErrorCode), t.ErrorMessage
		}
	}
	return 0, ""
}

// notCreated returns why brokers do not create a topic with a legal name; "" when that is not
// known.
func (c *control) notCreated(ctx context.Context, name string) string {
	switch code, text := c.wouldCreate(ctx, name); code {
	case kafkago.InvalidTopic:
		// For Kafka . and _ are one, because they are in the names of its metrics.
		if strings.Contains(text, "collides") || strings.ContainsAny(name, "._") {
			return fmt.Sprintf("no broker creates it, because its name collides with that of another topic, in which . and _ count as the same (%v): "+
				"change event_type or RELAY_TOPIC, or delete the other topic", withText(code, text))
		}
		return fmt.Sprintf("no broker creates it (%v): change event_type or RELAY_TOPIC", withText(code, text))
	case kafkago.PolicyViolation:
		return fmt.Sprintf("no broker creates it by itself (%v): create it as that policy wants", withText(code, text))
	default: // it could be created, or we may not ask
		return ""
	}
}

// producer asks for a producer id of our own.
func (c *control) producer(ctx context.Context) (producerID, error) {
	res, err := c.ask(ctx, &initproducerid.Request{TransactionTimeoutMs: 60_000, ProducerID: -1, ProducerEpoch: -1})
	if err != nil {
		return noProducer, err
	}
	r := res.(*initproducerid.Response)
	if r.ErrorCode != 0 {
		return noProducer, kafkago.Error(r.ErrorCode)
	}
	return producerID{r.ProducerID, r.ProducerEpoch}, nil
}

// keeping is how long a topic keeps records.
type keeping struct {
	policy    string        // cleanup.policy
	retention time.Duration // retention.ms; 0: without an end
	ownTime   bool          // records have the time that we give them (message.timestamp.type)
}

// keeps asks for that of topics. What brokers do not answer is left out, mostly because the user
// may not ask.
func (c *control) keeps(ctx context.Context, topics []string) map[string]keeping {
	req := &describeconfigs.Request{}
	for _, name := range topics {
		req.Resources = append(req.Resources, describeconfigs.RequestResource{
			ResourceType: int8(kafkago.ResourceTypeTopic), ResourceName: name, ConfigNames: []string{"cleanup.policy", "retention.ms", "message.timestamp.type"},
		})
	}
	res, err := c.ask(ctx, req)
	if err != nil {
		return nil
	}
	all := make(map[string]keeping)
	for _, r := range res.(*describeconfigs.Response).Resources {
		var k keeping
		for _, e := range r.ConfigEntries {
			switch e.ConfigName {
			case "cleanup.policy":
				k.policy = e.ConfigValue
			case "message.timestamp.type":
				k.ownTime = e.ConfigValue == "CreateTime"
			case "retention.ms":
				if ms, err := strconv.ParseInt(e.ConfigValue, 10, 64); err == nil && ms > 0 && ms < math.MaxInt64/int64(time.Millisecond) {
					k.retention = time.Duration(ms) * time.Millisecond
				}
			}
		}
		all[r.ResourceName] = k
	}
	return all
}

// limit asks for max.message.bytes of a topic. It returns 0 when the broker does not answer, mostly
// because the user may not ask.
func (c *control) limit(ctx context.Context, topic string) (int64, error) {
	const name = "max.message.bytes"
	res, err := c.ask(ctx, &describeconfigs.Request{Resources: []describeconfigs.RequestResource{{
		ResourceType: int8(kafkago.ResourceTypeTopic), ResourceName: topic, ConfigNames: []string{name},
	}}})
	if err != nil {
		return 0, err
	}
	for _, r := range res.(*describeconfigs.Response).Resources {
		for _, e := range r.ConfigEntries {
			if n, err := strconv.ParseInt(e.ConfigValue, 10, 64); err == nil && e.ConfigName == name && n > 0 {
				return n, nil
			}
		}
	}
	return 0, nil
}
