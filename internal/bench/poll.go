package bench

import (
	"context"

	"github.com/sagaz-relay/relay/relay"
)

// Poll is one backlog drained by a relay that polls.
type Poll struct {
	Rows   int   `json:"rows"`
	Run    Run   `json:"run"`
	Marked int64 `json:"rows_marked"`
}

// poll measures the drain of rows that are pending when the relay starts, with no slot. The start
// of the process is in the time.
func (b *database) poll(ctx context.Context, target *target, o Options, printf func(string, ...any)) (*Poll, error) {
	const perTx = 5000
	printf("filling %d pending rows", o.Rows)
	if err := b.fill(ctx, target.eventType, o.Rows, min(perTx, o.Rows), o.RowBytes); err != nil {
		return nil, err
	}
	// As in a table that has been there for a while: with statistics, and with hint bits set.
	if _, err := b.conn.Exec(ctx, `VACUUM ANALYZE saga_outbox`); err != nil {
		return nil, err
	}
	p := &Poll{}
	if err := b.conn.QueryRow(ctx, `SELECT count(*) FROM saga_outbox`).Scan(&p.Rows); err != nil {
		return nil, err
	}
	var err error
	if p.Run, err = b.relayRun(ctx, b.name+"_poll", p.Rows, relay.ModePolling); err != nil {
		return nil, err
	}
	printf("  relay: %.0f rows/s", p.Run.PerSecond)
	if p.Marked, err = b.marked(ctx, p.Rows); err != nil {
		return nil, err
	}
	return p, b.clear(ctx)
}
