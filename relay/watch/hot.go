package watch

import (
	"github.com/sagaz-relay/relay/relay"
)

// recentUpdates are counts of the table's updates at the last looks, slotEvery observations apart:
// five minutes.
type recentUpdates struct {
	looks [recentLooks]relay.TableUpdates // a ring
	n     int                             // looks so far
}

const recentLooks = 5*60/slotEvery + 1

// add notes a look. When counts have fallen, they were reset: what was before counts no more.
func (r *recentUpdates) add(now relay.TableUpdates) {
	if r.n > 0 && now.All < r.looks[(r.n-1)%recentLooks].All {
		r.n = 0
	}
	r.looks[r.n%recentLooks] = now
	r.n++
}

// hotShare returns the share of the updates between the first look and the last that were HOT; nil
// when there was none.
func (r *recentUpdates) hotShare() *float64 {
	if r.n < 2 {
		return nil
	}
	first, last := r.looks[max(0, r.n-recentLooks)%recentLooks], r.looks[(r.n-1)%recentLooks]
	updates := last.All - first.All
	if updates <= 0 {
		return nil
	}
	share := float64(last.HOT-first.HOT) / float64(updates)
	return &share
}
