package kafka

import (
	"bytes"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"

	"github.com/sagaz-relay/relay/internal/testbed/captured"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/encode"
)

// encoded are the records of a shape's rows.
func encoded(b *testing.B, shape captured.Shape) []*relay.Record {
	b.Helper()
	events, err := shape.Events()
	if err != nil {
		b.Fatal(err)
	}
	enc, err := encode.New(encode.DefaultConfig())
	if err != nil {
		b.Fatal(err)
	}
	records := make([]*relay.Record, len(events))
	for i := range events {
		records[i] = new(relay.Record)
		if err := enc.Encode(records[i], &events[i]); err != nil {
			b.Fatal(err)
		}
	}
	return records
}

// BenchmarkStageRequest writes records into a produce request, by partition. One op is one shape's
// rows.
func BenchmarkStageRequest(b *testing.B) {
	const partitions = 4
	for _, shape := range captured.Shapes {
		b.Run(shape.Name, func(b *testing.B) {
			records := encoded(b, shape)
			var f frame
			var w batchWriter
			var groups [partitions][]*relay.Record
			var request []byte
			now := time.UnixMilli(1_790_000_000_123)
			b.ReportAllocs()
			for b.Loop() {
				for i := range groups {
					groups[i] = groups[i][:0]
				}
				for _, rec := range records {
					p := partitionOf(rec.Key, partitions)
					groups[p] = append(groups[p], rec)
				}
				f.begin(8, 77, "client", 9*time.Second)
				for i, group := range groups {
					mark := f.partition("order.placed", int32(i))
					w.begin(f.buf)
					for _, rec := range group {
						w.add(rec, 1<<30)
					}
					var err error
					if f.buf, err = w.finish(producerID{1, 0}, 0, now); err != nil {
						b.Fatal(err)
					}
					f.closePartition(mark)
				}
				request = f.finish()
			}
			b.SetBytes(int64(len(request)))
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(records)), "ns/event")
			// kafka-go reads all of it back, checksums included.
			_, _, _, msg, err := protocol.ReadRequest(bytes.NewBuffer(request))
			if err != nil {
				b.Fatal(err)
			}
			read := 0
			for _, p := range msg.(*produce.Request).Topics[0].Partitions {
				all := p.RecordSet.Records
				for {
					rec, err := all.ReadRecord()
					if err != nil {
						break
					}
					value, err := protocol.ReadAll(rec.Value)
					if want := groups[p.Partition][0]; err != nil || len(rec.Headers) != len(want.Headers) || !bytes.Equal(value, want.Value) {
						b.Fatalf("partition %d: read %.60q with %d headers, %v", p.Partition, value, len(rec.Headers), err)
					}
					groups[p.Partition] = groups[p.Partition][1:]
					read++
				}
			}
			if read != len(records) {
				b.Fatalf("%d records in the request, want %d", read, len(records))
			}
		})
	}
}
