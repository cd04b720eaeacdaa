package pgoutput

import (
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/columns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	commitAt    relay.LSN       = 0x16_B374D848
	committedAt relay.Timestamp = 849_000_001_000_000
	xid         uint32          = 771
)

// inTransaction returns a decoder that knows the table and is in an open transaction.
func inTransaction(t testing.TB, columns []wireColumn) *Decoder {
	t.Helper()
	d := NewDecoder(tableOID)
	mustDecode(t, d, relationMessage(tableOID, "saga_outbox", columns), Relation)
	mustDecode(t, d, beginMessage(commitAt, committedAt, xid), Begin)
	return d
}

func mustDecode(t testing.TB, d *Decoder, msg []byte, want Kind) {
	t.Helper()
	got, err := d.Decode(msg)
	if err != nil {
		t.Fatalf("decode %q: %v", msg[:1], err)
	}
	if got != want {
		t.Fatalf("decode %q: got kind %d, want %d", msg[:1], got, want)
	}
}

// placed is ev where the stream of inTransaction puts it.
func placed(ev relay.Event, ordinal uint32) relay.Event {
	ev.CommitLSN, ev.CommittedAt, ev.XID, ev.Ordinal = commitAt, committedAt, xid, ordinal
	return ev
}

func bothFormats(t *testing.T, test func(t *testing.T, isBinary bool)) {
	t.Run("Text", func(t *testing.T) { test(t, false) })
	t.Run("Binary", func(t *testing.T) { test(t, true) })
}

func TestDecodeTransaction(t *testing.T) {
	bothFormats(t, func(t *testing.T, isBinary bool) {
		d := NewDecoder(tableOID)
		mustDecode(t, d, beginMessage(commitAt, committedAt, xid), Begin)
		if !d.InTransaction() {
			t.Error("not in a transaction after Begin")
		}
		mustDecode(t, d, relationMessage(tableOID, "saga_outbox", outboxColumns), Relation)
		first, second := sample(), sample()
		second.ID[15]++
		second.AggregateID = "order-43"
		var kept []relay.Event
		for _, ev := range []relay.Event{first, second} {
			mustDecode(t, d, insertMessage(tableOID, valuesOf(&ev, outboxColumns, isBinary)), Insert)
			kept = append(kept, d.Event)
		}
		end := commitAt + 0x30
		mustDecode(t, d, commitMessage(commitAt, end, committedAt), Commit)
		if got := d.CommitEnd; got != end {
			t.Errorf("CommitEnd: got %s, want %s", got, end)
		}
		if d.InTransaction() {
			t.Error("in a transaction after Commit")
		}
		// The first event's strings have to outlive the second's decoding.
		if want := []relay.Event{placed(first, 0), placed(second, 1)}; !slices.Equal(kept, want) {
			t.Errorf("events:\n got %+v\nwant %+v", kept, want)
		}

		// Ordinals start again.
		mustDecode(t, d, beginMessage(commitAt+0x100, committedAt+1, xid+1), Begin)
		mustDecode(t, d, insertMessage(tableOID, valuesOf(&first, outboxColumns, isBinary)), Insert)
		if got := d.Event; got.Ordinal != 0 || got.CommitLSN != commitAt+0x100 || got.XID != xid+1 || got.CommittedAt != committedAt+1 {
			t.Errorf("next transaction's event is at %s/%d, xid %d, %d", got.CommitLSN, got.Ordinal, got.XID, got.CommittedAt)
		}
	})
}

func TestDecodeColumns(t *testing.T) {
	reversed := slices.Clone(outboxColumns)
	slices.Reverse(reversed)
	added := slices.Insert(slices.Clone(outboxColumns), 3, wireColumn{"retry_count", oidInt4})
	added = append(added, wireColumn{"worker_id", oidVarchar})
	wholeRow := append(slices.Clone(outboxColumns), wireColumn{"claimed_at", columns.OIDTimestampTZ}, wireColumn{"sent_at", columns.OIDTimestampTZ})
	for _, tt := range []struct {
		name    string
		columns []wireColumn
	}{
		{"AsPublished", outboxColumns},
		{"Reversed", reversed},
		{"Added", added},
		{"NullsOfOtherColumns", wholeRow},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothFormats(t, func(t *testing.T, isBinary bool) {
				d := inTransaction(t, tt.columns)
				ev := sample()
				values := valuesOf(&ev, tt.columns, isBinary)
				for i, c := range tt.columns {
					if strings.HasSuffix(c.name, "ed_at") && c.name != "created_at" {
						values[i] = null
					}
				}
				mustDecode(t, d, insertMessage(tableOID, values), Insert)
				if want := placed(ev, 0); d.Event != want {
					t.Errorf("event:\n got %+v\nwant %+v", d.Event, want)
				}
			})
		})
	}
}

