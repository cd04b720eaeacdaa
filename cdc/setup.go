package cdc

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/relay"
)

// outboxTable is the table that the Python library and every application know. It is looked up by search_path.
const outboxTable = "saga_outbox"

// outbox is what the catalog says of the outbox table.
type outbox struct {
	oid       uint32
	name      string // qualified and quoted
	owner     string
	published bool // the publication exists and carries its inserts
}

// query runs SQL by the simple protocol, the only one a walsender takes, and returns the rows as text.
func (s *session) query(ctx context.Context, sql string) ([][]string, error) {
	results, err := s.conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	var rows [][]string
	for _, r := range results {
		for _, values := range r.Rows {
			row := make([]string, len(values))
			for i, v := range values {
				row[i] = string(v)
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// inspect looks at table and publication, and for streaming at the settings too, and reports what a person has to mend.
func (s *session) inspect(ctx context.Context, publication string, streaming bool) (*outbox, error) {
	rows, err := s.query(ctx, `SELECT current_setting('wal_level'), c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname), pg_get_userbyid(c.relowner), current_database()
		FROM (SELECT to_regclass(`+quoteLiteral(outboxTable)+`) AS oid) t LEFT JOIN pg_class c ON c.oid = t.oid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace`)
	if err != nil {
		return nil, fmt.Errorf("look at the database: %w", classify(err, s.role))
	}
	row := rows[0]
	s.dbname = row[4]
	if streaming && row[0] != "logical" {
		return nil, walLevelError(fmt.Errorf("wal_level = %s", row[0]))
	}
	if row[1] == "" {
		return nil, &relay.SetupError{
			Problem: fmt.Sprintf("table %s does not exist in database %q (or not on the role's search_path)", outboxTable, s.dbname),
			Fix:     "run: sagaz-relay migrate",
		}
	}
	oid, err := strconv.ParseUint(row[1], 10, 32)
	if err != nil {
		return nil, fmt.Errorf("look at the database: OID of %s: %w", outboxTable, err)
	}
	t := &outbox{oid: uint32(oid), name: row[2], owner: row[3]}
	if err := s.checkColumns(ctx, t); err != nil {
		return nil, err
	}
	return t, s.checkPublication(ctx, publication, t)
}

func (s *session) checkColumns(ctx context.Context, t *outbox) error {
	rows, err := s.query(ctx, fmt.Sprintf(`SELECT attname FROM pg_attribute WHERE attrelid = %d AND attnum > 0 AND NOT attisdropped`, t.oid))
	if err != nil {
		return fmt.Errorf("look at the columns of %s: %w", t.name, err)
	}
	var missing []string
	for _, want := range pgoutput.Columns {
		if !slices.ContainsFunc(rows, func(r []string) bool { return r[0] == want }) {
			missing = append(missing, want)
		}
	}
	if missing != nil {
		return &relay.SetupError{
			Problem: fmt.Sprintf("table %s lacks column %s", t.name, strings.Join(missing, ", ")),
			Fix:     "restore it, or name the right database in DATABASE_URL",
		}
	}
	return nil
}

// checkPublication finds out whether the publication is there and carries what is needed. That it is missing is no
// fault: it can be made.
func (s *session) checkPublication(ctx context.Context, publication string, t *outbox) error {
	attnames := "NULL"
	if s.server >= 15 {
		attnames = "array_to_string(pt.attnames, ',')"
	}
	rows, err := s.query(ctx, fmt.Sprintf(`SELECT p.pubinsert, pt.tablename IS NOT NULL, coalesce(%s, '') FROM pg_publication p
		LEFT JOIN pg_publication_tables pt ON pt.pubname = p.pubname AND format('%%I.%%I', pt.schemaname, pt.tablename) = %s
		WHERE p.pubname = %s`, attnames, quoteLiteral(t.name), quoteLiteral(publication)))
	if err != nil {
		return fmt.Errorf("look at publication %q: %w", publication, err)
	}
	if len(rows) == 0 {
		return nil
	}
	row, name := rows[0], quoteIdent(publication)
	if row[0] != "t" {
		return &relay.SetupError{
			Problem: fmt.Sprintf("publication %q does not publish inserts", publication),
			Fix:     fmt.Sprintf("ALTER PUBLICATION %s SET (publish = 'insert');", name),
		}
	}
	if row[1] != "t" {
		return &relay.SetupError{
			Problem: fmt.Sprintf("publication %q does not contain table %s", publication, t.name),
			Fix:     fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s;", name, t.name),
		}
	}
	if row[2] != "" {
		have := strings.Split(row[2], ",")
		for _, want := range pgoutput.Columns {
			if !slices.Contains(have, want) {
				return &relay.SetupError{
					Problem: fmt.Sprintf("publication %q leaves out column %s of %s", publication, want, t.name),
					Fix:     fmt.Sprintf("ALTER PUBLICATION %s SET TABLE %s (%s);", name, t.name, strings.Join(pgoutput.Columns, ", ")),
				}
			}
		}
	}
	t.published = true
	return nil
}

// PublicationSQL is the statement that makes the publication, for a server of the given major version: inserts only and,
// from 15 on, only the columns that are used.
func PublicationSQL(publication, table string, server int) string {
	columns := ""
	if server >= 15 {
		columns = " (" + strings.Join(pgoutput.Columns, ", ") + ")"
	}
	return fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s%s WITH (publish = 'insert', publish_via_partition_root = true)", quoteIdent(publication), table, columns)
}

func (s *session) createPublication(ctx context.Context, publication string, t *outbox) error {
	sql := PublicationSQL(publication, t.name, s.server)
	_, err := s.query(ctx, sql)
	switch {
	case err == nil || hasCode(err, codeDuplicateObject):
		t.published = true
		return nil
	case hasCode(err, codePrivilege):
		return &relay.SetupError{
			Problem: fmt.Sprintf("publication %q does not exist, and only the owner of %s (role %s, with CREATE on the database) may make it", publication, t.name, t.owner),
			Err:     err, Fix: fmt.Sprintf("as %s: %s;", t.owner, sql),
		}
	default:
		return fmt.Errorf("create publication %q: %w", publication, err)
	}
}

// slot is what pg_replication_slots says.
type slot struct {
	plugin, kind, database, walStatus string
}

// slotState returns nil when there is no such slot.
func (s *session) slotState(ctx context.Context, name string) (*slot, error) {
	rows, err := s.query(ctx, `SELECT coalesce(plugin, ''), slot_type, coalesce(database, ''), coalesce(wal_status, '')
		FROM pg_replication_slots WHERE slot_name = `+quoteLiteral(name))
	if err != nil {
		return nil, fmt.Errorf("look at slot %q: %w", name, err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	return &slot{plugin: rows[0][0], kind: rows[0][1], database: rows[0][2], walStatus: rows[0][3]}, nil
}

// usable tells a slot that is ours from one that only has its name.
func (sl *slot) usable(name, database string) error {
	other := "set RELAY_SLOT to another name, or drop that slot if nobody needs it: SELECT pg_drop_replication_slot(" + quoteLiteral(name) + ");"
	switch {
	case sl.kind != "logical":
		return &relay.SetupError{Problem: fmt.Sprintf("slot %q is a %s slot, a logical one is needed", name, sl.kind), Fix: other}
	case sl.plugin != "pgoutput":
		return &relay.SetupError{Problem: fmt.Sprintf("slot %q was made for plugin %s, not pgoutput", name, sl.plugin), Fix: other}
	case sl.database != database:
		return &relay.SetupError{Problem: fmt.Sprintf("slot %q belongs to database %q, not %q", name, sl.database, database), Fix: other}
	case sl.walStatus == "lost":
		return &relay.SetupError{
			Problem: fmt.Sprintf("slot %q is lost: it needed more WAL than max_slot_wal_keep_size lets it keep", name),
			Fix:     "drop it: SELECT pg_drop_replication_slot(" + quoteLiteral(name) + "); rows not delivered are still pending in the table",
		}
	}
	return nil
}

// createSlot makes the slot and returns its consistent point. The server waits for all transactions that are under way.
func (s *session) createSlot(ctx context.Context, name string, failover bool) (string, error) {
	options := "NOEXPORT_SNAPSHOT"
	if s.server >= 15 {
		options = "(SNAPSHOT 'nothing')"
	}
	if s.server >= 17 && failover {
		options = "(SNAPSHOT 'nothing', FAILOVER true)"
	}
	rows, err := s.query(ctx, fmt.Sprintf("CREATE_REPLICATION_SLOT %s LOGICAL pgoutput %s", quoteIdent(name), options))
	if hasCode(err, codeDuplicateObject) {
		return "", fmt.Errorf("create slot %q: another relay was faster: %w", name, err)
	}
	if err != nil {
		return "", fmt.Errorf("create slot %q: %w", name, classify(err, s.role))
	}
	return rows[0][1], nil
}

// busy says who reads the slot. We hold the slot's lease, so a relay's walsender is that of an owner that is no more, or frozen: it
// is ended. Anybody else is left alone.
func (s *session) busy(ctx context.Context, name string, cause error) error {
	// The error came from START_REPLICATION, whose answer pglogrepl has read up to there; what is left of it would be taken for
	// the answer to the next statement.
	if err := s.untilReady(ctx); err != nil {
		return fmt.Errorf("%w: slot %q: %w (who reads it could not be asked: %w)", relay.ErrSlotBusy, name, cause, err)
	}
	rows, err := s.query(ctx, `SELECT a.pid, coalesce(a.application_name, ''), coalesce(host(a.client_addr), 'local'), coalesce(a.usename, '')
		FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = `+quoteLiteral(name))
	if err != nil {
		return fmt.Errorf("%w: slot %q: %w (who reads it could not be asked: %w)", relay.ErrSlotBusy, name, cause, err)
	}
	if len(rows) == 0 { // let go of meanwhile
		return fmt.Errorf("%w: slot %q: %w", relay.ErrSlotBusy, name, cause)
	}
	r := rows[0]
	if r[1] == applicationFor(name) {
		if _, err := s.query(ctx, `SELECT pg_terminate_backend(`+r[0]+`)`); err != nil {
			return fmt.Errorf("%w: slot %q is still held by a former owner (pid %s from %s as %s), which we may not end: %w", relay.ErrSlotBusy, name, r[0], r[2], r[3], err)
		}
		return fmt.Errorf("%w: slot %q was still held by a former owner (pid %s from %s), which was ended", relay.ErrSlotBusy, name, r[0], r[2])
	}
	return fmt.Errorf("%w: slot %q is read by pid %s (%s from %s as %s); to end it: SELECT pg_terminate_backend(%s);", relay.ErrSlotBusy, name, r[0], r[1], r[2], r[3], r[0])
}

// untilReady reads what is left of the answer to a statement that failed.
func (s *session) untilReady(ctx context.Context) error {
	for {
		msg, err := s.conn.ReceiveMessage(ctx)
		if err != nil {
			return err
		}
		if _, ok := msg.(*pgproto3.ReadyForQuery); ok {
			return nil
		}
	}
}

func quoteIdent(s string) string   { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
func quoteLiteral(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }

// EnsurePublication makes the publication over an ordinary connection if it is missing, and reports whether it did.
func EnsurePublication(ctx context.Context, conn *pgx.Conn, publication string) (made bool, err error) {
	s := &session{role: conn.Config().User, conn: conn.PgConn(), server: majorVersion(conn.PgConn().ParameterStatus("server_version"))}
	table, err := s.inspect(ctx, publication, false)
	if err != nil || table.published {
		return false, err
	}
	return true, s.createPublication(ctx, publication, table)
}

// EnsureSlot makes the slot if it is missing, and reports whether it did. The server waits with it for the end of
// all transactions under way.
func (s *Source) EnsureSlot(ctx context.Context, name string) (made bool, err error) {
	sess, err := s.connect(ctx, name)
	if err != nil {
		return false, err
	}
	defer sess.conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing depends on it
	if _, err := sess.inspect(ctx, s.cfg.Publication, true); err != nil {
		return false, err
	}
	there, err := sess.slotState(ctx, name)
	switch {
	case err != nil:
		return false, err
	case there != nil:
		return false, there.usable(name, sess.dbname)
	}
	_, err = sess.createSlot(ctx, name, s.cfg.Failover)
	return err == nil, err
}
