package kafka

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/bits"
	"time"

	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/sagaz-relay/relay/relay"
)

// Record batches (magic 2) and the produce request around them are written here, straight from
// relay.Record into the buffer that goes to the socket. kafka-go's own encoder goes through an
// interface value per key, value and header and through pages that it copies once more. It takes
// 940 ns a record where this takes 100 (BenchmarkEncode, 500 bytes and three headers). It also has
// no way to set a batch's producer id and sequence number. TestEncode has kafka-go read back what
// is written here.

var codecs = map[string]compress.Compression{
	"none":   compress.None,
	"gzip":   compress.Gzip,
	"snappy": compress.Snappy,
	"lz4":    compress.Lz4,
	"zstd":   compress.Zstd,
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batchHeader is the size of a record batch without records.
const batchHeader = 61

// producerID is how a broker recognises a late copy of a batch: it takes from an id only batches of
// its newest epoch, and in them only the sequence number that follows.
type producerID struct {
	id    int64
	epoch int16
}

// noProducer marks a batch that brokers take as it comes.
var noProducer = producerID{-1, -1}

// batchWriter appends one record batch to buf. Owned by one broker's sender.
type batchWriter struct {
	buf         []byte
	start       int // of the batch in buf
	records     int
	compression compress.Compression
	plain       []byte // the records before compression
}

// begin opens a batch at the end of buf.
func (w *batchWriter) begin(buf []byte) {
	w.start = len(buf)
	w.buf = append(buf, make([]byte, batchHeader)...)
	w.records = 0
	w.plain = w.plain[:0]
}

// size is the size of the batch so far, before compression.
func (w *batchWriter) size() int {
	if w.compression != compress.None {
		return batchHeader + len(w.plain)
	}
	return len(w.buf) - w.start
}

// add appends a record unless the batch would then be larger than limit; the first is always taken.
func (w *batchWriter) add(rec *relay.Record, limit int) bool {
	body := bodySize(rec, w.records)
	if w.records > 0 && w.size()+varintSize(body)+body > limit {
		return false
	}
	if w.compression != compress.None {
		w.plain = appendRecord(w.plain, rec, body, w.records)
	} else {
		w.buf = appendRecord(w.buf, rec, body, w.records)
	}
	w.records++
	return true
}

// finish closes the batch and returns buf with it. All records carry the time of sending, as with
// the library. A created_at from a clock that is wrong would be refused by the broker
// (message.timestamp.after.max.ms), though the record is fine.
func (w *batchWriter) finish(id producerID, seq int32, now time.Time) ([]byte, error) {
	if w.compression != compress.None {
		z := w.compression.Codec().NewWriter((*bufferWriter)(&w.buf))
		if _, err := z.Write(w.plain); err != nil {
			_ = z.Close()
			return w.buf[:w.start], err
		}
		if err := z.Close(); err != nil {
			return w.buf[:w.start], err
		}
		if cap(w.plain) > keepBuffer {
			w.plain = nil
		}
	}
	b := w.buf[w.start:]
	millis := uint64(now.UnixMilli())
	be := binary.BigEndian
	be.PutUint64(b[0:], 0)                                   // base offset: the broker's to give
	be.PutUint32(b[8:], uint32(len(b)-12))                   // length of what follows
	be.PutUint32(b[12:], ^uint32(0))                         // partition leader epoch: the broker's
	b[16] = 2                                                // magic
	be.PutUint16(b[21:], uint16(w.compression))              // attributes, with create time
	be.PutUint32(b[23:], uint32(w.records-1))                // last offset delta
	be.PutUint64(b[27:], millis)                             // base timestamp
	be.PutUint64(b[35:], millis)                             // max timestamp
	be.PutUint64(b[43:], uint64(id.id))                      // producer id
	be.PutUint16(b[51:], uint16(id.epoch))                   // producer epoch
	be.PutUint32(b[53:], uint32(seq))                        // sequence number of the first record
	be.PutUint32(b[57:], uint32(w.records))                  // count
	be.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli)) // over all that follows it
	return w.buf, nil
}

// recordSize is the size on the wire of a batch of rec alone, before compression.
func recordSize(rec *relay.Record) int {
	body := bodySize(rec, 0)
	return batchHeader + varintSize(body) + body
}

