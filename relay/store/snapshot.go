package store

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// snapshot is PostgreSQL's pg_snapshot: which transactions have not ended.
type snapshot struct {
	xmax    uint64 // the first transaction that had not begun
	running []uint64
}

func takeSnapshot(ctx context.Context, conn *pgx.Conn) (snapshot, error) {
	var s snapshot
	err := conn.QueryRow(ctx, `SELECT pg_snapshot_xmax(s)::text::bigint, ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s) AS x)
		FROM pg_current_snapshot() AS s`).Scan(&s.xmax, &s.running)
	if err != nil {
		return s, fmt.Errorf("take a snapshot: %w", err)
	}
	return s, nil
}

// hides reports whether the rows of a transaction are invisible because it has not ended. 0 stands
// for a transaction that ended long ago. The stream gives the lower 32 bits only; the rest is that
// of xmax, or one off.
func (s *snapshot) hides(xid uint32) bool {
	if xid == 0 {
		return false
	}
	const half, whole = 1 << 31, 1 << 32
	full := s.xmax&^(whole-1) | uint64(xid)
	switch {
	case full > s.xmax+half:
		full -= whole
	case full+half < s.xmax:
		full += whole
	}
	return full >= s.xmax || slices.Contains(s.running, full)
}

// mayMix reports whether one statement could mark a later event of a key and not an earlier one, as
// far as this snapshot shows (an older one errs on the side of true). That is so when the earlier
// one's transaction may be invisible, and the later one is of another transaction, or has entries
// in the ledger, which can be written without its row.
func (s *snapshot) mayMix(marks []relay.Mark) bool {
	recent := slices.IndexFunc(marks, func(m relay.Mark) bool { return s.hides(m.XID) })
	if recent < 0 {
		return false
	}
	type front struct {
		xid       uint32 // the first transaction that may be invisible
		delivered bool   // it has an event that has no entries
	}
	fronts := make(map[uint32]front) // by key
	for i := range marks[recent:] {
		m := &marks[recent+i]
		f, is := fronts[m.KeyHash]
		switch {
		case !is && !s.hides(m.XID):
			continue
		case is && (f.xid != m.XID || f.delivered && len(m.Parked) > 0):
			return true
		}
		fronts[m.KeyHash] = front{m.XID, f.delivered || len(m.Parked) == 0}
	}
	return false
}
