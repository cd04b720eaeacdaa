package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// TableSet is the row of saga_outbox_set: how the table's events are divided, and how they will be,
// while a change of that is under way.
type TableSet struct {
	relay.Set
	Target  int    // slots after the change; 0: none is under way
	State   string // of the change
	Switch  relay.LSN
	Since   time.Time
	Changer string // who works on it
	Trouble string // why the last step failed; empty: it did not
}

// States of a change of the number of slots.
const (
	SetMaking   = relay.SetMaking
	SetDraining = relay.SetDraining
)

const readSetSQL = `SELECT slot, publication, shards, generation, coalesce(target, 0), coalesce(state, ''), coalesce(switch_lsn - '0/0', 0)::bigint,
	since, coalesce(changer, ''), coalesce(trouble, '') FROM saga_outbox_set`

// makeSetSQL makes the row, unless it is there. Where relays of a version without it have worked,
// there is one slot, whatever is asked for.
const (
	workedBefore = `EXISTS (SELECT FROM saga_outbox_relay WHERE heir IS NULL)`
	makeSetSQL   = `INSERT INTO saga_outbox_set (slot, publication, shards)
	SELECT $1, $2, CASE WHEN ` + workedBefore + ` THEN 1 ELSE $3::integer END ON CONFLICT DO NOTHING`
)

// ReadSet returns how the table is divided. It is nil where no relay and no migrate has decided it
// yet.
func ReadSet(ctx context.Context, conn *pgx.Conn) (*TableSet, error) {
	return scanSet(conn.QueryRow(ctx, readSetSQL))
}

func scanSet(row pgx.Row) (*TableSet, error) {
	var (
		set    TableSet
		begins int64
		since  *time.Time
	)
	err := row.Scan(&set.Slot, &set.Publication, &set.Shards, &set.Generation, &set.Target, &set.State, &begins, &since, &set.Changer, &set.Trouble)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read how the table is divided: %w", setup(err))
	}
	set.Switch = relay.LSN(begins)
	if since != nil {
		set.Since = *since
	}
	return &set, nil
}

// MakeSet makes the row of a table that is not divided yet, and returns what it is then: of two at
// once, or after another, the first has decided it.
func MakeSet(ctx context.Context, conn *pgx.Conn, want relay.Set) (*TableSet, error) {
	set, err := ReadSet(ctx, conn)
	if err != nil || set != nil {
		return set, err
	}
	var before bool
	if err := conn.QueryRow(ctx, `SELECT `+workedBefore).Scan(&before); err != nil {
		return nil, fmt.Errorf("look for relays of the version before: %w", setup(err))
	}
	if !before {
		if err := divisible(ctx, conn, want.Shards); err != nil {
			return nil, err
		}
	}
	if _, err := conn.Exec(ctx, makeSetSQL, want.Slot, want.Publication, want.Shards); err != nil {
		return nil, fmt.Errorf("note how the table is divided: %w", setup(err))
	}
	return ReadSet(ctx, conn)
}

// filterServer is the first version whose publications have row filters.
const filterServer = 15

// divisible returns a *relay.SetupError where the server cannot divide a table among so many slots.
func divisible(ctx context.Context, conn *pgx.Conn, shards int) error {
	if shards <= 1 {
		return nil
	}
	var version int
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int / 10000`).Scan(&version); err != nil {
		return fmt.Errorf("ask for the server's version: %w", setup(err))
	}
	return Divisible(version, shards)
}

// Divisible returns a *relay.SetupError where a server of this major version cannot divide a table
// among so many slots.
func Divisible(version, shards int) error {
	if shards <= 1 || version >= filterServer {
		return nil
	}
	return &relay.SetupError{
		Problem: fmt.Sprintf("the table's events are to be divided among %d slots, which takes row filters of publications, and PostgreSQL %d has none", shards, version),
		Fix:     fmt.Sprintf("RELAY_SHARDS=1, or PostgreSQL %d or later", filterServer),
	}
}
