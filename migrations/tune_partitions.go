package migrations

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// partition is one with rows of its own.
type partition struct {
	oid           uint32
	schema, table string // quoted
	options       string
}

// partitionsOf lists those of saga_outbox, or nothing when it is an ordinary table.
func partitionsOf(ctx context.Context, conn *pgx.Conn) ([]partition, error) {
	rows, err := conn.Query(ctx, `SELECT c.oid, pg_catalog.quote_ident(n.nspname::text), pg_catalog.quote_ident(c.relname::text), coalesce(pg_catalog.array_to_string(c.reloptions, ','), '')
		FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass('saga_outbox')) t JOIN pg_class c ON c.oid = t.relid::oid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE t.isleaf AND c.relkind = 'r' AND t.parentrelid IS NOT NULL ORDER BY c.oid`)
	if err != nil {
		return nil, fmt.Errorf("look for partitions of saga_outbox: %w", err)
	}
	var all []partition
	var p partition
	_, err = pgx.ForEachRow(rows, []any{&p.oid, &p.schema, &p.table, &p.options}, func() error {
		all = append(all, p)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for partitions of saga_outbox: %w", err)
	}
	return all, nil
}

// tunePartitions puts an index in the place of the one of that name on a table with partitions.
// PostgreSQL builds none concurrently on the table itself. So each partition gets its own first,
// which blocks no writer. The table's index, made then, takes them over and builds nothing. After
// an interrupt it goes on with those that are there.
func tunePartitions(ctx context.Context, conn *pgx.Conn, partitions []partition, name, on string) error {
	for _, p := range partitions {
		index := fmt.Sprintf("%s_p%d", name, p.oid)
		var definition string
		var valid bool
		err := conn.QueryRow(ctx, `SELECT coalesce(pg_catalog.pg_get_indexdef(i.indexrelid), ''), coalesce(i.indisvalid, false)
			FROM (SELECT pg_catalog.to_regclass($1::text)::oid AS oid) x LEFT JOIN pg_index i ON i.indexrelid = x.oid`, p.schema+"."+index).Scan(&definition, &valid)
		if err != nil {
			return fmt.Errorf("look at index %s: %w", index, err)
		}
		if valid && strings.HasSuffix(definition, on) {
			continue
		}
		if _, err := conn.Exec(ctx, fmt.Sprintf(`DROP INDEX CONCURRENTLY IF EXISTS %s.%s`, p.schema, index)); err != nil {
			return fmt.Errorf("drop the left-over of index %s: %w", index, err)
		}
		if _, err := conn.Exec(ctx, fmt.Sprintf(`CREATE INDEX CONCURRENTLY %s ON %s.%s USING %s`, index, p.schema, p.table, on)); err != nil {
			return fmt.Errorf("create index %s on partition %s.%s: %w", index, p.schema, p.table, err)
		}
	}
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, fmt.Sprintf(`DROP INDEX IF EXISTS %[1]s; CREATE INDEX %[1]s ON saga_outbox USING %[2]s`, name, on), pgx.QueryExecModeSimpleProtocol)
		return err
	})
	if err != nil {
		return fmt.Errorf("put index %s in place: %w", name, err)
	}
	return nil
}

// fillPartitions sets the fill factor of partitions that have none: a table with partitions has no
// pages.
func fillPartitions(ctx context.Context, conn *pgx.Conn, partitions []partition) (did []string, err error) {
	for _, p := range partitions {
		if strings.Contains(p.options, "fillfactor=") {
			continue
		}
		if _, err := conn.Exec(ctx, fmt.Sprintf(`ALTER TABLE %s.%s SET (fillfactor = %d)`, p.schema, p.table, fillfactor)); err != nil {
			return did, fmt.Errorf("set fillfactor of partition %s.%s: %w", p.schema, p.table, err)
		}
		did = append(did, fmt.Sprintf("pages of partition %s.%s are filled to %d %% from now on", p.schema, p.table, fillfactor))
	}
	return did, nil
}
