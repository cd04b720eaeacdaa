package relay

import "context"

// Sweeper finds rows in the table that the stream does not deliver.
type Sweeper interface {
	// Recovery is what the lease found when it was taken.
	Recovery() Recovery
	// OweSweep notes, durably, that rows may have been missed: before a slot is made again, or when
	// it is found to have been moved. The cause is for people. A snapshot noted before is
	// forgotten.
	OweSweep(ctx context.Context, cause string) error
	// SweepFrom takes a snapshot and notes it as the owed sweep's: the rows to sweep are visible in
	// it, and the slot delivers all others. One that was noted already for a slot at slotAt is
	// kept. It is called when the slot exists, with its position: a slot that was made again while
	// a sweep was owed is elsewhere, and an older snapshot would miss what was committed before it.
	SweepFrom(ctx context.Context, slotAt LSN) (Horizon, error)
	// EndSweep notes that the owed sweep is done and its rows are marked. It sets MarkedLSN to the
	// end of the WAL, which it returns: up to it, events that the slot delivers may be settled.
	// confirmed becomes Recovery.Confirmed.
	EndSweep(ctx context.Context, confirmed LSN) (LSN, error)
	// Horizon takes a snapshot and then the position of the WAL's end: what is visible in the one
	// was committed before the other.
	Horizon(ctx context.Context) (Horizon, error)
	// Sweep calls f with rows that ask for delivery and are not in the ledger, some hundred at a
	// time (about a MiB at most). They come by created_at and, where that is the same, in the order
	// of their insertion. It reads on a connection of its own, without locks, and keeps no snapshot
	// over a call of f that takes long. Rows that are settled between two calls of f are left out.
	// It returns f's error.
	Sweep(ctx context.Context, q SweepQuery, f func([]Event) error) error
}

// Recovery is a slot's state as an earlier owner left it.
type Recovery struct {
	// Owed: the table has to be swept before the slot is read. Cause is why, Snapshot names the
	// rows, if it was taken.
	Owed     bool
	Cause    string
	Snapshot string
	// Confirmed is a position such that no owner has ever reported a later one to the slot. A slot
	// that is further on is not the one we knew: what was committed in between has to be swept.
	Confirmed LSN
}

// Horizon is a moment in the database's history.
type Horizon struct {
	Snapshot string // pg_snapshot as text; empty means any row
	WAL      LSN
}

// SweepQuery is which rows to look for.
type SweepQuery struct {
	Kind SweepKind
	// Seen limits the sweep to row versions that are visible in this snapshot; empty: all.
	Seen string
	// Since limits it to rows created at that time or later; zero: all.
	Since Timestamp
}

// SweepKind is the status of the rows to look for.
type SweepKind int

// String is what such rows are called in logs and metrics.
func (k SweepKind) String() string {
	return [...]string{SweepPending: "pending", SweepClaimed: "stuck_claim", SweepFailed: "failed"}[k]
}

// Kinds of sweeps.
const (
	SweepPending SweepKind = iota
	// Claimed for longer than STUCK_CLAIM_TIMEOUT_SECONDS, or by an earlier owner of our slot:
	// whoever claimed them is dead.
	SweepClaimed
	// Failed without a ledger entry: by a relay without a ledger, or the library's worker when it
	// died.
	SweepFailed
)
