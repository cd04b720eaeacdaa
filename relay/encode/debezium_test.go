package encode

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

// Keys and values are what Connect's converters make of them, for each kind of payload. TestConverters
// (cmd/sagaz-relay/interop) has Debezium itself say the same.
func TestDebeziumConverters(t *testing.T) {
	const schema = `{"type":"string","optional":true,"name":"io.debezium.data.Json","version":1}`
	for _, c := range []struct{ key, value, payload, text, wantKey, wantValue string }{
		{"string", "string", "json", `{"a": 1}`, `order "42"`, `{"a": 1}`},
		{"json", "json", "json", `{"a": "é"}`, `"order \"42\""`, `"{\"a\": \"é\"}"`},
		{"json-schemas", "json-schemas", "json", `{"a": 1}`, `{"schema":{"type":"string","optional":false},"payload":"order \"42\""}`, `{"schema":` + schema + `,"payload":"{\"a\": 1}"}`},
		{"string", "json", "text", "tab\t nul\x01 \b\f\x1f\r\n/ü\u2028🙂", `order "42"`, `"tab\t nul\u0001 \b\f\u001F\r\n/ü` + "\u2028" + `\uD83D\uDE42"`},
		{"string", "json", "bytes", "\x00\xff", `order "42"`, `"AP8="`},
		{"string", "json-schemas", "bytes", "", `order "42"`, `{"schema":` + schema + `,"payload":""}`},
	} {
		enc := encoderOf(t, func(cfg *Config) {
			cfg.Envelope, cfg.Payload, cfg.NullPayload = EnvelopeDebezium, c.payload, NullTombstone
			cfg.DebeziumKey, cfg.DebeziumValue, cfg.DebeziumSchema = c.key, c.value, schema
		})
		ev, rec := sample(), relay.Record{}
		ev.AggregateID, ev.Payload, ev.Loose = `order "42"`, c.text, true
		if err := enc.Encode(&rec, &ev); err != nil {
			t.Fatal(err)
		}
		if rec.MessageKey() != c.wantKey || string(rec.Value) != c.wantValue || rec.Key != ev.AggregateID {
			t.Errorf("%s, %s of %s: key %s, value %s, want %s, %s; ordered by %s", c.key, c.value, c.payload, rec.MessageKey(), rec.Value, c.wantKey, c.wantValue, rec.Key)
		}
		if c.value != "string" && (!json.Valid(rec.Value) || rec.ContentType != "application/json") {
			t.Errorf("%s: content type %s of %s", c.value, rec.ContentType, rec.Value)
		}
		ev.Payload, ev.NoPayload, ev.AggregateID = "", true, ""
		if err := enc.Encode(&rec, &ev); err != nil || rec.Value != nil || rec.MessageKey() != "" {
			t.Errorf("%s: a tombstone without a key is %s, %q, %v", c.value, rec.Value, rec.MessageKey(), err)
		}
	}
}

func TestDebeziumSettings(t *testing.T) {
	for _, c := range []struct {
		change func(*Config)
		text   string
	}{
		{func(cfg *Config) { cfg.DebeziumKey = "avro" }, "RELAY_DEBEZIUM_KEY=avro: want string, json, json-schemas"},
		{func(cfg *Config) { cfg.DebeziumValue = "json" }, "RELAY_DEBEZIUM_VALUE=json: it is for RELAY_ENVELOPE=debezium, and RELAY_ENVELOPE is sagaz"},
		{func(cfg *Config) { cfg.Envelope, cfg.DebeziumValue = EnvelopeDebezium, "json" }, ""},
		{func(cfg *Config) { cfg.DebeziumSchema = "{" }, "RELAY_DEBEZIUM_SCHEMA={: want the schema"},
		{func(cfg *Config) { cfg.DebeziumSchema = "null" }, "want the schema"},
	} {
		cfg := DefaultConfig()
		c.change(&cfg)
		err := cfg.Validate()
		if c.text == "" && err != nil || c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("got %v, want %q", err, c.text)
		}
	}
}
