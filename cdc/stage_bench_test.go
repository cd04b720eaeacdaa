package cdc

import (
	"context"
	"encoding/binary"
	"io"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/internal/testbed/captured"
	"github.com/sagaz-relay/relay/relay"
)

// again reads the same bytes again and again.
type again struct {
	data []byte
	at   int
}

func (r *again) Read(p []byte) (int, error) {
	n := copy(p, r.data[r.at:])
	r.at = (r.at + n) % len(r.data)
	return n, nil
}

// taking is an intake that keeps the newest events.
type taking struct {
	relay.Intake
	events []relay.Event
}

func (t *taking) Admit(_ context.Context, events []relay.Event) error {
	t.events = append(t.events, events...)
	return nil
}

// BenchmarkStageReceive is the way of what a walsender sent from the socket's bytes to the intake:
// buffer, frames, protocol, decoding, hand-on. One op is one shape's rows.
func BenchmarkStageReceive(b *testing.B) {
	for _, shape := range captured.Shapes {
		b.Run(shape.Name, func(b *testing.B) {
			messages, err := shape.Messages()
			if err != nil {
				b.Fatal(err)
			}
			table, err := captured.Table(messages)
			if err != nil {
				b.Fatal(err)
			}
			cfg := DefaultConfig()
			got := &taking{}
			bytes := &again{}
			s := &stream{cfg: &cfg, shard: relay.Alone("slot", "publication"), dec: pgoutput.NewDecoder(table), in: newReader(bytes), intake: got, verified: true}
			s.in.grow(1)
			s.in.frames.limit, s.in.frames.needs = cfg.MaxEventBytes, s.dec.Needs
			// The table is described once a connection.
			messages = slices.DeleteFunc(messages, func(m []byte) bool {
				if m[captured.XLogData] != 'R' {
					return false
				}
				if _, err := s.dec.Decode(m[captured.XLogData:]); err != nil {
					b.Fatal(err)
				}
				return true
			})
			for _, m := range messages {
				bytes.data = binary.BigEndian.AppendUint32(append(bytes.data, 'd'), uint32(4+len(m)))
				bytes.data = append(bytes.data, m...)
			}
			frontend := pgproto3.NewFrontend(s.in, io.Discard)
			b.SetBytes(int64(len(bytes.data)))
			b.ReportAllocs()
			for b.Loop() {
				got.events = got.events[:0]
				for range messages {
					msg, err := frontend.Receive()
					if err == nil {
						err = s.copyData(b.Context(), msg.(*pgproto3.CopyData).Data)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				if err := s.handOn(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*shape.Rows), "ns/event")
			if err := shape.Check(got.events); err != nil {
				b.Fatal(err)
			}
		})
	}
}