// ALTER TABLE while we stream: the server describes the table again before the next row.
func TestDecodeAfterAlterTable(t *testing.T) {
	d := inTransaction(t, outboxColumns)
	ev := sample()
	mustDecode(t, d, insertMessage(tableOID, valuesOf(&ev, outboxColumns, true)), Insert)
	grown := slices.Insert(slices.Clone(outboxColumns), 0, wireColumn{"tenant", oidVarchar})
	mustDecode(t, d, relationMessage(tableOID, "saga_outbox", grown), Relation)
	mustDecode(t, d, insertMessage(tableOID, valuesOf(&ev, grown, true)), Insert)
	if want := placed(ev, 1); d.Event != want {
		t.Errorf("event:\n got %+v\nwant %+v", d.Event, want)
	}
}

func TestDecodeMissingColumn(t *testing.T) {
	for i, gone := range outboxColumns {
		t.Run(gone.name, func(t *testing.T) {
			columns := slices.Delete(slices.Clone(outboxColumns), i, i+1)
			d := inTransaction(t, columns)
			ev := sample()
			_, err := d.Decode(insertMessage(tableOID, valuesOf(&ev, columns, true)))
			var missing *ColumnError
			if !errors.As(err, &missing) {
				t.Fatalf("got %v, want a *ColumnError", err)
			}
			if !slices.Equal(missing.Missing, []string{gone.name}) || missing.Table != "public.saga_outbox" {
				t.Errorf("got %q missing in %s, want %q in public.saga_outbox", missing.Missing, missing.Table, gone.name)
			}
			if !strings.Contains(err.Error(), gone.name) {
				t.Errorf("%q does not name column %s", err, gone.name)
			}
			if errors.Is(err, ErrProtocol) {
				t.Errorf("%v counts as a protocol error, which it is not", err)
			}
		})
	}
}

func TestDecodeOtherTables(t *testing.T) {
	d := inTransaction(t, outboxColumns)
	stranger := []wireColumn{{"id", oidInt4}, {"status", oidVarchar}}
	mustDecode(t, d, relationMessage(otherOID, "orders", stranger), Other)
	ev := sample()
	row := insertMessage(tableOID, valuesOf(&ev, outboxColumns, true))
	mustDecode(t, d, row, Insert)
	mustDecode(t, d, insertMessage(otherOID, valuesOf(&ev, stranger, true)), Other)
	mustDecode(t, d, row, Insert)
	if d.Event.Ordinal != 1 {
		t.Errorf("ordinal of our second row: got %d, want 1: another table's row must not count", d.Event.Ordinal)
	}
	mustDecode(t, d, truncateMessage(otherOID), Other)
	mustDecode(t, d, truncateMessage(otherOID, tableOID), Truncate)
	for name, msg := range map[string][]byte{
		"Origin": append(binary.BigEndian.AppendUint64([]byte{'O'}, 77), "relay\x00"...),
		"Type":   append(binary.BigEndian.AppendUint32([]byte{'Y'}, 90000), "public\x00mood\x00"...),
	} {
		if kind, err := d.Decode(msg); kind != Other || err != nil {
			t.Errorf("%s: got kind %d, %v, want nothing to do", name, kind, err)
		}
	}
}

