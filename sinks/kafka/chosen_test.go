package kafka

import (
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// A header names the partition; without it the key does. What no partition has, or is no number, is
// refused, with nothing of its key sent behind it, and the others go.
func TestPartitionHeader(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic := createTopic(t, addr, 3)
	s := newSink(t, addr, func(c *Config) { c.PartitionHeader = "shard" })
	var batch []*relay.Record
	add := func(key string, seq int, shard string) {
		rec := sinktest.NewRecord(topic, key, seq, 0)
		if shard != "" {
			rec.Headers = append(rec.Headers, relay.Header{Key: "shard", Value: shard})
		}
		batch = append(batch, rec)
	}
	want := map[string]int{}
	for key, shard := range map[string]string{"a": "0", "b": "1", "c": "2", "": "2", "d": "002"} {
		for seq := range 5 {
			add(key, seq, shard)
		}
		want[key] = int(shard[len(shard)-1] - '0')
	}
	add("nobody", 0, "null") // as JSON's null is sent
	want["nobody"] = partitionOf("nobody", 3)
	plain := []string{"k1", "k2", "k3", "k4", "k5"}
	for _, key := range plain {
		add(key, 0, "")
		want[key] = partitionOf(key, 3)
	}
	first := len(batch)
	for i, bad := range []string{"3", "-1", "+1", "1.0", "x", "99999999999", "0x1", " 1"} {
		key := "bad" + string(rune('0'+i))
		add(key, 0, bad)
		add(key, 1, "0")
	}
	last := len(batch)
	add("late", 0, "1")
	want["late"] = 1
	err := s.Publish(testContext(t), batch)
	got := outcome(batch, err)
	for i := range got {
		switch at := i - first; {
		case i < first || i >= last:
			if got[i] != "ok" {
				t.Errorf("record %d: %s, want it sent", i, got[i])
			}
		case at%2 == 1:
			if got[i] != "behind" {
				t.Errorf("record %d: %s, want it behind a refused one", i, got[i])
			}
		case at == 0 && got[i] != "unknown_topic" || at > 0 && got[i] != "encode":
			t.Errorf("record %d: %s", i, got[i])
		}
	}
	if err == nil || !strings.Contains(err.(*relay.BatchError).Errs[first].Error(), "header shard: topic "+topic+" has no partition 3, it has 3") {
		t.Errorf("the error of the first is %v", err)
	}
	arrived := map[string]int{}
	for _, d := range consume(t, addr, topic) {
		arrived[string(d.Key)]++
		if w, ok := want[string(d.Key)]; !ok || d.Partition != w {
			t.Errorf("key %q is in partition %d, want %d", d.Key, d.Partition, w)
		}
	}
	for key := range want {
		n := 5
		if key == "late" || key == "nobody" || slices.Contains(plain, key) {
			n = 1
		}
		if arrived[key] != n {
			t.Errorf("key %q: %d records, want %d", key, arrived[key], n)
		}
	}
}
