package encode

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/relay"
)

var update = flag.Bool("update", false, "rewrite the recorded outputs in testdata")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s; if that is meant, rewrite it with -update and read the diff:\n%s", path, got)
	}
}

func encoder(t testing.TB, topic, key string) *Encoder {
	t.Helper()
	return encoderOf(t, func(cfg *Config) { cfg.Topic, cfg.RoutingKey = topic, key })
}

func encoderOf(t testing.TB, change func(*Config)) *Encoder {
	t.Helper()
	cfg := DefaultConfig()
	change(&cfg)
	enc, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return enc
}

func sample() relay.Event {
	id, err := relay.ParseUUID("0198f3a2-5b7c-7d10-8e2f-a1b2c3d4e5f6")
	if err != nil {
		panic(err)
	}
	return relay.Event{
		ID: id, SagaID: "saga-7", AggregateType: "order", AggregateID: "order-42", EventType: "OrderCreated",
		Payload: `{"total": 12.50}`, Headers: `{"correlation_id": "c-1"}`, Status: "pending", CreatedAt: 849_000_000_123_456,
	}
}

// TestRecords compares whole records with what is recorded in testdata: they are the contract with
// consumers.
func TestRecords(t *testing.T) {
	change := func(f func(*relay.Event)) relay.Event { ev := sample(); f(&ev); return ev }
	var out bytes.Buffer
	for _, c := range []struct {
		name       string
		topic, key string
		ev         relay.Event
	}{
		{"as usual", "{event_type}", "{event_type}", sample()},
		{"no headers, no fraction", "{event_type}", "{event_type}", change(func(ev *relay.Event) { ev.Headers, ev.CreatedAt = "", 849_000_000_000_000 })},
		{"templates", "events.{aggregate_type}", "{aggregate_type}.{event_type}.{aggregate_id}.{saga_id}", sample()},
		{"numbers keep their digits", "{event_type}", "{event_type}", change(func(ev *relay.Event) {
			ev.Payload = `{"a": 1.10, "b": 123456789012345678901234567890, "c": 1e-400}`
		})},
		{"escapes", "{event_type}", "{event_type}", change(func(ev *relay.Event) {
			ev.SagaID, ev.AggregateID, ev.EventType = "a\"b\\c/d", "tab\tline\nreturn\rbell\aunit\x1f\x7f", "Größe 💶 <&>\u2028"
		})},
		{"headers override and nest", "{event_type}", "{event_type}", change(func(ev *relay.Event) {
			ev.Headers = `{"n": 1.50, "nul": null, "yes": true, "list": [1, "}", {"a": ","}], "event_type": "Renamed", "content_type": "application/cloudevents+json", "quote\"d": "tab\there ☃", "": "empty name"}`
		})},
		{"payload is no object", "{event_type}", "{event_type}", change(func(ev *relay.Event) { ev.Payload = `null` })},
		{"infinity", "{event_type}", "{event_type}", change(func(ev *relay.Event) { ev.CreatedAt = relay.Infinity })},
		{"minus infinity", "{event_type}", "{event_type}", change(func(ev *relay.Event) { ev.CreatedAt = relay.NegativeInfinity })},
		{"empty texts", "{event_type}", "{event_type}", change(func(ev *relay.Event) {
			ev.SagaID, ev.AggregateID, ev.AggregateType, ev.EventType, ev.Headers = "", "", "", "", "{}"
		})},
	} {
		var rec relay.Record
		if err := encoder(t, c.topic, c.key).Encode(&rec, &c.ev); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if rec.EventID != c.ev.ID || rec.EventType != c.ev.EventType || !rec.Timestamp.Equal(c.ev.CreatedAt.Time()) {
			t.Errorf("%s: record %+v does not name its event", c.name, rec)
		}
		if !json.Valid(rec.Value) {
			t.Errorf("%s: the body is no JSON: %s", c.name, rec.Value)
		}
		fmt.Fprintf(&out, "# %s\ntopic %q, routing key %q, key %q, %s\n%s\n", c.name, rec.Topic, rec.RoutingKey, rec.Key, rec.ContentType, rec.Value)
		for _, h := range rec.Headers {
			fmt.Fprintf(&out, "\t%q = %q\n", h.Key, h.Value)
		}
		out.WriteByte('\n')
	}
	golden(t, "records.txt", out.Bytes())
}

func TestEncodeRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*relay.Event)
		text string
	}{
		{"NullPayload", func(ev *relay.Event) { ev.Payload, ev.NoPayload = "", true }, "payload is NULL"},
		{"ArrayHeaders", func(ev *relay.Event) { ev.Headers = `[1, 2]` }, "array"},
		{"NumberHeaders", func(ev *relay.Event) { ev.Headers = `-12.5` }, "number"},
		{"BoolHeaders", func(ev *relay.Event) { ev.Headers = `false` }, "boolean"},
		{"StringHeaders", func(ev *relay.Event) { ev.Headers = `"x"` }, "string"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ev, rec := sample(), relay.Record{}
			tt.do(&ev)
			err := encoder(t, "{event_type}", "{event_type}").Encode(&rec, &ev)
			refused, ok := relay.Refused(err)
			if !ok || refused.Reason != relay.ReasonEncode || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want a refusal for reason encode with %q", err, tt.text)
			}
			if rec.Value != nil || rec.Headers != nil {
				t.Errorf("something to publish is left: %+v", rec)
			}
		})
	}
}

// randomText mixes what is easy to get wrong.
func randomText(r *rand.Rand) string {
	var b []byte
	for range r.IntN(12) {
		switch r.IntN(6) {
		case 0:
			b = append(b, byte(r.IntN(32)))
		case 1:
			b = append(b, `"\/<>&{}`[r.IntN(8)])
		case 2:
			b = utf8.AppendRune(b, rune(r.IntN(0x11_0000)))
		case 3:
			b = append(b, byte(128+r.IntN(128))) // no UTF-8, most of the time
		default:
			b = append(b, byte(' '+r.IntN(95)))
		}
	}
	return string(b)
}

// Whatever text columns hold, the body is what encoding/json would make, and its keys come in the
// order of docs/contract.md.
func TestEncodeAgreesWithEncodingJSON(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	enc := encoder(t, "{event_type}", "{event_type}")
	for range 2000 {
		ev := sample()
		ev.SagaID, ev.AggregateType, ev.AggregateID, ev.EventType = randomText(r), randomText(r), randomText(r), randomText(r)
		payload, err := json.Marshal(map[string]any{randomText(r): randomText(r), "n": r.Int64()})
		if err != nil {
			t.Fatal(err)
		}
		ev.Payload = string(payload)
		var rec relay.Record
		if err := enc.Encode(&rec, &ev); err != nil {
			t.Fatal(err)
		}
		if !utf8.Valid(rec.Value) {
			t.Fatalf("%q is no UTF-8", rec.Value)
		}
		want, err := json.Marshal(struct {
			EventID       string          `json:"event_id"`
			SagaID        string          `json:"saga_id"`
			AggregateType string          `json:"aggregate_type"`
			AggregateID   string          `json:"aggregate_id"`
			EventType     string          `json:"event_type"`
			Payload       json.RawMessage `json:"payload"`
			Timestamp     string          `json:"timestamp"`
		}{ev.ID.String(), ev.SagaID, ev.AggregateType, ev.AggregateID, ev.EventType, payload, "2026-11-26T09:20:00.123456+00:00"})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := tokens(t, rec.Value), tokens(t, want); !slices.Equal(got, want) {
			t.Fatalf("body %s\n got %q\nwant %q", rec.Value, got, want)
		}
	}
}

// tokens is a JSON text's meaning, in its order.
func tokens(t *testing.T, text []byte) (all []any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	for d.More() || len(all) > 0 {
		token, err := d.Token()
		if err != nil {
			if err.Error() == "EOF" {
				return all
			}
			t.Fatalf("%q: %v", text, err)
		}
		all = append(all, token)
	}
	return all
}

