package kafka

import (
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// eventBatch is a batch as a lane offers it: records of about 700 bytes on the wire for many keys.
func eventBatch(lane, n int, topics ...string) []*relay.Record {
	batch := make([]*relay.Record, n)
	for i := range batch {
		batch[i] = record(topics[i%len(topics)], fmt.Sprintf("order-%d-%d", lane, i%97), 500)
	}
	return batch
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPublish offers batches of 500 from 4 lanes to a real broker. One op is one record.
//
//	go test ./sinks/kafka -run '^$' -bench Publish -benchtime 1000000x
func BenchmarkPublish(b *testing.B) {
	for _, tc := range []struct {
		name                     string
		topics, parts, lanes, of int
		compression              string
	}{
		{"topics=1/partitions=4/lanes=4/batch=500", 1, 4, 4, 500, "none"},
		{"topics=1/partitions=1/lanes=4/batch=500", 1, 1, 4, 500, "none"},
		{"topics=20/partitions=4/lanes=4/batch=500", 20, 4, 4, 500, "none"},
		{"topics=20/partitions=4/lanes=16/batch=100", 20, 4, 16, 100, "none"},
		{"topics=1/partitions=4/lanes=4/batch=500/lz4", 1, 4, 4, 500, "lz4"},
	} {
		b.Run(tc.name, func(b *testing.B) {
			addr := brokertest.Kafka(b).Plaintext
			var topics []string
			for range tc.topics {
				topics = append(topics, createTopic(b, addr, tc.parts))
			}
			s := newSink(b, addr, func(c *Config) { c.Compression = tc.compression })
			batches := make([][]*relay.Record, tc.lanes)
			for lane := range batches {
				batches[lane] = eventBatch(lane, tc.of, topics...)
				// leaders of a new topic settle
				if _, err := sinktest.Offer(b.Context(), s, batches[lane]); err != nil {
					b.Fatal(err)
				}
			}
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ReportAllocs()
			b.SetBytes(int64(recordSize(batches[0][0]) - batchHeader))
			b.ResetTimer()
			start := cpu()
			lanes(tc.lanes, func(lane int) {
				for left.Add(-int64(tc.of)) > -int64(tc.of) {
					if err := s.Publish(b.Context(), batches[lane]); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric((cpu()-start).Seconds()/float64(b.N)*1e6, "cpu-s/M")
		})
	}
}

// BenchmarkPublishOne is the latency of one record at a time.
func BenchmarkPublishOne(b *testing.B) {
	addr := brokertest.Kafka(b).Plaintext
	s := newSink(b, addr)
	batch := eventBatch(0, 1, createTopic(b, addr, 4))
	if _, err := sinktest.Offer(b.Context(), s, batch); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	took := make([]time.Duration, 0, b.N)
	for b.Loop() {
		start := time.Now()
		if err := s.Publish(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkEncode compares our encoder of record batches with kafka-go's. One op is one record.
func BenchmarkEncode(b *testing.B) {
	batch := eventBatch(0, 500, "t")
	b.Run("ours", func(b *testing.B) {
		var w batchWriter
		var buf []byte
		b.ReportAllocs()
		for i := 0; i < b.N; i += len(batch) {
			w.begin(buf[:0])
			for _, rec := range batch {
				w.add(rec, 1<<30)
			}
			buf, _ = w.finish(producerID{1, 0}, 0, time.Now())
		}
	})
	b.Run("kafka-go", func(b *testing.B) {
		b.ReportAllocs()
		var sink countingWriter
		for i := 0; i < b.N; i += len(batch) {
			recs := make([]protocol.Record, len(batch))
			for j, rec := range batch {
				headers := make([]protocol.Header, len(rec.Headers))
				for k, h := range rec.Headers {
					headers[k] = protocol.Header{Key: h.Key, Value: []byte(h.Value)}
				}
				recs[j] = protocol.Record{Key: protocol.NewBytes([]byte(rec.Key)), Value: protocol.NewBytes(rec.Value), Headers: headers}
			}
			set := protocol.RecordSet{Version: 2, Attributes: protocol.Attributes(compress.None), Records: protocol.NewRecordReader(recs...)}
			if _, err := set.WriteTo(&sink); err != nil {
				b.Fatal(err)
			}
		}
	})
}

type countingWriter int

func (w *countingWriter) Write(p []byte) (int, error) {
	*w += countingWriter(len(p))
	return len(p), nil
}

// BenchmarkReadTail reads back what a relay that died may have had in flight. One op is one record.
//
//	go test ./sinks/kafka -run '^$' -bench ReadTail -benchtime 163840x
func BenchmarkReadTail(b *testing.B) {
	for _, tc := range []struct{ topics, parts int }{{1, 4}, {20, 12}} {
		b.Run(fmt.Sprintf("topics=%d/partitions=%d", tc.topics, tc.parts), func(b *testing.B) {
			addr := brokertest.Kafka(b).Plaintext
			var topics []string
			for range tc.topics {
				topics = append(topics, createTopic(b, addr, tc.parts))
			}
			s, since := newSink(b, addr), time.Now()
			const inflight = 16384
			for from := 0; from < inflight; from += 512 {
				if _, err := sinktest.Offer(b.Context(), s, eventBatch(from, 512, topics...)); err != nil {
					b.Fatal(err)
				}
			}
			used, reads := cpu(), 0
			b.ResetTimer()
			for read := 0; read < b.N; read += inflight {
				found := 0
				report, err := s.ReadTail(b.Context(), relay.TailQuery{Topics: topics, Since: since, Most: inflight}, func(*relay.Record) { found++ })
				if err != nil || found != inflight || len(report.Unread) > 0 {
					b.Fatal(found, report, err)
				}
				reads++
			}
			b.ReportMetric(float64((cpu()-used).Nanoseconds())/float64(reads*inflight), "cpu-ns/record")
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(reads), "ms/tail")
		})
	}
}
