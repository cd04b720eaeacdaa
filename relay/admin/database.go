package admin

import (
	"context"
	"sync"
	"time"
)

// Database is what relays share, as the database has it. By it a standby's page shows who owns
// what.
type Database struct {
	Slots  []DatabaseSlot   `json:"slots"`
	Ledger []DatabaseLedger `json:"ledger"`
	// Updates are those of the outbox table since its statistics were reset, HOTUpdates those that
	// touched no index.
	Updates    int64 `json:"updates"`
	HOTUpdates int64 `json:"hot_updates"`
}

// DatabaseSlot is one slot.
type DatabaseSlot struct {
	Slot  string `json:"slot"`
	Owner string `json:"owner"` // empty when the lease is free
	Epoch int64  `json:"epoch"`
	// Taken is when the owner took the lease; null when that is free.
	Taken         *time.Time `json:"taken_at"`
	Active        bool       `json:"active"` // a connection reads it
	LagBytes      *int64     `json:"lag_bytes"`
	RetainedBytes *int64     `json:"retained_bytes"`
	WALStatus     string     `json:"wal_status"`
}

// DatabaseLedger counts entries of the ledger with the same sink, state and reason.
type DatabaseLedger struct {
	Slot    string    `json:"slot"`
	Sink    string    `json:"sink"`
	State   string    `json:"state"` // retry, held, dead, unmarked
	Reason  string    `json:"reason"`
	Entries int64     `json:"entries"`
	Oldest  time.Time `json:"oldest"` // when it was written
}

const (
	lookEvery   = 5 * time.Second
	lookAgain   = 15 * time.Second // after one that failed
	lookTimeout = 2 * time.Second
)

// lookout looks at the database for all requests, at most once in lookEvery. One of them waits for
// the look, the others get the last one.
type lookout struct {
	look func(context.Context) (*Database, error)

	looking sync.Mutex // held by who looks
	mu      sync.Mutex // guards what follows
	last    sight
	next    time.Time
}

// sight is what was seen, and when.
type sight struct {
	Time time.Time `json:"time,omitzero"`
	*Database
	// Of the last look, when it was in vain; what was seen before stays.
	Error string `json:"error,omitempty"`
}

// get returns the last sight, or nil when there is no database to look at.
func (l *lookout) get(ctx context.Context) *sight {
	if l.look == nil {
		return nil
	}
	if l.due() && l.looking.TryLock() {
		defer l.looking.Unlock()
		if l.due() { // no other request was faster
			l.refresh(ctx)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.last
	return &last
}

func (l *lookout) due() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !time.Now().Before(l.next)
}

func (l *lookout) refresh(ctx context.Context) {
	// Not the request's context: one that ends in the middle would leave an error for the others.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout)
	defer cancel()
	seen, err := l.look(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if err != nil {
		l.last.Error, l.next = err.Error(), now.Add(lookAgain)
		return
	}
	l.last, l.next = sight{Time: now, Database: seen}, now.Add(lookEvery)
}
