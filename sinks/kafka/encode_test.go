package kafka

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"

	"github.com/sagaz-relay/relay/relay"
)

// kafka-go's decoder, which checks the checksum too, reads back what we write.
func TestEncode(t *testing.T) {
	big := record("", "big", 300_000)
	recs := []*relay.Record{
		{Key: "k", Value: []byte("v")},
		{Value: []byte("no key"), Headers: []relay.Header{{Key: "a", Value: "1"}}},
		{Key: "empty value", Value: []byte{}},
		{Key: "no value", Headers: []relay.Header{{Key: "a", Value: "1"}}},
		{Key: "Grüße 注文", Value: []byte{0, 255, 10}, Headers: []relay.Header{{Key: "ünï", Value: "注"}, {Key: "e", Value: ""}}},
		{Key: strings.Repeat("k", 255), Value: bytes.Repeat([]byte("v"), 64)},
		big,
	}
	for i := range 200 { // offsets of two bytes, lengths around the sizes of varints
		recs = append(recs, &relay.Record{Key: fmt.Sprint(i), Value: bytes.Repeat([]byte{byte(i)}, i)})
	}
	now := time.UnixMilli(1_790_000_000_123)
	for name, codec := range codecs {
		t.Run(name, func(t *testing.T) {
			var f frame
			w := batchWriter{compression: codec}
			f.begin(8, 77, "client", 9*time.Second)
			entries := []struct {
				topic string
				index int32
				recs  []*relay.Record
			}{{"a", 0, recs[:4]}, {"a", 3, recs}, {"b.c", 1, recs[4:5]}, {"d", 0, recs[6:]}}
			for i, e := range entries {
				mark := f.partition(e.topic, e.index)
				w.begin(f.buf)
				for _, rec := range e.recs {
					if !w.add(rec, 10<<20) {
						t.Fatal("record not taken")
					}
				}
				var err error
				if f.buf, err = w.finish(producerID{id: 4711, epoch: 3}, int32(100*i), now); err != nil {
					t.Fatal(err)
				}
				f.closePartition(mark)
			}
			version, correlation, client, msg, err := protocol.ReadRequest(bytes.NewBuffer(f.finish()))
			if err != nil {
				t.Fatal(err)
			}
			req := msg.(*produce.Request)
			if version != 8 || correlation != 77 || client != "client" || req.Acks != -1 || req.Timeout != 9000 || req.TransactionalID != "" {
				t.Errorf("got version %d, correlation %d, client %q, acks %d, timeout %d, transaction %q", version, correlation, client, req.Acks, req.Timeout, req.TransactionalID)
			}
			var got []string
			i := 0
			for _, topic := range req.Topics {
				for _, p := range topic.Partitions {
					got = append(got, fmt.Sprintf("%s/%d", topic.Topic, p.Partition))
					batch := p.RecordSet.Records.(*protocol.RecordStream).Records[0].(*protocol.RecordBatch)
					if batch.ProducerID != 4711 || batch.ProducerEpoch != 3 || batch.BaseSequence != int32(100*i) {
						t.Errorf("entry %d: producer %d epoch %d sequence %d", i, batch.ProducerID, batch.ProducerEpoch, batch.BaseSequence)
					}
					checkRecords(t, batch, entries[i].recs, now)
					i++
				}
			}
			if want := "[a/0 a/3 b.c/1 d/0]"; fmt.Sprint(got) != want || len(req.Topics) != 3 {
				t.Errorf("got entries %v under %d topics, want %s under 3: a broker drops a topic's second entry", got, len(req.Topics), want)
			}
		})
	}
}

func checkRecords(t *testing.T, batch protocol.RecordReader, want []*relay.Record, at time.Time) {
	t.Helper()
	for i := 0; ; i++ {
		r, err := batch.ReadRecord()
		if errors.Is(err, io.EOF) {
			if i != len(want) {
				t.Errorf("%d records, want %d", i, len(want))
			}
			return
		}
		if err != nil || i >= len(want) {
			t.Fatalf("record %d of %d: %v", i, len(want), err)
		}
		key, value := readAll(t, r.Key), readAll(t, r.Value)
		if string(key) != want[i].Key || (r.Key == nil) != (want[i].Key == "") || (r.Value == nil) != (want[i].Value == nil) || !bytes.Equal(value, want[i].Value) || r.Offset != int64(i) || !r.Time.Equal(at) {
			t.Errorf("record %d: key %q value of %d bytes offset %d time %s, want %q, %d, %d, %s", i, key, len(value), r.Offset, r.Time, want[i].Key, len(want[i].Value), i, at)
		}
		if len(r.Headers) != len(want[i].Headers) {
			t.Errorf("record %d: %d headers, want %d", i, len(r.Headers), len(want[i].Headers))
			continue
		}
		for j, h := range r.Headers {
			if h.Key != want[i].Headers[j].Key || string(h.Value) != want[i].Headers[j].Value {
				t.Errorf("record %d, header %d: %q=%q, want %q=%q", i, j, h.Key, h.Value, want[i].Headers[j].Key, want[i].Headers[j].Value)
			}
		}
	}
}

// The size that is compared with limits is the size that is sent.
func TestRecordSize(t *testing.T) {
	for size := range 3 {
		for _, n := range []int{0, 1, 62, 63, 64, 65, 8190, 8191, 8192, 1 << 20, 1<<20 + 7} {
			rec := record("", strings.Repeat("k", size*64), n)
			var w batchWriter
			w.begin(nil)
			w.add(rec, 0) // the first is always taken
			if w.add(rec, w.size()+1) {
				t.Error("second record taken beyond the limit")
			}
			buf, err := w.finish(noProducer, -1, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if got := recordSize(rec); got != len(buf) {
				t.Errorf("value of %d bytes: size %d, sent %d", n, got, len(buf))
			}
		}
	}
}

func TestEncodeAllocatesNothing(t *testing.T) {
	batch := eventBatch(0, 500, "t")
	var w batchWriter
	var buf []byte
	encode := func() {
		w.begin(buf[:0])
		for _, rec := range batch {
			w.add(rec, 1<<30)
		}
		buf, _ = w.finish(producerID{1, 0}, 0, time.Now())
	}
	encode()
	if n := testing.AllocsPerRun(20, encode); n != 0 {
		t.Errorf("%v allocations per batch, want 0", n)
	}
}

func TestNextSequence(t *testing.T) {
	for _, tc := range []struct {
		seq  int32
		n    int
		want int32
	}{{0, 1, 1}, {5, 500, 505}, {1<<31 - 1, 1, 0}, {1<<31 - 2, 1, 1<<31 - 1}, {1<<31 - 10, 500, 490}} {
		if got := nextSequence(tc.seq, tc.n); got != tc.want {
			t.Errorf("nextSequence(%d, %d) = %d, want %d", tc.seq, tc.n, got, tc.want)
		}
	}
}
