package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// SlotOwner is a slot's lease as the database knows it.
type SlotOwner struct {
	Slot  string `json:"slot"`
	Owner string `json:"owner"` // who had the lease last
	Epoch int64  `json:"epoch"`
	// Running is true when a relay has the lease now: a session has its lock. Through a pooler it
	// means that the lease was renewed lately and not released.
	Running bool `json:"running"`
	// Locked is true when a session holds the advisory lock.
	Locked   bool          `json:"locked"`
	Released bool          `json:"released"` // by a clean stop
	Renewed  time.Duration `json:"-"`        // since the last renewal, by the server's clock
}

// ownedLately is for how long a lease without a lock counts as owned after its last renewal, unless
// RELAY_LEASE_TTL is longer.
const ownedLately = 30 * time.Second

// Owners returns who owns which slot. ttl is RELAY_LEASE_TTL.
func Owners(ctx context.Context, conn *pgx.Conn, ttl time.Duration) ([]SlotOwner, error) {
	rows, err := conn.Query(ctx, `SELECT slot, owner, epoch, released_at IS NOT NULL, extract(epoch FROM clock_timestamp() - renewed_at)::float8, `+lockHeld("slot")+`
		FROM saga_outbox_relay WHERE heir IS NULL ORDER BY slot`, int64(lockClass))
	if err != nil {
		return nil, fmt.Errorf("read the leases: %w", setup(err))
	}
	var (
		owners  = []SlotOwner{}
		o       SlotOwner
		seconds float64
	)
	_, err = pgx.ForEachRow(rows, []any{&o.Slot, &o.Owner, &o.Epoch, &o.Released, &seconds, &o.Locked}, func() error {
		o.Renewed = time.Duration(seconds * float64(time.Second))
		o.Running = o.Locked || !o.Released && o.Renewed < max(ownedLately, 2*ttl)
		owners = append(owners, o)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the leases: %w", setup(err))
	}
	return owners, nil
}
