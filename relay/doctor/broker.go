package doctor

import (
	"context"
	"errors"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

// checkBroker asks, where BROKER_TYPE is not set, what a relay asks when it starts: did events go
// elsewhere before?
func (ex *exam) checkBroker(ctx context.Context) {
	if ex.cfg.ByDefault == nil || ex.table == 0 || !ex.relayTable {
		return // it is set, or what is missing is reported already
	}
	const check = "broker"
	for _, slot := range ex.set.Slots() {
		before, err := store.ReadBefore(ctx, ex.conn, slot)
		if err != nil {
			ex.unknown(check, err)
			return
		}
		var setup *relay.SetupError
		if errors.As(relay.CheckSinks(ex.cfg.SinkNames, *ex.cfg.ByDefault, before), &setup) {
			ex.add(Finding{
				Check: check, Severity: Broken, Summary: setup.Problem,
				Why: "sagaz-relay run refuses to start: a default must not send events elsewhere than before.", Fix: []Step{do("%s", setup.Fix)},
			})
			return
		}
	}
}
