package kafka

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// The first events go to topics that the broker makes on first use. For a while it answers for some
// partitions that nobody leads them, when others take records already. No record may arrive twice
// for that, and each key's are in order.
func TestFirstRecordsOfNewTopicsArriveOnce(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	const starts, topicsEach, lanes, keysEach, perKey = 20, 6, 6, 3, 12
	for start := range starts {
		s := newSink(t, addr, func(c *Config) { c.TopicWait = 30 * time.Second })
		var topics []string
		for range topicsEach {
			topics = append(topics, topicName())
			deleteAfter(t, addr, topics[len(topics)-1])
		}
		var all sync.WaitGroup
		for lane := range lanes {
			var batch []*relay.Record
			for seq := range perKey {
				for k := range keysEach {
					topic := topics[(seq*(k+1)+lane)%topicsEach]
					batch = append(batch, sinktest.NewRecord(topic, fmt.Sprintf("lane%d-%d", lane, k), seq, 0))
				}
			}
			all.Go(func() {
				for len(batch) > 0 {
					n := min(len(batch), 15)
					if _, err := sinktest.Offer(testContext(t), s, batch[:n]); err != nil {
						t.Errorf("start %d: %v", start, err)
						return
					}
					batch = batch[n:]
				}
			})
		}
		all.Wait()
		seen := map[string]int{}
		for _, topic := range topics {
			last := map[string]int{}
			for _, d := range delivereds(consume(t, addr, topic)) {
				var p struct {
					Key string `json:"key"`
					Seq int    `json:"seq"`
				}
				if err := json.Unmarshal(d.Value, &p); err != nil {
					t.Fatal(err)
				}
				if before, ok := last[p.Key]; ok && p.Seq <= before {
					t.Errorf("start %d, topic %s, key %s: %d after %d", start, topic, p.Key, p.Seq, before)
				}
				last[p.Key] = p.Seq
				seen[fmt.Sprint(p.Key, " ", p.Seq)]++
			}
		}
		for record, n := range seen {
			if n > 1 {
				t.Errorf("start %d: record %s arrived %d times", start, record, n)
			}
		}
		if want := lanes * keysEach * perKey; len(seen) != want {
			t.Errorf("start %d: %d records arrived, want %d", start, len(seen), want)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
