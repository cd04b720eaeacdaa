package relay

import (
	"context"
	"time"
)

const (
	retainBatch = 1000
	retainEvery = time.Minute // at the longest: not longer than RELAY_RETENTION itself
	// retainPause is the rest after a batch, in multiples of the time that the batch took: marks go first.
	retainPause = 9
)

// retain removes rows that were sent long ago, as RELAY_RETENTION says. Only the slot's owner does it.
func (p *pipeline) retain(ctx context.Context) error {
	if p.cfg.Retention == 0 {
		return nil
	}
	every := min(retainEvery, p.cfg.Retention)
	for ctx.Err() == nil {
		began := time.Now()
		n, err := p.lease.Prune(ctx, p.cfg.Retention, p.cfg.RetentionAction == RetentionArchive, retainBatch)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			p.log.Warn("removing old rows", "error", err)
			Sleep(ctx, every)
		case n < retainBatch:
			p.metrics.pruned.Add(float64(n))
			Sleep(ctx, every)
		default:
			p.metrics.pruned.Add(float64(n))
			Sleep(ctx, retainPause*time.Since(began))
		}
	}
	return nil
}