func TestDecodeNullHeaders(t *testing.T) {
	bothFormats(t, func(t *testing.T, isBinary bool) {
		d := inTransaction(t, outboxColumns)
		full, bare := sample(), sample()
		bare.Headers = ""
		mustDecode(t, d, insertMessage(tableOID, valuesOf(&full, outboxColumns, isBinary)), Insert)
		mustDecode(t, d, insertMessage(tableOID, valuesOf(&bare, outboxColumns, isBinary)), Insert)
		if want := placed(bare, 1); d.Event != want {
			t.Errorf("event after one with headers:\n got %+v\nwant %+v", d.Event, want)
		}
	})
}

// with returns the sample's message with one column's value replaced.
func with(column string, value wireValue) []byte {
	ev := sample()
	values := valuesOf(&ev, outboxColumns, true)
	for i, c := range outboxColumns {
		if c.name == column {
			values[i] = value
		}
	}
	return insertMessage(tableOID, values)
}

func TestDecodeBadValues(t *testing.T) {
	for _, tt := range []struct {
		name, column string
		value        wireValue
	}{
		{"JSONBVersion2", "payload", wireValue{'b', []byte("\x02{}")}},
		{"JSONBEmpty", "headers", wireValue{'b', nil}},
		{"UUIDOf15Bytes", "event_id", wireValue{'b', make([]byte, 15)}},
		{"UUIDOf17Bytes", "event_id", wireValue{'b', make([]byte, 17)}},
		{"UUIDTextTooShort", "event_id", text("0198f3a2-5b7c-7d10-8e2f-a1b2c3d4e5f")},
		{"UUIDTextNoHex", "event_id", text("0198f3a2-5b7c-7d10-8e2f-a1b2c3d4e5fg")},
		{"UUIDTextBraces", "event_id", text("{0198f3a2-5b7c-7d10-8e2f-a1b2c3d4e5}")},
		{"TimestampOf7Bytes", "created_at", wireValue{'b', make([]byte, 7)}},
		{"TimestampOf9Bytes", "created_at", wireValue{'b', make([]byte, 9)}},
		{"TimestampGerman", "created_at", text("23.11.2026 07:46:59 UTC")},
		{"TimestampEmpty", "created_at", text("")},
		{"TimestampMonth13", "created_at", text("2026-13-01 00:00:00+00")},
		{"TimestampDay30Feb", "created_at", text("2026-02-30 00:00:00+00")},
		{"UnknownFormat", "saga_id", wireValue{kind: 'x'}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := inTransaction(t, outboxColumns)
			kind, err := d.Decode(with(tt.column, tt.value))
			if kind != Other || !errors.Is(err, ErrProtocol) {
				t.Errorf("got kind %d, %v, want ErrProtocol", kind, err)
			}
		})
	}
}

