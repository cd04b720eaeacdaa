package engine

import (
	"context"
	"errors"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// remarkEvery is how often rows that were set aside are looked at. As long as there are none, that costs no statement.
const remarkEvery = time.Second

// remark tries rows that were set aside again, until ctx ends. It returns an error only when the lease is gone.
func (p *pipeline) remark(ctx context.Context) error {
	for failed := false; ; {
		u, err := p.lease.Remark(ctx)
		switch {
		case errors.Is(err, relay.ErrLeaseLost):
			return err
		case ctx.Err() != nil:
			return nil
		case err != nil && !failed:
			p.log.Warn("rows that were set aside could not be looked at", "error", err)
		case err == nil:
			p.noteUnmarked(u)
		}
		failed = err != nil
		if !relay.Sleep(ctx, remarkEvery) {
			return nil
		}
	}
}

// noteUnmarked keeps what is known of them, for the status and the metrics.
func (p *pipeline) noteUnmarked(u relay.Unmarked) {
	p.mu.Lock()
	before := p.unmarked.Events
	p.unmarked = u
	p.mu.Unlock()
	switch {
	case before == 0 && u.Events > 0:
		p.obs.Changed(relay.Change{Kind: relay.ChangeUnmarked, Level: relay.LevelDegraded, Slot: p.slot, Text: "rows cannot be marked: " + u.Cause})
	case before > 0 && u.Events == 0:
		p.obs.Changed(relay.Change{Kind: relay.ChangeUnmarked, Level: relay.LevelOK, Slot: p.slot, Text: "all rows have their marks again"})
		p.log.Info("all rows that were set aside have their marks")
	}
}
