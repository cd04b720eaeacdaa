package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// A slot's row holds positions in the WAL, and a ledger entry the id of a transaction. Both count
// from the start of one cluster. In a database that was dumped and restored in another they are of
// a WAL that is not there:
//
//   - a position past this WAL's end would be reported to the slot, which then delivers nothing
//     until the WAL has come so far. Events would be late and out of order, while every check is
//     green;
//   - an entry whose row is gone would wait for a transaction from the future.
//
// So the cluster's identifier is stored next to the positions, and whoever takes the lease compares
// it first. If the cluster is another one, positions begin at zero, and the table is swept as for a
// slot that is gone.
//
// Another timeline of the same cluster (a promotion, a point-in-time recovery) shares the WAL up to
// where it branched off. What came after that on the old one is gone with its rows. Positions may
// lie behind that point, and this WAL may be past them by now. So the one that is reported to the
// slot is forgotten; the slot's own, which the new primary keeps, counts. What was noted of marks
// stays: up to it rows are looked up, which is right wherever it is.
//
// The sequence of crashes: the entries are cleared first, in pieces, then the row is changed with
// the identifier in one statement. A relay that dies before that leaves the identifier as it was,
// and the next one begins again, with what is left. Between that and the lease's epoch nothing else
// writes: we hold the slot's lock, or, behind a pooler, the owner's time is over.
const (
	systemSQL = `SELECT c.system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8),
			coalesce(r.system_id, c.system_identifier), coalesce(r.timeline, left(pg_walfile_name(pg_current_wal_lsn()), 8))
		FROM pg_control_system() c, saga_outbox_relay r WHERE r.slot = $1`

	clearSQL = `UPDATE saga_outbox_delivery SET xid = NULL, commit_lsn = NULL WHERE ctid = ANY(ARRAY(
		SELECT ctid FROM saga_outbox_delivery WHERE slot = $1 AND (xid IS NOT NULL OR commit_lsn IS NOT NULL) LIMIT $2 FOR UPDATE))`

	otherClusterSQL = `UPDATE saga_outbox_relay SET system_id = $3, timeline = $4, marked_lsn = '0/0', confirmed_lsn = '0/0',
		sweep_owed = true, sweep_cause = '` + string(relay.GoneRestored) + `', sweep_snapshot = NULL, sweep_lsn = NULL, doubt_since = NULL WHERE slot = $1 AND epoch = $2`

	otherTimelineSQL = `UPDATE saga_outbox_relay SET timeline = $3, confirmed_lsn = '0/0' WHERE slot = $1 AND epoch = $2`
)

// clearedAtOnce is how many entries are cleared in one transaction.
const clearedAtOnce = 20_000

// knowSystem makes the slot's positions those of this cluster, before its lease is taken from the
// owner with that epoch.
func (s *Store) knowSystem(ctx context.Context, conn *pgx.Conn, slot string, epoch int64, log hclog.Logger) error {
	var system, notedSystem int64
	var timeline, notedTimeline string
	err := conn.QueryRow(ctx, systemSQL, slot).Scan(&system, &timeline, &notedSystem, &notedTimeline)
	switch {
	case errors.Is(err, pgx.ErrNoRows): // no relay has been here
		return nil
	case err != nil:
		return fmt.Errorf("ask which cluster this is: %w", setup(err))
	case system != notedSystem:
		cleared := int64(0)
		for {
			tag, err := conn.Exec(ctx, clearSQL, slot, clearedAtOnce)
			if err != nil {
				return fmt.Errorf("clear the transactions of another cluster: %w", setup(err))
			}
			cleared += tag.RowsAffected()
			if tag.RowsAffected() < clearedAtOnce {
				break
			}
		}
		if _, err := conn.Exec(ctx, otherClusterSQL, slot, epoch, system, timeline); err != nil {
			return fmt.Errorf("forget the positions of another cluster: %w", setup(err))
		}
		log.Warn("the database comes from another cluster: its positions mean nothing here, so the table is looked over", "noted_system", notedSystem, "system", system, "entries", cleared)
	case timeline != notedTimeline:
		if _, err := conn.Exec(ctx, otherTimelineSQL, slot, epoch, timeline); err != nil {
			return fmt.Errorf("forget the position of another timeline: %w", setup(err))
		}
		log.Info("the server is on another timeline, after a promotion or a recovery: the position of the slot itself counts", "noted_timeline", notedTimeline, "timeline", timeline)
	}
	return nil
}
