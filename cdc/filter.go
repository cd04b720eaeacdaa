package cdc

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/relay"
)

// The publication of a shard carries the rows of its keys only: it has a row filter. A publication
// with another filter, or without one, would have two slots deliver a row, or none. So no row is
// read through it: filter and shard are compared when a slot is made or opened, and again before
// the first row after any change of the publication (watch.go). What a slot still decodes by an
// older filter is not read either, because the slot is made again (changedSince).

// keyColumn is the column of saga_outbox that divides rows.
const keyColumn = "aggregate_id"

// checkFilter reports a filter that is not the shard's, and what keeps such a filter from being
// made.
func (s *session) checkFilter(ctx context.Context, shard relay.Shard, t *outbox) error {
	replace := []string{fmt.Sprintf("ALTER PUBLICATION %s SET TABLE %s;", quoteIdent(shard.Publication), s.carries(shard, t))}
	if shard.Whole() {
		if t.filter != "" {
			return wrongPublication(shard.Publication, fmt.Sprintf("passes only rows with %s: what it leaves out would come late and out of order", t.filter), replace...)
		}
		return nil
	}
	if err := s.divisible(shard, t); err != nil || !t.published {
		return err
	}
	if !t.member { // it cannot have a filter then
		replace = []string{fmt.Sprintf("DROP PUBLICATION %s;", quoteIdent(shard.Publication)), s.publicationSQL(shard, t) + ";"}
	}
	if t.filter == "" {
		return wrongPublication(shard.Publication, fmt.Sprintf("passes the rows of all %d shards: each event would come %[1]d times", shard.Set.Shards), replace...)
	}
	same, err := s.sameExpression(ctx, t, t.filter, s.filterSQL(shard, t))
	if err == nil && !same {
		err = wrongPublication(shard.Publication, fmt.Sprintf("passes only rows with %s, and its shard is another: events would come twice, or late and out of order", t.filter), replace...)
	}
	return err
}

// divisible reports what keeps the server from filtering the table's rows by their key.
func (s *session) divisible(shard relay.Shard, t *outbox) error {
	const several = "a table of several shards needs publications with row filters"
	if s.server < 15 {
		return &relay.SetupError{
			Problem: fmt.Sprintf("%s, which PostgreSQL has from version 15 on; this is %d", several, s.server),
			Fix:     "set RELAY_SHARDS=1, or use PostgreSQL 15 or newer", Streaming: true,
		}
	}
	key := t.column(keyColumn)
	if key.Filterable() != "" {
		return nil
	}
	what := "type " + key.Type
	if key.Collation != "" {
		what += " and collation " + key.Collation
	}
	alter := fmt.Sprintf(`ALTER TABLE %s ALTER COLUMN %s TYPE varchar(255) COLLATE "default" USING %[2]s::text;`, t.name, keyColumn)
	return &relay.SetupError{
		Problem: fmt.Sprintf("%s, and PostgreSQL does not take column %s of %s into one: it has %s, which somebody has made", several, keyColumn, t.name, what),
		Fix:     fmt.Sprintf("as %s (it may rewrite the table, and locks it meanwhile): %s or leave the table undivided: RELAY_SHARDS=1", t.owner, alter), SQL: []string{alter}, Streaming: true,
	}
}

// filterSQL is the shard's condition on rows, as the server takes it for a publication.
func (s *session) filterSQL(shard relay.Shard, t *outbox) string {
	return shard.SQL(t.column(keyColumn).Filterable())
}

// carries is the table as the shard's publication has it: only the columns that are used, and the
// shard's rows. Before PostgreSQL 15 it has neither.
func (s *session) carries(shard relay.Shard, t *outbox) string {
	table := t.name
	if s.server >= 15 {
		table += " (" + strings.Join(pgoutput.Columns, ", ") + ")"
	}
	if !shard.Whole() && t.column(keyColumn).Filterable() != "" {
		table += " WHERE (" + s.filterSQL(shard, t) + ")"
	}
	return table
}

// publicationSQL is the statement that makes the shard's publication, for inserts only.
func (s *session) publicationSQL(shard relay.Shard, t *outbox) string {
	return fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (publish = 'insert', publish_via_partition_root = true)", quoteIdent(shard.Publication), s.carries(shard, t))
}

// sameExpression reports whether two expressions over the table mean the same to the server, which
// reads both and shows them in its own words. Nothing is run. ONLY, because what a plan that goes
// through partitions puts out is not shown.
func (s *session) sameExpression(ctx context.Context, t *outbox, a, b string) (bool, error) {
	rows, err := s.query(ctx, fmt.Sprintf("EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) SELECT (%s), (%s) FROM ONLY %s", a, b, t.name))
	if err != nil {
		return false, fmt.Errorf("compare the filter of a publication: %w", err)
	}
	var plans []struct {
		Plan struct {
			Output []string
		}
	}
	if err := json.Unmarshal([]byte(rows[0][0]), &plans); err != nil {
		return false, fmt.Errorf("compare the filter of a publication: %w", err)
	}
	if len(plans) != 1 || len(plans[0].Plan.Output) != 2 {
		return false, fmt.Errorf("compare the filter of a publication: the server shows two expressions as %s", rows[0][0])
	}
	return plans[0].Plan.Output[0] == plans[0].Plan.Output[1], nil
}
