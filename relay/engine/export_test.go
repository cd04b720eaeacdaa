package engine

import (
	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/encode"
	"github.com/sagaz-relay/relay/relay/watch"
)

// watching is a watch of one slot.
type watching struct {
	relay.SlotObserver
	*watch.Watch
}

// watched returns one that shows nothing to anybody.
func watched() watching {
	w := watch.New(watch.NewMetrics(prometheus.NewRegistry(), "worker-1", watch.Config{}), nil, hclog.NewNullLogger())
	w.Begin(relay.About{Encoder: Sagaz})
	shard := relay.Alone("slot", "publication")
	w.Divided(shard.Set)
	return watching{w.Owned(shard, 1), w}
}

// Sagaz is the encoder of the usual envelope.
var Sagaz = func() relay.Encoder {
	enc, err := encode.New(encode.DefaultConfig())
	if err != nil {
		panic(err)
	}
	return enc
}()
