package relay

import (
	"context"
	"time"
)

// Facts are what the database knows that those who watch want to show. Nothing is decided by them,
// but for Slot, which has how much WAL the slot retains.
type Facts interface {
	// Slot returns what the server has about the slot. It is cheap.
	Slot(ctx context.Context) (SlotInfo, error)
	// Updates counts the table's updates. It is cheap.
	Updates(ctx context.Context) (TableUpdates, error)
	// Table counts the whole table's rows. It may take long, and is made on a connection of its
	// own.
	Table(ctx context.Context) (TableInfo, error)
	// Counts returns how many ledger entries there are by sink and state.
	Counts(ctx context.Context) ([]LedgerCount, error)
	// Backlog counts the rows with status pending, up to a limit.
	Backlog(ctx context.Context, limit int) (int, error)
}

// SlotInfo is what the server has about a slot (pg_replication_slots), and how far its WAL goes.
type SlotInfo struct {
	Exists         bool
	Active         bool
	WALEnd         LSN
	ConfirmedFlush LSN
	Restart        LSN
	WALStatus      string // reserved, extended, unreserved, lost
	// KeepSize is max_slot_wal_keep_size in bytes; 0 when there is no limit.
	KeepSize int64
	// SafeWALSize is how many bytes may still be written before the slot is in danger of being
	// lost; nil when there is no limit, or when it is lost.
	SafeWALSize *int64
	// InactiveFor is for how long nobody has read the slot, by the server's clock; nil while it is
	// read, and where the server does not know (before PostgreSQL 17).
	InactiveFor *time.Duration
	// Relays is how many relays own the slot or are its standbys; 0 where that is not known
	// (through a pooler).
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

// Lag is how much WAL has been written since a position.
func (i *SlotInfo) Lag(since LSN) LSN { return i.WALEnd - min(i.WALEnd, since) }

// TableInfo is what the database has about the whole table.
type TableInfo struct {
	// Rows counts the rows by status; sent is an estimate. OldestPending is the created_at of the
	// oldest pending row, 0 without any.
	Rows          map[string]int64
	OldestPending Timestamp
}

// TableUpdates counts the table's updates since the server's statistics began, those of them that
// were HOT, and the rows that were inserted. Sessions report them about once a second.
type TableUpdates struct{ All, HOT, Inserts int64 }

// CaughtUpBytes is WAL that may be written between our look at the server and its next keepalive
// without meaning a backlog.
const CaughtUpBytes = 1 << 20

// WALBudget is how much WAL the slot may retain: what is configured, or else half of what the
// server keeps; 0 when there is no limit.
func (i *SlotInfo) WALBudget(configured int64) int64 {
	if configured != 0 {
		return configured
	}
	return i.KeepSize / 2
}
