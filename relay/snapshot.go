package relay

import "time"

// Role is what a relay is to a slot.
type Role string

// Roles.
const (
	Starting Role = "starting" // the database has not been checked yet
	Standby  Role = "standby"  // another relay owns the slot, or nobody yet
	Owner    Role = "owner"
	Draining Role = "draining" // finishing what is in flight, then releasing
)

// What an owner with nothing in flight waits for, though there is WAL that the stream has not
// brought.
const (
	WaitsForServer = "server" // it decodes a large transaction, or waits for a standby
	WaitsForClaims = "claims" // another worker's, on rows that come next
	WaitsForSink   = "sink"   // the oldest event is with sinks that are down, and they only
	// An event larger than the slot's share of the in-flight budget waits for another slot's one.
	WaitsForRoom = "room"
)

// Snapshot is what the engine knows of itself at one moment, as plain values.
type Snapshot struct {
	// StartError is why the database was not of use at the last try, as long as the relay has not
	// begun.
	StartError string
	// Fault is what the database lacks by now of what the relay needs.
	Fault string
	// Set is how the table is divided, without shards as long as that is not known.
	Set Set
	// Change is the change of the number of slots that is under way; nil: none, or not known.
	Change *SetChange
	// Slots are those of the set in its order, none as long as the set is not known; and those of
	// the set before that end just now.
	Slots []SlotSnapshot
	// Unowned are the events that wait on slots which no relay owns, by slot, if it is this relay
	// that counts them.
	Unowned map[string]int
}

// SlotSnapshot is one slot as this relay has it.
type SlotSnapshot struct {
	Slot  string
	Role  Role
	Since time.Time
	// GivesBack: it is draining for another relay to take the slot, and this one goes on.
	GivesBack bool
	// Occupied is, on a standby, why it does not take a slot that is free.
	Occupied *OccupiedError
	// Away is since when a standby could not take the lease if it were free, AwayError why; zero:
	// it could.
	Away      time.Time
	AwayError string
	// Moved is when it was last seen to move, or to have nothing to do.
	Moved time.Time
	// WaitsFor is what it waits for without moving, Waits since when.
	WaitsFor string
	Waits    time.Time
	// Work is there while the relay works under a lease: as owner, and while draining.
	Work *WorkSnapshot
}

// WorkSnapshot is the work on one slot under one lease.
type WorkSnapshot struct {
	Epoch int64
	// Lost: the lease is not ours any more, and what is still under way is about to end.
	Lost bool
	// Mode is how events are found now, Why is the reason to poll or not to stream. Streaming: the
	// replication connection is open. ModeSince is since when all that is so.
	Mode, Why string
	Streaming bool
	ModeSince time.Time
	LookError string // why the last look at the table did not succeed
	Holders   string // what making the slot waits for

	Inflight, Bytes                  int // events, and their bytes
	MaxEvents, MaxBytes              int // the share of the budget
	Admitted, Marked, Skipped, Swept uint64
	Watermark, Read                  LSN
	Inside                           int // events taken of the transaction whose end has not come
	// OldestCommit is when the oldest event in flight was committed, OldestAt when it happened
	// (Flight.At); 0 where that is not known.
	OldestCommit, OldestAt Timestamp

	Seen     SlotInfo // the server's, at the last look
	Unmarked Unmarked // rows whose marks are parked
	Sinks    []ShelfSnapshot
}

// ShelfSnapshot is one sink's part of the ledger.
type ShelfSnapshot struct {
	Entries  int // that hold up later events of their keys
	InLedger int // of them, those that are written; the others are of events in flight
	Isolated bool
}
