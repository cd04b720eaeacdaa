package engine

import (
	"context"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

const (
	retainBatch = 1000
	retainEvery = time.Minute // at the longest: not longer than RELAY_RETENTION itself
	// retainPause is the rest after a batch, in multiples of the time that the batch took: marks go
	// first.
	retainPause = 9
)

// retain removes rows that were sent longer ago than RELAY_RETENTION, whatever their key. The owner
// of the first slot does it for the whole table.
func (p *pipeline) retain(ctx context.Context) error {
	if p.cfg.Retention == 0 || p.shard.Index != 0 {
		return nil
	}
	every := min(retainEvery, p.cfg.Retention)
	for ctx.Err() == nil {
		began := time.Now()
		n, err := p.lease.Prune(ctx, p.cfg.Retention, p.cfg.RetentionAction == relay.RetentionArchive, retainBatch)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			p.log.Warn("removing old rows", "error", err)
			relay.Sleep(ctx, every)
		case n < retainBatch:
			p.slotObs.Pruned(n)
			relay.Sleep(ctx, every)
		default:
			p.slotObs.Pruned(n)
			relay.Sleep(ctx, retainPause*time.Since(began))
		}
	}
	return nil
}
