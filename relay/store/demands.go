package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// ErrStandby passes: somebody promotes the server, or the name in DATABASE_URL comes to lead to the primary.
var ErrStandby = errors.New("the server is a standby, which takes no writes; name the primary in DATABASE_URL, with several hosts add target_session_attrs=read-write")

// demands are what the tables and the server have to be like beyond columns and rights. The start, the doctor and readiness ask here.
func demands(ctx context.Context, conn *pgx.Conn) error {
	var standby, readOnly bool
	err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::boolean`).Scan(&standby, &readOnly)
	switch {
	case err != nil:
		return setup(err)
	case standby:
		return ErrStandby
	case readOnly: // a pooler's sessions are as the role has them
		return &relay.SetupError{Problem: "sessions of the role are read only", Fix: "ALTER ROLE … RESET default_transaction_read_only (or the same of the database)"}
	}
	for _, n := range Needs(MarkArchive, false, true) {
		name := sessions.Of(conn.PgConn()).Named(n.Table)
		if name == "" {
			continue
		}
		var kind string
		err := conn.QueryRow(ctx, `SELECT relkind::text FROM pg_class WHERE oid = to_regclass($1)`, name).Scan(&kind)
		if errors.Is(err, pgx.ErrNoRows) { // the statements will say so
			continue
		}
		if err != nil {
			return fmt.Errorf("look at %s: %w", n.Table, setup(err))
		}
		if kind != "r" && kind != "p" {
			return &relay.SetupError{Problem: n.Table + " is no table, but a view or the like", Fix: "name the database of the table itself in DATABASE_URL"}
		}
		if hidden, err := RowsHidden(ctx, conn, n.Table); err != nil {
			return err
		} else if hidden != nil {
			return hidden
		}
	}
	return nil
}

// RowsHidden tells whether row level security keeps rows of a table from the role of a connection. A row that is hidden looks like
// one that is gone: it would be delivered over and over, or never.
func RowsHidden(ctx context.Context, conn *pgx.Conn, table string) (*relay.SetupError, error) {
	name := sessions.Of(conn.PgConn()).Named(table)
	var hidden bool
	var role string
	err := conn.QueryRow(ctx, `SELECT row_security_active(to_regclass($1)), quote_ident(current_user)`, name).Scan(&hidden, &role)
	if err != nil {
		return nil, fmt.Errorf("ask for the row security of %s: %w", table, setup(err))
	}
	if !hidden {
		return nil, nil
	}
	return &relay.SetupError{
		Problem: fmt.Sprintf("row level security hides rows of %s from role %s", table, role),
		Fix:     strings.Join([]string{"as a superuser: ALTER ROLE " + role + " BYPASSRLS;", "or, as the table's owner: ALTER TABLE " + name + " DISABLE ROW LEVEL SECURITY;"}, " "),
	}, nil
}
