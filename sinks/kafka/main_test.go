package kafka

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestMain(m *testing.M) {
	before := goleak.IgnoreCurrent()
	code := brokertest.Run(m)
	if code == 0 {
		if err := goleak.Find(before); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines outlive the tests:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// patience is for what must come in the end, on a machine that runs other tests too.
const patience = time.Minute

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// newSink makes a sink that is closed when the test ends.
func newSink(t testing.TB, addr string, change ...func(*Config)) *Sink {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Brokers = []string{addr}
	for _, f := range change {
		f(&cfg)
	}
	s, err := New(cfg, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// newClient makes a client of kafka-go's own, to set things up and to look at what arrived.
func newClient(t testing.TB, addr string) *kafkago.Client {
	t.Helper()
	cfg := DefaultConfig()
	cfg.DialTimeout = patience
	d, err := newDialer(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &kafkago.Client{Addr: kafkago.TCP(addr), Timeout: patience, Transport: direct{d}}
}

// direct sends each request to the address given, over a connection of its own. kafka-go's
// Transport answers from a cache, and leaves goroutines behind.
type direct struct{ *dialer }

func (d direct) RoundTrip(ctx context.Context, addr net.Addr, req kafkago.Request) (kafkago.Response, error) {
	conn, _, err := d.dial(ctx, addr.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	// kafka-go's own reader, which knows more answers than ours
	raw := protocol.NewConn(conn.Conn, d.cfg.ClientID)
	raw.SetVersions(conn.versions)
	return raw.RoundTrip(req)
}

// createTopic makes a topic with settings, like max.message.bytes=1000.
func createTopic(t testing.TB, addr string, partitions int, config ...kafkago.ConfigEntry) string {
	t.Helper()
	client := newClient(t, addr)
	name := topicName()
	res, err := client.CreateTopics(testContext(t), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{
		Topic: name, NumPartitions: partitions, ReplicationFactor: 1, ConfigEntries: config,
	}}})
	if err == nil {
		err = res.Errors[name]
	}
	if err != nil {
		t.Fatalf("create topic %s: %v", name, err)
	}
	deleteAfter(t, addr, name)
	waitForTopic(t, addr, name, partitions)
	return name
}

// waitForTopic returns when each partition has a leader that answers.
func waitForTopic(t testing.TB, addr, name string, partitions int) {
	t.Helper()
	ctx, client := testContext(t), newClient(t, addr)
	var requests []kafkago.OffsetRequest
	for i := range partitions {
		requests = append(requests, kafkago.LastOffsetOf(i))
	}
	for {
		res, err := client.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: map[string][]kafkago.OffsetRequest{name: requests}})
		led := 0
		if err == nil {
			for _, p := range res.Topics[name] {
				if p.Error == nil {
					led++
				}
			}
		}
		if led == partitions {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("topic %s: %d of %d partitions have a leader: %v", name, led, partitions, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func topicName() string { return "t-" + sinktest.NewRecord("", "", 0, 0).EventID.String() }

// deleteAfter deletes a topic when the test ends, because the broker is shared.
func deleteAfter(t testing.TB, addr, topic string) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, _ = newClient(t, addr).DeleteTopics(ctx, &kafkago.DeleteTopicsRequest{Topics: []string{topic}})
	})
}

// stored is a record as a consumer sees it.
type stored struct {
	sinktest.Delivered
	Partition int
	Offset    int64
	NullKey   bool
	Time      time.Time
}

// consume reads all that a topic holds, partition by partition, with kafka-go's reader.
func consume(t testing.TB, addr, topic string) []stored {
	t.Helper()
	ctx := testContext(t)
	client := newClient(t, addr)
	m, err := client.Metadata(ctx, &kafkago.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		t.Fatalf("metadata of %s: %v", topic, err)
	}
	if err := m.Topics[0].Error; err != nil {
		t.Fatalf("metadata of %s: %v", topic, err)
	}
	var out []stored
	for _, p := range m.Topics[0].Partitions {
		offsets, err := client.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: map[string][]kafkago.OffsetRequest{
			topic: {kafkago.LastOffsetOf(p.ID)},
		}})
		if err != nil {
			t.Fatalf("offsets of %s/%d: %v", topic, p.ID, err)
		}
		at, end := int64(0), offsets.Topics[topic][0].LastOffset
		for at < end {
			res, err := client.Fetch(ctx, &kafkago.FetchRequest{Topic: topic, Partition: p.ID, Offset: at, MinBytes: 1, MaxBytes: 64 << 20, MaxWait: time.Second})
			if err == nil {
				err = res.Error
			}
			if err != nil {
				t.Fatalf("fetch %s/%d at %d: %v", topic, p.ID, at, err)
			}
			for {
				r, err := res.Records.ReadRecord()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatalf("read %s/%d at %d: %v", topic, p.ID, at, err)
				}
				if r.Offset < at { // a batch is fetched from its beginning
					continue
				}
				key, value := readAll(t, r.Key), readAll(t, r.Value)
				d := stored{Partition: p.ID, Offset: r.Offset, NullKey: r.Key == nil, Time: r.Time}
				d.Topic, d.Key, d.Value = topic, string(key), value
				for _, h := range r.Headers {
					d.Headers = append(d.Headers, relay.Header{Key: h.Key, Value: string(h.Value)})
				}
				out = append(out, d)
				at = r.Offset + 1
			}
		}
	}
	return out
}

func readAll(t testing.TB, b kafkago.Bytes) []byte {
	if b == nil {
		return nil
	}
	defer b.Close()
	data, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func delivereds(got []stored) []sinktest.Delivered {
	out := make([]sinktest.Delivered, len(got))
	for i := range got {
		out[i] = got[i].Delivered
	}
	return out
}

// places returns, by key, the places in that key's order as they came to lie in the log, for
// failure messages.
func places(t testing.TB, got []stored) map[string][]int {
	out := map[string][]int{}
	for _, d := range got {
		var p struct {
			Key string `json:"key"`
			Seq int    `json:"seq"`
		}
		if err := json.Unmarshal(d.Value, &p); err != nil {
			t.Fatal(err)
		}
		out[p.Key] = append(out[p.Key], p.Seq)
	}
	return out
}

// record makes a record whose size is about that of an event.
func record(topic, key string, size int) *relay.Record {
	rec := sinktest.NewRecord(topic, key, 0, 0)
	rec.Value = make([]byte, size)
	for i := range rec.Value {
		rec.Value[i] = "0123456789abcdef"[(i*7+i/13)%16]
	}
	return rec
}

// lanes runs f once per lane and waits for all.
func lanes(n int, f func(lane int)) {
	var wg sync.WaitGroup
	for lane := range n {
		wg.Go(func() { f(lane) })
	}
	wg.Wait()
}
