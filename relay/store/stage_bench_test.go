package store

import (
	"encoding/binary"
	"testing"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sagaz-relay/relay/internal/testbed/captured"
	"github.com/sagaz-relay/relay/relay"
)

// BenchmarkStageWrites makes the parameters of a mark's statement, as they go to the server. One op
// is 2,500 marks.
func BenchmarkStageWrites(b *testing.B) {
	events, err := captured.Shapes[0].Events()
	if err != nil {
		b.Fatal(err)
	}
	marks := make([]relay.Mark, 2500)
	for i := range marks {
		ev := &events[i%len(events)]
		marks[i] = relay.Mark{ID: ev.ID, XID: ev.XID, CommitLSN: ev.CommitLSN, EventType: ev.EventType, Key: ev.AggregateID, KeyHash: relay.KeyHash(ev.AggregateID), Position: int64(i), At: ev.CommittedAt}
	}
	s := &Store{cfg: DefaultConfig()}
	types := pgtype.NewMap()
	var sent []byte
	b.ReportAllocs()
	for b.Loop() {
		w := s.writes(marks)
		if sent, err = types.Encode(pgtype.UUIDArrayOID, pgtype.BinaryFormatCode, w.delivered, sent[:0]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(marks)), "ns/event")
	const header, element = 20, 4 + 16 // an array of one dimension; a length and a UUID
	if want := header + len(marks)*element; len(sent) != want {
		b.Fatalf("%d bytes, want %d", len(sent), want)
	}
	for i := range marks {
		at := sent[header+i*element:]
		if binary.BigEndian.Uint32(at) != 16 || relay.UUID(at[4:20]) != marks[i].ID {
			b.Fatalf("mark %d is not in it", i)
		}
	}
}
