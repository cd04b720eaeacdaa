package repair

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// Event is everything that the database has about one event. The payload is there only when it was
// asked for.
type Event struct {
	EventID string   `json:"event_id"`
	Row     *Row     `json:"row"`     // nil when it is neither in saga_outbox nor in the archive
	Entries []Letter `json:"entries"` // its entries in the ledger, by sink
}

// Row is the event's row.
type Row struct {
	Archived      bool       `json:"archived"` // it is in saga_outbox_archive only
	SagaID        string     `json:"saga_id"`
	AggregateType string     `json:"aggregate_type"`
	AggregateID   string     `json:"aggregate_id"`
	EventType     string     `json:"event_type"`
	Status        string     `json:"status"`
	CreatedAt     string     `json:"created_at"` // as text: it may be infinite
	ClaimedAt     *time.Time `json:"claimed_at,omitempty"`
	SentAt        *time.Time `json:"sent_at,omitempty"`
	RetryCount    int        `json:"retry_count"`
	LastError     string     `json:"last_error,omitempty"`
	WorkerID      string     `json:"worker_id,omitempty"`
	Headers       []string   `json:"headers"`       // their names
	PayloadBytes  int        `json:"payload_bytes"` // as it is delivered; a bytea is printed as \x and hexadecimal digits
	Payload       *string    `json:"payload,omitempty"`
}

// Show reads one event. Neither a row nor an entry is no error.
func Show(ctx context.Context, conn *pgx.Conn, id relay.UUID, payload bool) (*Event, error) {
	e := &Event{EventID: id.String(), Entries: []Letter{}}
	const columns = `saga_id::text, aggregate_type::text, ` + relay.RowKey + `, event_type::text, status, created_at::text, claimed_at, sent_at, coalesce(retry_count, 0), coalesce(last_error, ''), coalesce(worker_id, ''),
		CASE WHEN jsonb_typeof(headers) = 'object' THEN ARRAY(SELECT jsonb_object_keys(headers)) ELSE '{}' END,
		coalesce(CASE WHEN pg_typeof(payload)::oid = 17 THEN octet_length(payload::text::bytea) ELSE octet_length(payload::text) END, 0), CASE WHEN $2 THEN payload::text END`
	for _, table := range []string{"saga_outbox", "saga_outbox_archive"} {
		if table != "saga_outbox" {
			if there, err := archiveThere(ctx, conn); err != nil || !there {
				if err != nil {
					return nil, err
				}
				continue
			}
		}
		r := Row{Archived: table != "saga_outbox"}
		err := conn.QueryRow(ctx, `SELECT `+columns+` FROM `+table+` WHERE event_id = $1::uuid`, id.String(), payload).Scan(
			&r.SagaID, &r.AggregateType, &r.AggregateID, &r.EventType, &r.Status, &r.CreatedAt, &r.ClaimedAt, &r.SentAt, &r.RetryCount, &r.LastError, &r.WorkerID,
			&r.Headers, &r.PayloadBytes, &r.Payload)
		if err == nil {
			e.Row = &r
			break
		}
		if err != pgx.ErrNoRows { //nolint:errorlint // pgx returns it bare
			return nil, fmt.Errorf("look at event %s in %s: %w", id, table, err)
		}
	}
	entries, _, err := Find(ctx, conn, Filter{State: StateAll, EventIDs: []relay.UUID{id}}, 0)
	if err != nil {
		return nil, err
	}
	for i := range entries {
		if entries[i].Sink != NoSink {
			e.Entries = append(e.Entries, entries[i])
		}
	}
	return e, nil
}

// archiveThere reports whether there is an archive that we may read. Its name is in the statement,
// not in a parameter, because sessions give the tables in statements their schemas.
func archiveThere(ctx context.Context, conn *pgx.Conn) (bool, error) {
	var there bool
	err := conn.QueryRow(ctx, `SELECT coalesce(has_table_privilege(to_regclass('saga_outbox_archive'), 'SELECT'), false)`).Scan(&there)
	if err != nil {
		return false, fmt.Errorf("look for table saga_outbox_archive: %w", err)
	}
	return there, nil
}
