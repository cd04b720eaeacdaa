package kafka

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// The contract of every sink, on one partition and on several, compressed and not.
func TestContract(t *testing.T) {
	brokertest.Kafka(t) // started here, so that its own goroutines are none of the sink's
	for name, tc := range map[string]struct {
		partitions int
		change     func(*Config)
	}{
		"Plain":         {4, func(*Config) {}},
		"OnePartition":  {1, func(*Config) {}},
		"SmallBatches":  {2, func(c *Config) { c.BatchBytes = 2000 }},
		"Compressed":    {4, func(c *Config) { c.Compression = "lz4" }},
		"NotIdempotent": {4, func(c *Config) { c.Idempotence = false }},
	} {
		t.Run(name, func(t *testing.T) {
			sinktest.Run(t, sinktest.Harness{New: func(t testing.TB) *sinktest.Target {
				broker := brokertest.Kafka(t)
				topic := createTopic(t, broker.Plaintext, tc.partitions)
				net := newProxy(t)
				return &sinktest.Target{
					Sink:    newSink(t, broker.Plaintext, tc.change, net.use),
					Topic:   topic,
					Consume: func(t testing.TB) []sinktest.Delivered { return delivereds(consume(t, broker.Plaintext, topic)) },
					Refused: func(key string) (*relay.Record, relay.Reason) {
						return sinktest.NewRecord("no/such topic", key, 0, 0), relay.ReasonUnknownTopic
					},
					Stall: func(testing.TB) func() { return net.stall() },
					Faults: map[string]func(testing.TB){
						"connections cut": func(t testing.TB) {
							for range 5 {
								net.cutAll()
								pause(t, 20*time.Millisecond) // of traffic between the cuts
							}
						},
						"answers lost": func(t testing.TB) {
							answers, lost := 0, make(chan struct{})
							net.script(nil, func(key protocol.ApiKey) fate {
								if key != protocol.Produce {
									return forward
								}
								if answers++; answers == 30 {
									close(lost)
								}
								return map[bool]fate{true: cut}[answers%3 == 0 && answers <= 30]
							})
							select {
							case <-lost:
							case <-testContext(t).Done():
								t.Error("no 30 answers, of which ten were to be lost")
							}
							net.script(nil, nil)
						},
					},
				}
			}})
		})
	}
}

