package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/columns"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// Rows are read in pieces of at most so many, and of about so many bytes as they are stored. What
// they take in memory is seen when they are read.
const (
	pieceRows  = 500
	pieceBytes = 256 << 10
)

// eventSQL selects an event's fields, in the order in which readTogether takes them, of the rows o.
// The texts are what the types' output functions write, as in the stream; limit is a parameter, how
// large they may be, a bytea by its bytes. What is larger is not sent. The stored size does not show how large the text
// is, because PostgreSQL compresses, and 1e1000 is short. OFFSET 0 keeps a document from being
// rendered more than once.
func eventSQL(limit string) string {
	fields := "o.event_id"
	for _, name := range []string{"saga_id", "aggregate_type", "aggregate_id", "event_type"} {
		fields += fmt.Sprintf(", CASE WHEN m.size <= %s OR octet_length(o.%s::text) <= %d THEN o.%s END", limit, name, smallText, name)
	}
	return `SELECT ` + fields + fmt.Sprintf(`, CASE WHEN m.size <= %[1]s THEN t.payload END, CASE WHEN m.size <= %[1]s THEN t.headers END, o.status,
			coalesce(o.created_at::timestamptz, '2000-01-01 00:00:00+00'), m.size::int8, pg_typeof(o.payload)::oid::int8, pg_typeof(o.headers)::oid::int8
		FROM saga_outbox o CROSS JOIN LATERAL (SELECT o.payload::text AS payload, o.headers::text AS headers OFFSET 0) t
		CROSS JOIN LATERAL (SELECT coalesce(CASE WHEN pg_typeof(o.payload)::oid = %[2]d THEN octet_length(t.payload::bytea) ELSE octet_length(t.payload) END, 0)::int8 + coalesce(octet_length(t.headers), 0) + coalesce(octet_length(o.saga_id::text), 0)
			+ coalesce(octet_length(o.aggregate_type::text), 0) + coalesce(octet_length(o.aggregate_id::text), 0) + coalesce(octet_length(o.event_type::text), 0) AS size OFFSET 0) m`, limit, columns.OIDBytea)
}

// smallText is the size of texts that are read in any case, so that a row that is too large can be
// named by its id, key and type.
const smallText = 4 << 10

var rowsSQL = eventSQL("$2::int8") + ` WHERE o.event_id = ANY($1::uuid[]) ORDER BY array_position($1::uuid[], o.event_id)`

// unreadableSQL is what can still be read of a row that cannot be read as it is.
var unreadableSQL = func() string {
	sql := "SELECT o.event_id"
	for _, name := range []string{"saga_id", "aggregate_type", "aggregate_id", "event_type"} {
		sql += `, regexp_replace(left(o.` + name + `::text, 255), '[^ -~]', '?', 'g')`
	}
	return sql + `, NULL::text, NULL::text, o.status, coalesce(o.created_at::timestamptz, '2000-01-01 00:00:00+00'), 0::int8, 3802::int8, 3802::int8 FROM saga_outbox o WHERE o.event_id = ANY($1::uuid[])`
}()

// timestamp scans a timestamptz.
type timestamp relay.Timestamp

var (
	_ pgtype.TimestamptzScanner = (*timestamp)(nil)
	_ pgtype.TimestamptzValuer  = timestamp(0)
)

// ScanTimestamptz implements pgtype.TimestamptzScanner.
func (t *timestamp) ScanTimestamptz(v pgtype.Timestamptz) error {
	switch v.InfinityModifier {
	case pgtype.Infinity:
		*t = timestamp(relay.Infinity)
	case pgtype.NegativeInfinity:
		*t = timestamp(relay.NegativeInfinity)
	default:
		*t = timestamp(relay.TimestampOf(v.Time))
	}
	return nil
}

// TimestamptzValue implements pgtype.TimestamptzValuer.
func (t timestamp) TimestamptzValue() (pgtype.Timestamptz, error) {
	switch relay.Timestamp(t) {
	case relay.Infinity:
		return pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}, nil
	case relay.NegativeInfinity:
		return pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}, nil
	default:
		// 2000-01-01 in µs of Unix time; relay.Timestamp.Time stops at the year 9999.
		const epoch = 946_684_800_000_000
		return pgtype.Timestamptz{Time: time.UnixMicro(int64(t) + epoch).UTC(), Valid: true}, nil
	}
}