func TestDecodeTimestampText(t *testing.T) {
	const (
		second = 1_000_000
		hour   = 3600 * second
		day    = 24 * hour
	)
	for _, tt := range []struct {
		text string
		want relay.Timestamp
	}{
		{"2000-01-01 00:00:00+00", 0},
		{"2000-01-01 00:00:00.000001+00", 1},
		{"1999-12-31 23:59:59.5+00", -second / 2},
		{"2000-01-01 05:30:00+05:30", 0},
		{"1999-12-31 20:30:00-03:30", 0},
		{"2000-01-01 14:00:00+14", 0},
		{"2000-01-01 00:19:32+00:19:32", 0}, // local mean time, as Amsterdam kept it until 1937
		{"2000-01-02 00:00:00", day},        // timestamp without time zone
		{"2024-02-29 12:00:00+00", 8825*day + 12*hour},
		{"infinity", relay.Infinity},
		{"-infinity", relay.NegativeInfinity},
		{"0001-01-01 00:00:00+00", -730_119 * day},
		{"0001-12-31 00:00:00+00 BC", -730_120 * day},
		{"0044-03-15 12:00:00.25+00 BC", -746_117*day + 12*hour + second/4},
		{"10000-01-01 00:00:00+00", 2_921_940 * day},
		// the last one that PostgreSQL knows
		{"294276-12-31 23:59:59.999999+00", 9_223_371_331_200_000_000 - 1},
		{"4714-11-24 00:00:00+00 BC", -211_813_488_000_000_000}, // the first one
	} {
		t.Run(tt.text, func(t *testing.T) {
			d := inTransaction(t, outboxColumns)
			mustDecode(t, d, with("created_at", text(tt.text)), Insert)
			if got := d.Event.CreatedAt; got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestDecodeUUIDText(t *testing.T) {
	for _, s := range []string{"0198f3a2-5b7c-7d10-8e2f-a1b2c3d4e5f6", "0198F3A2-5B7C-7D10-8E2F-A1B2C3D4E5F6"} {
		d := inTransaction(t, outboxColumns)
		mustDecode(t, d, with("event_id", text(s)), Insert)
		if got, want := d.Event.ID, sample().ID; got != want {
			t.Errorf("%s: got %s, want %s", s, got, want)
		}
	}
}

// A type whose binary form is not read asks for text, where its value is what the type's output
// function writes.
func TestDecodeTypeThatIsReadAsText(t *testing.T) {
	described := slices.Clone(outboxColumns)
	described[3].oid = 20 // aggregate_id is a bigint
	d := inTransaction(t, described)
	if !d.WantsText() {
		t.Error("it does not want text")
	}
	ev := sample()
	values := valuesOf(&ev, described, true)
	values[3] = wireValue{'b', []byte{0, 0, 0, 0, 0, 0, 0, 42}}
	if _, err := d.Decode(insertMessage(tableOID, values)); !errors.Is(err, ErrWantsText) {
		t.Errorf("in binary: got %v, want ErrWantsText", err)
	}
	values = valuesOf(&ev, described, false)
	values[3] = text("42")
	mustDecode(t, d, insertMessage(tableOID, values), Insert)
	if d.Event.AggregateID != "42" || d.Event.Loose {
		t.Errorf("got key %q, loose %t; want 42, false", d.Event.AggregateID, d.Event.Loose)
	}
}

// A row over the limit keeps what identifies it, and nothing of what makes it large, whether it
// came whole or its large values were cut out on the way.
func TestDecodeTooLarge(t *testing.T) {
	ev := sample()
	ev.Payload = `"` + strings.Repeat("x", 1000) + `"`
	size := len(ev.SagaID) + len(ev.AggregateType) + len(ev.AggregateID) + len(ev.EventType) + len(ev.Payload) + len(ev.Headers)
	for name, change := range map[string]func(values []wireValue) int{
		"whole": func([]wireValue) int { return 0 },
		"cut": func(v []wireValue) int {
			v[5] = wireValue{kind: CutColumn, data: make([]byte, len(v[5].data))}
			return 1
		},
	} {
		for limit, fits := range map[int]bool{size: name == "whole", size - 1: false} {
			d := inTransaction(t, outboxColumns)
			d.MaxEventBytes = limit
			values := valuesOf(&ev, outboxColumns, true)
			more := change(values)
			mustDecode(t, d, cutMessage(values), Insert)
			got := d.Event
			if (got.Unfit == nil) != fits {
				t.Errorf("%s, limit %d of %d: unfit is %v", name, limit, size, got.Unfit)
			}
			if !fits && (got.Payload != "" || got.Headers != "" || got.AggregateID != ev.AggregateID || got.EventType != ev.EventType ||
				got.Status != ev.Status || got.CreatedAt != ev.CreatedAt || got.Unfit.Size != int64(size+more)) {
				t.Errorf("%s: got %+v, %v", name, got, got.Unfit)
			}
		}
	}
}

// cutMessage is insertMessage where the bytes of cut values are not there.
func cutMessage(values []wireValue) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'I'}, tableOID)
	b = append(b, 'N')
	b = binary.BigEndian.AppendUint16(b, uint16(len(values)))
	for _, v := range values {
		b = append(b, v.kind)
		if v.kind != 'n' {
			b = binary.BigEndian.AppendUint32(b, uint32(len(v.data)))
		}
		if v.kind != CutColumn {
			b = append(b, v.data...)
		}
	}
	return b
}

// Every message cut short anywhere is an error, never a panic and never a row.
func TestDecodeCutShort(t *testing.T) {
	ev := sample()
	for name, msg := range map[string][]byte{
		"Begin":        beginMessage(commitAt, committedAt, xid),
		"Commit":       commitMessage(commitAt, commitAt+1, committedAt),
		"Relation":     relationMessage(tableOID, "saga_outbox", outboxColumns),
		"Truncate":     truncateMessage(tableOID),
		"InsertText":   insertMessage(tableOID, valuesOf(&ev, outboxColumns, false)),
		"InsertBinary": insertMessage(tableOID, valuesOf(&ev, outboxColumns, true)),
	} {
		t.Run(name, func(t *testing.T) {
			for n := range len(msg) {
				// Both where nothing follows in memory and where the rest is still there, to be
				// read by mistake.
				for _, cut := range [][]byte{msg[:n:n], msg[:n]} {
					d := inTransaction(t, outboxColumns)
					if kind, err := d.Decode(cut); kind != Other || !errors.Is(err, ErrProtocol) {
						t.Errorf("%d of %d bytes: got kind %d, %v, want ErrProtocol", n, len(msg), kind, err)
					}
				}
			}
		})
	}
}

func TestDecodeOutOfPlace(t *testing.T) {
	ev := sample()
	row := insertMessage(tableOID, valuesOf(&ev, outboxColumns, true))
	old := slices.Clone(row)
	old[5] = 'O'
	t.Run("InsertBeforeRelation", func(t *testing.T) {
		d := NewDecoder(tableOID)
		mustDecode(t, d, beginMessage(commitAt, committedAt, xid), Begin)
		_, err := d.Decode(row)
		wantProtocol(t, err)
	})
	t.Run("InsertOutsideTransaction", func(t *testing.T) {
		d := inTransaction(t, outboxColumns)
		mustDecode(t, d, commitMessage(commitAt, commitAt+1, committedAt), Commit)
		_, err := d.Decode(row)
		wantProtocol(t, err)
	})
	t.Run("InsertWithOldTuple", func(t *testing.T) {
		_, err := inTransaction(t, outboxColumns).Decode(old)
		wantProtocol(t, err)
	})
	t.Run("TooFewColumns", func(t *testing.T) {
		_, err := inTransaction(t, outboxColumns).Decode(insertMessage(tableOID, valuesOf(&ev, outboxColumns[1:], true)))
		wantProtocol(t, err)
	})
	t.Run("TooManyColumns", func(t *testing.T) {
		values := append(valuesOf(&ev, outboxColumns, true), null)
		_, err := inTransaction(t, outboxColumns).Decode(insertMessage(tableOID, values))
		wantProtocol(t, err)
	})
	t.Run("LengthPastTheEnd", func(t *testing.T) {
		long := slices.Clone(row)
		copy(long[9:], []byte{0xff, 0xff, 0xff, 0xff}) // the first column's length
		_, err := inTransaction(t, outboxColumns).Decode(long)
		wantProtocol(t, err)
	})
	t.Run("UnknownMessage", func(t *testing.T) {
		_, err := inTransaction(t, outboxColumns).Decode([]byte("?abc"))
		wantProtocol(t, err)
	})
}

// A Truncate of nine bytes may claim four thousand million relations; the decoder must not believe
// it.
func TestDecodeTruncateClaimsTooMuch(t *testing.T) {
	msg := truncateMessage(tableOID)
	binary.BigEndian.PutUint32(msg[1:], 32<<20)
	d := inTransaction(t, outboxColumns)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := d.Decode(msg)
	runtime.ReadMemStats(&after)
	wantProtocol(t, err)
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Errorf("allocated %d bytes for a message of %d", got, len(msg))
	}
}

func wantProtocol(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrProtocol) {
		t.Errorf("got %v, want ErrProtocol", err)
	}
}

// One huge row must not keep its buffer for ever.
func TestDecodeHugeRow(t *testing.T) {
	d := inTransaction(t, outboxColumns)
	ev := sample()
	ev.Payload = `"` + strings.Repeat("x", 3*scratchKept) + `"`
	mustDecode(t, d, insertMessage(tableOID, valuesOf(&ev, outboxColumns, true)), Insert)
	if want := placed(ev, 0); d.Event != want {
		t.Error("the huge row came out differently")
	}
	if got := cap(d.scratch); got > scratchKept {
		t.Errorf("scratch keeps %d bytes, want at most %d", got, scratchKept)
	}
}
