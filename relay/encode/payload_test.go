package encode

import (
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

// What a payload is, and what it is called, decides how the JSON event format has it.
func TestStructuredData(t *testing.T) {
	for _, c := range []struct{ payload, contentType, header, value, want string }{
		{"json", "", "", `{"a": 1}`, `"datacontenttype":"application/json","data":{"a": 1}}`},
		{"json", "application/vnd.shop+json; v=2", "", `{"a": 1}`, `"datacontenttype":"application/vnd.shop+json; v=2","data":{"a": 1}}`},
		{"json", "text/plain", "", `{"a": 1}`, `"datacontenttype":"text/plain","data":"{\"a\": 1}"}`},
		{"text", "", "", `a "b"`, `"datacontenttype":"text/plain; charset=utf-8","data":"a \"b\""}`},
		{"text", "application/xml", "", "<a/>", `"datacontenttype":"application/xml","data":"<a/>"}`},
		{"text", "", "application/json", `[1]`, `"datacontenttype":"application/json","data":[1]}`},
		{"text", "", "Application/X+JSON", `no`, ""},
		{"bytes", "", "", "\x00\xff", `"datacontenttype":"application/octet-stream","data_base64":"AP8="}`},
		{"bytes", "application/avro", "", "", `"datacontenttype":"application/avro","data_base64":""}`},
		{"bytes", "", "application/json", `{}`, `"datacontenttype":"application/json","data_base64":"e30="}`},
	} {
		enc := encoderOf(t, func(cfg *Config) {
			cfg.Envelope, cfg.Payload, cfg.ContentType = EnvelopeStructured, c.payload, c.contentType
		})
		ev, rec := sample(), relay.Record{}
		ev.Payload, ev.Loose, ev.Headers = c.value, true, ""
		if c.header != "" {
			ev.Headers = `{"content-type": "` + c.header + `"}`
		}
		err := enc.Encode(&rec, &ev)
		if _, refused := relay.Refused(err); refused != (c.want == "") || !strings.HasSuffix(string(rec.Value), c.want) {
			t.Errorf("%s %q %q: %s, %v, want %s", c.payload, c.contentType, c.header, rec.Value, err, c.want)
		}
		if err == nil && rec.ContentType != "application/cloudevents+json" {
			t.Errorf("%s: content type %q", c.payload, rec.ContentType)
		}
	}
}

// A row that says what its payload is says it in the header and in the record's content type, which is
// a property at RabbitMQ.
func TestContentType(t *testing.T) {
	for envelope, name := range map[string]string{EnvelopeRaw: "content_type", EnvelopeCloudEvents: "content-type"} {
		enc := encoderOf(t, func(cfg *Config) { cfg.Envelope, cfg.ContentType = envelope, "application/vnd.shop+json" })
		for _, own := range []string{"", "application/vnd.shop.v2+json"} {
			ev, rec := sample(), relay.Record{}
			want := "application/vnd.shop+json"
			if own != "" {
				ev.Headers, want = `{"`+name+`": "`+own+`"}`, own
			}
			if err := enc.Encode(&rec, &ev); err != nil {
				t.Fatal(err)
			}
			found := 0
			for _, h := range rec.Headers {
				if h.Key == name && h.Value == want {
					found++
				}
			}
			if found != 1 || rec.ContentType != want {
				t.Errorf("%s: content type %q, headers %v, want %s in both", envelope, rec.ContentType, rec.Headers, want)
			}
		}
	}
}

// Only NULL is a tombstone: an empty text is an empty body.
func TestTombstone(t *testing.T) {
	for _, envelope := range []string{EnvelopeRaw, EnvelopeDebezium, EnvelopeCloudEvents} {
		enc := encoderOf(t, func(cfg *Config) { cfg.Envelope, cfg.Payload, cfg.NullPayload = envelope, PayloadText, NullTombstone })
		for _, null := range []bool{true, false} {
			ev, rec := sample(), relay.Record{}
			ev.Payload, ev.NoPayload, ev.Loose = "", null, true
			if err := enc.Encode(&rec, &ev); err != nil {
				t.Fatal(err)
			}
			marked := false
			for _, h := range rec.Headers {
				marked = marked || h.Key == relay.TombstoneHeader
			}
			if (rec.Value == nil) != null || marked != null || rec.Topic != "OrderCreated" {
				t.Errorf("%s, NULL %t: value nil %t, marked %t, topic %q", envelope, null, rec.Value == nil, marked, rec.Topic)
			}
		}
	}
}
