package pgoutput

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/columns"
)

// Columns are the columns that an event is made of, in the order in which a publication should list
// them.
var Columns = columns.Names

// field is a column's place in an event; the values index Columns.
type field int8

const (
	fieldEventID field = iota
	fieldSagaID
	fieldAggregateType
	fieldAggregateID
	fieldEventType
	fieldPayload
	fieldHeaders
	fieldStatus
	fieldCreatedAt
	fieldCount
	fieldNone field = -1
)

// scratchKept is the largest decoding buffer, in bytes, that outlives its row.
const scratchKept = 1 << 20

// CutColumn is a kind of value that no server sends: a value was left out, because the row is
// larger than may be read. The length that the value had follows. Whoever reads the connection puts
// it there (package cdc).
const CutColumn = '!'

// ColumnError means that the outbox table lacks columns that an event needs. The row that ran into
// it is still in the table, and the slot is before it.
type ColumnError struct {
	Table   string
	Missing []string
}

func (e *ColumnError) Error() string {
	return fmt.Sprintf("table %s: the publication does not carry column %s, which the relay needs: "+
		"restore the column, or add it to the publication's column list", e.Table, strings.Join(e.Missing, ", "))
}

// relation is the server's description of a table, with each of its columns tied to a field by
// name, so that columns may be added, dropped or reordered.
type relation struct {
	columns []column
	err     error // a *ColumnError, when a needed column is missing
	textual bool  // a column's binary form is none that we read, so the stream has to be in text
	loose   bool  // payload or headers are not a jsonb
}

type column struct {
	field field
	oid   uint32
}

func (c *column) isBytea() bool { return c.field == fieldPayload && c.oid == columns.OIDBytea }

func newRelation(m *pglogrepl.RelationMessage) *relation {
	rel := &relation{columns: make([]column, len(m.Columns))}
	var seen [fieldCount]bool
	for i, c := range m.Columns {
		rel.columns[i] = column{field: fieldNone, oid: c.DataType}
		for f, name := range Columns {
			if c.Name == name {
				rel.columns[i].field = field(f)
				seen[f] = true
				rel.textual = rel.textual || !columns.ReadsBinary(name, c.DataType)
				if field(f) == fieldPayload || field(f) == fieldHeaders {
					rel.loose = rel.loose || !columns.IsJSON(c.DataType)
				}
			}
		}
	}
	var missing []string
	for f, ok := range seen {
		if !ok {
			missing = append(missing, Columns[f])
		}
	}
	if missing != nil {
		rel.err = &ColumnError{Table: m.Namespace + "." + m.RelationName, Missing: missing}
	}
	return rel
}

