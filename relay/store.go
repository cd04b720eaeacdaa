package relay

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Reasons for which a pipeline ends that are nobody's fault.
var (
	// ErrLeaseLost is the cause with which work on a slot ends when the lease can no longer be trusted: its
	// connection broke, it was not renewed in time, or another relay has taken it.
	ErrLeaseLost = errors.New("lease lost")
	// ErrFenced is returned by Lease.Mark when the slot's epoch has moved on: another relay owns the
	// slot, and this one has to stop at once. It is an ErrLeaseLost.
	ErrFenced = fencedError{}
)

type fencedError struct{}

func (fencedError) Error() string        { return "fenced: another relay has taken the slot since" }
func (fencedError) Is(target error) bool { return target == ErrLeaseLost }

// SetupError is a fault that a person has to mend: the relay can do nothing about it, and trying again as things
// stand is no use. Problem names the variable or object; Fix is what to set or run.
type SetupError struct {
	Problem string
	Fix     string
	SQL     []string // statements in Fix, in their order, that can be run as they are
	Err     error    // what the server said, if anything
	// Streaming says that only logical replication is impossible: RELAY_MODE=auto polls the table instead.
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
	// Acquire waits until this relay owns the slot and returns the lease. It fails only when ctx ends
	// or with a *SetupError; it waits through a database that is down.
	Acquire(ctx context.Context, slot string) (Lease, error)
	// Waiting is why Acquire, which waits for the slot, could not take it if it were free: the database does not answer. It is nil when
	// another relay has the slot, and while nobody waits.
	Waiting(slot string) error
	// Check verifies once what the relay needs of the database: that it is reachable, that the tables are there.
	// It returns a *SetupError for what a person has to mend.
	Check(ctx context.Context) error
	// Before tells where events went before this relay, for one whose BROKER_TYPE is not set.
	Before(ctx context.Context, slot string) (Before, error)
}

// OccupiedError is why a standby does not take a slot that is free: the table's events are delivered through another slot, and two sets of
// slots would deliver each event twice.
type OccupiedError struct {
	Slot, Owner string    // the other slot, and who owns it
	Taken       time.Time // since when it does
	Found       time.Time // when we saw it first, by our own clock
}

func (e *OccupiedError) Error() string {
	return fmt.Sprintf("the table's events are delivered through another slot: %q, owned by %s since %s. Two sets of slots would deliver each event twice, so this one stands by "+
		"and takes over what that one leaves when its last relay has stopped. If that is not wanted, set RELAY_SLOT=%[1]s", e.Slot, e.Owner, e.Taken.UTC().Format(time.RFC3339))
}

// Lease is the ownership of one slot, from Acquire to Release or loss. While it is held, no other relay
// reads the slot or marks its rows; the database checks that at every mark.
//
// Its methods may be called from several goroutines.
type Lease interface {
	// Epoch counts the owners that the slot has had.
	Epoch() int64
	// MarkedLSN is the highest commit LSN of any event that an earlier owner marked. Up to it, rows may be
	// marked already though the slot tells of them again; past it, none is.
	MarkedLSN() LSN
	// Lost is closed when the lease can no longer be trusted; Err then says why.
	Lost() <-chan struct{}
	Err() error
	// Valid reports whether the lease is still within its time. It looks at the clock, so it also tells a process that was
	// frozen (SIGSTOP, a paused VM) the truth at the moment it wakes up, before any timer has fired.
	Valid() bool
	// Mark writes the events' fates, in one transaction that first checks the epoch and notes batch.Confirm: to their rows,
	// and to the ledger what sinks do not have. Events whose rows are not visible yet, though the stream has told of them,
	// are returned as later, in any order, to be marked again soon: a transaction is in the WAL before it is visible to
	// others, by as much as a synchronous standby takes. What is behind one of them in its key is later, too, so
	// that what a crash leaves without a mark is a suffix of the key. Entries of the ledger do not need
	// their rows, but wait with what is in front of them in their key; an entry that is there already stays as it is.
	// A row that is gone counts as marked. ErrFenced ends the lease.
	Mark(ctx context.Context, batch MarkBatch) (later []int, err error)
	// Remark tries again to mark rows that Mark has set aside, those whose time has come, and returns which are left. Mark sets a row aside, as
	// done, when the database refuses its mark for good or somebody has held its lock for long: an entry of MarkSink in the ledger keeps it from
	// being delivered again.
	Remark(ctx context.Context) (Unmarked, error)
	// Settled tells for each event whether its row asks for no delivery any more: marked sent or dead, in the ledger,
	// deleted or archived. While another worker holds one of the rows claimed that cannot be told: the error is
	// a *ClaimedError then, and it is to be asked again soon. In hybrid mode it claims those that are not settled, so that no
	// other worker takes them: what is not settled is ours to publish; a claim of a relay that had the slot before us is ours too.
	Settled(ctx context.Context, events []Event) ([]bool, error)
	// Confirm notes that the slot may be told to pass lsn; see Recovery.Confirmed. Mark does it too.
	Confirm(ctx context.Context, lsn LSN) error
	// NoteSinks notes which sinks this owner has, and returns those that the one before had; none when there was none, or it did not say.
	NoteSinks(ctx context.Context, sinks []string) (before []string, err error)
	// Slot tells what the server says of the slot. It is cheap.
	Slot(ctx context.Context) (SlotInfo, error)
	// Updates counts the table's updates. It is cheap.
	Updates(ctx context.Context) (TableUpdates, error)
	// Table counts the whole table's rows. It may take long, and is made on a connection of its own.
	Table(ctx context.Context) (TableInfo, error)
	Ledger
	Sweeper
	// Prune removes (or, with archive, moves to saga_outbox_archive) at most limit rows that were sent before the given age, on a
	// connection of its own and without waiting for anybody's locks, and returns how many. Fewer than limit means that there are no
	// more for now.
	Prune(ctx context.Context, age time.Duration, archive bool, limit int) (int, error)
	// Release gives the slot up. The stream must be closed before.
	Release(ctx context.Context) error
}

