package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay/sessions"
)

// right is a GRANT that the role of a relay needs which does not own the tables.
type right struct {
	table  string
	rights []string
	relay  func(mark string, retention, archive bool) bool // which relay needs it; nil for none
	who    string                                          // where that is not every relay
}

// rights are all of them: a relay is checked by them, doctor and the errors print what is missing,
// and docs/operating.md has them in this order (make docs).
var rights = []right{
	{table: "saga_outbox", rights: []string{"SELECT", "UPDATE"}, relay: everyRelay},
	{table: "saga_outbox", rights: []string{"DELETE"}, relay: func(mark string, retention, _ bool) bool { return mark != MarkUpdate || retention }, who: "RELAY_MARK=delete or archive, RELAY_RETENTION"},
	{table: "saga_outbox_relay", rights: []string{"SELECT", "INSERT", "UPDATE"}, relay: everyRelay},
	{table: "saga_outbox_set", rights: []string{"SELECT", "INSERT", "UPDATE"}, relay: everyRelay},
	{table: "saga_outbox_delivery", rights: []string{"SELECT", "INSERT", "UPDATE", "DELETE"}, relay: everyRelay},
	{table: archiveTable, rights: []string{"SELECT", "INSERT", "UPDATE"}, relay: func(mark string, _, archive bool) bool { return archive || mark == MarkArchive }, who: "RELAY_MARK=archive, RELAY_RETENTION_ACTION=archive, replay"},
	{table: "saga_outbox", rights: []string{"INSERT"}, who: "replay of what is in the archive; load"},
	{table: "saga_outbox_migrations", rights: []string{"SELECT"}, who: "doctor"},
}

func everyRelay(string, bool, bool) bool { return true }

// OriginGrants are the statements of a superuser that let a role use replication origins, without
// which a relay works, too.
func OriginGrants(role string) []string {
	return []string{
		"GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_session_setup(text) TO " + role + ";",
		"GRANT SELECT ON pg_replication_origin TO " + role + ";",
	}
}

// Need is what the relay's role has to be allowed on a table.
type Need struct {
	Table  string
	Rights []string
}

func (n *Need) grant(role string) string {
	return "GRANT " + strings.Join(n.Rights, ", ") + " ON " + n.Table + " TO " + role + ";"
}

// Needs are all of them: for a way to mark, with or without a retention that removes rows, with or
// without an archive.
func Needs(mark string, retention, archive bool) []Need {
	var needs []Need
	for _, r := range rights {
		if r.relay == nil || !r.relay(mark, retention, archive) {
			continue
		}
		if i := slices.IndexFunc(needs, func(n Need) bool { return n.Table == r.table }); i >= 0 {
			needs[i].Rights = append(needs[i].Rights, r.rights...)
		} else {
			needs = append(needs, Need{r.table, slices.Clone(r.rights)})
		}
	}
	return needs
}

// Grants are the statements that give a role that owns nothing what the relay needs, however it is
// set up.
func Grants(role string) string {
	var all []string
	for _, n := range Needs(MarkArchive, true, true) {
		all = append(all, n.grant(role))
	}
	return strings.Join(all, " ")
}

// MigrationsGrant is the statement that lets a role see which migrations were applied.
func MigrationsGrant(role string) string {
	n := Need{"saga_outbox_migrations", []string{"SELECT"}}
	return n.grant(role)
}

// RightsDocument is what docs/operating.md says of the rights of a role that owns nothing.
func RightsDocument(role string) string {
	var b strings.Builder
	b.WriteString("-- After migrate, as the owner:\n")
	for _, r := range rights {
		n := Need{r.table, r.rights}
		if grant := n.grant(role); r.who == "" {
			fmt.Fprintln(&b, grant)
		} else {
			fmt.Fprintf(&b, "%-61s -- %s\n", grant, r.who)
		}
	}
	b.WriteString("-- As a superuser, in this database: optional, the stream is up to a fifth faster.\n")
	for _, grant := range OriginGrants(role) {
		fmt.Fprintln(&b, grant)
	}
	return b.String()
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
