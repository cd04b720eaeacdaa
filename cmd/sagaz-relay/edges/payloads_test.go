package edges

import (
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/relay/encode"
)

// oddBytes are payloads of bytes: NULL, empty, and around RELAY_MAX_EVENT_BYTES=65536.
var oddBytes = []string{
	`'s', 'order', 'a', 'T1', '', '{}', now()`,
	`'s', 'order', 'b', 'T2', '\x00ff0a0d5c7841', '{}', now()`,
	`'s', 'order', 'c', 'T3', NULL, '{}', now()`,
	`'s', 'order', 'd', 'T4', decode(repeat('5c', 65536 - 11), 'hex'), '{}', now()`,
	`'s', 'order', 'e', 'T5', decode(repeat('5c', 65536 - 10), 'hex'), '{}', now()`,
	`'s', 'order', 'f', 'T6', decode(repeat('5c', 200000), 'hex'), '{}', now()`,
	`'s', 'order', 'g', 'T7', 'plain', NULL, now()`,
}

var (
	oddBytesKeys   = []string{"a", "b", "c", "d", "g"}
	oddBytesBodies = map[string]string{
		"T1": "\n\napplication/avro\n", "T2": "\n\x00\xff\n\r\\xA\napplication/avro\n", "T3": "\nno value",
		"T4": "\n" + strings.Repeat(`\`, 65536-11) + "\n", "T7": "\nplain\n",
	}
)

func avro(c *encode.Config) {
	c.Envelope, c.Payload, c.NullPayload, c.ContentType = encode.EnvelopeDebezium, encode.PayloadBytes, encode.NullTombstone, "application/avro"
}

// payloadShapes are tables whose payload is something else than JSON.
var payloadShapes = []shape{
	{
		name: "bytes", types: map[string]string{"payload": "bytea"}, nulls: true, maxBytes: 64 << 10, encode: avro,
		rows: oddBytes, refused: 2, keys: oddBytesKeys, bodies: oddBytesBodies, headers: map[string][]string{"T3": {"relay-tombstone=true"}},
	},
	{
		name: "bytes, stream in text", types: map[string]string{"payload": "bytea", "saga_id": "tag"}, nulls: true, maxBytes: 64 << 10, encode: avro,
		prepare: `CREATE DOMAIN tag AS text`,
		rows:    oddBytes, refused: 2, keys: oddBytesKeys, bodies: oddBytesBodies, headers: map[string][]string{"T3": {"relay-tombstone=true"}},
	},
	{
		name: "bytes, structured", types: map[string]string{"payload": "bytea"}, nulls: true, maxBytes: 64 << 10,
		encode: func(c *encode.Config) { c.Envelope, c.Payload = encode.EnvelopeStructured, encode.PayloadBytes },
		rows:   oddBytes, refused: 3, keys: slices.Delete(slices.Clone(oddBytesKeys), 2, 3),
		bodies: map[string]string{"T1": `"data_base64":""}`, "T2": `"datacontenttype":"application/octet-stream","data_base64":"AP8KDVx4QQ=="}`},
	},
	{
		name: "bytes of JSON", types: map[string]string{"payload": "bytea"}, nulls: true,
		rows: []string{
			`'s', 'order', 'a', 'T1', convert_to('{"a": 1.10, "b": "é"}', 'UTF8'), '{}', now()`,
			`'s', 'order', 'b', 'T2', '\x00ff', '{}', now()`,
			`'s', 'order', 'c', 'T3', NULL, '{}', now()`,
			`'s', 'order', 'd', 'T4', '', '{}', now()`,
			`'s', 'order', 'e', 'T5', '\x22ff22', '{}', now()`,
		},
		refused: 4, keys: []string{"a"}, bodies: map[string]string{"T1": `"payload":{"a": 1.10, "b": "é"},`},
	},
	{
		name: "text as it is", types: map[string]string{"payload": "text"}, nulls: true,
		encode: func(c *encode.Config) {
			c.Envelope, c.Payload, c.NullPayload = encode.EnvelopeRaw, encode.PayloadText, encode.NullTombstone
		},
		rows: []string{
			`'s', 'order', 'a', 'T1', 'hello, ''wörld''', '{}', now()`,
			`'s', 'order', 'b', 'T2', '', '{}', now()`,
			`'s', 'order', 'c', 'T3', NULL, '{"relay-tombstone": "mine"}', now()`,
			`'s', 'order', 'd', 'T4', '\x41', '{"content_type": "text/csv"}', now()`,
			`'s', 'order', 'e', 'T5', E' a\r\n"b"\\ \u0001', NULL, now()`,
		},
		keys: []string{"a", "b", "c", "d", "e"},
		bodies: map[string]string{
			"T1": "\nhello, 'wörld'\ntext/plain; charset=utf-8\n", "T2": "\n\ntext/plain; charset=utf-8\n",
			"T3": "\nno value", "T4": "\n\\x41\ntext/csv\n", "T5": "\n a\r\n\"b\"\\ \x01\n",
		},
		headers: map[string][]string{"T3": {"relay-tombstone=true"}, "T4": {"content_type=text/csv"}},
	},
	{
		name: "text in SQL_ASCII", encoding: "SQL_ASCII", types: map[string]string{"payload": "text"},
		encode: func(c *encode.Config) { c.Envelope, c.Payload = encode.EnvelopeCloudEvents, encode.PayloadText },
		rows: []string{
			`'s', 'order', 'a', 'T1', 'José', '{}', now()`,
			`'s', 'order', 'b', 'T2', E'Jos\xe9', '{}', now()`,
		},
		refused: 1, keys: []string{"a"}, bodies: map[string]string{"T1": "José"},
	},
}
