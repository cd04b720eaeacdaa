package rabbitmq

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/captured"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/encode"
)

// sinkhole is a broker that confirms every message and keeps none, at next to no cost.
type sinkhole struct {
	listener net.Listener
	done     sync.WaitGroup
	messages atomic.Int64
	bytes    atomic.Int64 // of bodies
}

func newSinkhole(b *testing.B) *sinkhole {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	h := &sinkhole{listener: listener}
	h.done.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			h.done.Go(func() {
				defer func() { _ = conn.Close() }()
				h.serve(conn)
			})
		}
	})
	b.Cleanup(func() {
		_ = listener.Close()
		h.done.Wait()
	})
	return h
}

// serve leaves what opens a connection to the scripted broker's methods, and reads messages itself.
func (h *sinkhole) serve(conn net.Conn) {
	in := bufio.NewReaderSize(conn, 256<<10)
	c := &scriptedConn{broker: &scripted{}, conn: conn, in: in, channels: map[uint16]*scriptedChannel{}}
	if _, err := io.ReadFull(in, make([]byte, 8)); err != nil {
		return
	}
	c.send(0, method(10, 10, []byte{0, 9, 0, 0, 0, 0}, []byte("\x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US")))
	for {
		if in.Buffered() == 0 {
			c.confirm()
		}
		head, err := in.Peek(7)
		if err != nil {
			return
		}
		kind, number, size := head[0], binary.BigEndian.Uint16(head[1:]), int(binary.BigEndian.Uint32(head[3:]))
		frame, err := in.Peek(7 + size + 1)
		if err != nil {
			return
		}
		payload := frame[7 : 7+size]
		switch ch := c.channels[number]; {
		case kind == 1 && binary.BigEndian.Uint16(payload) == 60: // publish
		case kind == 1:
			if !c.method(number, binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:]), payload) {
				return
			}
		case kind == 2:
			ch.left = int(binary.BigEndian.Uint64(payload[4:]))
		case kind == 3:
			h.bytes.Add(int64(size))
			if ch.left -= size; ch.left == 0 {
				h.messages.Add(1)
				ch.tag++
				ch.owed = ch.tag
			}
		}
		if _, err := in.Discard(7 + size + 1); err != nil {
			return
		}
	}
}

// BenchmarkStageFrames publishes records to a broker that does nothing with them, so that what is
// measured is the client: headers, frames, writes, confirms. One op is one shape's rows.
func BenchmarkStageFrames(b *testing.B) {
	enc, err := encode.New(encode.DefaultConfig())
	if err != nil {
		b.Fatal(err)
	}
	for _, shape := range captured.Shapes {
		b.Run(shape.Name, func(b *testing.B) {
			events, err := shape.Events()
			if err != nil {
				b.Fatal(err)
			}
			records, size := make([]*relay.Record, len(events)), 0
			for i := range events {
				records[i] = new(relay.Record)
				if err := enc.Encode(records[i], &events[i]); err != nil {
					b.Fatal(err)
				}
				size += len(records[i].Value)
			}
			h := newSinkhole(b)
			cfg := DefaultConfig()
			cfg.URL = "amqp://guest:guest@" + h.listener.Addr().String() + "/"
			s := newSink(b, cfg)
			if err := s.Publish(b.Context(), records); err != nil { // the route is good from now on
				b.Fatal(err)
			}
			before := h.messages.Load()
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Publish(b.Context(), records); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(records)), "ns/event")
			if got, want := h.messages.Load()-before, int64(b.N*len(records)); got != want || h.bytes.Load() != int64(size)*(int64(b.N)+1) {
				b.Fatalf("%d messages of %d bytes arrived, want %d of %d", got, h.bytes.Load(), want, size*(b.N+1))
			}
		})
	}
}
