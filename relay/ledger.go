package relay

import (
	"context"
	"time"
)

// Ledger is the table of exceptions, saga_outbox_delivery: one entry for each event and sink that
// did not work at the first try. Only the slot's owner adds and removes entries, each time in a
// transaction that first checks the epoch. What a person does on the command line changes entries
// and never removes any.
//
// The entries of one key and sink that are not detached are in order, by position, whichever was
// written first. An entry with a next attempt blocks those behind it, and so does a dead one with
// RELAY_DEAD_LETTER=hold: those behind are held. What is in front of the first that blocks is due.
// The SQL of this order is in relay/store/order.go; relay/ledgertest is its plain twin.
type Ledger interface {
	// LastPosition is where new events count on from: no position of an earlier owner is past it.
	LastPosition() int64
	// NoteSinks notes which sinks this owner has, and returns those of the one before; nothing when
	// there was no owner, or it did not note any.
	NoteSinks(ctx context.Context, sinks []string) (before []string, err error)
	// Blocking calls f for each sink and bucket of key hashes (their bits in mask) that has entries.
	// f gets their number, and how many of them are not detached and so hold up later events. It
	// may take as long as reading the whole ledger does.
	Blocking(ctx context.Context, mask uint32, f func(sink string, bucket uint32, entries, blocking int)) error
	// Due returns the entries of a sink that may be offered now, those of one key in order, at most
	// limit and about maxBytes: by position those with nothing to wait for, and those whose next
	// attempt has come. next is how long until the next attempt of any other, negative when there
	// is no other. Entries whose row is gone, or that a person has discarded, are among them; they
	// are to be resolved as FateDropped.
	Due(ctx context.Context, sink string, limit, maxBytes int) (due []Entry, next time.Duration, err error)
	// Resolve writes in one transaction what became of entries that Due returned, and the status of
	// their rows. A row without further entries whose event was delivered becomes sent (or is
	// removed, as RELAY_MARK wants). The status of any other follows from its entries.
	//
	// An entry that is refused again makes those behind it held. One that is delivered, dropped or
	// dead (unless it holds) frees the first thousand that were held behind it, and further ones
	// are freed as these go. Resolve returns ErrFenced as Mark does.
	Resolve(ctx context.Context, sink string, outcomes []Outcome) error
	// Heal frees entries that are held behind nothing. It looks, by hash from from on, at some
	// thousands of keys in which something blocks. The next look is to begin at next, which is
	// math.MinInt32 when it came to the end.
	Heal(ctx context.Context, sink string, from int32) (freed int, next int32, err error)
}

// State is the state of a ledger entry: the same words in the database, metrics and commands.
type State string

// States of a ledger entry.
const (
	StateRetry State = "retry" // to be offered: due, or not before its next attempt
	StateHeld  State = "held"  // behind one of its key that blocks
	StateDead  State = "dead"  // given up after MAX_RETRIES, until a person decides otherwise
)

// ReasonSinkDown is the reason of an entry whose sink was down, or behind by more WAL than the
// budget. No attempt is counted for it.
const ReasonSinkDown Reason = "sink_down"

// Parked is an entry to be made.
type Parked struct {
	Sink string
	// State is StateRetry or StateDead for a refused event. StateHeld means that the event was not
	// offered, or failed by no fault of its own: the store makes it held when something in front of
	// it blocks, otherwise due.
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
	// Gone: the row is not there any more. Discarded: a person has given the entry up.
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
	Dropped  bool          // FateDelivered: by a rule, without being sent
}

// Fate is the kind of an Outcome.
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
	// Oldest is when the oldest of their events was committed, or created. For an entry of an older
	// version it is when that was written.
	Oldest time.Time
}
