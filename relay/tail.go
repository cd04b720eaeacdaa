package relay

import (
	"context"
	"time"
)

// TailReader is implemented by sinks whose brokers keep what they were sent, so that it can be read
// back. An owner that died has sent events that it could not mark any more. Its successor reads what
// of them arrived, and does not send that again.
type TailReader interface {
	// ReadsTail reports whether it is to be done: a setting.
	ReadsTail() bool
	// ReadTail gives f the records that the topics got from q.Since on, up to their present ends, in
	// the order of each key in a topic. f is called by one goroutine at a time, and keeps nothing of
	// the record. EventID is from the record's header; what has no header with an event's id is
	// counted and not given. It changes nothing at the broker.
	//
	// What cannot be read is reported, and the rest is read. An error means that nothing could be.
	// When ctx ends it returns soon, with what was read.
	ReadTail(ctx context.Context, q TailQuery, f func(*Record)) (TailReport, error)
}

// TailQuery is which records to read.
type TailQuery struct {
	Topics []string
	// Since is a time by the clock of the relay that sent them.
	Since time.Time
	// Most is how many records are read at most of each part of a topic that has an order of its
	// own: the last ones.
	Most int
}

// TailReport is what reading came to.
type TailReport struct {
	Records int // read, whoever sent them
	Unread  []UnreadTail
}

// UnreadTail is a part of a topic that could not be read, or not to its end.
type UnreadTail struct {
	Place string
	Err   error
}

// InDoubt are events that an earlier owner may have sent, and has not marked.
type InDoubt struct {
	// Since is the time, by that owner's clock, before which it has sent none of them. Zero: there
	// are none, or nothing is known of them.
	Since time.Time
	// To is the end of the WAL when the lease was taken: what is committed later, that owner has not
	// read.
	To LSN
}

// Doubts is what is known of events in doubt. It is for those who look for them at the sinks.
type Doubts interface {
	// InDoubt is what the owner before has left.
	InDoubt() InDoubt
	// SentOnce returns which of the events were marked sent before, by any owner, whatever their
	// rows' status is now: a person may have set them back to pending. Of rows that are gone nothing
	// is known.
	SentOnce(ctx context.Context, streamed, swept []UUID) ([]UUID, error)
}
