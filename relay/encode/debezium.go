package encode

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/relay"
)

// Converters, values of Config.DebeziumKey and Config.DebeziumValue: what Kafka Connect's converters
// make of a key or payload.
const (
	ConverterString  = "string"       // StringConverter, ByteArrayConverter: the bytes as they are
	ConverterJSON    = "json"         // JsonConverter with schemas.enable=false: a JSON string
	ConverterSchemas = "json-schemas" // JsonConverter: an object of the schema and a JSON string
)

var converters = []string{ConverterString, ConverterJSON, ConverterSchemas}

// keySchema is what JsonConverter makes of a key's schema: a text that is there.
const keySchema = `{"type":"string","optional":false}`

// converter makes what a Connect converter makes of a text or of bytes.
type converter struct {
	kind   string
	schema string // as JSON, for ConverterSchemas
	bytes  bool   // in base64, as JsonConverter has bytes
}

func (c *converter) convert(text string) []byte {
	if c.kind == ConverterString {
		return []byte(text)
	}
	b := make([]byte, 0, len(text)+len(text)/8+len(c.schema)+32)
	if c.kind == ConverterSchemas {
		b = append(append(append(b, `{"schema":`...), c.schema...), `,"payload":`...)
	}
	if c.bytes {
		b = append(base64.StdEncoding.AppendEncode(append(b, '"'), []byte(text)), '"')
	} else {
		b = appendJacksonString(b, text)
	}
	if c.kind == ConverterSchemas {
		b = append(b, '}')
	}
	return b
}

// appendJacksonString appends a JSON string as Jackson writes it, so that a key has the same bytes,
// and with them the same partition. It differs from relay.AppendJSONString in control characters, and
// in those beyond U+FFFF, which Jackson writes as two escapes.
func appendJacksonString(b []byte, s string) []byte {
	if !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\n' && r != '\r' && r != '\t' || r > 0xFFFF }) {
		return relay.AppendJSONString(b, s)
	}
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '\b':
			b = append(b, `\b`...)
		case r == '\f':
			b = append(b, `\f`...)
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\r':
			b = append(b, `\r`...)
		case r == '\t':
			b = append(b, `\t`...)
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ':
			b = fmt.Appendf(b, `\u%04X`, r)
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			b = fmt.Appendf(b, `\u%04X\u%04X`, high, low)
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

// checkDebezium reports what is wrong with the converters.
func (c *Config) checkDebezium() (errs []error) {
	for _, s := range []struct{ name, value string }{{"RELAY_DEBEZIUM_KEY", c.DebeziumKey}, {"RELAY_DEBEZIUM_VALUE", c.DebeziumValue}} {
		switch {
		case !slices.Contains(converters, s.value):
			errs = append(errs, fmt.Errorf("%s=%s: want %s", s.name, s.value, strings.Join(converters, ", ")))
		case s.value != ConverterString && c.Envelope != EnvelopeDebezium:
			errs = append(errs, fmt.Errorf("%s=%s: it is for RELAY_ENVELOPE=%s, and RELAY_ENVELOPE is %s", s.name, s.value, EnvelopeDebezium, c.Envelope))
		}
	}
	var object map[string]any
	if err := json.Unmarshal([]byte(c.DebeziumSchema), &object); err != nil || object == nil {
		errs = append(errs, fmt.Errorf(`RELAY_DEBEZIUM_SCHEMA=%s: want the schema of a message of today, a JSON object such as {"type":"string","optional":true}`, c.DebeziumSchema))
	}
	return errs
}
