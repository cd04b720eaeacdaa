package watch

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
)

// BenchmarkAcked is what the counting of a batch of 1000 acknowledged events costs: of one type,
// and of eight types that take turns.
func BenchmarkAcked(b *testing.B) {
	for _, types := range []int{1, 8} {
		b.Run(fmt.Sprint("types=", types), func(b *testing.B) {
			s := NewMetrics(prometheus.NewRegistry(), "worker-1", Config{}).sink("kafka")
			now := relay.TimestampOf(time.Now())
			batch := make([]*relay.Flight, 1000)
			for i := range batch {
				batch[i] = &relay.Flight{Record: relay.Record{EventType: fmt.Sprint("order.step", i%types), Value: make([]byte, 500)}, CommittedAt: now - relay.Timestamp(i/5)}
			}
			b.ReportAllocs()
			for b.Loop() {
				s.acked(batch, 3*time.Millisecond)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(batch)), "ns/event")
		})
	}
}
