package encode

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unsafe"

	"github.com/sagaz-relay/relay/relay"
)

// structuredContent is the media type of the JSON event format (json-format.md, "Envelope"). A
// receiver knows by it that the mode is structured.
const structuredContent = "application/cloudevents+json"

// cloudEventHeaders are the attributes of CloudEvents 1.0 (spec.md, "Context Attributes";
// extensions/partitioning.md), and two of our own for the other columns. An attribute may not be
// empty, so it is left out when the row has no value for it. They are added to h.
func (e *Encoder) cloudEventHeaders(h []relay.Header, ev *relay.Event, id string) []relay.Header {
	h = append(h,
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
	return append(h, header(relay.CloudEventContentType, e.contentType))
}

// structured makes the JSON event format of CloudEvents 1.0: an object with the attributes, whoever
// has set them, and the payload as data. The attributes are taken out of the headers, which say
// then what the body is. What a row says about its content is the attribute datacontenttype.
// A header of the row that is called like an attribute and cannot be one is an error: SDKs would
// take the message for one in binary mode.
func (e *Encoder) structured(ev *relay.Event, headers []relay.Header, contentType string) (body []byte, others []relay.Header, err error) {
	size := 64 + len(ev.Payload)
	for i := range headers {
		size += len(headers[i].Key) + len(headers[i].Value) + 6
	}
	b := append(make([]byte, 0, size), '{')
	others = headers[:0]
	for _, h := range headers {
		name, is := strings.CutPrefix(h.Key, relay.CloudEventPrefix)
		switch {
		case h.Key == relay.CloudEventContentType:
			name = "datacontenttype"
			others = append(others, header(h.Key, structuredContent))
		case !is:
			others = append(others, h)
			continue
		case !isAttribute(name):
			return nil, nil, fmt.Errorf("column headers: %q it is called like a CloudEvents attribute, and an attribute's name has only a-z and 0-9, and is neither data nor datacontenttype", h.Key)
		}
		b = relay.AppendJSONString(b, name)
		b = relay.AppendJSONString(append(b, ':'), h.Value)
		b = append(b, ',')
	}
	if b, err = e.appendData(b, ev.Payload, contentType); err != nil {
		return nil, nil, err
	}
	return append(b, '}'), others, nil
}

// appendData appends the payload as the JSON event format has it (json-format.md, "Payload
// Serialization"): bytes in base64, JSON as it is, and text as a JSON string.
func (e *Encoder) appendData(b []byte, payload, contentType string) ([]byte, error) {
	if e.payload == PayloadBytes {
		b = append(b, `"data_base64":"`...)
		b = base64.StdEncoding.AppendEncode(b, unsafe.Slice(unsafe.StringData(payload), len(payload)))
		return append(b, '"'), nil
	}
	b = append(b, `"data":`...)
	if !isJSONType(contentType) {
		return relay.AppendJSONString(b, payload), nil
	}
	if e.payload != PayloadJSON && !json.Valid([]byte(payload)) {
		return nil, errors.New("column payload: the event's content type is JSON, and it is not a JSON document")
	}
	return append(b, payload...), nil
}

// isJSONType reports whether a media type declares JSON: */json or */*+json, whatever its
// parameters.
func isJSONType(contentType string) bool {
	media, _, _ := strings.Cut(contentType, ";")
	_, subtype, _ := strings.Cut(strings.ToLower(strings.TrimSpace(media)), "/")
	return subtype == "json" || strings.HasSuffix(subtype, "+json")
}

// isAttribute reports whether the name may be that of an attribute in the JSON event format
// (spec.md, "Naming Conventions"). The names of what is not an attribute there are none either.
func isAttribute(name string) bool {
	if name == "" || name == "data" || name == "datacontenttype" {
		return false
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
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
