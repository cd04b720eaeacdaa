package encode

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/sagaz-relay/relay/relay"
)

// The envelopes, values of Config.Envelope: how an event looks on the wire. Key, topic and routing
// key are the same in all of them, and the row's own headers follow, which may override the others.
const (
	// EnvelopeSagaz is the Python library's format: a JSON object around the payload; headers
	// event_id, saga_id, event_type, content_type.
	EnvelopeSagaz = "sagaz"
	// EnvelopeCloudEvents is the binary content mode of CloudEvents 1.0: the payload alone is the
	// body, the attributes are headers. The record's headers have the names of the Kafka protocol
	// binding (section 3.2: ce_id, and content-type). A sink of another protocol renames them,
	// which is why the record has a flag that it is a CloudEvent.
	EnvelopeCloudEvents = "cloudevents"
	// EnvelopeDebezium is what Debezium's outbox event router writes: the payload alone, the header
	// id, and the header eventType. Nearly all users configure the router to add that one
	// (table.fields.additional.placement = type:header:eventType).
	EnvelopeDebezium = "debezium"
	// EnvelopeRaw is the payload alone, with the headers of EnvelopeSagaz.
	EnvelopeRaw = "raw"
)

const jsonContent = "application/json"

// envelopeHeaders returns the envelope's own headers, with room for more.
func (e *Encoder) envelopeHeaders(ev *relay.Event, id string, more int) []relay.Header {
	switch e.envelope {
	case EnvelopeDebezium:
		return append(make([]relay.Header, 0, 2+more), header("id", id), header("eventType", ev.EventType))
	case EnvelopeCloudEvents:
		return e.cloudEventHeaders(ev, id, more)
	default:
		return append(make([]relay.Header, 0, 4+more), header("event_id", id), header("saga_id", ev.SagaID), header("event_type", ev.EventType), header("content_type", jsonContent))
	}
}

// cloudEventHeaders are the attributes of CloudEvents 1.0 (spec.md, "Context Attributes";
// extensions/partitioning.md), and two of our own for the other columns. An attribute may not be
// empty, so it is left out when the row has no value for it.
func (e *Encoder) cloudEventHeaders(ev *relay.Event, id string, more int) []relay.Header {
	h := append(make([]relay.Header, 0, 10+more),
		header("ce_specversion", "1.0"), header("ce_id", id), header("ce_source", e.source), header("ce_type", ev.EventType))
	if ev.CreatedAt != relay.Infinity && ev.CreatedAt != relay.NegativeInfinity {
		if t := ev.CreatedAt.Time(); t.Year() >= 0 && t.Year() <= 9999 { // RFC 3339 has four digits
			h = append(h, header("ce_time", string(appendISOFormat(nil, t))))
		}
	}
	for _, a := range [...]relay.Header{header("ce_subject", ev.AggregateID), header("ce_partitionkey", ev.AggregateID), header("ce_aggregatetype", ev.AggregateType), header("ce_sagaid", ev.SagaID)} {
		if a.Value != "" {
			h = append(h, a)
		}
	}
	return append(h, header(relay.CloudEventContentType, jsonContent))
}

// EventIDHeaders are the names of the header with a delivery's event_id, the one of the given
// envelope first. A topic may still have records that were sent in another envelope.
func EventIDHeaders(envelope string) []string {
	switch envelope {
	case EnvelopeCloudEvents:
		return []string{"ce_id", "cloudEvents_id", "event_id", "id"}
	case EnvelopeDebezium:
		return []string{"id", "event_id", "ce_id", "cloudEvents_id"}
	default:
		return []string{"event_id", "ce_id", "cloudEvents_id", "id"}
	}
}

// checkSource wants a non-empty URI-reference (CloudEvents 1.0, "source").
func checkSource(source string) error {
	err := errors.New("it is empty")
	if source != "" {
		_, err = url.Parse(source)
	}
	if err == nil && strings.ContainsFunc(source, func(r rune) bool { return r <= ' ' || r > '~' }) {
		err = errors.New("it has spaces, or other characters that a URI escapes")
	}
	if err != nil {
		return fmt.Errorf("RELAY_CLOUDEVENTS_SOURCE=%s: %w: want a URI, or its path, such as /shop/orders", source, err)
	}
	return nil
}
