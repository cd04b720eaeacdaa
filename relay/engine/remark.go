package engine

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// remarkEvery is how often unmarked rows are looked at. As long as there are none, that
// costs no statement.
const remarkEvery = time.Second

// unmarkedRows tries again to mark the rows that did not take their marks.
type unmarkedRows struct {
	log   hclog.Logger
	obs   relay.Observer
	slot  string
	lease relay.Marks

	mu       sync.Mutex // guards what follows
	unmarked relay.Unmarked
}

// known returns what is known of them.
func (r *unmarkedRows) known() relay.Unmarked {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unmarked
}

// run tries unmarked rows again, until ctx ends. It returns an error only when the lease
// is gone.
func (r *unmarkedRows) run(ctx context.Context) error {
	for failed := false; ; {
		u, err := r.lease.Remark(ctx)
		switch {
		case errors.Is(err, relay.ErrLeaseLost):
			return err
		case ctx.Err() != nil:
			return nil
		case err != nil && !failed:
			r.log.Warn("unmarked rows could not be looked at", "error", err)
		case err == nil:
			r.note(u)
		}
		failed = err != nil
		if !relay.Sleep(ctx, remarkEvery) {
			return nil
		}
	}
}

// note keeps what is known of them, for the status and the metrics.
func (r *unmarkedRows) note(u relay.Unmarked) {
	r.mu.Lock()
	before := r.unmarked.Events
	r.unmarked = u
	r.mu.Unlock()
	switch {
	case before == 0 && u.Events > 0:
		r.obs.Changed(relay.Change{Kind: relay.ChangeUnmarked, Level: relay.LevelDegraded, Slot: r.slot, Text: "rows cannot be marked: " + u.Cause})
	case before > 0 && u.Events == 0:
		r.obs.Changed(relay.Change{Kind: relay.ChangeUnmarked, Level: relay.LevelOK, Slot: r.slot, Text: "all rows have their marks again"})
		r.log.Info("all unmarked rows have their marks")
	}
}
