package engine

import (
	"context"
	"errors"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// settledRetry looks rows up, through passing trouble of the database.
func (in *intake) settledRetry(ctx context.Context, events []relay.Event) ([]bool, error) {
	backoff := relay.Backoff{Min: in.cfg.BackoffMin, Max: in.cfg.BackoffMax}
	defer in.waitForClaims(false)
	for waits := 0; ; {
		settled, err := in.lease.Settled(ctx, events)
		if err == nil {
			return settled, nil
		}
		if ctx.Err() != nil || errors.Is(err, relay.ErrLeaseLost) {
			return nil, err
		}
		wait := backoff.Next()
		claimed := (*relay.ClaimedError)(nil)
		in.waitForClaims(errors.As(err, &claimed))
		if claimed != nil {
			// A worker that lives is through with its batch in a moment, and where both publish,
			// that happens many times a second. What is logged is a wait of a second or two, and
			// then every 10 s.
			if waits++; waits%20 == 5 {
				in.log.Info("waiting for rows that another worker has claimed", "rows", claimed.Rows, "worker", claimed.Worker, "at_most", claimed.AtMost)
			}
			relay.Sleep(ctx, min(wait, claimPause))
			continue
		}
		in.log.Warn("look-up did not succeed, trying again", "events", len(events), "backoff", wait, "error", err)
		relay.Sleep(ctx, wait)
	}
}

// claimPause is how often claimed rows are looked at again: the library's worker needs some 100 ms
// for a batch.
const claimPause = 500 * time.Millisecond

// claimSwept claims rows, so that no other worker takes them meanwhile, and returns those that are
// ours. What another worker holds it leaves out: unlike the stream, a sweep comes again.
func (in *intake) claimSwept(ctx context.Context, events []relay.Event) ([]relay.Event, error) {
	kept := make([]relay.Event, 0, len(events))
	settled, err := in.lease.Settled(ctx, events)
	for i := range events {
		claimed := (*relay.ClaimedError)(nil)
		if err == nil {
			if !settled[i] {
				kept = append(kept, events[i])
			}
			continue
		}
		if !errors.As(err, &claimed) {
			return nil, err
		}
		// Some are others', and it is not said which.
		switch one, err := in.lease.Settled(ctx, events[i:i+1]); {
		case errors.As(err, &claimed):
		case err != nil:
			return nil, err
		case !one[0]:
			kept = append(kept, events[i])
		}
	}
	return kept, nil
}

// waitForClaims notes whether the stream waits for another worker.
func (in *intake) waitForClaims(is bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.read.claimed = is
}
