package pgoutput

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

// script joins messages to one fuzz input: each behind its length in two bytes.
func script(messages ...[]byte) []byte {
	var b []byte
	for _, m := range messages {
		b = binary.BigEndian.AppendUint16(b, uint16(len(m)))
		b = append(b, m...)
	}
	return b
}

// play feeds a script to a new decoder, each message in memory of its own with other bytes behind
// it, so that an over-read shows in the outcome.
func play(t *testing.T, script []byte, beyond byte) (kinds []Kind, events []relay.Event, err error) {
	d := NewDecoder(tableOID)
	for len(script) >= 2 {
		n := min(int(binary.BigEndian.Uint16(script)), len(script)-2)
		memory := make([]byte, n, n+64)
		copy(memory, script[2:2+n])
		script = script[2+n:]
		rest := memory[n:cap(memory)]
		for i := range rest {
			rest[i] = beyond
		}
		kind, err := d.Decode(memory)
		if err != nil {
			if kind != Other {
				t.Errorf("kind %d together with %v", kind, err)
			}
			return kinds, events, err
		}
		kinds = append(kinds, kind)
		if kind == Insert {
			ev := d.Event
			if text := ev.Size() - (&relay.Event{}).Size(); text > n {
				t.Errorf("an event with %d bytes of text out of a message of %d", text, n)
			}
			events = append(events, ev)
		}
	}
	return kinds, events, nil
}

// Whatever bytes come: no panic, no over-read, and an error is one of those that are documented.
func FuzzDecode(f *testing.F) {
	ev := sample()
	relation := relationMessage(tableOID, "saga_outbox", outboxColumns)
	begin, commit := beginMessage(commitAt, committedAt, xid), commitMessage(commitAt, commitAt+8, committedAt)
	for _, isBinary := range []bool{false, true} {
		f.Add(script(begin, relation, insertMessage(tableOID, valuesOf(&ev, outboxColumns, isBinary)), commit))
	}
	f.Add(script(begin, relationMessage(tableOID, "saga_outbox", outboxColumns[2:]), insertMessage(tableOID, nil)))
	f.Add(script(begin, relation, with("payload", null), with("created_at", text("infinity")), truncateMessage(tableOID, otherOID)))
	f.Add(script([]byte{'R'}, []byte{'?'}, nil))
	f.Fuzz(func(t *testing.T, input []byte) {
		kinds, events, err := play(t, input, 0x00)
		kinds2, events2, err2 := play(t, input, 0xa5)
		var missing *ColumnError
		if err != nil && !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrWantsText) && !errors.As(err, &missing) {
			t.Errorf("got %v, want ErrProtocol, ErrWantsText or a *ColumnError", err)
		}
		if !slices.Equal(kinds, kinds2) || !slices.Equal(events, events2) || (err == nil) != (err2 == nil) {
			t.Errorf("the outcome depends on bytes behind the messages:\n%v %+v %v\n%v %+v %v", kinds, events, err, kinds2, events2, err2)
		}
	})
}

// What the server's side encodes comes out as it was, in either format and any order of columns.
func FuzzRoundTrip(f *testing.F) {
	ev := sample()
	add := func(ev relay.Event, isBinary bool, order uint64) {
		f.Add(ev.ID[:], ev.SagaID, ev.AggregateType, ev.AggregateID, ev.EventType, ev.Payload, ev.Headers, ev.Status,
			int64(ev.CreatedAt), uint64(commitAt), int64(committedAt), xid, isBinary, order)
	}
	add(ev, true, 0)
	add(ev, false, 7)
	ev.Headers, ev.CreatedAt = "", relay.Infinity
	add(ev, false, 1)
	ev.CreatedAt = -70_000_000_000_000_001 // 219 BC
	add(ev, false, 2)
	ev.SagaID, ev.Payload = "", strings.Repeat("\x00\xff", 300)
	add(ev, true, math.MaxUint64)
	f.Fuzz(func(t *testing.T, id []byte, saga, aggregateType, aggregateID, eventType, payload, headers, status string,
		created int64, commit uint64, committed int64, xid uint32, isBinary bool, order uint64,
	) {
		want := relay.Event{
			SagaID: saga, AggregateType: aggregateType, AggregateID: aggregateID, EventType: eventType, Payload: payload,
			Headers: headers, Status: status, CreatedAt: relay.Timestamp(created),
			CommitLSN: relay.LSN(commit), CommittedAt: relay.Timestamp(committed), XID: xid,
		}
		copy(want.ID[:], id)
		// PostgreSQL's calendar: 4714-11-24 BC to the year 294276.
		if ts := want.CreatedAt; ts != relay.Infinity && ts != relay.NegativeInfinity && (ts < -211_813_488_000_000_000 || ts >= 9_223_371_331_200_000_000) {
			t.Skip("no timestamp of PostgreSQL's")
		}
		columns := append(slices.Clone(outboxColumns), wireColumn{"retry_count", oidInt4})
		rand.New(rand.NewPCG(order, 0)).Shuffle(len(columns), func(i, j int) { columns[i], columns[j] = columns[j], columns[i] })
		d := NewDecoder(tableOID)
		mustDecode(t, d, relationMessage(tableOID, "saga_outbox", columns), Relation)
		mustDecode(t, d, beginMessage(want.CommitLSN, want.CommittedAt, xid), Begin)
		mustDecode(t, d, insertMessage(tableOID, valuesOf(&want, columns, isBinary)), Insert)
		if got := d.Event; got != want {
			t.Errorf("binary %t:\n got %+v\nwant %+v", isBinary, got, want)
		}
	})
}
