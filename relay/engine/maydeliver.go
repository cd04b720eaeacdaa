package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// sinkNames are the names of sinks.
func sinkNames(sinks []relay.Sink) []string {
	var names []string
	for _, sink := range sinks {
		names = append(names, sink.Name())
	}
	return names
}

// checkSinks asks once where events of the slot went before. It returns nil at once where
// BROKER_TYPE is set.
func (e *Engine) checkSinks(ctx context.Context, slot string) error {
	if e.cfg.SinksByDefault == nil {
		return nil
	}
	before, err := e.store.Before(ctx, slot)
	if err != nil {
		return err
	}
	return relay.CheckSinks(sinkNames(e.sinks), *e.cfg.SinksByDefault, before)
}

// mayDeliver is checkSinks for an owner. It delivers nothing before it knows, so it asks until it
// gets an answer, ctx ends, or the slot is lost or to be given back.
func (e *Engine) mayDeliver(ctx context.Context, slot string, lease relay.Tenure) error {
	backoff := relay.Backoff{Min: e.cfg.BackoffMin, Max: e.cfg.BackoffMax}
	var logged time.Time
	for {
		err := e.checkSinks(ctx, slot)
		var setup *relay.SetupError
		switch {
		case ctx.Err() != nil || closed(lease.Yield()):
			return nil // the pipeline ends by itself, before its first event
		case err == nil || errors.As(err, &setup):
			return err
		}
		wait := backoff.Next()
		if time.Since(logged) >= logInterval {
			logged = time.Now()
			e.log.Warn("nothing is delivered until it is known where events went before", "slot", slot, "backoff", wait, "error", err)
		}
		if pause(ctx, wait, lease.Lost()) {
			return fmt.Errorf("%w: %w", relay.ErrLeaseLost, lease.Err())
		}
	}
}