func TestTemplate(t *testing.T) {
	ev := sample()
	headers := []relay.Header{header("tenant", "acme"), header("empty", ""), header("nil", "null")}
	for _, tt := range []struct{ template, want string }{
		{"{event_type}", "OrderCreated"},
		{"fixed", "fixed"},
		{"{aggregate_type}.{event_type}", "order.OrderCreated"},
		{"a{saga_id}b{aggregate_id}c", "asaga-7border-42c"},
		{"{event_type}{event_type}", "OrderCreatedOrderCreated"},
		{"{header:tenant}", "acme"},
		{"{header:tenant}.{event_type}", "acme.OrderCreated"},
		{"{header:region|eu}.{header:tenant|x}", "eu.acme"},
		{"{header:empty|eu}", "eu"},
		{"{header:nil|eu}", "eu"},
		{"{header:a:b|c|d}", "c|d"},
	} {
		parsed, err := ParseTemplate(tt.template)
		if err != nil {
			t.Errorf("%q: %v", tt.template, err)
			continue
		}
		if got, err := parsed.Expand(&ev, headers); got != tt.want || err != nil || parsed.String() != tt.template {
			t.Errorf("%q: got %q, %v, want %q", tt.template, got, err, tt.want)
		}
	}
	for _, bad := range []string{"", "{", "}", "a{event_type", "event_type}", "{payload}", "{}", "{{event_type}}", "{event_type}}", "{ event_type }", "{header}", "{header:}", "{header:|x}", "{header:x|}", "{header:{x}}", "{header:x"} {
		if _, err := ParseTemplate(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	for _, missing := range []string{"{header:region}", "{header:empty}", "{header:nil}", "{header:tenant}{header:x}"} {
		parsed, err := ParseTemplate(missing)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parsed.Expand(&ev, headers); err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("%q: got %q, %v, want an error that names the template", missing, got, err)
		}
	}
	var zero Template
	if got, _ := zero.Expand(&ev, nil); got != "OrderCreated" {
		t.Errorf("the zero Template: got %q, want the event type", got)
	}
}

func TestISOFormat(t *testing.T) {
	for _, tt := range []struct {
		name string
		ts   relay.Timestamp
		want string
	}{
		{"Epoch", 0, "2000-01-01T00:00:00+00:00"},
		{"Micros", 849_000_000_123_456, "2026-11-26T09:20:00.123456+00:00"},
		{"MicrosWithZeros", 100_000, "2000-01-01T00:00:00.100000+00:00"},
		{"BeforeTheEpoch", -1, "1999-12-31T23:59:59.999999+00:00"},
		{"Year1", -730_119 * 86_400_000_000, "0001-01-01T00:00:00+00:00"},
		// The range of Python's datetime ends there: datetime.max and datetime.min.
		{"Infinity", relay.Infinity, "9999-12-31T23:59:59.999999+00:00"},
		{"NegativeInfinity", relay.NegativeInfinity, "0001-01-01T00:00:00+00:00"},
		{"Year10000", 2_921_940 * 86_400_000_000, "9999-12-31T23:59:59.999999+00:00"},
		{"BeforeChrist", -730_120 * 86_400_000_000, "0001-01-01T00:00:00+00:00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(appendISOFormat(nil, tt.ts.Time())); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// BenchmarkEncode is what the record of one event costs, in each envelope.
func BenchmarkEncode(b *testing.B) {
	for _, envelope := range []string{EnvelopeSagaz, EnvelopeCloudEvents, EnvelopeDebezium, EnvelopeRaw} {
		b.Run(envelope, func(b *testing.B) {
			enc := encoderOf(b, func(cfg *Config) { cfg.Envelope = envelope })
			ev := sample()
			var rec relay.Record
			b.ReportAllocs()
			for b.Loop() {
				if err := enc.Encode(&rec, &ev); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A topic may have a row's header in it. An event that lacks it is refused, by name of the setting
// and of the header, and nothing of it is published.
func TestHeaderInTopic(t *testing.T) {
	for _, envelope := range envelopes {
		enc := encoderOf(t, func(cfg *Config) {
			cfg.Topic, cfg.RoutingKey, cfg.Envelope = "{header:tenant}.orders", "{header:tenant|all}.{event_type}", envelope
		})
		if !enc.UsesHeaders() || encoder(t, "{event_type}", "x").UsesHeaders() {
			t.Errorf("%s: UsesHeaders", envelope)
		}
		ev, rec := sample(), relay.Record{}
		ev.Headers = `{"tenant": "acme"}`
		if err := enc.Encode(&rec, &ev); err != nil || rec.Topic != "acme.orders" || rec.RoutingKey != "acme.OrderCreated" {
			t.Errorf("%s: topic %q, routing key %q, %v", envelope, rec.Topic, rec.RoutingKey, err)
		}
		ev.Headers = `{"tenants": "acme"}`
		err := enc.Encode(&rec, &ev)
		refused, ok := relay.Refused(err)
		if !ok || refused.Reason != relay.ReasonEncode || !strings.Contains(err.Error(), "RELAY_TOPIC={header:tenant}.orders needs the header tenant") {
			t.Errorf("%s: without the header: %v", envelope, err)
		}
		if rec.Value != nil || rec.Topic != "" {
			t.Errorf("%s: a refused record has %+v", envelope, rec)
		}
	}
}