// ClaimedError says that a worker which is not a relay has claimed rows and not told their fate yet. A claim ends with
// its fate, or when it is so old that its worker must be dead.
type ClaimedError struct {
	Rows   int
	Worker string        // worker_id of one of them
	AtMost time.Duration // until the last of the claims is too old
}

func (e *ClaimedError) Error() string {
	return fmt.Sprintf("%d rows are claimed by other workers, one of them %q, for %s at most", e.Rows, e.Worker, e.AtMost)
}

// MarkBatch is what one transaction of Mark writes.
type MarkBatch struct {
	Marks []Mark
	// Confirm is a position that the slot may be told to pass once this is committed; 0 for none.
	Confirm LSN
}

// Mark is an event's fate, to be written to its row.
type Mark struct {
	ID  UUID
	XID uint32 // the inserting transaction, or 0; tells a row that is gone from one not visible yet
	// CommitLSN is 0 for an event that was read from the table. Marking such a one moves MarkedLSN to the end of the WAL: a
	// slot may tell of it later.
	CommitLSN LSN
	EventType string
	Key       string
	KeyHash   uint32 // murmur2 of Key
	Position  int64  // the event's place in the order in which the slot's owners took events
	// At is when the event was committed, or created where that is not known; 0 where neither is.
	At Timestamp
	// Parked are the ledger entries for the sinks that do not have the event; none means that all have it, and the row says sent.
	// With an entry in state StateRetry or StateDead the row says failed or dead_letter, with retry_count and last_error; with only
	// StateHeld ones it stays pending (in hybrid mode it says failed, so that the other worker leaves it alone).
	Parked []Parked
}

// SlotInfo is what the server says of a slot (pg_replication_slots), and how far its WAL goes.
type SlotInfo struct {
	Exists         bool
	Active         bool
	WALEnd         LSN
	ConfirmedFlush LSN
	Restart        LSN
	WALStatus      string // reserved, extended, unreserved, lost
	// KeepSize is max_slot_wal_keep_size in bytes; 0 when there is no limit.
	KeepSize int64
	// SafeWALSize is how many bytes may still be written before the slot is in danger of being lost; nil when there is
	// no limit, or when it is lost.
	SafeWALSize *int64
	// InactiveFor is for how long nobody has read the slot, by the server's clock; nil while it is read, and where the server does not
	// know (before PostgreSQL 17).
	InactiveFor *time.Duration
	// Relays is how many relays own the slot or stand by for it; 0 where that cannot be told (through a pooler).
	Relays int
	// Stats is nil where the server has none yet.
	Stats *SlotStats
}

// SlotStats counts what the server has decoded for a slot (pg_stat_replication_slots).
type SlotStats struct {
	Transactions, Bytes           int64
	SpillTransactions, SpillBytes int64 // what outgrew logical_decoding_work_mem
	StreamBytes                   int64 // what was sent before its transaction ended
}

// lag is how much WAL has been written since a position.
func (i *SlotInfo) lag(since LSN) LSN { return i.WALEnd - min(i.WALEnd, since) }

func (i *SlotInfo) stats() SlotStats {
	if i.Stats == nil {
		return SlotStats{}
	}
	return *i.Stats
}

// TableInfo is what the database says of the whole table.
type TableInfo struct {
	// Rows counts the rows by status; sent is an estimate. OldestPending is the created_at of the oldest pending row, 0 when there is none.
	Rows          map[string]int64
	OldestPending Timestamp
}

// TableUpdates counts the table's updates since the server's statistics began, and those of them that were HOT.
type TableUpdates struct{ All, HOT int64 }