// bodySize is the size of a record after its own length; i is its place in the batch.
func bodySize(rec *relay.Record, i int) int {
	n := 1 + 1 + varintSize(i) // attributes, timestamp delta 0, offset delta
	if key := rec.MessageKey(); key == "" {
		n++ // null
	} else {
		n += varintSize(len(key)) + len(key)
	}
	n += varintSize(len(rec.Value)) + len(rec.Value) + varintSize(len(rec.Headers))
	for j := range rec.Headers {
		h := &rec.Headers[j]
		n += varintSize(len(h.Key)) + len(h.Key) + varintSize(len(h.Value)) + len(h.Value)
	}
	return n
}

func appendRecord(b []byte, rec *relay.Record, body, i int) []byte {
	b = appendVarint(b, body)
	b = append(b, 0, 0)
	b = appendVarint(b, i)
	if key := rec.MessageKey(); key == "" {
		b = append(b, 1) // length -1: null
	} else {
		b = append(appendVarint(b, len(key)), key...)
	}
	if rec.Value == nil {
		b = append(b, 1) // length -1, as many bytes as length 0 has
	} else {
		b = append(appendVarint(b, len(rec.Value)), rec.Value...)
	}
	b = appendVarint(b, len(rec.Headers))
	for j := range rec.Headers {
		h := &rec.Headers[j]
		b = append(appendVarint(b, len(h.Key)), h.Key...)
		b = append(appendVarint(b, len(h.Value)), h.Value...)
	}
	return b
}

// Lengths are zig-zag varints; ours are never negative.
func appendVarint(b []byte, n int) []byte { return binary.AppendUvarint(b, uint64(n)<<1) }

func varintSize(n int) int { return (bits.Len64(uint64(n)<<1|1) + 6) / 7 }

// bufferWriter lets a codec write to the end of a slice.
type bufferWriter []byte

func (w *bufferWriter) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}

var _ io.Writer = (*bufferWriter)(nil)

// frame is a produce request in the making: versions 3 to 8 have this form. Partitions come sorted
// by topic, because brokers silently drop all but the first entry for a topic.
type frame struct {
	buf        []byte
	topic      string
	topics     int
	partitions int
	topicsAt   int // where the number of topics goes
	partsAt    int // where the number of the current topic's partitions goes
}

// begin opens a request that needs the acknowledgement of all in-sync replicas (acks=all).
func (f *frame) begin(version int16, correlation int32, clientID string, timeout time.Duration) {
	be := binary.BigEndian
	b := append(f.buf[:0], 0, 0, 0, 0) // size, set by finish
	b = be.AppendUint16(b, uint16(protocol.Produce))
	b = be.AppendUint16(b, uint16(version))
	b = be.AppendUint32(b, uint32(correlation))
	b = appendString(b, clientID)
	b = be.AppendUint16(b, 0xffff) // no transactional id
	b = be.AppendUint16(b, 0xffff) // acks -1: all
	b = be.AppendUint32(b, uint32(timeout.Milliseconds()))
	*f = frame{buf: b, topicsAt: len(b)}
	f.buf = append(f.buf, 0, 0, 0, 0)
}

// partition opens the entry of a partition; the caller appends its record batch to f.buf and then
// calls closePartition with what this returned.
func (f *frame) partition(topic string, index int32) (mark int) {
	be := binary.BigEndian
	if f.topics == 0 || topic != f.topic {
		f.topic, f.topics, f.partitions = topic, f.topics+1, 0
		f.buf = appendString(f.buf, topic)
		f.partsAt = len(f.buf)
		f.buf = append(f.buf, 0, 0, 0, 0)
		be.PutUint32(f.buf[f.topicsAt:], uint32(f.topics))
	}
	f.partitions++
	be.PutUint32(f.buf[f.partsAt:], uint32(f.partitions))
	f.buf = be.AppendUint32(f.buf, uint32(index))
	f.buf = append(f.buf, 0, 0, 0, 0) // size of the batch
	return len(f.buf)
}

func (f *frame) closePartition(mark int) {
	binary.BigEndian.PutUint32(f.buf[mark-4:], uint32(len(f.buf)-mark))
}

func (f *frame) finish() []byte {
	binary.BigEndian.PutUint32(f.buf, uint32(len(f.buf)-4))
	return f.buf
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}