// row reads a tuple: int16 number of columns, then for each a kind byte and, for 't' (text) and 'b'
// (binary), an int32 length and the value.
func (d *Decoder) row(rel *relation, b []byte) error {
	if len(b) < 2 {
		return fmt.Errorf("%w: tuple of %d bytes", ErrProtocol, len(b))
	}
	n := int(binary.BigEndian.Uint16(b))
	if n != len(rel.columns) {
		return fmt.Errorf("%w: tuple of %d columns in a table of %d", ErrProtocol, n, len(rel.columns))
	}
	b = b[2:]

	ev := &d.Event
	*ev = relay.Event{Loose: rel.loose || d.Unchecked}
	d.scratch = d.scratch[:0]
	// What was left out, and its bytes: those of a bytea are apart, which take twice as many in text.
	isCut, cutBytes, cutBytea, isText := false, 0, 0, false
	var ends [fieldCount]span
	for i := range rel.columns {
		col := &rel.columns[i]
		if len(b) < 1 {
			return fmt.Errorf("%w: tuple ends before column %d", ErrProtocol, i)
		}
		format := b[0]
		b = b[1:]
		switch format {
		case 'n', 'u': // NULL; a TOASTed value that did not change does not occur in an insert
			ev.NoPayload = ev.NoPayload || col.field == fieldPayload
			continue
		case 't', CutColumn:
		case 'b':
			if rel.textual && col.field != fieldNone {
				return ErrWantsText
			}
		default:
			return fmt.Errorf("%w: column %d has format %q", ErrProtocol, i, format)
		}
		if len(b) < 4 {
			return fmt.Errorf("%w: tuple ends in column %d", ErrProtocol, i)
		}
		size := int(binary.BigEndian.Uint32(b))
		b = b[4:]
		if format == CutColumn {
			switch {
			case col.isBytea():
				cutBytea = size
			case col.field != fieldNone:
				cutBytes += size
			}
			isCut = isCut || col.field != fieldNone
			continue
		}
		if size < 0 || size > len(b) {
			return fmt.Errorf("%w: column %d claims %d bytes of %d", ErrProtocol, i, size, len(b))
		}
		value := b[:size:size]
		b = b[size:]

		switch col.field {
		case fieldNone:
		case fieldEventID:
			id, err := decodeUUID(value, format == 'b' && col.oid == columns.OIDUUID)
			if err != nil {
				return fmt.Errorf("%w: column event_id: %w", ErrProtocol, err)
			}
			ev.ID, isText = id, format == 't'
		case fieldCreatedAt:
			at, err := decodeTimestamp(value, format == 'b' && (col.oid == columns.OIDTimestampTZ || col.oid == columns.OIDTimestamp))
			if err != nil {
				return fmt.Errorf("%w: column created_at: %w", ErrProtocol, err)
			}
			ev.CreatedAt = at
		default:
			if format == 'b' && col.oid == columns.OIDJSONB {
				// jsonb_send puts the version of its format, 1, before the text.
				if len(value) < 1 || value[0] != 1 {
					return fmt.Errorf("%w: column %s: jsonb of unknown version", ErrProtocol, Columns[col.field])
				}
				value = value[1:]
			}
			from := len(d.scratch)
			if col.isBytea() && format == 't' {
				var err error
				if d.scratch, err = columns.AppendBytea(d.scratch, value); err != nil {
					return fmt.Errorf("%w: column %s: %w", ErrProtocol, Columns[col.field], err)
				}
			} else {
				d.scratch = append(d.scratch, value...)
			}
			ends[col.field].from, ends[col.field].to = from, len(d.scratch)
		}
	}

	if isText && cutBytea > 0 {
		cutBytea = (cutBytea - len(`\x`)) / 2
	}
	size := cutBytes + cutBytea + len(d.scratch) - (ends[fieldStatus].to - ends[fieldStatus].from)
	if isCut || d.MaxEventBytes > 0 && size > d.MaxEventBytes {
		ev.Unfit = relay.TooLarge(int64(size), int64(d.MaxEventBytes))
		d.leaveOut(&ends, fieldPayload, fieldHeaders)
	}
	text := string(d.scratch)
	if cap(d.scratch) > scratchKept {
		d.scratch = nil // one huge row must not keep its memory for ever
	}
	cut := func(f field) string { return text[ends[f].from:ends[f].to] }
	ev.SagaID = cut(fieldSagaID)
	ev.AggregateType = cut(fieldAggregateType)
	ev.AggregateID = cut(fieldAggregateID)
	ev.EventType = cut(fieldEventType)
	ev.Payload = cut(fieldPayload)
	ev.Headers = cut(fieldHeaders)
	ev.Status = cut(fieldStatus)
	return nil
}

// span is the place of a value in the scratch buffer.
type span struct{ from, to int }

// leaveOut makes fields empty, and keeps only the bytes of the others.
func (d *Decoder) leaveOut(ends *[fieldCount]span, fields ...field) {
	for _, f := range fields {
		ends[f] = span{}
	}
	var kept []byte
	for f, at := range ends {
		ends[f].from = len(kept)
		kept = append(kept, d.scratch[at.from:at.to]...)
		ends[f].to = len(kept)
	}
	d.scratch = kept
}

func decodeUUID(b []byte, isBinary bool) (relay.UUID, error) {
	if !isBinary {
		return relay.ParseUUID(string(b))
	}
	if len(b) != 16 {
		return relay.UUID{}, fmt.Errorf("uuid of %d bytes", len(b))
	}
	return relay.UUID(b), nil
}

func decodeTimestamp(b []byte, isBinary bool) (relay.Timestamp, error) {
	if isBinary {
		if len(b) != 8 {
			return 0, fmt.Errorf("timestamp of %d bytes", len(b))
		}
		return relay.Timestamp(binary.BigEndian.Uint64(b)), nil
	}
	switch s := string(b); s {
	case "infinity":
		return relay.Infinity, nil
	case "-infinity":
		return relay.NegativeInfinity, nil
	default:
		return parseTimestamp(s)
	}
}

// parseTimestamp reads what timestamptz_out and timestamp_out write in DateStyle ISO, which the
// connection asks for. Years have four digits or more, with " BC" behind those before the year 1.
// Offsets go down to the minute or second only where those are not zero.
func parseTimestamp(s string) (relay.Timestamp, error) {
	calendar, bc := strings.CutSuffix(s, " BC")
	digits := strings.IndexByte(calendar, '-')
	if digits < 4 {
		return 0, fmt.Errorf("timestamp %q is not in ISO form", s)
	}
	year, err := strconv.Atoi(calendar[:digits])
	if err != nil {
		return 0, fmt.Errorf("timestamp %q is not in ISO form", s)
	}
	if bc {
		year = 1 - year
	}
	// package time reads years of exactly four digits, so it gets one that has every day.
	calendar = "2000" + calendar[digits:]
	for _, zone := range []string{"Z07", "Z07:00", "Z07:00:00", ""} {
		t, err := time.Parse("2006-01-02 15:04:05"+zone, calendar)
		if err == nil {
			return relay.TimestampOf(time.Date(year, t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), t.Location())), nil
		}
	}
	return 0, fmt.Errorf("timestamp %q is not in ISO form", s)
}
