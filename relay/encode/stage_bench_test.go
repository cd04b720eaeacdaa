package encode

import (
	"encoding/json"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/captured"
	"github.com/sagaz-relay/relay/relay"
)

// BenchmarkStageEncode makes records of rows that a walsender sent. One op is one shape's rows.
func BenchmarkStageEncode(b *testing.B) {
	for _, envelope := range []string{EnvelopeSagaz, EnvelopeCloudEvents} {
		for _, shape := range captured.Shapes {
			b.Run(envelope+"/"+shape.Name, func(b *testing.B) {
				events, err := shape.Events()
				if err != nil {
					b.Fatal(err)
				}
				enc := encoderOf(b, func(cfg *Config) { cfg.Envelope = envelope })
				records := make([]relay.Record, len(events))
				b.ReportAllocs()
				for b.Loop() {
					for i := range events {
						if err := enc.Encode(&records[i], &events[i]); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/event")
				for i := range records {
					rec := &records[i]
					var body map[string]any
					if err := json.Unmarshal(rec.Value, &body); err != nil {
						b.Fatalf("record %d: %v", i, err)
					}
					if rec.EventID != events[i].ID || rec.Key != events[i].AggregateID || len(rec.Headers) < shape.Headers+2 {
						b.Fatalf("record %d: %s of key %s with %d headers", i, rec.EventID, rec.Key, len(rec.Headers))
					}
					if envelope == EnvelopeSagaz && body["event_id"] != rec.EventID.String() {
						b.Fatalf("record %d: body of %v, want %s", i, body["event_id"], rec.EventID)
					}
				}
			})
		}
	}
}
