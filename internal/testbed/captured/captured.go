// Package captured has what a real walsender sent for rows of several shapes: the input of the
// benchmarks of every stage (make benchmarks). testdata has a file a shape, which
//
//	bin/testenv -postgres=18 -brokers=none -- go test ./internal/testbed/captured -args -update
//
// writes again. Without -update that test checks that a server of today sends what decodes to the
// same events, so that no benchmark measures a past.
package captured

import (
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/relay"
)

// Shape is what rows look like, and how they are committed.
type Shape struct {
	Name    string
	Rows    int
	PerTx   int  // rows a transaction
	Payload int  // bytes, about
	Headers int  // keys
	Text    bool // the stream is in text
}

// Shapes are those that were captured.
var Shapes = []Shape{
	{Name: "large-transaction", Rows: 200, PerTx: 200, Payload: 500, Headers: 2},
	{Name: "single-rows", Rows: 200, PerTx: 1, Payload: 500, Headers: 2},
	{Name: "headers-20", Rows: 100, PerTx: 100, Payload: 500, Headers: 20},
	{Name: "payload-4kB", Rows: 40, PerTx: 40, Payload: 4000, Headers: 2},
	{Name: "text", Rows: 100, PerTx: 100, Payload: 500, Headers: 2, Text: true},
}

// Keys is how many keys the rows of a shape have at most.
const Keys = 97

// Statement inserts one row of the shape; its parameter is the row's number, from 0.
func (s Shape) Statement() string {
	headers := `jsonb_build_object('correlation_id', md5('c' || $1), 'traceparent', '00-' || md5('t' || $1) || '-' || left(md5('p' || $1), 16) || '-01')`
	if more := s.Headers - 2; more > 0 {
		headers += fmt.Sprintf(` || (SELECT jsonb_object_agg('header-' || i, left(md5(i || 'h' || $1), 16)) FROM generate_series(1, %d) i)`, more)
	}
	return `INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, created_at)
		SELECT md5('` + s.Name + `' || $1)::uuid, 'saga-' || $1, 'order', 'order-' || ($1::int % ` + fmt.Sprint(Keys) + `), 'order.placed',
		jsonb_build_object('order_id', $1::int, 'customer', jsonb_build_object('name', 'Grüße "' || $1 || '"', 'id', md5($1)), 'items', ` +
		fmt.Sprintf(`(SELECT jsonb_agg(jsonb_build_object('sku', left(md5(i || $1), 8), 'price', i * 1.25, 'count', i)) FROM generate_series(1, %d) i)), `, max(1, (s.Payload-130)/52)) +
		headers + `, timestamptz '2026-11-30 12:00:00+00' + $1::int * interval '1 millisecond'`
}

//go:embed testdata/*.gz
var files embed.FS

// Messages are the messages of the stream as they are in CopyData: XLogData, whose first byte is w.
func (s Shape) Messages() ([][]byte, error) {
	packed, err := files.ReadFile("testdata/" + s.Name + ".gz")
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	all, err := io.ReadAll(z)
	if err != nil {
		return nil, err
	}
	var messages [][]byte
	for len(all) >= 4 {
		n := int(binary.BigEndian.Uint32(all))
		if n > len(all)-4 {
			break
		}
		messages = append(messages, all[4:4+n:4+n])
		all = all[4+n:]
	}
	if len(all) > 0 {
		return nil, errors.New(s.Name + ": the file ends within a message")
	}
	return messages, nil
}

// XLogData is the size of what is before the plugin's message in XLogData: w, start, end, time.
const XLogData = 1 + 3*8

// Table is the OID of the outbox table in the messages.
func Table(messages [][]byte) (uint32, error) {
	for _, m := range messages {
		if m[XLogData] == 'R' {
			return binary.BigEndian.Uint32(m[XLogData+1:]), nil
		}
	}
	return 0, errors.New("no table is described")
}

// Events are the rows, decoded.
func (s Shape) Events() ([]relay.Event, error) {
	messages, err := s.Messages()
	if err != nil {
		return nil, err
	}
	table, err := Table(messages)
	if err != nil {
		return nil, err
	}
	var events []relay.Event
	d := pgoutput.NewDecoder(table)
	for _, m := range messages {
		switch kind, err := d.Decode(m[XLogData:]); {
		case err != nil:
			return nil, err
		case kind == pgoutput.Insert:
			events = append(events, d.Event)
		case kind == pgoutput.Commit && len(events) > 0:
			events[len(events)-1].CommitEnd = d.CommitEnd
		}
	}
	return events, s.Check(events)
}

// Check reports what is wrong with what was made of the shape's rows.
func (s Shape) Check(events []relay.Event) error {
	if len(events) != s.Rows {
		return fmt.Errorf("%s: %d events, want %d", s.Name, len(events), s.Rows)
	}
	for i := range events {
		ev := &events[i]
		if want := relay.UUID(md5.Sum([]byte(fmt.Sprint(s.Name, i)))); ev.ID != want {
			return fmt.Errorf("%s: event %d is %s, want %s", s.Name, i, ev.ID, want)
		}
		headers := 1 + strings.Count(ev.Headers, `", "`)
		if ev.SagaID != fmt.Sprint("saga-", i) || ev.AggregateID != fmt.Sprint("order-", i%Keys) || len(ev.Payload) < s.Payload*3/4 || headers != s.Headers || ev.Status != "pending" {
			return fmt.Errorf("%s: event %d is not the row that was inserted: %s, %s, %s, %d bytes of payload, %d headers", s.Name, i, ev.Status, ev.SagaID, ev.AggregateID, len(ev.Payload), headers)
		}
	}
	return nil
}
