package encode

import (
	"errors"
	"fmt"
	"mime"
	"slices"
	"strings"
)

// Config is what can be set of the encoder.
type Config struct {
	// Topic and RoutingKey are templates over {event_type}, {aggregate_type}, {aggregate_id},
	// {saga_id} and {header:NAME}. An event without that header is refused, unless the template has
	// another text for it: {header:NAME|FALLBACK}.
	//
	// Default "{event_type}". RELAY_TOPIC, RELAY_ROUTING_KEY.
	Topic      string `env:"RELAY_TOPIC"`
	RoutingKey string `env:"RELAY_ROUTING_KEY"`

	// Envelope is what a message looks like: sagaz, cloudevents, cloudevents-structured, debezium or
	// raw (docs/messages.md). CloudEventsSource is the attribute source of CloudEvents, a URI or its
	// path: where the events come from.
	//
	// Defaults sagaz, /saga_outbox. RELAY_ENVELOPE, RELAY_CLOUDEVENTS_SOURCE.
	Envelope          string `env:"RELAY_ENVELOPE"`
	CloudEventsSource string `env:"RELAY_CLOUDEVENTS_SOURCE"`

	// Headers are columns that become headers: NAME=COLUMN with commas between, such as
	// tenant=aggregate_type. The columns are event_id, saga_id, aggregate_type, aggregate_id,
	// event_type and created_at. One that is empty gives no header, and a header of the row
	// overrides it. A name that the envelope uses itself is refused.
	//
	// No default. RELAY_HEADER_COLUMNS.
	Headers []string `env:"RELAY_HEADER_COLUMNS"`

	// Payload is what the column payload holds: json, text or bytes. JSON is checked, so what is
	// none is refused; text has to be UTF-8; bytes are delivered as they are. The column's type may
	// be jsonb, json, text, varchar or bytea with each of them. The envelope sagaz takes JSON only.
	//
	// Default json. RELAY_PAYLOAD.
	Payload string `env:"RELAY_PAYLOAD"`

	// ContentType is the media type of the payload, for consumers. A row's own header content_type
	// (raw) or content-type (cloudevents) is another one for that event.
	//
	// Default application/json, text/plain; charset=utf-8 or application/octet-stream, by
	// RELAY_PAYLOAD. RELAY_CONTENT_TYPE.
	ContentType string `env:"RELAY_CONTENT_TYPE"`

	// NullPayload is what becomes of an event whose payload is NULL, where the table allows that:
	// refuse, or tombstone. A tombstone is a Kafka record without a value, by which a compacted
	// topic forgets the key. Other brokers get an empty body. The header relay-tombstone shows it on
	// all of them. The envelopes raw, debezium and cloudevents have it.
	//
	// Default refuse. RELAY_NULL_PAYLOAD.
	NullPayload string `env:"RELAY_NULL_PAYLOAD"`

	// DebeziumKey and DebeziumValue are the Connect converters whose messages the envelope debezium
	// makes, for consumers that are to stay as they are: string (StringConverter,
	// ByteArrayConverter), json (JsonConverter with schemas.enable=false, a JSON string that holds
	// the payload) or json-schemas (JsonConverter). DebeziumSchema is the schema of the payload that
	// json-schemas puts into each message: copy it from one of today.
	//
	// Defaults string, string, {"type":"string","optional":true}. RELAY_DEBEZIUM_KEY,
	// RELAY_DEBEZIUM_VALUE, RELAY_DEBEZIUM_SCHEMA.
	DebeziumKey    string `env:"RELAY_DEBEZIUM_KEY"`
	DebeziumValue  string `env:"RELAY_DEBEZIUM_VALUE"`
	DebeziumSchema string `env:"RELAY_DEBEZIUM_SCHEMA"`
}

// Values of Config.Payload and Config.NullPayload.
const (
	PayloadJSON  = "json"
	PayloadText  = "text"
	PayloadBytes = "bytes"

	NullRefuse    = "refuse"
	NullTombstone = "tombstone"
)

