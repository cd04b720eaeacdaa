package encode

import (
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

// Columns become headers in every envelope, under the names that were asked for; the row's own
// headers may override them, and topics may be named by them.
func TestColumnHeaders(t *testing.T) {
	for _, envelope := range envelopes {
		enc := encoderOf(t, func(cfg *Config) {
			cfg.Envelope, cfg.Topic = envelope, "{header:kind}"
			cfg.Headers = []string{"kind=aggregate_type", "saga = saga_id", "msg-id=event_id", "at=created_at", "key=aggregate_id", "type=event_type"}
		})
		ev, rec := sample(), relay.Record{}
		ev.Headers = `{"saga": "mine", "x": "y"}`
		if err := enc.Encode(&rec, &ev); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{
			"kind": "order", "saga": "mine", "msg-id": ev.ID.String(), "at": "2026-11-26T09:20:00.123456+00:00", "key": "order-42", "type": "OrderCreated", "x": "y",
		}
		seen := map[string]int{}
		for _, h := range rec.Headers {
			seen[h.Key]++
			if w, ok := want[h.Key]; ok && h.Value != w {
				t.Errorf("%s: header %s is %q, want %q", envelope, h.Key, h.Value, w)
			}
		}
		for name := range want {
			if seen[name] != 1 {
				t.Errorf("%s: header %s is there %d times", envelope, name, seen[name])
			}
		}
		if rec.Topic != "order" {
			t.Errorf("%s: topic %q", envelope, rec.Topic)
		}
		if contentType := rec.ContentType; !strings.HasSuffix(contentType, "json") {
			t.Errorf("%s: content type %q", envelope, contentType)
		}
		ev = sample()
		ev.SagaID, ev.AggregateID, ev.CreatedAt, ev.Headers = "", "", relay.Infinity, ""
		if err := enc.Encode(&rec, &ev); err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(rec.Headers, func(h relay.Header) bool { return h.Key == "saga" || h.Key == "key" || h.Key == "at" }) {
			t.Errorf("%s: empty columns are headers: %v", envelope, rec.Headers)
		}
	}
}

// An attribute of a CloudEvent may be a column.
func TestColumnAttribute(t *testing.T) {
	enc := encoderOf(t, func(cfg *Config) { cfg.Envelope, cfg.Headers = EnvelopeStructured, []string{"ce_tenant=saga_id"} })
	ev, rec := sample(), relay.Record{}
	if err := enc.Encode(&rec, &ev); err != nil || !strings.Contains(string(rec.Value), `"tenant":"saga-7"`) {
		t.Errorf("%s, %v", rec.Value, err)
	}
}

func TestColumnHeaderSettings(t *testing.T) {
	for _, c := range []struct{ envelope, item, text string }{
		{"sagaz", "tenant", "RELAY_HEADER_COLUMNS: tenant: want NAME=COLUMN, with one of the columns event_id, saga_id"},
		{"sagaz", "=saga_id", "want NAME=COLUMN"},
		{"sagaz", "tenant=tenant", "want NAME=COLUMN"},
		{"sagaz", "p=payload", "want NAME=COLUMN"},
		{"sagaz", "event_id=saga_id", "RELAY_ENVELOPE=sagaz has a header event_id: want another name"},
		{"debezium", "event_id=event_id", ""},
		{"debezium", "id=saga_id", "has a header id"},
		{"raw", "content_type=saga_id", "has a header content_type"},
		{"cloudevents", "ce_subject=saga_id", "has a header ce_subject"},
		{"cloudevents", "ce_tenant=saga_id", ""},
		{"cloudevents-structured", "ce_My=saga_id", "an attribute's name has only a-z and 0-9"},
		{"cloudevents-structured", "ce_time=created_at", "has a header ce_time"},
		{"raw", "relay-replayed-at=created_at", "the relay has a header relay-replayed-at of its own"},
		{"raw", "relay-tombstone=created_at", "of its own"},
	} {
		cfg := DefaultConfig()
		cfg.Envelope, cfg.Headers = c.envelope, []string{"ok=saga_id", c.item}
		err := cfg.Validate()
		if c.text == "" && err != nil || c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s %s: got %v, want %q", c.envelope, c.item, err, c.text)
		}
	}
	cfg := DefaultConfig()
	cfg.Headers = []string{"a=saga_id", "a=event_type"}
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "a is there twice") {
		t.Errorf("a name twice: %v", err)
	}
}
