package migrations

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// hotIndexes are the indexes in the form that keeps marks HOT, under the library's names.
var hotIndexes = []struct {
	name, on string
	since    int // server_version_num
}{
	{name: "idx_outbox_pending", on: "btree (created_at)"},
	{name: "idx_outbox_claimed_at", on: "btree (claimed_at) WHERE (claimed_at IS NOT NULL)"},
	// Before 16 an index on status prevents HOT updates, even a BRIN index. It is only ours.
	{name: "saga_outbox_status", on: "brin (status) WITH (pages_per_range='64', autosummarize='on')", since: 16_00_00},
}

// fillfactor leaves room on each page for the version of a row that its mark writes;
// docs/measurements.md, "What choices are worth".
const fillfactor = 50

// Tune brings an outbox table that the library made into the form that keeps marks HOT. It replaces
// the indexes whose predicate names status, under the same names, and has new pages filled by half.
// It takes no lock that stops writers for longer than a catalog change, may be interrupted and run
// again, and returns what it did, a line each.
//
// Rows that are there stay on their full pages; they need no further marks once sent. In a table
// with partitions this is done to each partition with rows. One that is added later gets the
// indexes by itself, and its fill factor from a second Tune.
func Tune(ctx context.Context, conn *pgx.Conn) (did []string, err error) {
	var version int
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return nil, fmt.Errorf("ask for the server's version: %w", err)
	}
	partitions, err := partitionsOf(ctx, conn)
	if err != nil {
		return nil, err
	}
	for _, want := range hotIndexes {
		if version < want.since {
			continue
		}
		// What an interrupted run left behind is not used by any query, so it is dropped.
		if _, err := conn.Exec(ctx, `DROP INDEX CONCURRENTLY IF EXISTS `+want.name+`_tuned`); err != nil {
			return did, fmt.Errorf("drop the left-over of index %s: %w", want.name, err)
		}
		var definition string
		err := conn.QueryRow(ctx, `SELECT coalesce((SELECT pg_catalog.pg_get_indexdef(pg_catalog.to_regclass($1::text)::oid)), '')`, want.name).Scan(&definition)
		if err != nil {
			return did, fmt.Errorf("look at index %s: %w", want.name, err)
		}
		if strings.HasSuffix(definition, want.on) {
			continue
		}
		if partitions != nil {
			if err := tunePartitions(ctx, conn, partitions, want.name, want.on); err != nil {
				return did, err
			}
			did = append(did, fmt.Sprintf("index %s is now on %s, in %d partitions", want.name, want.on, len(partitions)))
			continue
		}
		if _, err := conn.Exec(ctx, fmt.Sprintf(`CREATE INDEX CONCURRENTLY %s_tuned ON saga_outbox USING %s`, want.name, want.on)); err != nil {
			return did, fmt.Errorf("create index %s: %w", want.name, err)
		}
		err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, fmt.Sprintf(`DROP INDEX IF EXISTS %[1]s; ALTER INDEX %[1]s_tuned RENAME TO %[1]s`, want.name), pgx.QueryExecModeSimpleProtocol)
			return err
		})
		if err != nil {
			return did, fmt.Errorf("put index %s in place: %w", want.name, err)
		}
		did = append(did, fmt.Sprintf("index %s is now on %s", want.name, want.on))
	}
	if partitions != nil {
		more, err := fillPartitions(ctx, conn, partitions)
		return append(did, more...), err
	}
	var options string
	if err := conn.QueryRow(ctx, `SELECT coalesce(pg_catalog.array_to_string(reloptions, ','), '') FROM pg_class WHERE oid = pg_catalog.to_regclass('saga_outbox')::oid`).Scan(&options); err != nil {
		return did, fmt.Errorf("look at table saga_outbox: %w", err)
	}
	if !strings.Contains(options, "fillfactor=") {
		if _, err := conn.Exec(ctx, fmt.Sprintf(`ALTER TABLE saga_outbox SET (fillfactor = %d)`, fillfactor)); err != nil {
			return did, fmt.Errorf("set fillfactor: %w", err)
		}
		did = append(did, fmt.Sprintf("pages of saga_outbox are filled to %d %% from now on", fillfactor))
	}
	return did, nil
}
