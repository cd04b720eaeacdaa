package pgoutput_test

import (
	"testing"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/internal/testbed/captured"
	"github.com/sagaz-relay/relay/relay"
)

// BenchmarkStageDecode decodes what a walsender sent, transactions' ends included. One op is one
// shape's rows.
func BenchmarkStageDecode(b *testing.B) {
	for _, shape := range captured.Shapes {
		b.Run(shape.Name, func(b *testing.B) {
			messages, err := shape.Messages()
			if err != nil {
				b.Fatal(err)
			}
			table, err := captured.Table(messages)
			if err != nil {
				b.Fatal(err)
			}
			size := 0
			for _, m := range messages {
				size += len(m)
			}
			d := pgoutput.NewDecoder(table)
			events := make([]relay.Event, 0, shape.Rows)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				events = events[:0]
				for _, m := range messages {
					kind, err := d.Decode(m[captured.XLogData:])
					if err != nil {
						b.Fatal(err)
					}
					if kind == pgoutput.Insert {
						events = append(events, d.Event)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*shape.Rows), "ns/event")
			if err := shape.Check(events); err != nil {
				b.Fatal(err)
			}
		})
	}
}
