package encode

import (
	"cmp"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/sagaz-relay/relay/relay"
)

// Encoder makes records of events. It has no state, so one serves all goroutines.
type Encoder struct {
	topic, routingKey Template
	envelope          string
	source            string // of CloudEvents
	columns           []columnHeader
	payload           string    // one of PayloadJSON, …
	contentType       string    // of payloads
	tombstones        bool      // of events whose payload is NULL
	key, value        converter // of EnvelopeDebezium
}

var _ relay.Encoder = (*Encoder)(nil)

// New returns the encoder of a configuration, which must be valid.
func New(cfg Config) (*Encoder, error) {
	topic, err := ParseTemplate(cfg.Topic)
	if err != nil {
		return nil, fmt.Errorf("RELAY_TOPIC: %w", err)
	}
	key, err := ParseTemplate(cfg.RoutingKey)
	if err != nil {
		return nil, fmt.Errorf("RELAY_ROUTING_KEY: %w", err)
	}
	columns, err := parseColumnHeaders(cfg.Headers, cfg.Envelope)
	if err != nil {
		return nil, fmt.Errorf("RELAY_HEADER_COLUMNS: %w", err)
	}
	return &Encoder{
		columns: columns,
		key:     converter{kind: cfg.DebeziumKey, schema: keySchema},
		value:   converter{kind: cfg.DebeziumValue, schema: cfg.DebeziumSchema, bytes: cfg.Payload == PayloadBytes},
		topic:   topic, routingKey: key, envelope: cfg.Envelope, source: cfg.CloudEventsSource,
		payload: cfg.Payload, contentType: cmp.Or(cfg.ContentType, contentTypes[cfg.Payload]), tombstones: cfg.NullPayload == NullTombstone,
	}, nil
}

// RowHeaders are the headers that the row itself has, and nothing when they cannot be read.
func (e *Encoder) RowHeaders(ev *relay.Event) []relay.Header {
	headers, _ := appendHeaders(nil, ev.Headers) // Encode returns what is wrong with them
	return headers
}

// Encode fills rec from ev. The record keeps parts of the event's text alive. An error is the
// event's own fault (see relay.Refused); rec then has nothing to publish.
func (e *Encoder) Encode(rec *relay.Record, ev *relay.Event) error {
	err := e.encode(rec, ev)
	if err != nil {
		*rec = relay.Record{}
	}
	return err
}

var errNull = errors.New("payload is NULL; RELAY_NULL_PAYLOAD=tombstone delivers it as a record without a value")

var errNoJSON = errors.New("column payload: it is not a JSON document; RELAY_PAYLOAD=text or bytes delivers others, in another envelope than sagaz")

func (e *Encoder) encode(rec *relay.Record, ev *relay.Event) error {
	if ev.Unfit != nil {
		return ev.Unfit
	}
	if ev.NoPayload && !e.tombstones {
		return relay.Refuse(relay.ReasonEncode, errNull)
	}
	if ev.Payload == "" && !ev.NoPayload && e.payload == PayloadJSON {
		return relay.Refuse(relay.ReasonEncode, errNoJSON)
	}
	rowHeaders := ev.Headers
	if ev.Loose {
		var err error
		if rowHeaders, err = e.checkLoose(ev); err != nil {
			return relay.Refuse(relay.ReasonEncode, err)
		}
	}
	*rec = relay.Record{
		EventID:     ev.ID,
		EventType:   ev.EventType,
		Key:         ev.AggregateID,
		ContentType: e.contentType,
		CloudEvent:  e.envelope == EnvelopeCloudEvents || e.envelope == EnvelopeStructured,
		Timestamp:   ev.CreatedAt.Time(),
	}
	var id string
	if e.envelope == EnvelopeSagaz {
		rec.Value, id = sagazBody(ev)
	} else {
		id = ev.ID.String()
	}
	own := e.envelopeHeaders(ev, id, len(e.columns)+countHeaders(rowHeaders))
	contentType := len(own) - 1 // where it is, which the row may change
	headers, err := appendHeaders(e.appendColumns(own, ev, id), rowHeaders)
	if err != nil {
		return relay.Refuse(relay.ReasonEncode, fmt.Errorf("column headers: %w", err))
	}
	if e.envelope != EnvelopeSagaz && e.envelope != EnvelopeDebezium {
		rec.ContentType = headers[contentType].Value
	}
	switch {
	case e.envelope == EnvelopeStructured:
		if rec.Value, headers, err = e.structured(ev, headers, rec.ContentType); err != nil {
			return relay.Refuse(relay.ReasonEncode, err)
		}
		rec.ContentType = structuredContent
	case ev.NoPayload:
		headers = putHeader(headers, len(headers), relay.TombstoneHeader, "true")
	case e.envelope == EnvelopeDebezium && e.value.kind != ConverterString:
		rec.Value, rec.ContentType = e.value.convert(ev.Payload), jsonContent
	case e.envelope != EnvelopeSagaz:
		rec.Value = []byte(ev.Payload) // not nil, also where it is empty
	}
	if e.envelope == EnvelopeDebezium && e.key.kind != ConverterString && rec.Key != "" {
		key := string(e.key.convert(rec.Key))
		rec.OwnKey = &key
	}
	rec.Headers = headers
	return e.destination(rec, ev)
}

