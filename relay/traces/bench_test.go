package traces

import (
	"fmt"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// What tracing costs: a trace for each row (Begin), and a span for a batch of a thousand with its
// links (Sent, Marked).
func BenchmarkTracer(b *testing.B) {
	for _, share := range []string{"0", "0.01", "1"} {
		log, _ := newLog()
		cfg := DefaultConfig()
		cfg.Events, cfg.Sampler, cfg.SamplerArg = true, "parentbased_traceidratio", share
		tracer, err := newTracer(cfg, about, new(nothing), log)
		if err != nil {
			b.Fatal(err)
		}
		ev := relay.Event{EventType: "OrderCreated", CommittedAt: relay.TimestampOf(time.Now())}
		begin := func(i int) *relay.Record {
			ev.ID = relay.UUID{byte(i), byte(i >> 8), byte(i >> 16), byte(i >> 24)}
			rec := relay.Record{EventID: ev.ID, EventType: ev.EventType, Topic: ev.EventType}
			tracer.Begin(&rec, &ev)
			return &rec
		}
		b.Run("Begin/share="+share, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				begin(i)
			}
		})
		batch := make([]*relay.Record, 1000)
		for i := range batch {
			batch[i] = begin(i)
		}
		for name, f := range map[string]func(){
			"Sent": func() { tracer.Sent(offer(kafka, nil, batch...)) },
			"Marked": func() {
				tracer.Marked(relay.Marking{Slot: "s", Events: len(batch), Records: seq(batch), Started: began})
			},
		} {
			b.Run(fmt.Sprintf("%s1000/share=%s", name, share), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					f()
				}
			})
		}
		shut(tracer)
	}
}