func pause(t testing.TB, d time.Duration) {
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// A consumer finds each record in the partition that the Java client would have chosen, byte by
// byte as it was, under the time of sending, with every codec.
func TestConsumersView(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	for codec := range codecs {
		t.Run(codec, func(t *testing.T) {
			topic := createTopic(t, addr, 7)
			s := newSink(t, addr, func(c *Config) { c.Compression = codec })
			var batch []*relay.Record
			for i, key := range []string{"order-1", "Grüße", "注文-42", "😀", strings.Repeat("k", 255), "\x00", "a", "b", "c", "d", ""} {
				for j := range 20 {
					rec := record(topic, key, 10+100*j)
					copy(rec.Value, fmt.Sprintf("%02d/%02d ", i, j))
					rec.Timestamp = time.Date(1999+i*10, 1, 1, 0, 0, 0, 0, time.UTC) // any clock
					rec.Headers = append(rec.Headers, relay.Header{Key: "größe", Value: "注文 ✓"}, relay.Header{Key: "empty"})
					batch = append(batch, rec)
				}
			}
			before := time.Now().Add(-time.Second)
			if err := s.Publish(testContext(t), batch); err != nil {
				t.Fatal(err)
			}
			want := map[string]*relay.Record{}
			for _, rec := range batch {
				want[string(rec.Value)] = rec
			}
			got := consume(t, addr, topic)
			if len(got) != len(batch) {
				t.Errorf("got %d records, want %d", len(got), len(batch))
			}
			for _, d := range got {
				rec := want[string(d.Value)]
				if rec == nil {
					t.Errorf("a value of %d bytes that was never sent: %.20q", len(d.Value), d.Value)
					continue
				}
				if d.Key != rec.Key || d.NullKey != (rec.Key == "") || !slices.Equal(d.Headers, rec.Headers) {
					t.Errorf("key %q (null %v) headers %q, want %q and %q", d.Key, d.NullKey, d.Headers, rec.Key, rec.Headers)
				}
				if rec.Key != "" && d.Partition != Partition([]byte(rec.Key), 7) {
					t.Errorf("key %q in partition %d, want %d", rec.Key, d.Partition, Partition([]byte(rec.Key), 7))
				}
				if d.Time.Before(before) || d.Time.After(time.Now().Add(time.Second)) {
					t.Errorf("timestamp %s, want the time of sending", d.Time)
				}
			}
		})
	}
}

// Records without a key stay together in a batch, and batches go round.
func TestNoKey(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic := createTopic(t, addr, 3)
	s := newSink(t, addr)
	for i := range 9 {
		batch := []*relay.Record{record(topic, "", 10), record(topic, "", 10)}
		for _, rec := range batch {
			copy(rec.Value, fmt.Sprint(i))
		}
		if err := s.Publish(testContext(t), batch); err != nil {
			t.Fatal(err)
		}
	}
	partitions, perBatch := map[int]int{}, map[byte]map[int]bool{}
	for _, d := range consume(t, addr, topic) {
		partitions[d.Partition]++
		if perBatch[d.Value[0]] == nil {
			perBatch[d.Value[0]] = map[int]bool{}
		}
		perBatch[d.Value[0]][d.Partition] = true
		if !d.NullKey {
			t.Error("a record without a key arrived with one")
		}
	}
	if want := map[int]int{0: 6, 1: 6, 2: 6}; !maps.Equal(partitions, want) {
		t.Errorf("records by partition: %v, want %v", partitions, want)
	}
	for i, in := range perBatch {
		if len(in) != 1 {
			t.Errorf("batch %c lies in partitions %v, want one", i, in)
		}
	}
}

// One batch for many topics that do not exist yet: the broker makes them.
func TestManyNewTopics(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	s := newSink(t, addr, func(c *Config) { c.TopicWait = 30 * time.Second })
	var topics []string
	var batch []*relay.Record
	for range 25 {
		topics = append(topics, topicName())
	}
	for seq := range 8 {
		for i, topic := range topics {
			batch = append(batch, sinktest.NewRecord(topic, fmt.Sprint("k", i%5), seq, 50))
		}
	}
	for _, topic := range topics {
		deleteAfter(t, addr, topic)
	}
	if _, err := sinktest.Offer(testContext(t), s, batch); err != nil {
		t.Fatal(err)
	}
	for i, topic := range topics {
		sinktest.CheckOrder(t, delivereds(consume(t, addr, topic)), map[string]int{fmt.Sprint("k", i%5): 8}, true)
	}
}

// A record that is larger than its topic allows is refused with both numbers; those around it
// arrive in order.
func TestTooLarge(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	for name, tc := range map[string]struct {
		limit, large, batch int
	}{
		"smaller than a batch": {10_000, 12_000, 1_000_000},
		"larger than a batch":  {50_000, 60_000, 20_000},
		"allowed, alone":       {3_000_000, 2_000_000, 1_000_000},
	} {
		t.Run(name, func(t *testing.T) {
			topic := createTopic(t, addr, 2, kafkago.ConfigEntry{ConfigName: "max.message.bytes", ConfigValue: fmt.Sprint(tc.limit)})
			s := newSink(t, addr, func(c *Config) { c.BatchBytes = tc.batch })
			refuse := tc.large > tc.limit
			var keys [][]*relay.Record
			for _, key := range []string{"a", "b", "c", "d"} {
				keys = append(keys, sinktest.Records(topic, key, 0, 40))
			}
			batch := sinktest.Interleave(keys...)
			at := []int{0, 50, 51, len(batch) / 2, len(batch)} // places among the good ones
			for i, place := range at {
				large := record(topic, fmt.Sprint("large", i), tc.large)
				if refuse {
					large.Key = fmt.Sprint("a", i) // nothing is behind it
				} else {
					large.Key = "a"
				}
				batch = slices.Insert(batch, place+i, large)
			}
			last := *batch[len(batch)-1] // behind one of them
			last.Key = batch[0].Key
			batch = append(batch, &last)
			err := s.Publish(testContext(t), batch)
			for i, o := range outcome(batch, err) {
				if i == len(batch)-1 && refuse {
					if o != "behind" {
						t.Errorf("behind a record that is too large: %s", o)
					}
					continue
				}
				if large := len(batch[i].Value) == tc.large; large && refuse != (o == "too_large") || !large && o != "ok" {
					t.Errorf("record %d of %d bytes: %s", i, len(batch[i].Value), o)
				}
				if o == "too_large" {
					r, _ := relay.Refused(err.(*relay.BatchError).Errs[i])
					if r.Limit != int64(tc.limit) || r.Size != int64(recordSize(batch[i])) {
						t.Errorf("record %d: size %d limit %d, want %d and %d", i, r.Size, r.Limit, recordSize(batch[i]), tc.limit)
					}
				}
			}
			got := slices.DeleteFunc(consume(t, addr, topic), func(d stored) bool { return len(d.Value) == tc.large })
			sinktest.CheckOrder(t, delivereds(got), map[string]int{"a": 40, "b": 40, "c": 40, "d": 40}, false)
		})
	}
}

// 20 MB are refused before they are copied anywhere, and nothing waits for them.
func TestTwentyMegabytes(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic, other := createTopic(t, addr, 2), createTopic(t, addr, 2)
	s := newSink(t, addr)
	good := sinktest.Records(topic, "a", 0, 3)
	huge := record(topic, "h", 20<<20)
	batch := []*relay.Record{good[0], huge, good[1], sinktest.NewRecord(other, "b", 0, 0), huge, good[2]}
	if err := s.Publish(testContext(t), sinktest.Records(topic, "warm", 0, 1)); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := s.Publish(testContext(t), batch)
	runtime.ReadMemStats(&after)
	if got, want := outcome(batch, err), []string{"ok", "too_large", "ok", "ok", "behind", "ok"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	r, _ := relay.Refused(err)
	if r.Limit != 1_048_588 || r.Size != int64(recordSize(huge)) {
		t.Errorf("size %d limit %d, want %d and the broker's default 1048588", r.Size, r.Limit, recordSize(huge))
	}
	if len(err.Error()) > 500 {
		t.Errorf("the error has %d characters", len(err.Error()))
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20 {
		t.Errorf("%d bytes allocated for a refusal, want less than 4 MB", used)
	}
	sinktest.CheckOrder(t, delivereds(consume(t, addr, topic)), map[string]int{"a": 3, "warm": 1}, false)
}

// Compressed it may fit, so the broker decides.
func TestTwentyMegabytesCompressed(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic := createTopic(t, addr, 1)
	s := newSink(t, addr, func(c *Config) { c.Compression = "zstd" })
	fits, random := record(topic, "a", 20<<20), record(topic, "b", 20<<20)
	seed := uint64(1)
	for i := range random.Value {
		seed = seed*6364136223846793005 + 1442695040888963407
		random.Value[i] = byte(seed >> 56)
	}
	batch := []*relay.Record{sinktest.NewRecord(topic, "a", 0, 0), random, fits, sinktest.NewRecord(topic, "a", 1, 0)}
	err := s.Publish(testContext(t), batch)
	if got, want := outcome(batch, err), []string{"ok", "too_large", "ok", "ok"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v: %v", got, want, err)
	}
	got := consume(t, addr, topic)
	if len(got) != 3 || !bytes.Equal(got[1].Value, fits.Value) {
		t.Errorf("%d records arrived, want 3 with the 20 MB in the middle", len(got))
	}
}

// A compacted topic takes no record without a key; the broker names the culprits.
func TestRejectedByBroker(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic := createTopic(t, addr, 1, kafkago.ConfigEntry{ConfigName: "cleanup.policy", ConfigValue: "compact"})
	s := newSink(t, addr)
	good := sinktest.Records(topic, "a", 0, 30)
	batch := slices.Insert(slices.Clone(good), 20, record(topic, "", 10))
	batch = slices.Insert(batch, 7, record(topic, "", 10), record(topic, "", 10))
	err := s.Publish(testContext(t), batch)
	for i, o := range outcome(batch, err) {
		if want := map[bool]string{true: "rejected", false: "ok"}[batch[i].Key == ""]; o != want {
			t.Errorf("record %d: %s, want %s", i, o, want)
		}
	}
	sinktest.CheckOrder(t, delivereds(consume(t, addr, topic)), map[string]int{"a": 30}, false)
}

// Partitions added to a topic are used when the sink's knowledge has aged.
func TestPartitionsAdded(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic := createTopic(t, addr, 1)
	s := newSink(t, addr, func(c *Config) { c.MetadataTTL = 50 * time.Millisecond })
	ctx := testContext(t)
	if err := s.Publish(ctx, sinktest.Records(topic, "a", 0, 1)); err != nil {
		t.Fatal(err)
	}
	res, err := newClient(t, addr).CreatePartitions(ctx, &kafkago.CreatePartitionsRequest{Topics: []kafkago.TopicPartitionsConfig{{Name: topic, Count: 6}}})
	if err != nil || res.Errors[topic] != nil {
		t.Fatal(err, res)
	}
	waitForTopic(t, addr, topic, 6)
	for n := 0; ; n++ {
		if _, err := sinktest.Offer(ctx, s, sinktest.Records(topic, fmt.Sprint("key", n), 0, 1)); err != nil {
			t.Fatal(err)
		}
		used := map[int]bool{}
		for _, d := range consume(t, addr, topic) {
			used[d.Partition] = true
		}
		if len(used) == 6 {
			break
		}
	}
}

// A topic that is deleted and made again is written to again, and loses nothing. Its sequence
// numbers go on under a new epoch, or the broker would take records for copies.
func TestTopicDeletedAndMadeAgain(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic := createTopic(t, addr, 2)
	s := newSink(t, addr)
	ctx := testContext(t)
	for range 3 {
		if _, err := sinktest.Offer(ctx, s, sinktest.Records(topic, "a", 0, 10)); err != nil {
			t.Fatal(err)
		}
		client := newClient(t, addr)
		if _, err := client.DeleteTopics(ctx, &kafkago.DeleteTopicsRequest{Topics: []string{topic}}); err != nil {
			t.Fatal(err)
		}
		for { // made again as soon as the old one is gone
			res, err := client.CreateTopics(ctx, &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{Topic: topic, NumPartitions: 3, ReplicationFactor: 1}}})
			if err == nil && res.Errors[topic] == nil {
				break
			}
			if ctx.Err() != nil {
				t.Fatal(err, res)
			}
		}
		waitForTopic(t, addr, topic, 3)
		batch := sinktest.Interleave(sinktest.Records(topic, "a", 0, 20), sinktest.Records(topic, "b", 0, 20), sinktest.Records(topic, "c", 0, 20))
		if _, err := sinktest.Offer(ctx, s, batch); err != nil {
			t.Fatal(err)
		}
		sinktest.CheckOrder(t, delivereds(consume(t, addr, topic)), map[string]int{"a": 20, "b": 20, "c": 20}, true)
	}
}

// A late copy of a request: it times out here, but is only slow, and arrives after the records were
// sent again and newer ones behind them. With sequence numbers the broker refuses it. Without, it
// ends up in the log, which shows that the test can fail.
func TestRequestArrivesLate(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	for _, idempotent := range []bool{true, false} {
		t.Run(fmt.Sprint("idempotence=", idempotent), func(t *testing.T) {
			topic := createTopic(t, addr, 1)
			net := newProxy(t)
			s := newSink(t, addr, net.use, func(c *Config) { c.Idempotence, c.RequestTimeout = idempotent, 500*time.Millisecond })
			ctx := testContext(t)
			publish := func(first, n int) error { return s.Publish(ctx, sinktest.Records(topic, "a", first, n)) }
			if err := publish(0, 5); err != nil {
				t.Fatal(err)
			}
			net.script(func(key protocol.ApiKey, _ []byte) fate {
				if key == protocol.Produce {
					return delay
				}
				return forward
			}, nil)
			batch := sinktest.Records(topic, "a", 5, 5)
			if got, want := outcome(batch, s.Publish(ctx, batch)), repeat("again", 5); !slices.Equal(got, want) {
				t.Fatalf("while requests are delayed: %v, want %v", got, want)
			}
			if net.delayedRequests() != 1 {
				t.Fatalf("%d requests delayed, want 1: after a timeout the lane decides", net.delayedRequests())
			}
			net.script(nil, nil)
			if err := publish(5, 5); err != nil {
				t.Fatal(err)
			}
			if err := publish(10, 5); err != nil {
				t.Fatal(err)
			}
			codes := net.release(t)
			got := places(t, consume(t, addr, topic))["a"]
			want := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}
			wantCode := kafkago.InvalidProducerEpoch
			if !idempotent {
				want, wantCode = append(want, 5, 6, 7, 8, 9), 0
			}
			if !slices.Equal(got, want) || kafkago.Error(codes[0]) != wantCode {
				t.Errorf("got %v and error code %d for the late request, want %v and %d", got, codes[0], want, wantCode)
			}
			if err := publish(15, 5); err != nil { // and the sink still works
				t.Error(err)
			}
		})
	}
}

