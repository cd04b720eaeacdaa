package encode

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/relay"
)

// columnHeader is a header that a column of the row is the value of.
type columnHeader struct{ name, column string }

// headerColumns are the columns that can be headers. A stream has only those that an event is made
// of. Another column gets into the column headers by a trigger or a view (docs/own-names.md), and so
// it is the same on every path.
var headerColumns = []string{"event_id", "saga_id", "aggregate_type", "aggregate_id", "event_type", "created_at"}

// parseColumnHeaders reads RELAY_HEADER_COLUMNS for an envelope. A name that the envelope or the relay uses
// itself is an error.
func parseColumnHeaders(items []string, envelope string) ([]columnHeader, error) {
	e := Encoder{envelope: envelope, contentType: "x", source: "x"}
	ev := relay.Event{SagaID: "x", AggregateType: "x", AggregateID: "x", EventType: "x"}
	taken := e.envelopeHeaders(&ev, "x", 0)
	var all []columnHeader
	for _, item := range items {
		name, column, _ := strings.Cut(item, "=")
		h := columnHeader{strings.TrimSpace(name), strings.TrimSpace(column)}
		attribute, isAttributeName := strings.CutPrefix(h.name, relay.CloudEventPrefix)
		switch {
		case h.name == "" || !slices.Contains(headerColumns, h.column):
			return nil, fmt.Errorf("%s: want NAME=COLUMN, with one of the columns %s", item, strings.Join(headerColumns, ", "))
		case h.name == relay.ReplayedHeader || h.name == relay.TombstoneHeader:
			return nil, fmt.Errorf("%s: the relay has a header %s of its own: want another name", item, h.name)
		case slices.ContainsFunc(taken, func(t relay.Header) bool { return t.Key == h.name }):
			return nil, fmt.Errorf("%s: RELAY_ENVELOPE=%s has a header %s: want another name", item, envelope, h.name)
		case slices.ContainsFunc(all, func(o columnHeader) bool { return o.name == h.name }):
			return nil, fmt.Errorf("%s: %s is there twice", item, h.name)
		case envelope == EnvelopeStructured && isAttributeName && !isAttribute(attribute):
			return nil, fmt.Errorf("%s: an attribute's name has only a-z and 0-9, and is neither data nor datacontenttype", item)
		}
		all = append(all, h)
	}
	return all, nil
}

// appendColumns adds the headers that are columns. What is empty, or not on the calendar, is none.
func (e *Encoder) appendColumns(headers []relay.Header, ev *relay.Event, id string) []relay.Header {
	for _, h := range e.columns {
		var value string
		switch h.column {
		case "event_id":
			value = id
		case "saga_id":
			value = ev.SagaID
		case "aggregate_type":
			value = ev.AggregateType
		case "aggregate_id":
			value = ev.AggregateID
		case "event_type":
			value = ev.EventType
		case "created_at":
			if ev.CreatedAt != relay.Infinity && ev.CreatedAt != relay.NegativeInfinity {
				value = string(appendISOFormat(nil, ev.CreatedAt.Time()))
			}
		}
		if value != "" {
			headers = append(headers, header(h.name, value))
		}
	}
	return headers
}
