package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// destined are the columns on which it depends where an event goes.
const destined = `event_id, saga_id::text, aggregate_type::text, ` + relay.RowKey + `, event_type::text, coalesce(headers::text, '')`

// ReadNewest calls f with the newest rows of saga_outbox, at most limit, by created_at, and of the
// last while only (0: of any age). The event has no payload but null, is used again after f, and is
// enough to find out where it goes.
func ReadNewest(ctx context.Context, conn *pgx.Conn, within time.Duration, limit int, f func(*relay.Event)) error {
	rows, err := conn.Query(ctx, `SELECT `+destined+` FROM saga_outbox
		WHERE $1::float8 = 0 OR created_at > now() - make_interval(secs => $1) ORDER BY created_at DESC LIMIT $2`, within.Seconds(), limit)
	if err == nil {
		err = eachDestined(rows, f)
	}
	if err != nil {
		return fmt.Errorf("read the newest rows: %w", setup(err))
	}
	return nil
}

// ReadOne calls f with the row of an event, from saga_outbox or its archive, as ReadNewest does, and
// reports whether there is one.
func ReadOne(ctx context.Context, conn *pgx.Conn, id relay.UUID, f func(*relay.Event)) (found bool, err error) {
	for _, table := range []string{"saga_outbox", "saga_outbox_archive"} {
		rows, err := conn.Query(ctx, `SELECT `+destined+` FROM `+table+` WHERE event_id = $1::uuid`, id.String())
		if err == nil {
			err = eachDestined(rows, func(ev *relay.Event) {
				found = true
				f(ev)
			})
		}
		if err != nil {
			return false, fmt.Errorf("read event %s: %w", id, setup(err))
		}
		if found {
			break
		}
	}
	return found, nil
}

func eachDestined(rows pgx.Rows, f func(*relay.Event)) error {
	var id [16]byte
	ev := relay.Event{Payload: "null", Loose: true}
	_, err := pgx.ForEachRow(rows, []any{&id, &ev.SagaID, &ev.AggregateType, &ev.AggregateID, &ev.EventType, &ev.Headers}, func() error {
		ev.ID = id
		f(&ev)
		return nil
	})
	return err
}
