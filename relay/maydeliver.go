package relay

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// sinkNames are the names of sinks.
func sinkNames(sinks []Sink) []string {
	var names []string
	for _, sink := range sinks {
		names = append(names, sink.Name())
	}
	return names
}

// checkSinks asks once where events of the slot went before. It returns nil at once where BROKER_TYPE is set.
func (r *Relay) checkSinks(ctx context.Context, slot string) error {
	if r.cfg.SinksByDefault == nil {
		return nil
	}
	before, err := r.store.Before(ctx, slot)
	if err != nil {
		return err
	}
	return CheckSinks(sinkNames(r.sinks), *r.cfg.SinksByDefault, before)
}

// mayDeliver is checkSinks for an owner: it delivers nothing before it knows, so it asks until it is told, ctx ends or the lease is lost.
func (r *Relay) mayDeliver(ctx context.Context, slot string, lease Lease) error {
	backoff := Backoff{Min: r.cfg.BackoffMin, Max: r.cfg.BackoffMax}
	var logged time.Time
	for {
		err := r.checkSinks(ctx, slot)
		var setup *SetupError
		switch {
		case ctx.Err() != nil:
			return nil // the pipeline ends by itself
		case err == nil || errors.As(err, &setup):
			return err
		}
		wait := backoff.Next()
		if time.Since(logged) >= healthLogInterval {
			logged = time.Now()
			r.log.Warn("waiting to be told where events went before, nothing is delivered until then", "slot", slot, "backoff", wait, "error", err)
		}
		if pause(ctx, wait, lease.Lost()) {
			return fmt.Errorf("%w: %w", ErrLeaseLost, lease.Err())
		}
	}
}
