package engine

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// remarkEvery is how often rows that were set aside are looked at. As long as there are none, that
// costs no statement.
const remarkEvery = time.Second

// aside are the rows that were set aside.
type aside struct {
	log   hclog.Logger
	obs   relay.Observer
	slot  string
	lease relay.Marks

	mu       sync.Mutex // guards what follows
	unmarked relay.Unmarked
}

// known returns what is known of them.
func (a *aside) known() relay.Unmarked {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.unmarked
}

// run tries rows that were set aside again, until ctx ends. It returns an error only when the lease
// is gone.
func (a *aside) run(ctx context.Context) error {
	for failed := false; ; {
		u, err := a.lease.Remark(ctx)
		switch {
		case errors.Is(err, relay.ErrLeaseLost):
			return err
		case ctx.Err() != nil:
			return nil
		case err != nil && !failed:
			a.log.Warn("unmarked rows could not be looked at", "error", err)
		case err == nil:
			a.note(u)
		}
		failed = err != nil
		if !relay.Sleep(ctx, remarkEvery) {
			return nil
		}
	}
}

// note keeps what is known of them, for the status and the metrics.
func (a *aside) note(u relay.Unmarked) {
	a.mu.Lock()
	before := a.unmarked.Events
	a.unmarked = u
	a.mu.Unlock()
	switch {
	case before == 0 && u.Events > 0:
		a.obs.Changed(relay.Change{Kind: relay.ChangeUnmarked, Level: relay.LevelDegraded, Slot: a.slot, Text: "rows cannot be marked: " + u.Cause})
	case before > 0 && u.Events == 0:
		a.obs.Changed(relay.Change{Kind: relay.ChangeUnmarked, Level: relay.LevelOK, Slot: a.slot, Text: "all rows have their marks again"})
		a.log.Info("all unmarked rows have their marks")
	}
}
