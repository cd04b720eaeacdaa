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
	Doubts
	Ledger
	Sweeper
	Facts
	// Prune removes (or, with archive, moves to saga_outbox_archive) at most limit rows that were
	// sent before the given age, on a connection of its own and without waiting for anybody's
	// locks, and returns how many. Fewer than limit means that there are no more for now.
	Prune(ctx context.Context, age time.Duration, archive bool, limit int) (int, error)
	// Release gives the slot up. The stream must be closed before. clean: all that was sent is
	// marked, or in the ledger.
	Release(ctx context.Context, clean bool) error
}

// Tenure is whether the slot is still ours. Lanes ask it before each offer.
type Tenure interface {
	// Epoch counts the owners that the slot has had.
	Epoch() int64
	// Lost is closed when the lease can no longer be trusted; Err is why, then.
	Lost() <-chan struct{}
	// Yield is closed when the slot is to be given back, in order: drained and released. Another
	// relay has too few slots, or the table is about to be divided in another way.
	Yield() <-chan struct{}
	Err() error
	// Valid reports whether the lease is still within its time. It looks at the clock, so it also
	// gives the true answer to a process that was frozen (SIGSTOP, a paused VM) at the moment it
	// wakes up, before any timer has fired.
	Valid() bool
}

// Marks writes to the rows what became of their events, and finds out what earlier owners wrote. It
// is the marker's, and of those who take events in.
type Marks interface {
	// MarkedLSN is the highest commit LSN of any event that an earlier owner marked. Up to it, rows
	// may be marked already though the slot delivers them again. Past it, no row is.
	MarkedLSN() LSN
	// Mark writes the outcomes of events in one transaction: to their rows, and to the ledger what
	// sinks do not have. The transaction first checks the epoch, and notes batch.Confirm.
	//
	// A transaction is in the WAL before others can see it; with a synchronous standby that may
	// take long. Events whose rows are not visible yet are returned as later, in any order, to be
	// marked again soon. What is behind one of them in its key is later, too: what a crash leaves
	// without a mark is then a suffix of the key.
	//
	// Entries of the ledger do not need their rows, but wait with what is in front of them in their
	// key. An entry that is there already stays as it is. A row that is gone counts as marked.
	// ErrFenced ends the lease.
	Mark(ctx context.Context, batch MarkBatch) (later []int, err error)
	// Remark tries again those parked marks whose time has come, and returns what is left. Mark
	// parks a mark when the database refuses it for good, or when somebody has held the row's lock
	// for long. The event is done then, and an entry of MarkSink in the ledger keeps it from being
	// delivered again.
	Remark(ctx context.Context) (Unmarked, error)
	// Settled reports for each event whether its row asks for no delivery any more: marked sent or
	// dead, in the ledger, deleted or archived. While another worker has one of the rows claimed,
	// this is not known: the error is a *ClaimedError, and the caller asks again soon.
	//
	// In hybrid mode Settled claims what is not settled, so that no other worker takes it. A claim
	// of a relay that had the slot before us is ours, too.
	Settled(ctx context.Context, events []Event) ([]bool, error)
	// Confirm notes that lsn may be reported to the slot; see Recovery.Confirmed. Mark does it,
	// too.
	Confirm(ctx context.Context, lsn LSN) error
}

// ClaimedError means that a worker which is not a relay has claimed rows and not written an outcome
// yet. A claim ends with the outcome, or when it is so old that its worker must be dead.
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
	// Confirm is a position that may be reported to the slot once this is committed; 0: nothing.
	Confirm LSN
	// Since is the time before which nothing was sent that has no mark once this is committed; the
	// next owner gets it as InDoubt. Zero: nobody is to know.
	Since time.Time
}

// Mark is the outcome of an event, to be written to its row.
type Mark struct {
	ID UUID
	// XID is the inserting transaction, or 0. If it has ended, a row that is not visible is gone.
	XID uint32
	// CommitLSN is 0 for an event that was read from the table. Its mark moves MarkedLSN to the end
	// of the WAL, because a slot may deliver the event later.
	CommitLSN LSN
	EventType string
	Key       string
	KeyHash   uint32 // murmur2 of Key
	Position  int64  // the event's place in the order in which the slot's owners took events
	// At is when the event was committed, or created where that is not known; 0 where neither is.
	At Timestamp
	// Parked are the ledger entries for the sinks that do not have the event. Without any, all
	// sinks have it, and the row's status becomes sent. With an entry in StateRetry or StateDead it
	// becomes failed or dead_letter, with retry_count and last_error. With StateHeld alone it stays
	// pending; in hybrid mode it becomes failed, so that the other worker leaves the row alone.
	Parked []Parked
}
