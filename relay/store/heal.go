package store

import (
	"context"
	"fmt"
	"math"

	"github.com/jackc/pgx/v5"
)

// stuckSQL walks through the lines in which something blocks, by hash, $4 hashes from $3 on, and
// looks at the first entries of each. A line whose first blocking entry is a held one is stuck,
// because nothing will free it. It returns those lines, and in the last row (key null) the hash
// that it came to. Of lines that share a hash, one that begins behind a hundred entries of others
// is found when these have gone.
const stuckSQL = `WITH RECURSIVE hashes AS (
		(SELECT key_hash, 1 AS n FROM saga_outbox_delivery WHERE slot = $1 AND sink = $2 AND ` + blocking + ` AND key_hash >= $3::int
			ORDER BY key_hash LIMIT 1)
		UNION ALL
		SELECT next.key_hash, n + 1 FROM hashes h CROSS JOIN LATERAL (SELECT key_hash FROM saga_outbox_delivery
			WHERE slot = $1 AND sink = $2 AND ` + blocking + ` AND key_hash > h.key_hash ORDER BY key_hash LIMIT 1) next WHERE n < $4::int)
	SELECT b.partition_key, h.key_hash, h.n FROM hashes h CROSS JOIN LATERAL (
		SELECT DISTINCT ON (partition_key) partition_key, state FROM (SELECT * FROM saga_outbox_delivery
			WHERE slot = $1 AND sink = $2 AND key_hash = h.key_hash AND ` + blocking + ` ORDER BY position LIMIT 100) first
		ORDER BY partition_key, position) b WHERE b.state = 'held'
	UNION ALL
	SELECT NULL, max(key_hash), count(*) FROM hashes`

// healAtOnce is how many hashes one Heal looks at.
const healAtOnce = 2000

// Heal implements relay.Ledger. Entries that are held behind nothing were left by earlier versions,
// or by a person's SQL.
func (l *lease) Heal(ctx context.Context, sink string, from int32) (freed int, next int32, err error) {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	err = l.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		var (
			key    *string
			hash   *int32
			n      int
			keys   []string
			hashes []int32
		)
		next = math.MinInt32
		err := look(ctx, conn, []any{&key, &hash, &n}, func() error {
			switch {
			case key != nil:
				keys, hashes = append(keys, *key), append(hashes, *hash)
			case n == healAtOnce && *hash < math.MaxInt32:
				next = *hash + 1
			}
			return nil
		}, stuckSQL, l.slot, sink, from, healAtOnce)
		if err != nil || len(keys) == 0 {
			return err
		}
		tx := l.fenced(fence{})
		tx.queue(&freed, freeSQL, keys, l.slot, l.epoch, sink, hashes, l.store.freedOf(len(keys)))
		return tx.run(ctx, conn)
	})
	if err != nil {
		return 0, from, fmt.Errorf("look for entries of sink %s that are held behind nothing: %w", sink, err)
	}
	return freed, next, nil
}