// rowsQuery makes the query for rows with these ids: eventSQL's columns, in the order of the ids.
type rowsQuery func(ids uuids) (sql string, args []any)

// readRows reads rows in the order of their ids, until their texts take more than room. It returns
// how many of the ids it has dealt with: at least one. Rows that are not there, or not what the
// query asks for, are left out.
//
// What the server cannot send, because a character has no UTF-8 or a text would be longer than 1
// GB, fails the whole query. Then each row is read by itself, and the ones at fault come as events
// that are Unfit.
func (l *lease) readRows(ctx context.Context, conn *pgx.Conn, ids uuids, room int, query rowsQuery) (events []relay.Event, n int, err error) {
	events, n, err = l.readTogether(ctx, conn, ids, room, query)
	if !isUnreadable(err) {
		return events, n, err
	}
	events = events[:0]
	for n = 0; n < len(ids); n++ {
		one, _, err := l.readTogether(ctx, conn, ids[n:n+1], room, query)
		if isUnreadable(err) {
			one, err = l.readUnreadable(ctx, conn, ids[n:n+1], err)
		}
		if err != nil {
			return nil, 0, err
		}
		for i := range one {
			if room -= one[i].Size(); room < 0 && len(events) > 0 {
				return events, n, nil
			}
			events = append(events, one[i])
		}
	}
	return events, n, nil
}

func (l *lease) readTogether(ctx context.Context, conn *pgx.Conn, ids uuids, room int, query rowsQuery) (events []relay.Event, n int, err error) {
	sql, args := query(ids)
	rows, err := conn.Query(ctx, sql, append([]any{pgx.QueryResultFormats{1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1}}, args...)...)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	n = len(ids)
	var types rowTypes
	for rows.Next() {
		if n < len(ids) {
			continue // there is no room: it is read again when its turn comes
		}
		raw := rows.RawValues()
		ev, payload, headers, err := l.eventOf(conn.TypeMap(), rows.FieldDescriptions(), raw)
		if err != nil {
			return nil, 0, err
		}
		if types == (rowTypes{}) {
			types = typesOf(rows.FieldDescriptions(), payload, headers)
		}
		if room -= ev.Size(); room < 0 && len(events) > 0 {
			n = slices.Index(ids, ev.ID)
			continue
		}
		events = append(events, ev)
	}
	if err := rows.Err(); err != nil {
		return nil, 0, err
	}
	if len(events) > 0 {
		if err := l.store.accepts(ctx, conn, types); err != nil {
			return nil, 0, err
		}
	}
	return events, n, nil
}

// eventOf makes an event of eventSQL's columns; payload and headers are the types of these. Through
// a pooler values come as text, whatever was asked for.
func (l *lease) eventOf(types *pgtype.Map, fields []pgconn.FieldDescription, raw [][]byte) (ev relay.Event, payload, headers uint32, err error) {
	var (
		id      [16]byte
		at      timestamp
		numbers [3]int64
	)
	scan := func(i int, to any) {
		if err == nil {
			err = types.Scan(fields[i].DataTypeOID, fields[i].Format, raw[i], to)
		}
	}
	scan(0, &id)
	scan(8, &at)
	for i := range numbers {
		scan(9+i, &numbers[i])
	}
	if err != nil {
		return ev, 0, 0, fmt.Errorf("read a row: %w", err)
	}
	size, limit := numbers[0], int64(l.store.cfg.MaxEventBytes)
	payload, headers = uint32(numbers[1]), uint32(numbers[2])
	ev = relay.Event{
		ID: id, CreatedAt: relay.Timestamp(at),
		SagaID: string(raw[1]), AggregateType: string(raw[2]), AggregateID: string(raw[3]), EventType: string(raw[4]),
		NoPayload: raw[5] == nil, Headers: string(raw[6]), Status: string(raw[7]),
		Loose: !columns.IsJSON(payload) || !columns.IsJSON(headers) || l.store.unchecked.Load(),
	}
	text := raw[5]
	if payload == columns.OIDBytea {
		if text, err = columns.AppendBytea(make([]byte, 0, len(text)/2), text); err != nil {
			return ev, 0, 0, fmt.Errorf("read a row: column payload: %w", err)
		}
	}
	ev.Payload = string(text)
	if size > limit {
		ev.Unfit = relay.TooLarge(size, limit)
	}
	return ev, payload, headers, nil
}