// contentTypes are the media types by Config.Payload.
var contentTypes = map[string]string{PayloadJSON: jsonContent, PayloadText: "text/plain; charset=utf-8", PayloadBytes: "application/octet-stream"}

// DefaultConfig returns every default.
func DefaultConfig() Config {
	return Config{
		Topic:             "{event_type}",
		RoutingKey:        "{event_type}",
		Envelope:          EnvelopeSagaz,
		CloudEventsSource: "/saga_outbox",
		Payload:           PayloadJSON,
		NullPayload:       NullRefuse,
		DebeziumKey:       ConverterString,
		DebeziumValue:     ConverterString,
		DebeziumSchema:    `{"type":"string","optional":true}`,
	}
}

// Validate reports everything that is wrong at once, by the names the user typed.
func (c *Config) Validate() error {
	var errs []error
	for _, t := range []struct{ name, text string }{{"RELAY_TOPIC", c.Topic}, {"RELAY_ROUTING_KEY", c.RoutingKey}} {
		if _, err := ParseTemplate(t.text); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t.name, err))
		}
	}
	if !slices.Contains(envelopes, c.Envelope) {
		last := len(envelopes) - 1
		errs = append(errs, fmt.Errorf("RELAY_ENVELOPE=%s: want %s or %s", c.Envelope, strings.Join(envelopes[:last], ", "), envelopes[last]))
	}
	if err := checkSource(c.CloudEventsSource); err != nil {
		errs = append(errs, err)
	}
	if _, err := parseColumnHeaders(c.Headers, c.Envelope); err != nil {
		errs = append(errs, fmt.Errorf("RELAY_HEADER_COLUMNS: %w", err))
	}
	errs = append(errs, c.checkPayload()...)
	return errors.Join(append(errs, c.checkDebezium()...)...)
}

// checkPayload reports what is wrong with payloads, and what their envelope cannot have.
func (c *Config) checkPayload() (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch {
	case contentTypes[c.Payload] == "":
		fail("RELAY_PAYLOAD=%s: want %s, %s or %s", c.Payload, PayloadJSON, PayloadText, PayloadBytes)
	case c.Envelope == EnvelopeSagaz && c.Payload != PayloadJSON:
		fail("RELAY_PAYLOAD=%s: a message of RELAY_ENVELOPE=%s is JSON with JSON in it: want another envelope (%s), or %s", c.Payload, c.Envelope, strings.Join(envelopes[1:], ", "), PayloadJSON)
	}
	if c.ContentType != "" {
		_, _, err := mime.ParseMediaType(c.ContentType)
		switch {
		case c.Envelope == EnvelopeSagaz:
			fail("RELAY_CONTENT_TYPE=%s: a message of RELAY_ENVELOPE=%s is %s: want another envelope, or leave it out", c.ContentType, c.Envelope, jsonContent)
		case err != nil || !strings.Contains(c.ContentType, "/") || len(c.ContentType) > 255:
			fail("RELAY_CONTENT_TYPE=%s: want a media type such as application/avro, of at most 255 bytes", c.ContentType)
		case c.Envelope == EnvelopeStructured && c.Payload == PayloadText && isJSONType(c.ContentType):
			fail("RELAY_CONTENT_TYPE=%s: RELAY_PAYLOAD=%s is not JSON: want RELAY_PAYLOAD=%s, or another media type", c.ContentType, c.Payload, PayloadJSON)
		}
	}
	switch {
	case c.NullPayload != NullRefuse && c.NullPayload != NullTombstone:
		fail("RELAY_NULL_PAYLOAD=%s: want %s or %s", c.NullPayload, NullRefuse, NullTombstone)
	case c.NullPayload == NullTombstone && (c.Envelope == EnvelopeSagaz || c.Envelope == EnvelopeStructured):
		fail("RELAY_NULL_PAYLOAD=%s: a message of RELAY_ENVELOPE=%s always has a body: want %s, %s or %s, or RELAY_NULL_PAYLOAD=%s", c.NullPayload, c.Envelope, EnvelopeRaw, EnvelopeDebezium, EnvelopeCloudEvents, NullRefuse)
	}
	return errs
}
