package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// A sink's name is in its ledger entries, and in the list of sinks that each slot's last owner
// noted. RenameSink changes both, in one transaction: whatever ends it before its commit (this
// process, the connection, the server) has changed nothing, and after it everything is changed.
// What must not happen meanwhile:
//
//   - A relay with the old name parks an event or resolves an entry: its entries would be left
//     behind, or not be found. A relay with the new name would not know that its ledger has grown,
//     and send later events of a key in front of the entry. So neither may live, as the owner of a
//     slot or as a standby that is about to become one: each shows its sinks by locks that it shares
//     with others of the kind (Store.Delivers), and we want those of both names for ourselves. And
//     none may begin: whoever takes a slot needs the lock of the set (set.go), and we have that
//     until the commit. Behind a pooler no session keeps a lock, so only owners are seen, by what
//     they have noted.
//   - A relay has taken its slot just now, and has not noted yet which sinks it has. What is noted
//     is another's then, so we wait until it must have noted its own.
//   - The new name has entries already. Which of two entries of one event is right nobody knows, so
//     that is refused.
//
// A relay with neither name goes on: it does not touch those entries.

// ErrRename is an answer of RenameSink that a person has to act on. Nothing was changed.
var ErrRename = errors.New("nothing was changed")

const (
	// noteTime is how long a relay may take to note its sinks after it took its lease.
	noteTime = 15 * time.Second
	// renameLockTimeout bounds the wait for the set's lock, and for rows of the ledger.
	renameLockTimeout = 20 * time.Second

	renameEntriesSQL = `UPDATE saga_outbox_delivery SET sink = $2 WHERE sink = $1`
	// lockSinksSQL takes the locks of sinks, and returns those that it cannot have, and who has them.
	lockSinksSQL = `WITH refused AS MATERIALIZED (SELECT sink FROM unnest($2::text[]) sink WHERE NOT pg_try_advisory_xact_lock($1::bigint::int, hashtext(sink)))
		SELECT sink, coalesce((SELECT string_agg(DISTINCT 'process ' || l.pid || coalesce(' from ' || host(a.client_addr), ''), ', ') FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
			WHERE l.locktype = 'advisory' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND l.classid = $1::bigint::oid AND l.objid = (hashtext(sink)::bigint & 4294967295)::oid AND l.objsubid = 2), 'gone by now') FROM refused`
	hasEntriesSQL = `SELECT EXISTS (SELECT FROM saga_outbox_delivery WHERE sink = $1)`
	notedSinksSQL = `SELECT slot, owner, coalesce(sinks, ''), heir IS NULL AND released_at IS NULL AND taken_at > clock_timestamp() - $1::float8 * interval '1 second'
		FROM saga_outbox_relay ORDER BY slot`
)

// SinkRenamed is what RenameSink did.
type SinkRenamed struct {
	Entries int64    `json:"entries"` // of the ledger
	Slots   []string `json:"slots"`   // whose last owners had noted the old name
}

// RenameSink gives what the database has of the sink from to the sink called to. ttl is
// RELAY_LEASE_TTL.
func RenameSink(ctx context.Context, conn *pgx.Conn, from, to string, ttl time.Duration) (done SinkRenamed, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		done, err = renameSink(ctx, tx, from, to, ttl)
		return err
	})
	return done, err
}

