package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay/sessions"
)

// Need is what the relay's role has to be allowed on a table.
type Need struct {
	Table  string
	Rights []string
}

// Needs are all of them: for a way to mark, with or without a retention that removes rows, with or
// without an archive.
func Needs(mark string, retention, archive bool) []Need {
	outbox := []string{"SELECT", "UPDATE"}
	if mark != MarkUpdate || retention {
		outbox = append(outbox, "DELETE")
	}
	needs := []Need{
		{"saga_outbox", outbox},
		{"saga_outbox_relay", []string{"SELECT", "INSERT", "UPDATE"}},
		{"saga_outbox_delivery", []string{"SELECT", "INSERT", "UPDATE", "DELETE"}},
	}
	if archive || mark == MarkArchive {
		needs = append(needs, Need{"saga_outbox_archive", []string{"SELECT", "INSERT", "UPDATE"}})
	}
	return needs
}

// Grants are the statements that give a role that owns nothing what the relay needs, however it is
// set up.
func Grants(role string) string {
	var all []string
	for _, n := range Needs(MarkArchive, true, true) {
		all = append(all, "GRANT "+strings.Join(n.Rights, ", ")+" ON "+n.Table+" TO "+role+";")
	}
	return strings.Join(all, " ")
}

// Lacks returns which rights the role of a connection lacks on a table; there is false when there
// is no such table.
func (n *Need) Lacks(ctx context.Context, conn *pgx.Conn) (there bool, rights []string, err error) {
	name := sessions.Of(conn.PgConn()).Named(n.Table)
	if name == nil {
		return false, nil, nil
	}
	err = conn.QueryRow(ctx, `SELECT coalesce(array_agg(wanted ORDER BY nth) FILTER (WHERE NOT has_table_privilege($1::text, wanted)), '{}')
		FROM unnest($2::text[]) WITH ORDINALITY AS w (wanted, nth)`, name, n.Rights).Scan(&rights)
	if err != nil {
		return true, nil, fmt.Errorf("ask for the rights on %s: %w", n.Table, setup(err))
	}
	return true, rights, nil
}
