package kafka

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func readAllBack(t *testing.T, addr string, topics []string, since time.Time) (all []Stored) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Brokers = []string{addr}
	if err := ReadBack(testContext(t), cfg, topics, since, func(s Stored) error {
		all = append(all, s)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// What is read back is what kafka-go's own reader finds: every codec, more than one fetch, several
// topics and partitions.
func TestReadBack(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topics := []string{createTopic(t, addr, 3), createTopic(t, addr, 1)}
	want := map[string]int{}
	for n, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		s := newSink(t, addr, func(c *Config) { c.Compression = codec })
		for _, topic := range topics {
			var keys [][]*relay.Record
			for _, key := range []string{"a", "b", "c"} {
				recs := sinktest.Records(topic, key, 20*n, 20)
				want[key] = 20 * (n + 1)
				for i, rec := range recs {
					recs[i] = sinktest.NewRecord(topic, key, 20*n+i, 30_000) // 9 MB in all
					recs[i].Headers = append(rec.Headers, relay.Header{Key: "ünïcödé", Value: "✓"})
				}
				keys = append(keys, recs)
			}
			keyless := record(topic, "", 10)
			keyless.Headers = nil
			if err := s.Publish(testContext(t), append(sinktest.Interleave(keys...), keyless)); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := readAllBack(t, addr, append([]string{topicName(), "no/topic"}, topics...), time.Time{})
	for _, topic := range topics {
		var mine []Stored
		for _, s := range got {
			if s.Topic == topic {
				mine = append(mine, s)
			}
		}
		other := consume(t, addr, topic)
		if len(mine) != len(other) {
			t.Fatalf("%d records, kafka-go reads %d", len(mine), len(other))
		}
		var ordered []sinktest.Delivered
		for i, s := range mine {
			o := other[i]
			if s.Partition != o.Partition || s.Offset != o.Offset || s.NoKey != o.NullKey || s.Key != o.Key || !bytes.Equal(s.Value, o.Value) || !slices.Equal(s.Headers, o.Headers) || !s.Time.Equal(o.Time) {
				t.Fatalf("record %d: %d/%d %q, kafka-go has %d/%d %q", i, s.Partition, s.Offset, s.Key, o.Partition, o.Offset, o.Key)
			}
			if !s.NoKey {
				ordered = append(ordered, sinktest.Delivered{Topic: topic, Key: s.Key, Value: s.Value})
			}
		}
		sinktest.CheckOrder(t, ordered, want, false)
	}
	m, err := newClient(t, addr).Metadata(testContext(t), &kafkago.MetadataRequest{Topics: topics[:1]})
	if err != nil || len(m.Topics) != 1 {
		t.Fatal(err)
	}
}

// From a moment on, and no topic is made by asking.
func TestReadBackSince(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic, missing := createTopic(t, addr, 1), topicName()
	s := newSink(t, addr)
	if err := s.Publish(testContext(t), sinktest.Records(topic, "a", 0, 5)); err != nil {
		t.Fatal(err)
	}
	all := readAllBack(t, addr, []string{topic, missing}, time.Time{})
	if len(all) != 5 {
		t.Fatalf("%d records, want 5", len(all))
	}
	last := all[4].Time
	for !time.Now().After(last.Add(2 * time.Millisecond)) { // Kafka's clock has milliseconds
		pause(t, time.Millisecond)
	}
	if err := s.Publish(testContext(t), sinktest.Records(topic, "a", 5, 3)); err != nil {
		t.Fatal(err)
	}
	if got := readAllBack(t, addr, []string{topic}, last.Add(time.Millisecond)); len(got) != 3 || got[0].Offset != 5 {
		t.Errorf("%d records from the moment on, want 3", len(got))
	}
	if got := readAllBack(t, addr, []string{topic}, time.Now().Add(time.Hour)); len(got) != 0 {
		t.Errorf("%d records from the future", len(got))
	}
	m, err := newClient(t, addr).Metadata(testContext(t), &kafkago.MetadataRequest{Topics: []string{missing}})
	if err != nil {
		t.Fatal(err)
	}
	if m.Topics[0].Error == nil {
		t.Error("asking made the topic")
	}

	stop := errors.New("enough")
	cfg := DefaultConfig()
	cfg.Brokers = []string{addr}
	n := 0
	if err := ReadBack(testContext(t), cfg, []string{topic}, time.Time{}, func(Stored) error { n++; return stop }); !errors.Is(err, stop) || n != 1 {
		t.Errorf("got %v after %d records, want the caller's error after one", err, n)
	}
	cfg.Brokers = []string{"127.0.0.1:1"}
	if err := ReadBack(testContext(t), cfg, []string{topic}, time.Time{}, nil); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("without a broker: %v", err)
	}
}
