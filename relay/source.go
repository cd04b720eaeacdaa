package relay

import (
	"context"
	"errors"
)

// Source opens slots.
type Source interface {
	// Check verifies once what the source needs of the database and returns a *SetupError for what a person has
	// to mend. It changes nothing.
	Check(ctx context.Context) error
	// Open connects to the slot, creating it and the publication when missing, and starts streaming. ErrSlotBusy and
	// *SetupError are told apart from passing trouble.
	Open(ctx context.Context, slot string) (Stream, error)
}

// ErrSlotBusy says that another connection reads the slot; the error that wraps it tells which one.
var ErrSlotBusy = errors.New("replication slot is in use")

// Stream is one replication connection.
type Stream interface {
	// Run receives until ctx ends or the connection fails, and gives what it hears to the intake. Feedback goes to
	// the server on time even while the intake blocks.
	Run(ctx context.Context, in Intake) error
	// Close reports the intake's watermark a last time, waits for the server to have taken it, and ends the
	// connection, which frees the slot.
	Close(ctx context.Context) error
}

// Intake is the receiving end of a stream, called from the stream's goroutine in stream order.
type Intake interface {
	// Admit takes committed events in commit order. The slice is the caller's again when it returns; the events' strings are not. It
	// blocks while the in-flight budget is spent.
	Admit(ctx context.Context, events []Event) error
	// Pass says that everything committed before lsn has been admitted: the end of a transaction, or the position of
	// a keepalive.
	Pass(lsn LSN)
	// Heard says that the server has written WAL up to lsn. It confirms nothing: lag is counted from it.
	Heard(lsn LSN)
	// Watermark is the position to report: everything committed before it is resolved and marked. It
	// may be called from any goroutine.
	Watermark() LSN
}
