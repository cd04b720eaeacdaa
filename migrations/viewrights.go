package migrations

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// checkRights finds out whether the role may do what the view does with its rights. PostgreSQL asks
// when the view is used: every insert of every application would fail.
func (v *View) checkRights(ctx context.Context, tx pgx.Tx, home string) error {
	used := []string{"event_id", "saga_id", "aggregate_id", "event_type", "payload", "headers"}
	for i := range v.Columns {
		used = append(used, v.Columns[i].Of)
	}
	table := quote(home, "saga_outbox")
	var role, needed string
	err := tx.QueryRow(ctx, `SELECT quote_ident(current_user), concat_ws(', ', CASE WHEN bool_or(NOT has_column_privilege(attrelid, attnum, 'SELECT')) THEN 'SELECT' END,
			CASE WHEN bool_or(NOT has_column_privilege(attrelid, attnum, 'INSERT')) THEN 'INSERT' END)
		FROM pg_attribute WHERE attrelid = $1::text::regclass AND attname = ANY ($2::text[])`, table, used).Scan(&role, &needed)
	if err == nil && needed != "" {
		return viewError("it would have the rights of %s, who made it, and they are not enough: GRANT %s ON %s TO %[1]s, or make it as the owner of saga_outbox", role, needed, table)
	}
	return err
}
