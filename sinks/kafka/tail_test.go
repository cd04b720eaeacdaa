package kafka

import (
	"context"
	"errors"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// readTail returns the ids that are found, and what is unread.
func readTail(t *testing.T, s *Sink, since time.Time, topics ...string) (ids map[relay.UUID]int, report relay.TailReport) {
	t.Helper()
	ids = make(map[relay.UUID]int)
	report, err := s.ReadTail(testContext(t), relay.TailQuery{Topics: topics, Since: since, Most: 1 << 20}, func(rec *relay.Record) { ids[rec.EventID]++ })
	if err != nil {
		t.Fatal(err)
	}
	return ids, report
}

// wantFound wants just these.
func wantFound(t *testing.T, got map[relay.UUID]int, batch ...*relay.Record) {
	t.Helper()
	for _, rec := range batch {
		if got[rec.EventID] != 1 {
			t.Errorf("event %s found %d times", rec.EventID, got[rec.EventID])
		}
	}
	if len(got) != len(batch) {
		t.Errorf("found %d events, want %d", len(got), len(batch))
	}
}

// The topic wants the broker's time: its clock and ours may differ a little.
func TestTailByTheBrokersTime(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic := createTopic(t, addr, 3, kafkago.ConfigEntry{ConfigName: "message.timestamp.type", ConfigValue: "LogAppendTime"})
	s := newSink(t, addr)
	old := sinktest.Records(topic, "a", 0, 5)
	if err := s.Publish(testContext(t), old); err != nil {
		t.Fatal(err)
	}
	pause(t, clockSkew+100*time.Millisecond) // what is within clockSkew counts as younger
	since := time.Now()
	recs := sinktest.Records(topic, "a", 5, 5)
	if err := s.Publish(testContext(t), recs); err != nil {
		t.Fatal(err)
	}
	ids, report := readTail(t, s, since, topic)
	wantFound(t, ids, recs...)
	if len(report.Unread) > 0 {
		t.Errorf("unread: %v", report.Unread)
	}
}

// A topic that was deleted and made again begins at offset 0; one that is missing has nothing.
func TestTailOfATopicMadeAgain(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic := createTopic(t, addr, 2)
	s := newSink(t, addr)
	since := time.Now()
	if err := s.Publish(testContext(t), sinktest.Records(topic, "a", 0, 500)); err != nil {
		t.Fatal(err)
	}
	client := newClient(t, addr)
	if _, err := client.DeleteTopics(testContext(t), &kafkago.DeleteTopicsRequest{Topics: []string{topic}}); err != nil {
		t.Fatal(err)
	}
	for ctx := testContext(t); ; pause(t, 20*time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatal("the topic does not go")
		}
		m, err := client.Metadata(ctx, &kafkago.MetadataRequest{Topics: []string{topic}})
		if err == nil && errors.Is(m.Topics[0].Error, kafkago.UnknownTopicOrPartition) {
			break
		}
	}
	ids, report := readTail(t, s, since, topic)
	wantFound(t, ids)
	if len(report.Unread) > 0 {
		t.Errorf("unread: %v", report.Unread)
	}
	ctx := testContext(t)
	for {
		res, err := client.CreateTopics(ctx, &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{Topic: topic, NumPartitions: 2, ReplicationFactor: 1}}})
		if err == nil && res.Errors[topic] == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err, res.Errors[topic])
		}
		pause(t, 20*time.Millisecond)
	}
	waitForTopic(t, addr, topic, 2)
	recs := sinktest.Records(topic, "a", 500, 3)
	if _, err := sinktest.Offer(ctx, newSink(t, addr), recs); err != nil {
		t.Fatal(err)
	}
	ids, _ = readTail(t, s, since, topic)
	wantFound(t, ids, recs...)
}

// A broker that does not answer costs the time that it is given, and no more.
func TestTailOfASilentBroker(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic := createTopic(t, addr, 2)
	net := newProxy(t)
	s := newSink(t, addr, net.use)
	if err := s.Publish(testContext(t), sinktest.Records(topic, "a", 0, 5)); err != nil {
		t.Fatal(err)
	}
	resume := net.stall()
	defer resume()
	ctx, cancel := context.WithTimeout(testContext(t), 200*time.Millisecond)
	defer cancel()
	if report, err := s.ReadTail(ctx, relay.TailQuery{Topics: []string{topic}, Since: time.Now(), Most: 100}, func(*relay.Record) {}); err == nil && len(report.Unread) == 0 {
		t.Error("neither an error nor anything unread")
	}
}

// An event is known by the header of each envelope; what is no id is passed over.
func TestEventIDOfARecord(t *testing.T) {
	want := sinktest.NewRecord("", "", 0, 0).EventID
	for name, headers := range map[string][]relay.Header{
		"sagaz, raw":  {{Key: "event_id", Value: want.String()}, {Key: "id", Value: "0198f3a2-5b7c-7d10-8e2f-a1b2c3d4e5f6"}},
		"cloudevents": {{Key: "ce_specversion", Value: "1.0"}, {Key: "ce_id", Value: want.String()}},
		"debezium":    {{Key: "id", Value: want.String()}},
		"overridden":  {{Key: "event_id", Value: "order-7"}, {Key: "ce_id", Value: want.String()}},
	} {
		if got, ok := eventID(headers); !ok || got != want {
			t.Errorf("%s: got %s, %t", name, got, ok)
		}
	}
	if _, ok := eventID([]relay.Header{{Key: "event_id", Value: "order-7"}}); ok {
		t.Error("what is no id was taken for one")
	}
}
