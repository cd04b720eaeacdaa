package store

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// Store is the outbox in one database. While it has leases, each of them has two connections, and
// all together have those of conns.
type Store struct {
	cfg  Config
	conn *sessions.Address
	log  hclog.Logger

	leases           sync.Map // by slot: the *lease that this process has or had last
	conns            conns
	roster           *roster
	create           func(context.Context, relay.Shard) (relay.LSN, error) // see Changes
	onlyStreams      bool                                                  // see Changes
	unreadFor        time.Duration                                         // see forgo
	taking           relay.Turn                                            // one slot is taken at a time
	bounds           bounds
	nearLeast        int
	prunes, prunesTo bool     // see Prunes
	sinks            []string // see Delivers

	// pooled is what the last connection was: 0 is not known, 1 direct, 2 through a pooler.
	pooled atomic.Int32

	// ascii is true when the database's encoding lacks characters: texts of our own are ASCII.
	ascii     atomic.Bool
	unchecked atomic.Bool // the database has no encoding (SQL_ASCII): rows may hold any bytes
	accepted  sync.Map    // rowTypes that may be delivered
}

var _ relay.Store = (*Store)(nil)

// New returns a store. It makes no connection; the error is about the configuration.
func New(cfg Config, log hclog.Logger) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	conn, err := sessions.Parse(cfg.DatabaseURL)
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, conn: conn, log: log.Named("store"), bounds: bounds{heldAtOnce, freedAtOnce, freedOfKey}, nearLeast: nearLeast}
	s.roster, s.taking, s.unreadFor = newRoster(s), relay.NewTurn(), unreadLeases*cfg.LeaseTTL
	for _, parameter := range conn.Ignored {
		s.log.Warn("a parameter of DATABASE_URL has no effect", "parameter", parameter)
	}
	return s, nil
}

// applicationName is what pg_stat_activity shows for a purpose.
func applicationName(purpose string) string { return sessions.Name(purpose) }

// setup turns what a person has to fix into a *relay.SetupError.
func setup(err error) error {
	var pg *pgconn.PgError
	if done := (*relay.SetupError)(nil); errors.As(err, &done) || !errors.As(err, &pg) {
		return err
	}
	switch pg.Code {
	case sessions.UndefinedTable:
		return &relay.SetupError{Problem: "a table of the relay is missing", Err: err, Fix: "run: sagaz-relay migrate"}
	case sessions.UndefinedColumn:
		if strings.Contains(pg.Message, "saga_outbox_archive") {
			return archiveError(err, "", nil)
		}
		return &relay.SetupError{Problem: "a column that the relay needs is missing", Err: err, Fix: "run: sagaz-relay migrate; if it is a column of saga_outbox, restore it"}
	case "42601", "42804":
		// INSERT has more expressions than target columns; column … is of type … but expression is
		// of type ….
		return archiveError(err, "", nil)
	case "428C9": // cannot insert a non-DEFAULT value into column
		return &relay.SetupError{
			Problem: "saga_outbox_archive computes a column by itself, which it has to take from saga_outbox", Err: err,
			Fix: "ALTER TABLE saga_outbox_archive ALTER COLUMN … DROP EXPRESSION (a virtual column: make a new archive, CREATE TABLE … (LIKE saga_outbox INCLUDING ALL EXCLUDING GENERATED)), or set RELAY_MARK to update or delete",
		}
	}
	return sessions.LacksRight(err, Grants("the_role"))
}

// archiveError is the error that rows cannot be moved whole, with the fix where that is known.
func archiveError(err error, before string, fix []string) *relay.SetupError {
	if fix == nil {
		before = "give it the same columns in the same order (ALTER TABLE saga_outbox_archive ADD COLUMN …)"
	}
	return &relay.SetupError{
		Problem: "the columns of saga_outbox_archive are not those of saga_outbox", Err: err,
		Fix: before + strings.Join(fix, " ") + " or set RELAY_MARK to update or delete", SQL: fix,
	}
}

// Prunes sets that retention removes rows, or moves them to the archive: Check then looks at what
// that needs, too.
func (s *Store) Prunes(archive bool) { s.prunes, s.prunesTo = true, archive }

// Delivers sets to which sinks this process delivers. While it has a slot or waits for one, its
// session shows their names to RenameSink. Call it before Set and Acquire.
func (s *Store) Delivers(sinks []string) { s.sinks = sinks }

// statements are those that Check plans: all that touch the tables.
func (s *Store) statements() []string {
	all := []string{
		lookSQL, shareSetSQL, nameSetSQL, beginChangeSQL, endChangeSQL, changerSQL, disownSQL, newRowsSQL, madeSQL, drainSQL, remakeSQL, switchSQL, lockRowsSQL, newSetSQL, oldSlotsSQL, acquireSQL, takenSQL, releaseSQL, sentOnceSQL, othersSQL, bequeathSQL, fellowsSQL, inheritSQL, frontSQL, moveSQL, blockingSQL, countsSQL, fenceSQL, s.deliveredSQL(), withoutEntries(s.deliveredSQL()), refusedSQL, statusSQL, parkSQL,
		lookUpSQL, inLedgerSQL, claimSQL, dueSQL, nextSQL, holdAgainSQL, rowsSQL, takeOutSQL, chargeSQL, behindSQL, freeSQL, stuckSQL, setStatusSQL, giveUpSQL,
		notedSQL, anySentSQL, noteSinksSQL, oweSweepSQL, sweepFromSQL, endSweepSQL, horizonSQL, reviveSQL,
		unmarkedSQL, remarkDueSQL, lockedSQL, remarkedSQL, postponeSQL, givenUpSQL, convertSQL, withoutOthers(s.deliveredSQL()), withoutOthers(giveUpSQL),
		readSetSQL, makeSetSQL, systemSQL, clearSQL, otherClusterSQL, otherTimelineSQL,
	}
	if s.prunes {
		all = append(all, pruneSQL(oldestSQL, s.prunesTo), pruneSQL(placeSQL, s.prunesTo))
	}
	for kind := range wanted {
		for _, shard := range []relay.Shard{relay.Alone("", ""), relay.Set{Shards: relay.MaxShards}.Shard(0)} {
			all = append(all, keysSQL(shard, kind, false), keysSQL(shard, kind, true), pieceSQL(shard, kind), backlogSQL(shard))
		}
	}
	return all
}

// Check implements relay.Store.
func (s *Store) Check(ctx context.Context) error {
	conn, err := s.connect(ctx, "check")
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing depends on it
	return relay.FirstFault(s.examine(ctx, conn))
}