// An answer that is lost with its connection: the request is sent again as it was, and the broker
// appends it once. Without sequence numbers the lane repeats it, in order.
func TestAnswerLost(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	for _, idempotent := range []bool{true, false} {
		t.Run(fmt.Sprint("idempotence=", idempotent), func(t *testing.T) {
			topic := createTopic(t, addr, 2)
			net := newProxy(t)
			s := newSink(t, addr, net.use, func(c *Config) { c.Idempotence = idempotent })
			n := 0
			net.script(nil, func(key protocol.ApiKey) fate {
				if key == protocol.Produce {
					if n++; n%3 == 0 {
						return cut
					}
				}
				return forward
			})
			failures := 0
			want := map[string]int{}
			for first := 0; first < 100; first += 10 {
				var keys [][]*relay.Record
				for _, key := range []string{"a", "b", "c"} {
					keys = append(keys, sinktest.Records(topic, key, first, 10))
					want[key] = first + 10
				}
				failed, err := sinktest.Offer(testContext(t), s, sinktest.Interleave(keys...))
				if err != nil {
					t.Fatal(err)
				}
				failures += failed
			}
			if n < 6 {
				t.Errorf("%d answers, want several lost", n)
			}
			got := consume(t, addr, topic)
			sinktest.CheckOrder(t, delivereds(got), want, !idempotent)
			if idempotent && failures != 0 {
				t.Errorf("%d offers failed, want none: each request was repeated once", failures)
			}
			if !idempotent && (failures == 0 || len(got) == 300) {
				t.Errorf("%d offers failed, %d records: nothing was repeated, so nothing was tested", failures, len(got))
			}
		})
	}
}

