package relay

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// The envelopes, values of Config.Envelope: how an event stands on the wire. Key, topic and routing key are the same in all of
// them, and the row's own headers follow, which may override the others.
const (
	// EnvelopeSagaz is the Python library's format: a JSON object around the payload; headers event_id, saga_id, event_type, content_type.
	EnvelopeSagaz = "sagaz"
	// EnvelopeCloudEvents is the binary content mode of CloudEvents 1.0: the payload alone is the body, the attributes are headers. The
	// record's headers have the names of the Kafka protocol binding (section 3.2: ce_id, and content-type); a sink of another
	// protocol renames them, which is why the record says that it is a CloudEvent.
	EnvelopeCloudEvents = "cloudevents"
	// EnvelopeDebezium is what Debezium's outbox event router writes: the payload alone, the header id, and the header eventType, which
	// nearly everybody has the router add (table.fields.additional.placement = type:header:eventType).
	EnvelopeDebezium = "debezium"
	// EnvelopeRaw is the payload alone, with the headers of EnvelopeSagaz.
	EnvelopeRaw = "raw"
)

const jsonContent = "application/json"

// CloudEventPrefix begins the name of a CloudEvents attribute in the headers of a record that is one.
const CloudEventPrefix = "ce_"

// CloudEventContentType is the one header of such a record that is no attribute: what its body is.
const CloudEventContentType = "content-type"

// envelopeHeaders returns the envelope's own headers, with room for more.
func (e *Encoder) envelopeHeaders(ev *Event, id string, more int) []Header {
	switch e.envelope {
	case EnvelopeDebezium:
		return append(make([]Header, 0, 2+more), Header{"id", id}, Header{"eventType", ev.EventType})
	case EnvelopeCloudEvents:
		return e.cloudEventHeaders(ev, id, more)
	default:
		return append(make([]Header, 0, 4+more), Header{"event_id", id}, Header{"saga_id", ev.SagaID}, Header{"event_type", ev.EventType}, Header{"content_type", jsonContent})
	}
}

// cloudEventHeaders are the attributes of CloudEvents 1.0 (spec.md, "Context Attributes"; extensions/partitioning.md), and two of
// our own for what else the columns say. An attribute may not be empty, so what the row has not is left out.
func (e *Encoder) cloudEventHeaders(ev *Event, id string, more int) []Header {
	h := append(make([]Header, 0, 10+more),
		Header{"ce_specversion", "1.0"}, Header{"ce_id", id}, Header{"ce_source", e.source}, Header{"ce_type", ev.EventType})
	if ev.CreatedAt != Infinity && ev.CreatedAt != NegativeInfinity {
		if t := ev.CreatedAt.Time(); t.Year() >= 0 && t.Year() <= 9999 { // RFC 3339 has four digits
			h = append(h, Header{"ce_time", string(appendISOFormat(nil, t))})
		}
	}
	for _, a := range [...]Header{{"ce_subject", ev.AggregateID}, {"ce_partitionkey", ev.AggregateID}, {"ce_aggregatetype", ev.AggregateType}, {"ce_sagaid", ev.SagaID}} {
		if a.Value != "" {
			h = append(h, a)
		}
	}
	return append(h, Header{CloudEventContentType, jsonContent})
}

// EventIDHeaders are the names of the header that tells a delivery's event_id, the one of the given envelope first: a topic may still
// hold what was sent in another one.
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
