package relay

import (
	"context"
	"time"
)

// Ledger is the table of exceptions, saga_outbox_delivery: one entry for each event and sink that
// did not work at the first try. The slot's owner is the only one that adds and removes entries,
// each time in a transaction that first checks the epoch; what a person does on the command line
// changes entries and never removes any.
//
// Of one key and sink, the entries that are not detached make a line, by position, whichever was
// written first. An entry that waits for its next attempt blocks those behind it, and so does a
// dead one with RELAY_DEAD_LETTER=hold: these are held. What is in front of the first that blocks
// is ready, and is offered before it. The SQL of this order is in relay/store/order.go;
// relay/ledgertest is its plain twin.
type Ledger interface {
	// LastPosition is where new events count on from: no position of an earlier owner is past it.
	LastPosition() int64
	// NoteSinks notes which sinks this owner has, and returns those that the one before had; none
	// when there was none, or it did not say.
	NoteSinks(ctx context.Context, sinks []string) (before []string, err error)
	// Blocking calls f for each sink and bucket of key hashes (their value modulo buckets, a power
	// of two) that has entries, with their number, and how many of them are not detached, so hold
	// up later events. It may take as long as reading the whole ledger does.
	Blocking(ctx context.Context, buckets int, f func(sink string, bucket uint32, entries, blocking int)) error
	// Due returns the entries of a sink that may be offered now: the ready ones by position, at
	// most limit and about maxBytes, and the waiting ones whose time has come; of one key they are
	// in order. next is how long until the next waiting entry's time comes, negative when none
	// waits. Entries whose row is gone or that a person has discarded are among them, and are to be
	// resolved as FateDropped.
	Due(ctx context.Context, sink string, limit, maxBytes int) (due []Entry, next time.Duration, err error)
	// Resolve writes what became of entries that Due returned, and their rows' status with it, in
	// one transaction: a row without further entries whose events were delivered says sent (or
	// goes, as RELAY_MARK wants); otherwise it says what its entries say. An entry that is refused
	// again makes those behind it held; a delivered, dropped or (unless it holds) dead one frees a
	// first thousand of those that were held behind it, and further ones are freed as these go. It
	// returns ErrFenced like Mark.
	Resolve(ctx context.Context, sink string, outcomes []Outcome) error
	// Heal looks, by hash from from on, at some thousands of lines in which something blocks, and
	// frees entries that are held behind nothing. The next look is to begin at next, which is
	// math.MinInt32 when it came to the end.
	Heal(ctx context.Context, sink string, from int32) (freed int, next int32, err error)
}

// State is where a ledger entry stands.
type State string

// States of a ledger entry.
const (
	// To be offered: at once (ready), or not before its next attempt (waiting).
	StateRetry State = "retry"
	StateHeld  State = "held" // behind a waiting or dead one of its key
	StateDead  State = "dead" // given up after MAX_RETRIES, until a person says otherwise
)

// ReasonSinkDown is the reason of an entry whose sink was down, or behind by more WAL than the
// budget: nothing is charged to it.
const ReasonSinkDown Reason = "sink_down"

// Parked is an entry to be made.
type Parked struct {
	Sink string
	// State is StateRetry or StateDead for a refused event. StateHeld means that the event was not
	// offered, or not by its own fault: the store makes it held when something in front of it
	// blocks, otherwise ready.
	State    State
	Detached bool // with StateDead: later events of the key do not wait
	Reason   Reason
	Error    string // never a payload
	Attempts int
	Delay    time.Duration // until the next attempt, in StateRetry
}

// Entry is a ledger entry to be offered.
type Entry struct {
	// Event is the row as it is now. Its CommitLSN and XID are 0.
	Event    Event
	Position int64
	KeyHash  uint32
	Attempts int
	Detached bool
	// ReplayedAt is when a person asked for another delivery; zero otherwise.
	ReplayedAt time.Time
	// Gone says that the row is not there any more, Discarded that a person has given the entry up.
	Gone, Discarded bool
}

// Outcome is what became of an offered entry.
type Outcome struct {
	Entry *Entry
	Fate  Fate
	// For FateRefused and FateDead:
	Reason   Reason
	Error    string
	Attempts int
	Delay    time.Duration // FateRefused: until the next attempt
	Detach   bool          // FateDead: later events of the key go on
}

// Fate is what an Outcome says.
type Fate int

// Fates.
const (
	FateDelivered Fate = iota
	FateRefused        // by its own fault; to be offered again later
	FateDead           // given up
	FateDropped        // its row is gone, or a person has discarded it
)

// LedgerCount is how many entries one sink has in one state.
type LedgerCount struct {
	Sink  string
	State State
	N     int64
	// Oldest is when the oldest of their events was committed, or created; for an entry of an older
	// version, when it was written.
	Oldest time.Time
}