// destination names the record's topic and routing key.
func (e *Encoder) destination(rec *relay.Record, ev *relay.Event) (err error) {
	if rec.Topic, err = e.topic.Expand(ev, rec.Headers); err != nil {
		return relay.Refuse(relay.ReasonEncode, fmt.Errorf("RELAY_TOPIC=%w", err))
	}
	if rec.RoutingKey, err = e.routingKey.Expand(ev, rec.Headers); err != nil {
		return relay.Refuse(relay.ReasonEncode, fmt.Errorf("RELAY_ROUTING_KEY=%w", err))
	}
	return nil
}

// UsesHeaders reports whether it depends on an event's headers where its record goes.
func (e *Encoder) UsesHeaders() bool { return e.topic.UsesHeaders() || e.routingKey.UsesHeaders() }

// sagazBody is the body of the Python library (docs/contract.md, "Wire"): a JSON object with the
// keys event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, timestamp in this
// order. The returned id is the event's, and shares the body's memory, which is not written to from
// here on.
func sagazBody(ev *relay.Event) (body []byte, id string) {
	size := 176 + len(ev.SagaID) + len(ev.AggregateType) + len(ev.AggregateID) + len(ev.EventType) + len(ev.Payload)
	b := make([]byte, 0, size)
	b = append(b, `{"event_id":"`...)
	idAt := len(b)
	b = ev.ID.AppendText(b)
	b = append(b, `","saga_id":`...)
	b = relay.AppendJSONString(b, ev.SagaID)
	b = append(b, `,"aggregate_type":`...)
	b = relay.AppendJSONString(b, ev.AggregateType)
	b = append(b, `,"aggregate_id":`...)
	b = relay.AppendJSONString(b, ev.AggregateID)
	b = append(b, `,"event_type":`...)
	b = relay.AppendJSONString(b, ev.EventType)
	b = append(b, `,"payload":`...)
	b = append(b, ev.Payload...)
	b = append(b, `,"timestamp":"`...)
	b = appendISOFormat(b, ev.CreatedAt.Time())
	if ev.CreatedAt == relay.Infinity || ev.CreatedAt == relay.NegativeInfinity {
		// The library reads them as datetime.max and .min, which have no zone.
		b = b[:len(b)-len(utcOffset)]
	}
	b = append(b, `"}`...)
	return b, unsafe.String(&b[idAt], 36)
}

// appendISOFormat writes a UTC time as Python's datetime.isoformat does: six digits of fraction,
// and no fraction when it is zero. It does not use time.AppendFormat, which took a tenth of the
// relay's CPU.
func appendISOFormat(b []byte, t time.Time) []byte {
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	b = appendDigits(b, year, 4)
	b = append(b, '-')
	b = appendDigits(b, int(month), 2)
	b = append(b, '-')
	b = appendDigits(b, day, 2)
	b = append(b, 'T')
	b = appendDigits(b, hour, 2)
	b = append(b, ':')
	b = appendDigits(b, minute, 2)
	b = append(b, ':')
	b = appendDigits(b, second, 2)
	if micros := t.Nanosecond() / 1000; micros != 0 {
		b = append(b, '.')
		b = appendDigits(b, micros, 6)
	}
	return append(b, utcOffset...)
}

const utcOffset = "+00:00"

// appendDigits writes n with leading zeros in the given width, which it must fit.
func appendDigits(b []byte, n, width int) []byte {
	var digits [8]byte
	for i := width - 1; i >= 0; i-- {
		digits[i] = byte('0' + n%10)
		n /= 10
	}
	return append(b, digits[:width]...)
}
