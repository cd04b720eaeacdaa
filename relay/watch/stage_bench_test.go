package watch

import (
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/internal/testbed/captured"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/encode"
)

// BenchmarkStageMetrics is what is counted of events on their whole way: received, acknowledged,
// marked. One op is a shape's rows.
func BenchmarkStageMetrics(b *testing.B) {
	events, err := captured.Shapes[0].Events()
	if err != nil {
		b.Fatal(err)
	}
	enc, err := encode.New(encode.DefaultConfig())
	if err != nil {
		b.Fatal(err)
	}
	flights := make([]*relay.Flight, len(events))
	for i := range events {
		ev := &events[i]
		flights[i] = &relay.Flight{SagaID: ev.SagaID, AggregateType: ev.AggregateType, CommitLSN: ev.CommitLSN, CommittedAt: relay.TimestampOf(time.Now())}
		if err := enc.Encode(&flights[i].Record, ev); err != nil {
			b.Fatal(err)
		}
	}
	registry := prometheus.NewRegistry()
	w := New(NewMetrics(registry, "worker-1", Config{}), nil, hclog.NewNullLogger())
	w.Begin(relay.About{Encoder: enc, Snapshot: func() relay.Snapshot { return relay.Snapshot{} }})
	shard := relay.Alone("slot", "publication")
	w.Divided(shard.Set)
	slot, sink := w.Owned(shard, 1), w.Sink("kafka")
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		slot.Received(flights)
		sink.Answered(relay.Answer{Events: len(flights), Offers: 1, Took: 3 * time.Millisecond, Acked: flights})
		slot.Marked(flights)
		n += len(flights)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/event")
	counts := make(map[string]float64)
	families, err := registry.Gather()
	if err != nil {
		b.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			counts[family.GetName()] += m.GetCounter().GetValue()
		}
	}
	for _, name := range []string{"outbox_published_events_total", "outbox_marked_events_total"} {
		if counts[name] != float64(n) {
			b.Errorf("%s is %.0f, want %d", name, counts[name], n)
		}
	}
}
