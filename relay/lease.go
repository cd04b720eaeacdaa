package relay

import (
	"context"
	"fmt"
	"time"
)

// Lease is the ownership of one slot, from Acquire to Release or loss. While it is held, no other
// relay reads the slot or marks its rows; the database checks that at every mark.
//
// Its methods may be called from several goroutines. It is for the keeper of the slot; everybody
// else takes the part that is theirs.
type Lease interface {
	Tenure
	Marks
	Ledger
	Sweeper
	Facts
	// Prune removes (or, with archive, moves to saga_outbox_archive) at most limit rows that were
	// sent before the given age, on a connection of its own and without waiting for anybody's
	// locks, and returns how many. Fewer than limit means that there are no more for now.
	Prune(ctx context.Context, age time.Duration, archive bool, limit int) (int, error)
	// Release gives the slot up. The stream must be closed before.
	Release(ctx context.Context) error
}

// Tenure is whether the slot is still ours. Lanes ask it before each offer.
type Tenure interface {
	// Epoch counts the owners that the slot has had.
	Epoch() int64
	// Lost is closed when the lease can no longer be trusted; Err then says why.
	Lost() <-chan struct{}
	Err() error
	// Valid reports whether the lease is still within its time. It looks at the clock, so it also
	// tells a process that was frozen (SIGSTOP, a paused VM) the truth at the moment it wakes up,
	// before any timer has fired.
	Valid() bool
}

// Marks writes to the rows what became of their events, and finds out what earlier owners wrote. It
// is the marker's, and of those who take events in.
type Marks interface {
	// MarkedLSN is the highest commit LSN of any event that an earlier owner marked. Up to it, rows
	// may be marked already though the slot tells of them again; past it, none is.
	MarkedLSN() LSN
	// Mark writes the events' fates, in one transaction that first checks the epoch and notes
	// batch.Confirm: to their rows, and to the ledger what sinks do not have. Events whose rows are
	// not visible yet, though the stream has told of them, are returned as later, in any order, to
	// be marked again soon: a transaction is in the WAL before it is visible to others, by as much
	// as a synchronous standby takes. What is behind one of them in its key is later, too, so that
	// what a crash leaves without a mark is a suffix of the key. Entries of the ledger do not need
	// their rows, but wait with what is in front of them in their key; an entry that is there
	// already stays as it is. A row that is gone counts as marked. ErrFenced ends the lease.
	Mark(ctx context.Context, batch MarkBatch) (later []int, err error)
	// Remark tries again to mark rows that Mark has set aside, those whose time has come, and
	// returns which are left. Mark sets a row aside, as done, when the database refuses its mark
	// for good or somebody has held its lock for long: an entry of MarkSink in the ledger keeps it
	// from being delivered again.
	Remark(ctx context.Context) (Unmarked, error)
	// Settled tells for each event whether its row asks for no delivery any more: marked sent or
	// dead, in the ledger, deleted or archived. While another worker holds one of the rows claimed
	// that cannot be told: the error is a *ClaimedError then, and it is to be asked again soon. In
	// hybrid mode it claims those that are not settled, so that no other worker takes them: what is
	// not settled is ours to publish; a claim of a relay that had the slot before us is ours too.
	Settled(ctx context.Context, events []Event) ([]bool, error)
	// Confirm notes that the slot may be told to pass lsn; see Recovery.Confirmed. Mark does it
	// too.
	Confirm(ctx context.Context, lsn LSN) error
}

// ClaimedError says that a worker which is not a relay has claimed rows and not told their fate
// yet. A claim ends with its fate, or when it is so old that its worker must be dead.
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
	// CommitLSN is 0 for an event that was read from the table. Marking such a one moves MarkedLSN
	// to the end of the WAL: a slot may tell of it later.
	CommitLSN LSN
	EventType string
	Key       string
	KeyHash   uint32 // murmur2 of Key
	Position  int64  // the event's place in the order in which the slot's owners took events
	// At is when the event was committed, or created where that is not known; 0 where neither is.
	At Timestamp
	// Parked are the ledger entries for the sinks that do not have the event; none means that all
	// have it, and the row says sent. With an entry in state StateRetry or StateDead the row says
	// failed or dead_letter, with retry_count and last_error; with only StateHeld ones it stays
	// pending (in hybrid mode it says failed, so that the other worker leaves it alone).
	Parked []Parked
}
