package encode

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

// TestEnvelopes compares whole records with what is recorded in testdata: they are a contract with
// consumers, too.
func TestEnvelopes(t *testing.T) {
	change := func(f func(*relay.Event)) relay.Event { ev := sample(); f(&ev); return ev }
	var out bytes.Buffer
	for _, envelope := range envelopes[1:] {
		enc := encoderOf(t, func(cfg *Config) { cfg.Envelope, cfg.CloudEventsSource = envelope, "https://shop.example/orders" })
		for _, c := range []struct {
			name string
			ev   relay.Event
		}{
			{"as usual", sample()},
			{"no headers, no fraction", change(func(ev *relay.Event) { ev.Headers, ev.CreatedAt = "", 849_000_000_000_000 })},
			{"numbers keep their digits", change(func(ev *relay.Event) { ev.Payload = `{"a": 1.10, "b": 123456789012345678901234567890}` })},
			{"headers override", change(func(ev *relay.Event) {
				ev.Headers = `{"ce_source": "/of/the/row", "ce_dataschema": "/v2", "eventType": "Renamed", "event_type": "Renamed", "n": 1.50, "traceparent": "00-1-2-01"}`
			})},
			{"infinity", change(func(ev *relay.Event) { ev.CreatedAt = relay.Infinity })},
			{"empty texts", change(func(ev *relay.Event) { ev.SagaID, ev.AggregateID, ev.AggregateType, ev.Headers = "", "", "", "{}" })},
		} {
			var rec relay.Record
			if err := enc.Encode(&rec, &c.ev); err != nil {
				t.Fatalf("%s, %s: %v", envelope, c.name, err)
			}
			if rec.EventID != c.ev.ID || rec.EventType != c.ev.EventType || rec.Key != c.ev.AggregateID || !rec.Timestamp.Equal(c.ev.CreatedAt.Time()) {
				t.Errorf("%s, %s: record %+v does not name its event", envelope, c.name, rec)
			}
			if rec.CloudEvent != strings.HasPrefix(envelope, EnvelopeCloudEvents) {
				t.Errorf("%s, %s: CloudEvent is %t", envelope, c.name, rec.CloudEvent)
			}
			fmt.Fprintf(&out, "# %s: %s\n%s\n", envelope, c.name, rec.Value)
			for _, h := range rec.Headers {
				fmt.Fprintf(&out, "\t%q = %q\n", h.Key, h.Value)
			}
			out.WriteByte('\n')

			names := EventIDHeaders(envelope)
			found := ""
			for _, h := range rec.Headers {
				if h.Key == names[0] {
					found = h.Value
				}
			}
			if found != c.ev.ID.String() {
				t.Errorf("%s, %s: header %s is %q, want the event_id", envelope, c.name, names[0], found)
			}
		}
		ev, rec := change(func(ev *relay.Event) { ev.Payload, ev.NoPayload = "", true }), relay.Record{}
		if refused, ok := relay.Refused(enc.Encode(&rec, &ev)); !ok || refused.Reason != relay.ReasonEncode {
			t.Errorf("%s: a payload of NULL was not refused", envelope)
		}
	}
	golden(t, "envelopes.txt", out.Bytes())
}

// A header that SDKs would take for an attribute is refused where attributes are not headers.
func TestStructuredTakesAttributesOnly(t *testing.T) {
	enc := encoderOf(t, func(cfg *Config) { cfg.Envelope = EnvelopeStructured })
	for name, refuse := range map[string]bool{
		"ce_trace2": false, "ce": false, "cexy": false,
		"ce_": true, "ce_Trace": true, "ce_a-b": true, "ce_a_b": true, "ce_é": true, "ce_data": true, "ce_datacontenttype": true,
	} {
		ev, rec := sample(), relay.Record{}
		ev.Headers = `{"` + name + `": "x"}`
		err := enc.Encode(&rec, &ev)
		if refused, ok := relay.Refused(err); ok != refuse || ok && (refused.Reason != relay.ReasonEncode || !strings.Contains(err.Error(), name)) {
			t.Errorf("header %s: %v", name, err)
		}
		for _, h := range rec.Headers {
			if strings.HasPrefix(h.Key, relay.CloudEventPrefix) {
				t.Errorf("header %s is sent", h.Key)
			}
		}
	}
}

func TestEnvelopeSettings(t *testing.T) {
	for _, tt := range []struct {
		change func(*Config)
		text   string
	}{
		{func(cfg *Config) { cfg.Envelope = "cloudevent" }, "RELAY_ENVELOPE=cloudevent: want sagaz, cloudevents, cloudevents-structured, debezium or raw"},
		{func(cfg *Config) { cfg.CloudEventsSource = "" }, "RELAY_CLOUDEVENTS_SOURCE=: it is empty"},
		{func(cfg *Config) { cfg.CloudEventsSource = "my shop" }, "RELAY_CLOUDEVENTS_SOURCE=my shop: it has spaces"},
		{func(cfg *Config) { cfg.CloudEventsSource = "http://shop:port/" }, "invalid port"},
		{func(cfg *Config) { cfg.CloudEventsSource = "urn:shop:orders" }, ""},
		{func(cfg *Config) { cfg.Payload = "avro" }, "RELAY_PAYLOAD=avro: want json, text or bytes"},
		{func(cfg *Config) { cfg.Payload = "bytes" }, "RELAY_PAYLOAD=bytes: a message of RELAY_ENVELOPE=sagaz is JSON"},
		{func(cfg *Config) { cfg.Payload, cfg.Envelope = "bytes", "raw" }, ""},
		{func(cfg *Config) { cfg.ContentType = "application/avro" }, "RELAY_CONTENT_TYPE=application/avro: a message of RELAY_ENVELOPE=sagaz is application/json"},
		{func(cfg *Config) { cfg.ContentType, cfg.Envelope = "avro", "raw" }, "RELAY_CONTENT_TYPE=avro: want a media type"},
		{func(cfg *Config) { cfg.ContentType, cfg.Envelope = "a/"+strings.Repeat("b", 254), "raw" }, "want a media type"},
		{func(cfg *Config) { cfg.ContentType, cfg.Envelope = "application/json; charset=utf-8", "debezium" }, ""},
		{func(cfg *Config) {
			cfg.ContentType, cfg.Envelope, cfg.Payload = "text/JSON", "cloudevents-structured", "text"
		}, "RELAY_CONTENT_TYPE=text/JSON: RELAY_PAYLOAD=text is not JSON"},
		{func(cfg *Config) { cfg.NullPayload = "null" }, "RELAY_NULL_PAYLOAD=null: want refuse or tombstone"},
		{func(cfg *Config) { cfg.NullPayload = "tombstone" }, "RELAY_NULL_PAYLOAD=tombstone: a message of RELAY_ENVELOPE=sagaz always has a body"},
		{func(cfg *Config) { cfg.NullPayload, cfg.Envelope = "tombstone", "cloudevents-structured" }, "always has a body"},
		{func(cfg *Config) { cfg.NullPayload, cfg.Envelope = "tombstone", "cloudevents" }, ""},
	} {
		cfg := DefaultConfig()
		tt.change(&cfg)
		err := cfg.Validate()
		if tt.text == "" && err != nil || tt.text != "" && (err == nil || !strings.Contains(err.Error(), tt.text)) {
			t.Errorf("got %v, want %q", err, tt.text)
		}
	}
}
