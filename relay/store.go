package relay

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Reasons for which a pipeline ends that are nobody's fault.
var (
	// ErrLeaseLost is the cause with which work on a slot ends when the lease can no longer be
	// trusted: its connection broke, it was not renewed in time, or another relay has taken it.
	ErrLeaseLost = errors.New("lease lost")
	// ErrFenced is returned by Lease.Mark when the slot's epoch has moved on: another relay owns
	// the slot, and this one has to stop at once. It is an ErrLeaseLost.
	ErrFenced = fencedError{}
)

type fencedError struct{}

func (fencedError) Error() string        { return "fenced: another relay has taken the slot since" }
func (fencedError) Is(target error) bool { return target == ErrLeaseLost }

// SetupError is a fault that a person has to fix: the relay can do nothing about it, and trying
// again unchanged is no use. Problem names the variable or object; Fix is what to set or run.
type SetupError struct {
	Problem string
	Fix     string
	SQL     []string // statements in Fix, in their order, that can be run as they are
	Err     error    // the server's error, if any
	// Streaming: only logical replication is impossible. RELAY_MODE=auto polls the table instead.
	Streaming bool
}

func (e *SetupError) Error() string {
	s := e.Problem
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Fix != "" {
		s += "; to fix it: " + e.Fix
	}
	return s
}

func (e *SetupError) Unwrap() error { return e.Err }

// Store is the outbox table and the relays' shared state, over ordinary connections.
type Store interface {
	// Set returns how the table's events are divided now, and a channel that is closed when that
	// has changed. It fails only when ctx ends or with a *SetupError; while the database is down it
	// goes on waiting.
	Set(ctx context.Context) (Set, <-chan struct{}, error)
	// Acquire waits until this relay is to own the shard's slot, and does, and returns the lease.
	// Relays share the slots of a set evenly. It fails only when ctx ends, with a *SetupError, or
	// with ErrSetChanged; while the database is down it goes on waiting.
	Acquire(ctx context.Context, shard Shard) (Lease, error)
	// Leave makes the other relays count on this one no more, before it gives back what it has on its
	// way out. It does not wait. Nothing is acquired after it.
	Leave()
	// Waiting is why Acquire, which is under way, could not take the slot if it were free: the
	// database does not answer. It is nil when another relay has the slot, and while no Acquire is
	// under way.
	Waiting(slot string) error
	// Changing is the change of the number of slots that is under way; nil: none, or not known.
	Changing() *SetChange
	// Unowned returns the slots of the set that no relay owns and of which this one is to say how
	// much waits there: of each slot one of the relays does, and none while they cannot know of each
	// other. It is cheap. UnownedEvents counts the events that wait on such a slot: rows that are
	// pending, up to a limit, and ledger entries.
	Unowned() []Shard
	UnownedEvents(ctx context.Context, shard Shard, limit int) (int, error)
	// Check verifies once what the relay needs of the database: that it is reachable, that the
	// tables are there. It returns a *SetupError for what a person has to fix.
	Check(ctx context.Context) error
	// Before returns where events went before this relay, for one whose BROKER_TYPE is not set.
	Before(ctx context.Context, slot string) (Before, error)
}

// OccupiedError is why a standby does not take a slot that is free: the table's events are
// delivered through another slot, and two sets of slots would deliver each event twice.
type OccupiedError struct {
	Slot, Owner string    // the other slot, and who owns it
	Set         string    // RELAY_SLOT of its relays
	Taken       time.Time // since when it does
	Found       time.Time // when we saw it first, by our own clock
}

func (e *OccupiedError) Error() string {
	return fmt.Sprintf("the table's events are delivered through another slot: %q, owned by %s since %s. Two sets of slots would deliver each event twice, so this one stands by "+
		"and takes over what that one leaves when its last relay has stopped. If that is not wanted, set RELAY_SLOT=%s", e.Slot, e.Owner, e.Taken.UTC().Format(time.RFC3339), e.Set)
}