// readUnreadable makes an event of a row that cannot be read as it is.
func (l *lease) readUnreadable(ctx context.Context, conn *pgx.Conn, id uuids, cause error) ([]relay.Event, error) {
	events, _, err := l.readTogether(ctx, conn, id, 0, func(ids uuids) (string, []any) { return unreadableSQL, []any{ids} })
	if isUnreadable(err) {
		// Not even its id and type can be read: the row is damaged. Others must not wait for it.
		l.log.Error("a row of saga_outbox cannot be read and is left out", "event_id", id[0], "error", withoutValues(err), "fix", "repair or delete the row")
		return nil, nil
	}
	refused := &relay.RefusedError{Reason: relay.ReasonEncode, Err: fmt.Errorf("the row cannot be read: %w", cause), Final: true}
	if pg := (*pgconn.PgError)(nil); errors.As(cause, &pg) && slices.Contains([]string{"53", "54", "XX"}, pg.Code[:2]) {
		// Or it is damaged: the error has that.
		refused.Reason, refused.Size, refused.Limit = relay.ReasonTooLarge, 1<<30, int64(l.store.cfg.MaxEventBytes)
	}
	for i := range events {
		events[i].Unfit, events[i].Loose = refused, false
	}
	return events, err
}

// isUnreadable reports whether a query failed because of what rows hold: data that cannot be
// converted, a text longer than the server can make, damage, what a function of a policy or a view
// raises.
func isUnreadable(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	// The fault is the statement's, unless a function that it calls raised it.
	if strings.HasPrefix(pg.Code, "42") {
		return causeOf(err).raised
	}
	return blames(context.Background(), err) == blameRow || pg.Code == sessions.OutOfMemory
}

// rowTypes are the types of the columns that are delivered, as the server sends them with rows.
type rowTypes [7]uint32

func typesOf(fields []pgconn.FieldDescription, payload, headers uint32) (t rowTypes) {
	for i, field := range []int{1, 2, 3, 4, 7} {
		t[i] = fields[field].DataTypeOID
	}
	t[5], t[6] = payload, headers
	return t
}

// accepts asks the catalog whether rows of these types may be delivered; each set of types once.
func (s *Store) accepts(ctx context.Context, conn *pgx.Conn, types rowTypes) error {
	if _, is := s.accepted.Load(types); is {
		return nil
	}
	if err := checkColumns(ctx, conn); err != nil {
		return err
	}
	s.accepted.Store(types, true)
	return nil
}

// checkColumns reports columns of saga_outbox whose types are not accepted. A table that is missing
// is reported elsewhere.
func checkColumns(ctx context.Context, conn *pgx.Conn) error {
	var (
		table int64
		name  string
	)
	err := conn.QueryRow(ctx, `SELECT c.oid::int8, quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = to_regclass('saga_outbox')`).Scan(&table, &name)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the columns of saga_outbox: %w", err)
	}
	all, err := columnsOf(ctx, conn, uint32(table))
	if err != nil {
		return err
	}
	return columns.SetupError(name, all)
}

// columnsOf describes the columns of a table, given by its OID.
func columnsOf(ctx context.Context, conn *pgx.Conn, table uint32) ([]columns.Column, error) {
	var (
		all []columns.Column
		c   columns.Column
		oid int64
		fn  *string
	)
	err := each(ctx, conn, []any{&c.Name, &oid, &c.Type, &fn, &c.Length, &c.Collation}, func() error {
		c.OID, c.Send = uint32(oid), ""
		if fn != nil {
			c.Send = *fn
		}
		all = append(all, c)
		return nil
	}, columns.SQL(table))
	if err != nil {
		return nil, fmt.Errorf("look at the columns of saga_outbox: %w", err)
	}
	return all, nil
}
