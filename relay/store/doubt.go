package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// sentOnceSQL finds rows that had a mark. Whoever sets one back to pending leaves sent_at, or takes
// it out by a statement of its own. That statement came after the last write to the slot's row, $3,
// which each mark makes. What the stream brings of $1 was inserted before that: it was committed
// before what the last mark has noted. Of $2, which was found in the table, this is known for rows
// that were made before the owner's last renewal, $4. A claim (RELAY_HYBRID) changes its row, too, and
// shows.
const sentOnceSQL = `SELECT event_id FROM saga_outbox WHERE event_id = ANY($1::uuid[] || $2::uuid[]) AND (sent_at IS NOT NULL
	OR $3::text <> '0' AND claimed_at IS NULL AND age(xmin) < age($3::text::xid) AND (event_id = ANY($1::uuid[]) OR created_at < to_timestamp(nullif($4::text, '')::float8)))`

// lastWrite is the slot's row as the owner before has left it: by which transaction, and when it
// was renewed.
type lastWrite struct{ xid, renewed string }

// doubtMillis is a time as doubt_since has it, and -1 for none.
func doubtMillis(since time.Time) int64 {
	if since.IsZero() {
		return -1
	}
	return since.UnixMilli()
}

// inDoubt is what doubt_since means to the next owner; to is the end of the WAL.
func inDoubt(since int64, to relay.LSN) relay.InDoubt {
	d := relay.InDoubt{To: to}
	if since > 0 {
		d.Since = time.UnixMilli(since)
	}
	return d
}

// InDoubt implements relay.Lease.
func (l *lease) InDoubt() relay.InDoubt { return l.inDoubt }

// SentOnce implements relay.Lease.
func (l *lease) SentOnce(ctx context.Context, streamed, swept []relay.UUID) (sent []relay.UUID, err error) {
	var id [16]byte
	err = l.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		sent = sent[:0]
		return each(ctx, conn, []any{&id}, func() error {
			sent = append(sent, id)
			return nil
		}, sentOnceSQL, uuids(streamed), uuids(swept), l.before.xid, l.before.renewed)
	})
	if err != nil {
		return nil, fmt.Errorf("look up which of %d events were sent before: %w", len(streamed)+len(swept), err)
	}
	return sent, nil
}
