package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// slotSQL reads columns that only newer servers have by way of jsonb, where a column that is not
// there is NULL. The relays that share the set are known by their roster's connection;
// application_name is shown to everybody. Those of a version before this one have a connection for
// the lease instead, also while they wait. Who has both counts once, so of a mixture the most are
// counted.
const slotSQL = `SELECT s.slot_name IS NOT NULL, coalesce(s.active, false), (pg_current_wal_lsn() - '0/0')::bigint,
	coalesce(s.confirmed_flush_lsn - '0/0', 0)::bigint, coalesce(s.restart_lsn - '0/0', 0)::bigint, coalesce(s.wal_status, ''), s.safe_wal_size,
	CASE WHEN current_setting('max_slot_wal_keep_size') = '-1' THEN 0 ELSE pg_size_bytes(current_setting('max_slot_wal_keep_size')) END,
	extract(epoch FROM clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8,
	(SELECT greatest(count(*) FILTER (WHERE application_name = $2), count(*) FILTER (WHERE application_name = $3)) FROM pg_stat_activity WHERE datname = current_database()),
	st.total_txns, st.total_bytes, st.spill_txns, st.spill_bytes, st.stream_bytes
	FROM (SELECT 1) one LEFT JOIN pg_replication_slots s ON s.slot_name = $1 AND s.database = current_database() LEFT JOIN pg_stat_replication_slots st ON st.slot_name = $1`

// Slot implements relay.Lease.
func (l *lease) Slot(ctx context.Context) (relay.SlotInfo, error) {
	var (
		info                   relay.SlotInfo
		walEnd, flush, restart uint64
		inactive               *float64
		stats                  [5]*int64
	)
	err := l.fact(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		err := conn.QueryRow(ctx, slotSQL, l.slot, applicationName("lease "+l.slot), applicationName("roster "+l.store.cfg.Slot)).
			Scan(&info.Exists, &info.Active, &walEnd, &flush, &restart, &info.WALStatus, &info.SafeWALSize, &info.KeepSize,
				&inactive, &info.Relays, &stats[0], &stats[1], &stats[2], &stats[3], &stats[4])
		if isPooled(conn) {
			info.Relays = 0
		}
		return err
	})
	if err != nil {
		return info, fmt.Errorf("look at slot %q: %w", l.slot, err)
	}
	info.WALEnd, info.ConfirmedFlush, info.Restart = relay.LSN(walEnd), relay.LSN(flush), relay.LSN(restart)
	if inactive != nil && !info.Active {
		d := time.Duration(max(0, *inactive) * float64(time.Second))
		info.InactiveFor = &d
	}
	if stats[0] != nil {
		info.Stats = &relay.SlotStats{Transactions: *stats[0], Bytes: *stats[1], SpillTransactions: *stats[2], SpillBytes: *stats[3], StreamBytes: *stats[4]}
	}
	return info, nil
}

// Updates implements relay.Lease.
func (l *lease) Updates(ctx context.Context) (u relay.TableUpdates, err error) {
	err = l.fact(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT coalesce(sum(n_tup_upd), 0)::bigint, coalesce(sum(n_tup_hot_upd), 0)::bigint, coalesce(sum(n_tup_ins), 0)::bigint FROM pg_stat_all_tables WHERE relid = to_regclass('saga_outbox')`).Scan(&u.All, &u.HOT, &u.Inserts)
	})
	if err != nil {
		return u, fmt.Errorf("read the statistics of saga_outbox: %w", err)
	}
	return u, nil
}

// tableSQL asks for each status by itself: an index that is for one status alone can help then.
const tableSQL = `SELECT 'pending', count(*), min(created_at) FROM saga_outbox WHERE status = 'pending'
	UNION ALL SELECT 'claimed', count(*), NULL FROM saga_outbox WHERE status = 'claimed'
	UNION ALL SELECT 'failed', count(*), NULL FROM saga_outbox WHERE status = 'failed'
	UNION ALL SELECT 'dead_letter', count(*), NULL FROM saga_outbox WHERE status = 'dead_letter'
	UNION ALL SELECT 'sent', greatest(0, reltuples)::bigint, NULL FROM pg_class WHERE oid = to_regclass('saga_outbox')`

// tableTimeout bounds the counting of a large table; its numbers are not exported then.
const tableTimeout = time.Minute

// Table implements relay.Lease.
func (l *lease) Table(ctx context.Context) (relay.TableInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, tableTimeout)
	defer cancel()
	t := relay.TableInfo{Rows: make(map[string]int64)}
	err := l.onConn(ctx, "count", func(ctx context.Context, conn *pgx.Conn) error {
		var status string
		var n int64
		var oldest *timestamp
		others := int64(0)
		return each(ctx, conn, []any{&status, &n, &oldest}, func() error {
			switch {
			case status == "sent":
				n = max(0, n-others)
			case status == "pending" && oldest != nil:
				t.OldestPending = relay.Timestamp(*oldest)
			}
			others += n
			t.Rows[status] = n
			return nil
		}, tableSQL)
	})
	if err != nil {
		return t, fmt.Errorf("count the rows of saga_outbox: %w", err)
	}
	return t, nil
}
