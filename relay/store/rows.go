package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sagaz-relay/relay/relay"
)

// Rows are read in pieces of at most so many, and of about so many bytes as they are stored; compressed ones take more in memory.
const (
	pieceRows  = 500
	pieceBytes = 256 << 10
)

// eventColumns are an event's fields in the order in which readRows takes them. The stream gives jsonb in the same text form.
const eventColumns = `event_id, saga_id, aggregate_type, aggregate_id, event_type, payload::text, coalesce(headers::text, ''), status, created_at`

const rowsSQL = `SELECT ` + eventColumns + ` FROM saga_outbox WHERE event_id = ANY($1::uuid[])`

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
		const epoch = 946_684_800_000_000 // 2000-01-01 in µs of Unix time; relay.Timestamp.Time stops at the year 9999
		return pgtype.Timestamptz{Time: time.UnixMicro(int64(t) + epoch).UTC(), Valid: true}, nil
	}
}

// readRows calls f for each row of a query for eventColumns.
func readRows(ctx context.Context, conn *pgx.Conn, f func(relay.Event), sql string, args ...any) error {
	var (
		ev relay.Event
		id [16]byte
		at timestamp
	)
	dest := []any{&id, &ev.SagaID, &ev.AggregateType, &ev.AggregateID, &ev.EventType, &ev.Payload, &ev.Headers, &ev.Status, &at}
	return each(ctx, conn, dest, func() error {
		ev.ID, ev.CreatedAt = id, relay.Timestamp(at)
		f(ev)
		return nil
	}, sql, args...)
}
