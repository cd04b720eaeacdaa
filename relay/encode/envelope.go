package encode

import "github.com/sagaz-relay/relay/relay"

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
	// EnvelopeStructured is the structured content mode of CloudEvents 1.0: the body is a JSON
	// object that has the attributes and the payload; headers event_id, event_type, content-type. The
	// bindings allow the headers of the binary mode next to it. They are left out, because SDKs take
	// a message that has them for one in binary mode (CloudEvents for Python, from_kafka).
	EnvelopeStructured = "cloudevents-structured"
	// EnvelopeDebezium is what Debezium's outbox event router writes: the payload alone, the header
	// id, and the header eventType. Nearly all users configure the router to add that one
	// (table.fields.additional.placement = type:header:eventType).
	EnvelopeDebezium = "debezium"
	// EnvelopeRaw is the payload alone, with the headers of EnvelopeSagaz.
	EnvelopeRaw = "raw"
)

// envelopes are all of them, in the order in which people are told.
var envelopes = []string{EnvelopeSagaz, EnvelopeCloudEvents, EnvelopeStructured, EnvelopeDebezium, EnvelopeRaw}

const jsonContent = "application/json"

// envelopeHeaders returns the envelope's own headers, with room for more. The content type is the
// last one, but for EnvelopeDebezium, which has none.
func (e *Encoder) envelopeHeaders(ev *relay.Event, id string, more int) []relay.Header {
	switch e.envelope {
	case EnvelopeDebezium:
		return append(make([]relay.Header, 0, 2+more), header("id", id), header("eventType", ev.EventType))
	case EnvelopeCloudEvents:
		return e.cloudEventHeaders(make([]relay.Header, 0, 10+more), ev, id)
	case EnvelopeStructured: // structured takes the attributes out again
		return e.cloudEventHeaders(append(make([]relay.Header, 0, 12+more), header("event_id", id), header("event_type", ev.EventType)), ev, id)
	default:
		return append(make([]relay.Header, 0, 4+more), header("event_id", id), header("saga_id", ev.SagaID), header("event_type", ev.EventType), header("content_type", e.contentType))
	}
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
