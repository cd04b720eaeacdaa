package main

import (
	"context"

	"github.com/sagaz-relay/relay/relay"
)

// pollRows is how many rows bench --poll drains unless told otherwise: the number that the promised rate is stated for.
const pollRows = 1_000_000

// benchPoll is one backlog drained by a relay that polls.
type benchPoll struct {
	Rows    int      `json:"rows"`
	Run     benchRun `json:"run"`
	Settled int64    `json:"rows_marked"`
}

// poll measures the drain of rows that are pending when the relay starts, with no slot. The start of the process is in the time.
func (b *benchDatabase) poll(ctx context.Context, target *benchTarget, o benchOptions, say func(string, ...any)) (*benchPoll, error) {
	const perTx = 5000
	say("filling %d pending rows", o.rows)
	if err := b.fill(ctx, target.eventType, o.rows, min(perTx, o.rows), o.rowBytes); err != nil {
		return nil, err
	}
	// As a table that has been there for a while: with statistics, and with hint bits set.
	if _, err := b.conn.Exec(ctx, `VACUUM ANALYZE saga_outbox`); err != nil {
		return nil, err
	}
	p := &benchPoll{}
	if err := b.conn.QueryRow(ctx, `SELECT count(*) FROM saga_outbox`).Scan(&p.Rows); err != nil {
		return nil, err
	}
	var err error
	if p.Run, err = b.relayRun(ctx, b.name+"_poll", p.Rows, relay.ModePolling); err != nil {
		return nil, err
	}
	say("  relay: %.0f rows/s", p.Run.PerSecond)
	if p.Settled, err = b.settled(ctx, p.Rows); err != nil {
		return nil, err
	}
	return p, b.clear(ctx)
}
