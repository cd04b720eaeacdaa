package relay

import (
	"context"
	"errors"
	"fmt"
)

// Source opens slots.
type Source interface {
	// Check verifies once what the source needs of the database for the slots of a set, and returns
	// a *SetupError for what a person has to fix. It changes nothing.
	Check(ctx context.Context, set Set) error
	// Open connects to the shard's slot and starts streaming. known is a position that was never
	// reported to the slot (Recovery.Confirmed); 0 when not known. Errors other than
	// *SlotGoneError, ErrSlotBusy and *SetupError are transient.
	Open(ctx context.Context, shard Shard, known LSN) (Stream, error)
	// Create makes the slot, and the publication if that is missing, and returns the position from
	// which the slot delivers everything. A slot of this name that cannot be read any more is
	// dropped first. One that can be read is kept, and its position returned. Create waits for as
	// long as a transaction of the server is open, and asks Fence before it takes anything away.
	Create(ctx context.Context, shard Shard) (LSN, error)
	// Holders returns the transactions that a Create of the slot waits for.
	Holders(ctx context.Context, slot string) ([]Holder, error)
}

// SlotGoneError means that the slot cannot, or may not, deliver everything that was committed since
// it was last read. It is to be created again (Source.Create), after the sweep that finds the rest
// in the table was noted as owed.
type SlotGoneError struct {
	Slot string
	// Cause is a word for logs and metrics.
	Cause GoneCause
	Err   error // the server's error, if any
}

func (e *SlotGoneError) Error() string {
	s := fmt.Sprintf("slot %q: %s", e.Slot, e.Cause)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *SlotGoneError) Unwrap() error { return e.Err }

// GoneCause is why a slot cannot deliver everything.
type GoneCause string

// Causes of a gap.
const (
	// It does not exist: never made, dropped, restored from a dump, lost in a failover.
	GoneMissing GoneCause = "missing"
	// The server has invalidated it (wal_status lost, conflicting, …).
	GoneLost GoneCause = "lost"
	// The publication is missing, or was as of the position that the slot decodes.
	GonePublication GoneCause = "publication"
	// What comes cannot be read, at each try at the same place; or is of the table as it was
	// before a change of its columns.
	GoneUnreadable GoneCause = "unreadable"
	// What was noted of it is of another cluster, from which the database was restored.
	GoneRestored GoneCause = "restored"
	// It is further on than we let it: recreated or advanced by somebody.
	GoneMoved GoneCause = "moved"
)

// ErrSlotBusy means that another connection reads the slot; the error that wraps it names that one.
var ErrSlotBusy = errors.New("replication slot is in use")

// Stream is one replication connection.
type Stream interface {
	// Run receives until ctx ends or the connection fails, and hands what it receives to the
	// intake. Feedback reaches the server on time even while the intake blocks.
	Run(ctx context.Context, in Intake) error
	// Close reports the intake's watermark a last time, waits for the server to have taken it, and
	// ends the connection, which frees the slot.
	Close(ctx context.Context) error
}

// Intake is the receiving end of a stream, called from the stream's goroutine in stream order.
type Intake interface {
	// Admit takes committed events in commit order. The slice is the caller's again when it
	// returns; the events' strings are not. It blocks while the in-flight budget is spent.
	Admit(ctx context.Context, events []Event) error
	// Pass reports that everything committed before lsn has been admitted: the end of a
	// transaction, or the position of a keepalive.
	Pass(lsn LSN)
	// Heard reports that the server has written WAL up to lsn. It confirms nothing: lag is counted
	// from it.
	Heard(lsn LSN)
	// Watermark is the position to report: everything committed before it is marked or in the
	// ledger, and the database has a note that it may be reported (Lease.Confirm). It may be called
	// from any goroutine.
	Watermark() LSN
}
