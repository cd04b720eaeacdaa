package engine

import (
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// deaf is a tracer that does nothing.
type deaf struct{}

func (deaf) Begin(*relay.Record, *relay.Event) {}
func (deaf) Sent(relay.Offer)                  {}
func (deaf) Marked(relay.Marking)              {}
func (deaf) Swept(relay.Swept)                 {}
func (deaf) Drained(relay.Drained)             {}

// launcher returns what encodes 1000 events and puts them on their lanes, as the stream does, and
// takes them off again.
func launcher(tracer relay.Tracer) func() {
	cfg := DefaultConfig()
	cfg.Tracer = tracer
	lanes := make([]*lane, cfg.Lanes)
	for i := range lanes {
		lanes[i] = &lane{cfg: &cfg, budget: newBudget(1, 1), wake: make(chan struct{}, 1)}
	}
	in := &intake{
		cfg: &cfg, log: hclog.NewNullLogger(), maker: maker{enc: Sagaz, tracer: tracer}, slotObs: watched().SlotObserver, lanes: [][]*lane{lanes},
		window: newWindow(newBudget(cfg.InflightEvents, cfg.InflightBytes), 1), doing: newDoing("slot", nil, cfg.Mode), scratch: make([][]*flight, cfg.Lanes),
	}
	events := make([]relay.Event, 1000)
	for i := range events {
		events[i] = relay.Event{
			ID: relay.UUID{byte(i), byte(i >> 8)}, SagaID: "saga-1", AggregateType: "order", AggregateID: "order-1", EventType: "OrderCreated", Payload: `{"amount": 1}`,
			Headers:   `{"correlation_id": "c0ffee", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`,
			CommitLSN: relay.LSN(i), Status: "pending",
		}
	}
	var batch []*flight
	return func() {
		in.launch(events, false)
		for _, l := range lanes {
			for {
				if batch = l.take(batch[:0]); len(batch) == 0 {
					break
				}
			}
		}
		for in.window.tracker.len() > 0 {
			f := in.window.tracker.oldest()
			in.window.tracker.settle(f, 0, nil)
			in.window.tracker.mark(f)
		}
	}
}

// Without a tracer the way of an event costs no allocation more than encoding it, and nor does
// finding its trace context with one.
func TestTracerAllocates(t *testing.T) {
	off := testing.AllocsPerRun(20, launcher(nil))
	if on := testing.AllocsPerRun(20, launcher(deaf{})); on > off+1 { // of 1000 events
		t.Errorf("%.0f allocations for 1000 events with a tracer, %.0f without", on, off)
	}
}

// BenchmarkLaunch is what 1000 events cost on their way to the lanes.
func BenchmarkLaunch(b *testing.B) {
	for name, tracer := range map[string]relay.Tracer{"traces=off": nil, "traces=on": deaf{}} {
		b.Run(name, func(b *testing.B) {
			launch := launcher(tracer)
			b.ReportAllocs()
			for b.Loop() {
				launch()
			}
		})
	}
}
