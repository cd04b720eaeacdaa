package pgoutput

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/columns"
)

// The server's side of the protocol, as far as the tests need it: what pgoutput would send.

const (
	tableOID   uint32 = 16384
	otherOID   uint32 = 16999
	oidInt4           = 23
	oidVarchar        = 1043
)

func beginMessage(commit relay.LSN, at relay.Timestamp, xid uint32) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'B'}, uint64(commit))
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	return binary.BigEndian.AppendUint32(b, xid)
}

func commitMessage(commit, end relay.LSN, at relay.Timestamp) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'C', 0}, uint64(commit))
	b = binary.BigEndian.AppendUint64(b, uint64(end))
	return binary.BigEndian.AppendUint64(b, uint64(at))
}

// wireColumn is a column as a Relation message describes it.
type wireColumn struct {
	name string
	oid  uint32
}

// outboxColumns are those of saga_outbox that a publication lists, in the order of Columns.
var outboxColumns = []wireColumn{
	{"event_id", columns.OIDUUID},
	{"saga_id", oidVarchar},
	{"aggregate_type", oidVarchar},
	{"aggregate_id", oidVarchar},
	{"event_type", oidVarchar},
	{"payload", columns.OIDJSONB},
	{"headers", columns.OIDJSONB},
	{"status", oidVarchar},
	{"created_at", columns.OIDTimestampTZ},
}

func relationMessage(oid uint32, name string, columns []wireColumn) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'R'}, oid)
	b = append(b, "public\x00"+name+"\x00d"...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(columns)))
	for _, c := range columns {
		b = append(b, 0)
		b = append(b, c.name+"\x00"...)
		b = binary.BigEndian.AppendUint32(b, c.oid)
		b = binary.BigEndian.AppendUint32(b, 0xffffffff) // type modifier: none
	}
	return b
}

func truncateMessage(oids ...uint32) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'T'}, uint32(len(oids)))
	b = append(b, 0)
	for _, oid := range oids {
		b = binary.BigEndian.AppendUint32(b, oid)
	}
	return b
}

// wireValue is a column's value in a tuple: kind n, u, t or b.
type wireValue struct {
	kind byte
	data []byte
}

var null = wireValue{kind: 'n'}

func text(s string) wireValue { return wireValue{'t', []byte(s)} }

func insertMessage(oid uint32, values []wireValue) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'I'}, oid)
	b = append(b, 'N')
	b = binary.BigEndian.AppendUint16(b, uint16(len(values)))
	for _, v := range values {
		b = append(b, v.kind)
		if v.kind == 't' || v.kind == 'b' {
			b = binary.BigEndian.AppendUint32(b, uint32(len(v.data)))
			b = append(b, v.data...)
		}
	}
	return b
}

// valuesOf renders an event's row, one value for each column, as the server does in text or binary
// format. An empty Headers means NULL. Columns that are not part of an event get a value, too.
func valuesOf(ev *relay.Event, columns []wireColumn, isBinary bool) []wireValue {
	values := make([]wireValue, len(columns))
	for i, c := range columns {
		values[i] = valueOf(ev, c, isBinary)
	}
	return values
}

func valueOf(ev *relay.Event, c wireColumn, isBinary bool) wireValue {
	var s string
	switch c.name {
	case "event_id":
		if isBinary {
			return wireValue{'b', ev.ID[:]}
		}
		return text(ev.ID.String())
	case "created_at":
		if isBinary {
			return wireValue{'b', binary.BigEndian.AppendUint64(nil, uint64(ev.CreatedAt))}
		}
		return text(timestampText(ev.CreatedAt))
	case "saga_id":
		s = ev.SagaID
	case "aggregate_type":
		s = ev.AggregateType
	case "aggregate_id":
		s = ev.AggregateID
	case "event_type":
		s = ev.EventType
	case "payload":
		s = ev.Payload
	case "headers":
		if s = ev.Headers; s == "" {
			return null
		}
	case "status":
		s = ev.Status
	default:
		s = "1234" // four bytes, as an int4 has in binary
	}
	switch {
	case !isBinary:
		return text(s)
	case c.oid == columns.OIDJSONB:
		return wireValue{'b', append([]byte{1}, s...)}
	default:
		return wireValue{'b', []byte(s)}
	}
}

// timestampText is timestamptz_out in DateStyle ISO and time zone UTC, by time.Time's calendar.
func timestampText(ts relay.Timestamp) string {
	switch ts {
	case relay.Infinity:
		return "infinity"
	case relay.NegativeInfinity:
		return "-infinity"
	}
	t := time.Unix(946_684_800, 0).UTC().Add(0)
	// Not time.Add of the whole distance: a Duration spans 292 years only.
	seconds, micros := int64(ts)/1_000_000, int64(ts)%1_000_000
	t = time.Unix(t.Unix()+seconds, micros*1000).UTC()
	year, era := t.Year(), ""
	if year <= 0 {
		year, era = 1-year, " BC"
	}
	s := fmt.Sprintf("%04d-%s", year, t.Format("01-02 15:04:05.999999+00"))
	return s + era
}

// sample is a row as applications insert it.
func sample() relay.Event {
	id, err := relay.ParseUUID("0198f3a2-5b7c-7d10-8e2f-a1b2c3d4e5f6")
	if err != nil {
		panic(err)
	}
	return relay.Event{
		ID:            id,
		SagaID:        "saga-7",
		AggregateType: "order",
		AggregateID:   "order-42",
		EventType:     "OrderCreated",
		Payload:       `{"total": 12.50, "note": "Grüße"}`,
		Headers:       `{"correlation_id": "c-1"}`,
		Status:        "pending",
		CreatedAt:     849_000_000_123_456,
	}
}
