package relay

import (
	"context"
	"time"
)

// Retry calls do until it succeeds, and returns nil then. After each error it asks again, the place
// to log it, whether to try once more after the wait. If not, or if ctx ends before the next try,
// it returns the last error of do; what the end of ctx means is the caller's business.
func Retry(ctx context.Context, backoff Backoff, do func() error, again func(err error, wait time.Duration) bool) error {
	for {
		err := do()
		if err == nil {
			return nil
		}
		wait := backoff.Next()
		if ctx.Err() != nil || !again(err, wait) || !Sleep(ctx, wait) {
			return err
		}
	}
}
