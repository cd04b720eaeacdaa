package pgoutput

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/columns"
)

// benchRow is a row whose columns hold 500 bytes of text.
func benchRow() relay.Event {
	ev := sample()
	ev.Headers = `{"correlation_id": "0198f3a2-5b7c-7d10-8e2f-a1b2c3d4e5f6", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`
	const rest = `{"order": 42, "note": ""}`
	room := 500 - (ev.Size() - (&relay.Event{}).Size() - len(ev.Payload)) - len(rest)
	ev.Payload = `{"order": 42, "note": "` + strings.Repeat("x", room) + `"}`
	return ev
}

// BenchmarkDecodeInsert decodes one row, as it is in an XLogData message, into an Event: by this
// package, and by pglogrepl's parsers with the columns picked from its InsertMessage.
func BenchmarkDecodeInsert(b *testing.B) {
	for _, format := range []string{"binary", "text"} {
		isBinary := format == "binary"
		ev := benchRow()
		insert := insertMessage(tableOID, valuesOf(&ev, outboxColumns, isBinary))
		xlog := binary.BigEndian.AppendUint64(nil, uint64(commitAt)) // start, end, send time
		xlog = binary.BigEndian.AppendUint64(xlog, uint64(commitAt))
		xlog = binary.BigEndian.AppendUint64(xlog, uint64(committedAt))
		xlog = append(xlog, insert...)

		b.Run("own/"+format, func(b *testing.B) {
			d := inTransaction(b, outboxColumns)
			b.ReportAllocs()
			b.SetBytes(int64(len(insert)))
			for b.Loop() {
				if kind, err := d.Decode(xlog[24:]); kind != Insert || err != nil {
					b.Fatal(kind, err)
				}
			}
			check(b, d.Event, ev)
		})
		b.Run("pglogrepl/"+format, func(b *testing.B) {
			described, err := pglogrepl.Parse(relationMessage(tableOID, "saga_outbox", outboxColumns))
			if err != nil {
				b.Fatal(err)
			}
			relations := map[uint32]*pglogrepl.RelationMessage{tableOID: described.(*pglogrepl.RelationMessage)}
			var got relay.Event
			b.ReportAllocs()
			b.SetBytes(int64(len(insert)))
			for b.Loop() {
				if got, err = viaPglogrepl(xlog, relations); err != nil {
					b.Fatal(err)
				}
			}
			check(b, got, ev)
		})
	}
}

func check(b *testing.B, got, want relay.Event) {
	got.CommitLSN, got.CommittedAt, got.XID, got.Ordinal = 0, 0, 0, 0
	if got != want {
		b.Fatalf("event:\n got %+v\nwant %+v", got, want)
	}
}

// viaPglogrepl is the way that pglogrepl's example shows.
func viaPglogrepl(xlog []byte, relations map[uint32]*pglogrepl.RelationMessage) (ev relay.Event, err error) {
	data, err := pglogrepl.ParseXLogData(xlog)
	if err != nil {
		return ev, err
	}
	msg, err := pglogrepl.Parse(data.WALData)
	if err != nil {
		return ev, err
	}
	insert, ok := msg.(*pglogrepl.InsertMessage)
	if !ok {
		return ev, fmt.Errorf("message %T", msg)
	}
	rel := relations[insert.RelationID]
	for i, col := range insert.Tuple.Columns {
		if col.DataType == pglogrepl.TupleDataTypeNull {
			continue
		}
		isBinary := col.DataType == pglogrepl.TupleDataTypeBinary
		value := col.Data
		if isBinary && rel.Columns[i].DataType == columns.OIDJSONB {
			value = value[1:]
		}
		switch rel.Columns[i].Name {
		case "event_id":
			ev.ID, err = decodeUUID(value, isBinary)
		case "created_at":
			ev.CreatedAt, err = decodeTimestamp(value, isBinary)
		case "saga_id":
			ev.SagaID = string(value)
		case "aggregate_type":
			ev.AggregateType = string(value)
		case "aggregate_id":
			ev.AggregateID = string(value)
		case "event_type":
			ev.EventType = string(value)
		case "payload":
			ev.Payload = string(value)
		case "headers":
			ev.Headers = string(value)
		case "status":
			ev.Status = string(value)
		}
		if err != nil {
			return ev, err
		}
	}
	return ev, nil
}
