package engine

import (
	"fmt"
	"runtime"
	"testing"
	"weak"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// An event that is stuck keeps itself in memory, and none of those that came with it.
func TestStuckEventKeepsNoOtherInMemory(t *testing.T) {
	cfg := DefaultConfig()
	in := &intake{
		cfg: &cfg, log: hclog.NewNullLogger(), maker: maker{enc: Sagaz}, slotObs: watched().SlotObserver,
		window: newWindow(newBudget(cfg.InflightEvents, cfg.InflightBytes), 0), doing: newDoing("slot", nil, cfg.Mode), scratch: make([][]*flight, cfg.Lanes),
	}
	events := make([]relay.Event, 512)
	for i := range events {
		events[i] = relay.Event{AggregateID: fmt.Sprint("k", i), EventType: "T", Payload: `{"a": 1}`, Status: "pending"}
	}
	in.launch(events, false)
	var bodies []weak.Pointer[byte]
	for f := in.window.tracker.oldest().behind; f != nil; {
		behind := f.behind
		bodies = append(bodies, weak.Make(&f.Record.Value[0]))
		in.window.tracker.mark(f)
		f = behind
	}
	runtime.GC()
	kept := 0
	for _, body := range bodies {
		if body.Value() != nil {
			kept++
		}
	}
	if len(bodies) != len(events)-1 || kept > 0 {
		t.Errorf("of %d events that are done, the bodies of %d are in memory", len(bodies), kept)
	}
	runtime.KeepAlive(in)
}
