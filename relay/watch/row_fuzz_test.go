package watch

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
)

// pieces are what rows are made of: what JSON, labels, log lines and terminals take for something
// else.
var pieces = []string{
	"", "a", "Zoë", "\xff\xfe", "\x00", "\x01", "\x1b[2J", "\n", "\r\n", "\t", `"`, `\`, `\u0000`, `\ud800`, `\udc00\ud800`, "{", "}", "[", "]", ":", ",", "null", "1e400",
	"\u2028", "\u202e", "\ufeff", "\u0085", "🙂", "=", "\xf0\x9f", "{saga}", ".", ".completed", ".st.success", "%s%n", "saga_name", "traceparent", "other",
}

// documents are headers and payloads of every shape.
var documents = []string{
	"", "{}", "null", "[]", `"text"`, "1", "true", `{"saga_name": 1}`, `{"saga_name": "\u0000", "step_name": "\ud83d\ude00"}`, `{"saga_name": {"a": [1, {}]}}`, `{"": ""}`,
	`{"event_id": "mine", "content_type": null}`, `{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`, `{"traceparent": "\n"}`, `{"a": "b"`, `{"a"`, "{", `{"a": "\x"}`,
	`{"correlation_id": "\u001b[2J\n{}"}`, `{"x": 1, "x": 2}`, " \t\n{ \"k\" :\n1 }", `{"k": "\ud800"}`,
}

func anyText(rnd *rand.Rand) string {
	var b strings.Builder
	for range rnd.IntN(6) {
		b.WriteString(pieces[rnd.IntN(len(pieces))])
	}
	if rnd.IntN(20) == 0 {
		return strings.Repeat(b.String()+"🙂", 255)
	}
	return b.String()
}

func anyDocument(rnd *rand.Rand) string {
	switch rnd.IntN(4) {
	case 0:
		return anyText(rnd)
	case 1: // valid, with any texts in it
		object := make(map[string]any)
		for range rnd.IntN(5) {
			object[anyText(rnd)] = []any{anyText(rnd), 1.5, nil, map[string]string{"k": anyText(rnd)}}[rnd.IntN(4)]
		}
		text, _ := json.Marshal(object)
		return string(text)
	default:
		return documents[rnd.IntN(len(documents))]
	}
}

// Nothing that a row holds ends the process, breaks a line of the log, or spoils /metrics.
func TestNoRowEndsTheProcess(t *testing.T) {
	const rows = 1500
	for envelope, enc := range encoders(t) {
		t.Run(envelope, func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(1, uint64(len(envelope))))
			reg := prometheus.NewRegistry()
			m := NewMetrics(reg, anyText(rnd), DefaultConfig())
			m.slots.divided(relay.Alone("outbox", "outbox").Set)
			var lines bytes.Buffer
			log := hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: &lines, JSONFormat: true})
			for i := range rows {
				ev := relay.Event{
					ID: relay.UUID{byte(i >> 8), byte(i)}, SagaID: anyText(rnd), AggregateType: anyText(rnd), AggregateID: anyText(rnd), EventType: anyText(rnd),
					Payload: anyDocument(rnd), Headers: anyDocument(rnd), Status: "pending", CreatedAt: relay.Timestamp(rnd.Uint64()), Loose: rnd.IntN(2) == 0,
				}
				if rnd.IntN(50) == 0 {
					ev.Unfit = relay.TooLarge(1<<30, 1<<20)
				}
				count(t, m, enc, &ev, log)
				var rec relay.Record
				if err := enc.Encode(&rec, &ev); err == nil && ev.Loose && !json.Valid(rec.Value) {
					t.Fatalf("row %+v: its body is no JSON: %q", ev, rec.Value)
				}
			}
			exposition(t, reg)
			for line := range bytes.Lines(lines.Bytes()) {
				if !json.Valid(line) || len(line) > 8<<10 {
					t.Fatalf("a line of the log: %d bytes, %q", len(line), line)
				}
			}
		})
	}
}