// A connection that was idle and is dead is no failure.
func TestIdleConnectionDies(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	for _, idempotent := range []bool{true, false} {
		topic := createTopic(t, addr, 1)
		net := newProxy(t)
		s := newSink(t, addr, net.use, func(c *Config) { c.Idempotence = idempotent })
		for i := range 5 {
			if err := s.Publish(testContext(t), sinktest.Records(topic, "a", i, 1)); err != nil {
				t.Fatalf("after %d dead connections: %v", i, err)
			}
			link := s.broker(1).link
			net.cutAll()
			<-link.down
		}
		sinktest.CheckOrder(t, delivereds(consume(t, addr, topic)), map[string]int{"a": 5}, false)
	}
}

// A small batch costs little, and none of it per record.
func TestPublishAllocations(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic := createTopic(t, addr, 4)
	s := newSink(t, addr)
	ctx := testContext(t)
	for _, n := range []int{1, 500} {
		batch := eventBatch(0, n, topic)
		if _, err := sinktest.Offer(ctx, s, batch); err != nil {
			t.Fatal(err)
		}
		allocs := testing.AllocsPerRun(50, func() {
			if err := s.Publish(ctx, batch); err != nil {
				t.Error(err)
			}
		})
		if allocs > 120 {
			t.Errorf("batch of %d: %.0f allocations, want at most 120", n, allocs)
		}
	}
}

// A broker that is not there at first: transient errors with its address, then everything as if
// nothing had been.
func TestNobodyThere(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	s := newSink(t, addr)
	batch := values("t", "a", 2)
	err = s.Publish(testContext(t), batch)
	if got, want := outcome(batch, err), repeat("again", 2); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, err := range []error{err, s.Check(testContext(t))} {
		if err == nil || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "nothing listens") {
			t.Errorf("%v does not name the address and what to check", err)
		}
	}
	var be *relay.BatchError
	if errors.As(err, &be) {
		t.Errorf("got %T, want an error of the whole call", err)
	}
}
