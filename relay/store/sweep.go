package store

import (
	"context"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

func (l *lease) Recovery() relay.Recovery { return relay.Recovery{} }

func (l *lease) OweSweep(context.Context, string) error { return errNotBuilt }

func (l *lease) SweepFrom(context.Context) (relay.Horizon, error) {
	return relay.Horizon{}, errNotBuilt
}

func (l *lease) EndSweep(context.Context, relay.LSN) (relay.LSN, error) { return 0, errNotBuilt }

func (l *lease) Horizon(context.Context) (relay.Horizon, error) { return relay.Horizon{}, errNotBuilt }

func (l *lease) Sweep(context.Context, relay.SweepQuery, func([]relay.Event) error) error {
	return errNotBuilt
}

func (l *lease) Prune(context.Context, time.Duration, bool, int) (int, error) { return 0, errNotBuilt }
