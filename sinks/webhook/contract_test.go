package webhook

import (
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func contract(t *testing.T, secure bool) {
	sinktest.Run(t, sinktest.Harness{NoKey: true, New: func(t testing.TB) *sinktest.Target {
		r := &receiver{}
		cfg := Config{}
		if secure {
			tls, certs := serverTLS(t)
			r = newReceiver(t, tls)
			cfg = r.config()
			cfg.TLSCAFile = certs.CAFile
		} else {
			r = newReceiver(t, nil)
			cfg = r.config()
		}
		cfg.Secrets = []string{testSecret}
		return &sinktest.Target{
			Sink: newSink(t, cfg), Topic: "OrderCreated", Consume: r.consume,
			Refused: func(key string) (*relay.Record, relay.Reason) {
				return sinktest.NewRecord("refused", key, 0, 0), relay.ReasonRejected
			},
			Stall: func(testing.TB) func() { return r.stall() },
			Faults: map[string]func(testing.TB){
				"connections cut":             func(testing.TB) { r.cut() },
				"connections cut three times": func(testing.TB) { r.cut(); r.cut(); r.cut() },
				"stalled for a moment":        func(testing.TB) { time.AfterFunc(50*time.Millisecond, r.stall()) },
				"restarted": func(testing.TB) {
					r.stop()
					r.start()
				},
				"unavailable for a moment": func(testing.TB) {
					before := r.count()
					r.status(503)
					for r.count() < before+5 {
						time.Sleep(time.Millisecond)
					}
					r.set(nil)
				},
			},
		}
	}})
}

func TestContractHTTP1(t *testing.T) { contract(t, false) }

func TestContractHTTP2(t *testing.T) { contract(t, true) }