func renameSink(ctx context.Context, tx pgx.Tx, from, to string, ttl time.Duration) (done SinkRenamed, err error) {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrRename}, args...)...)
	}
	for _, name := range []string{from, to} {
		if name == relay.MarkSink {
			return done, refuse("%s is no sink: its entries are about rows that do not take their marks", name)
		}
	}
	if from == to {
		return done, refuse("both names are the same")
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = %d`, renameLockTimeout.Milliseconds())); err != nil {
		return done, fmt.Errorf("rename a sink: %w", setup(err))
	}
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, 0)`, int32(setClass)); err != nil {
		return done, fmt.Errorf("lock the set of slots: %w", setup(err))
	}
	owners, err := Owners(ctx, tx.Conn(), ttl)
	if err != nil {
		return done, err
	}
	rows, err := tx.Query(ctx, notedSinksSQL, noteTime.Seconds())
	if err != nil {
		return done, fmt.Errorf("ask which sinks relays have: %w", setup(err))
	}
	type noted struct {
		Slot, Owner, Sinks string
		Fresh              bool
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[noted])
	if err != nil {
		return done, fmt.Errorf("ask which sinks relays have: %w", setup(err))
	}
	known := make(map[string][]string) // by slot, with from in it
	for _, n := range all {
		sinks := strings.Split(n.Sinks, ",")
		running := slices.ContainsFunc(owners, func(o SlotOwner) bool { return o.Slot == n.Slot && o.Running })
		for _, name := range []string{from, to} {
			if running && (slices.Contains(sinks, name) || n.Sinks == "") {
				return done, refuse("relay %s has slot %s and delivers to sink %s: stop the relays that have %s or %s, and run this again", n.Owner, n.Slot, name, from, to)
			}
		}
		if running && n.Fresh {
			return done, refuse("relay %s took slot %s less than %s ago, and may not have noted its sinks yet: run this again in %[3]s", n.Owner, n.Slot, noteTime)
		}
		if slices.Contains(sinks, from) {
			known[n.Slot] = sinks
		}
	}
	if err := noneDelivers(ctx, tx, from, to, refuse); err != nil {
		return done, err
	}
	taken := false
	if err := tx.QueryRow(ctx, hasEntriesSQL, to).Scan(&taken); err != nil {
		return done, fmt.Errorf("read the ledger: %w", setup(err))
	}
	if taken {
		return done, refuse("the ledger has entries of sink %s already: have them delivered, or discard them, before it gets those of %s", to, from)
	}
	tag, err := tx.Exec(ctx, renameEntriesSQL, from, to)
	if err != nil {
		return done, fmt.Errorf("rename the ledger's entries: %w", setup(err))
	}
	done.Entries, done.Slots = tag.RowsAffected(), []string{}
	if done.Entries == 0 && len(known) == 0 {
		return done, refuse("neither the ledger nor a relay's list of sinks has %s", from)
	}
	for _, n := range all {
		sinks, ok := known[n.Slot]
		if !ok {
			continue
		}
		var renamed []string
		for _, sink := range sinks {
			if sink == from {
				sink = to
			}
			if !slices.Contains(renamed, sink) {
				renamed = append(renamed, sink)
			}
		}
		if _, err := tx.Exec(ctx, `UPDATE saga_outbox_relay SET sinks = $2 WHERE slot = $1`, n.Slot, strings.Join(renamed, ",")); err != nil {
			return done, fmt.Errorf("note the new name: %w", setup(err))
		}
		done.Slots = append(done.Slots, n.Slot)
	}
	return done, nil
}

// noneDelivers wants that no relay which lives has one of the sinks, and that none which has comes
// until the transaction ends.
func noneDelivers(ctx context.Context, tx pgx.Tx, from, to string, refuse func(format string, args ...any) error) error {
	rows, err := tx.Query(ctx, lockSinksSQL, int64(sinkClass), []string{from, to})
	if err != nil {
		return fmt.Errorf("look for relays that have the sinks: %w", setup(err))
	}
	var sink, who string
	_, err = pgx.ForEachRow(rows, []any{&sink, &who}, func() error {
		return refuse("a relay that waits for a slot, or has one, delivers to sink %s: its session is %s. Stop the relays that have %s or %s, and run this again", sink, who, from, to)
	})
	if err != nil && !errors.Is(err, ErrRename) {
		return fmt.Errorf("look for relays that have the sinks: %w", setup(err))
	}
	return err
}

// LedgerSink is how many entries the ledger has of a sink.
type LedgerSink struct {
	Sink                     string
	Entries, Dead, Discarded int64
}

// LedgerSinks counts the ledger by sink.
func LedgerSinks(ctx context.Context, conn *pgx.Conn) ([]LedgerSink, error) {
	rows, err := conn.Query(ctx, `SELECT sink, count(*), count(*) FILTER (WHERE state = 'dead' AND NOT discarded), count(*) FILTER (WHERE discarded)
		FROM saga_outbox_delivery WHERE sink <> '`+relay.MarkSink+`' GROUP BY 1 ORDER BY 1`)
	if err != nil {
		return nil, fmt.Errorf("count the ledger: %w", setup(err))
	}
	counts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LedgerSink])
	if err != nil {
		return nil, fmt.Errorf("count the ledger: %w", setup(err))
	}
	return counts, nil
}
