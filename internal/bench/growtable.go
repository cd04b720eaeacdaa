package bench

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

// withSent makes another database on the same server, whose table has rows that were sent days ago.
func (b *database) withSent(ctx context.Context, t *target, program Program, rows int) (*database, error) {
	program.DatabaseURL = b.dsn
	other, err := newDatabase(ctx, program, func(string, ...any) {})
	if err != nil {
		return nil, err
	}
	other.relay = b.relay
	const atOnce, connections = 100_000, 2
	group, one := errgroup.WithContext(ctx)
	group.SetLimit(connections)
	for from := 0; from < rows; from += atOnce {
		group.Go(func() error {
			conn, err := pgx.Connect(one, other.dsn)
			if err != nil {
				return fmt.Errorf("connect: %w", store.ConnectCause(err))
			}
			defer conn.Close(context.WithoutCancel(one)) //nolint:errcheck // all is committed
			if _, err := conn.Exec(one, `SET synchronous_commit = off`); err != nil {
				return err
			}
			_, err = conn.Exec(one, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, status, created_at, sent_at)
				SELECT gen_random_uuid(), 'saga-' || i, 'order', 'order-' || i % 10000, $1, jsonb_build_object('order_id', i), 'sent', at, at
				FROM generate_series($2::bigint, $3::bigint) AS i, LATERAL (SELECT now() - interval '3 days' + i * interval '1 millisecond' AS at) t`,
				t.eventType, from, min(from+atOnce, rows)-1)
			return err
		})
	}
	if err = group.Wait(); err == nil {
		_, err = other.conn.Exec(ctx, `VACUUM (ANALYZE) saga_outbox`)
	}
	if err != nil {
		_ = other.close() // the first error is the one to return
		return nil, fmt.Errorf("make %d sent rows: %w", rows, err)
	}
	return other, nil
}

// block puts an entry into the ledger for a part of the keys, each of an event that a sink has
// refused and that is to be offered again in a day. The events of these keys that are drained then
// go to the ledger, behind them.
func (b *database) block(ctx context.Context, slot string, w work) error {
	n := w.keys * w.ledger / 100
	if n == 0 {
		return nil
	}
	keys, hashes := make([]string, n), make([]int32, n)
	for i := range keys {
		keys[i] = fmt.Sprint("order-", i)
		hashes[i] = int32(relay.KeyHash(keys[i]))
	}
	for _, sink := range b.relay.Sinks {
		_, err := b.conn.Exec(ctx, `WITH failed AS (
				INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, status, last_error)
				SELECT gen_random_uuid(), 'saga', k.key, 'bench', '{}', 'failed', 'bench' FROM unnest($3::text[]) AS k (key) RETURNING event_id, aggregate_id)
			INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, attempts, next_attempt_at, reason)
			SELECT f.event_id, $1, $2, k.i, k.key, k.hash, 'bench', 'retry', 1, now() + interval '1 day', 'rejected'
			FROM unnest($3::text[], $4::int[]) WITH ORDINALITY AS k (key, hash, i) JOIN failed f ON f.aggregate_id = k.key`, sink, slot, keys, hashes)
		if err != nil {
			return fmt.Errorf("block %d keys: %w", n, err)
		}
	}
	return nil
}
