package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// AuditRow is a row as sagaz-relay verify looks at it: the event without its payload. It has the
// row's headers where they may override the one that carries the id, or where they were asked for.
type AuditRow struct {
	Event      relay.Event
	Status     string
	RetryCount int
}

// AuditEntry is a ledger entry.
type AuditEntry struct {
	ID        relay.UUID
	Sink      string
	State     relay.State
	Discarded bool
}

// ReadAudit calls row with the events of saga_outbox and saga_outbox_archive that were created from
// since on and before until (zero: no limit), with all of their headers if asked. Then it calls
// entry with the whole ledger. All is as it was at one moment. Both are called one at a time; their
// errors end it.
func ReadAudit(ctx context.Context, conn *pgx.Conn, since, until time.Time, headers bool, row func(AuditRow) error, entry func(AuditEntry) error) error {
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// The outbox first: an event may be in both for a moment, and is never in neither.
		for _, table := range []string{"saga_outbox", "saga_outbox_archive"} {
			var r AuditRow
			var id [16]byte
			var created time.Time
			rows, err := tx.Query(ctx, `SELECT event_id, saga_id, aggregate_type, aggregate_id, event_type,
				CASE WHEN isfinite(created_at) THEN created_at ELSE 'epoch' END, status, coalesce(retry_count, 0),
				CASE WHEN $3 OR pg_catalog.strpos(headers::text, 'id"') > 0 THEN coalesce(headers::text, '') ELSE '' END
				FROM `+table+` WHERE created_at >= $1 AND ($2::timestamptz IS NULL OR created_at < $2)`, since, orNull(until), headers)
			if err == nil {
				_, err = pgx.ForEachRow(rows, []any{
					&id, &r.Event.SagaID, &r.Event.AggregateType, &r.Event.AggregateID, &r.Event.EventType, &created, &r.Status, &r.RetryCount, &r.Event.Headers,
				}, func() error {
					r.Event.ID, r.Event.CreatedAt = id, relay.TimestampOf(created)
					return row(r)
				})
			}
			if err != nil {
				return fmt.Errorf("read %s: %w", table, setup(err))
			}
		}
		var e AuditEntry
		var id [16]byte
		rows, err := tx.Query(ctx, `SELECT event_id, sink, state, discarded FROM saga_outbox_delivery`)
		if err == nil {
			_, err = pgx.ForEachRow(rows, []any{&id, &e.Sink, (*string)(&e.State), &e.Discarded}, func() error {
				e.ID = id
				return entry(e)
			})
		}
		if err != nil {
			return fmt.Errorf("read the ledger: %w", setup(err))
		}
		return nil
	})
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Existing returns those of the events that have a row in saga_outbox or its archive, whenever they
// were created.
func Existing(ctx context.Context, conn *pgx.Conn, ids []relay.UUID) (map[relay.UUID]bool, error) {
	rows, err := conn.Query(ctx, `SELECT event_id FROM saga_outbox WHERE event_id = ANY($1)
		UNION ALL SELECT event_id FROM saga_outbox_archive WHERE event_id = ANY($1)`, uuids(ids))
	if err != nil {
		return nil, fmt.Errorf("look events up: %w", setup(err))
	}
	there := map[relay.UUID]bool{}
	var id [16]byte
	if _, err := pgx.ForEachRow(rows, []any{&id}, func() error { there[id] = true; return nil }); err != nil {
		return nil, fmt.Errorf("look events up: %w", setup(err))
	}
	return there, nil
}
