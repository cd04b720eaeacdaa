package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// One table has one set of slots: the rows of saga_outbox_relay without an heir. For now a set is
// one slot.
//
// Taking a lease looks at all rows, in the same transaction and behind a lock of the set. So two of
// these cannot miss each other. If a slot of another name has an owner that is alive, nothing is
// taken: both would deliver every event. If its owner is gone, the slot was renamed (RELAY_SLOT),
// and the new one inherits. The old row gets its heir and an epoch that fences a zombie. Its ledger
// entries go in front of ours, and our row gets its marked_lsn and owes a sweep. One transaction,
// so there is no crash in its middle:
//
//   - before its commit: the old row has no heir, everything is as it was, and the next to take the
//     lease does all of it;
//   - after it, before the old replication slot is dropped: the row with an heir shows that the
//     slot is not needed. Every owner drops the slots of such rows, but only once its own streams
//     and no sweep is owed. RELAY_SLOT may be mistyped, and name a slot that is of no use to us.
//     Until then they hold back WAL, and have no other effect;
//   - an owner of the old slot that was frozen since before: its epoch is gone, its marks are
//     refused, and it stops;
//   - back to the old name: the old row loses its heir, and inherits from the one that had
//     inherited.
//
// An event that the old owner had published and not marked is pending, and found by the sweep. What
// it had marked, its own slot may deliver again, which does not matter: nothing reads that slot any
// more. What the new slot delivers of it, if that existed, is looked up, because it is not past
// marked_lsn.
//
// A relay of a version before this one knows no set. While it owns its slot we wait as standby,
// like for any other. Once its slot has an heir its row looks as if an owner behind a pooler had
// it: so that relay waits as standby, too.

// setClass is the class of the advisory lock behind which leases of any slot are taken: "SAGS" in
// ASCII.
const setClass = 0x53414753

// othersSQL returns the other slots of the set, the newest first.
var othersSQL = `SELECT slot, owner, epoch, extract(epoch FROM renewed_at)::text, pooled, released_at IS NOT NULL, taken_at, ` + lockHeld("slot") + `
	FROM saga_outbox_relay WHERE slot <> $2 AND heir IS NULL ORDER BY renewed_at DESC, slot`

const (
	// bequeathSQL fences the owners of slot $1 and makes $2 its heir. A relay that knows no heirs
	// takes the row for that of a living owner behind a pooler, and does not take the slot.
	bequeathSQL = `UPDATE saga_outbox_relay SET epoch = epoch + 1, heir = $2, owner = 'none: its work went to slot ' || $2, pooled = true, released_at = NULL,
			renewed_at = now() + interval '100 years', sweep_owed = true, sweep_cause = 'renamed', sweep_snapshot = NULL
		WHERE slot = $1 AND epoch = $3 AND heir IS NULL`

	// inheritSQL is what our row has of the old one. The WAL does not end before what either has
	// marked.
	inheritSQL = `UPDATE saga_outbox_relay h SET marked_lsn = greatest(h.marked_lsn, o.marked_lsn), generation = greatest(h.generation, o.generation + 1), sinks = coalesce(o.sinks, h.sinks),
			epoch = greatest(h.epoch, o.epoch), sweep_owed = true, sweep_cause = 'renamed', sweep_snapshot = NULL
		FROM saga_outbox_relay o WHERE h.slot = $1 AND o.slot = $2`

	// frontSQL is by how much the entries of slot $2 have to move to be in front of those of $1.
	frontSQL = `SELECT CASE WHEN theirs >= ours THEN ours - theirs - 1 ELSE 0 END FROM (SELECT (SELECT min(position) FROM saga_outbox_delivery WHERE slot = $1) AS ours,
		(SELECT max(position) FROM saga_outbox_delivery WHERE slot = $2) AS theirs) p WHERE theirs IS NOT NULL`

	// moveSQL gives us $6 entries of slot $2, by key from the last on, with the others of the last
	// one's event, and returns the last of these. An entry that a person's SQL changes in that
	// moment is moved as well: nothing comes back for one that is left.
	moveSQL = `WITH part AS (SELECT event_id, sink FROM saga_outbox_delivery WHERE slot = $2 AND (event_id, sink) > ($4::uuid, $5::text) ORDER BY event_id, sink LIMIT $6),
		moved AS (UPDATE saga_outbox_delivery d SET slot = $1, position = d.position + $3 WHERE d.event_id = ANY(ARRAY(SELECT event_id FROM part)) AND d.slot = $2 RETURNING true)
		SELECT event_id::text, sink, (SELECT count(*) FROM moved) FROM part ORDER BY event_id DESC, sink DESC LIMIT 1`
	moveAtOnce = 20_000

	// abandonedSQL finds the replication slots that are not needed: those of ours that have an
	// heir.
	abandonedSQL = `SELECT s.slot_name, s.active FROM pg_replication_slots s JOIN saga_outbox_relay r ON r.slot = s.slot_name
		WHERE r.heir IS NOT NULL AND s.slot_type = 'logical' AND s.plugin = 'pgoutput' AND s.database = current_database()`
	// streamingSQL is true when the owner's own slot is of use: it is read, and the rows that it
	// does not deliver were found.
	streamingSQL = `SELECT EXISTS (SELECT FROM pg_replication_slots s JOIN saga_outbox_relay r ON r.slot = s.slot_name
		WHERE r.slot = $1 AND r.epoch = $2 AND NOT r.sweep_owed AND s.active AND s.slot_type = 'logical' AND s.plugin = 'pgoutput' AND s.database = current_database())`
	dropSlotSQL = `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active AND database = current_database() AND plugin = 'pgoutput'`
)

// member is another slot of the set.
type member struct {
	slot     string
	seen     sighting
	released bool
	taken    time.Time
	locked   bool
}

// occupied is the error that a relay which is alive owns this slot of the same table.
func (m *member) occupied() error {
	return &relay.OccupiedError{Slot: m.slot, Owner: m.seen.owner, Taken: m.taken, Found: time.Now()}
}

// rivals watches the other slots' owners by our own clock.
type rivals map[string]*rival

func (r rivals) of(slot string) *rival {
	if r[slot] == nil {
		r[slot] = &rival{}
	}
	return r[slot]
}

// others returns the other slots of the set. Behind the lock of the set no lease is taken
// meanwhile; errTaken means that another relay is about to take one.
func (s *Store) others(ctx context.Context, tx pgx.Tx, slot string) (all []member, err error) {
	var first bool
	if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1, 0)`, int32(setClass)).Scan(&first); err != nil {
		return nil, fmt.Errorf("lock the set of slots: %w", setup(err))
	}
	if !first {
		return nil, errTaken
	}
	rows, err := tx.Query(ctx, othersSQL, int64(lockClass), slot)
	if err != nil {
		return nil, fmt.Errorf("look for other slots of the table: %w", setup(err))
	}
	var m member
	_, err = pgx.ForEachRow(rows, []any{&m.slot, &m.seen.owner, &m.seen.epoch, &m.seen.renewed, &m.seen.pooled, &m.released, &m.taken, &m.locked}, func() error {
		all = append(all, m)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for other slots of the table: %w", setup(err))
	}
	return all, nil
}

// living returns the first member whose owner is alive. That one has its lock, or, behind a pooler,
// was renewed within the time of a lease by our own clock. An owner that has a lock and does not
// renew is frozen: its connections are ended, as for our own slot.
func (s *Store) living(ctx context.Context, conn *pgx.Conn, all []member, watched rivals, at time.Time) (*member, error) {
	for i := range all {
		m := &all[i]
		if !m.locked && (!m.seen.pooled || m.released) {
			continue
		}
		w := watched.of(m.slot)
		stale := w.see(m.seen, at)
		if !m.locked {
			if stale > s.cfg.LeaseTTL {
				continue
			}
			return m, nil
		}
		_, err := s.outwait(ctx, conn, m.slot, w, at, func(stale time.Duration) {
			s.log.Warn("the owner of another slot of the table has not renewed its lease, ending its connections", "slot", m.slot, "owner", m.seen.owner, "for", stale)
		})
		return m, err
	}
	return nil, nil
}

// inherit takes over what other slots have left, the newest first, each in front of what is there.
// It may move a large ledger, piece by piece: each statement is a sign of life for those who wait
// for the lease.
func (s *Store) inherit(ctx context.Context, tx pgx.Tx, slot string, all []member, log hclog.Logger) error {
	for _, m := range all {
		tag, err := tx.Exec(ctx, bequeathSQL, m.slot, slot, m.seen.epoch)
		if err == nil && tag.RowsAffected() == 0 {
			return errTaken
		}
		if err != nil {
			return fmt.Errorf("inherit from slot %q: %w", m.slot, setup(err))
		}
		moved, err := s.inheritLedger(ctx, tx, slot, m.slot, log)
		if err != nil {
			return fmt.Errorf("inherit the ledger of slot %q: %w", m.slot, setup(err))
		}
		log.Warn("the table had another slot, whose owner is gone: this one takes over", "from", m.slot, "last_owner", m.seen.owner, "ledger_entries", moved)
	}
	return nil
}

func (s *Store) inheritLedger(ctx context.Context, tx pgx.Tx, slot, from string, log hclog.Logger) (moved int, err error) {
	bounded := func(sql string, args []any, dest ...any) error {
		ctx, cancel := context.WithTimeout(ctx, 10*s.cfg.LeaseTTL)
		defer cancel()
		return tx.QueryRow(ctx, sql, args...).Scan(dest...)
	}
	if _, err := tx.Exec(ctx, planSettingsSQL); err != nil {
		return 0, err
	}
	var by *int64
	if err := bounded(frontSQL, []any{slot, from}, &by); errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	if by == nil {
		by = new(int64)
	}
	last, sink, logged := "00000000-0000-0000-0000-000000000000", "", time.Now()
	for {
		var n int
		err := bounded(moveSQL, []any{slot, from, *by, last, sink, moveAtOnce}, &last, &sink, &n)
		if errors.Is(err, pgx.ErrNoRows) {
			return moved, nil
		}
		if err != nil {
			return moved, err
		}
		if moved += n; time.Since(logged) > progressEvery {
			logged = time.Now()
			log.Info("taking over the ledger of another slot", "from", from, "entries", moved)
		}
	}
}

// progressEvery is how often work that takes long is logged.
const progressEvery = 5 * time.Second

// dropAbandoned drops the replication slots that have an heir, until no such slot is left. What
// keeps it from that for a minute is logged, once.
func (l *lease) dropAbandoned(ctx context.Context) {
	logged := false
	// No relay.Retry: that some are left is no error, but what is waited for.
	for began := time.Now(); ; {
		left, streaming, err := l.dropOnce(ctx)
		if ctx.Err() != nil || err == nil && len(left) == 0 {
			return
		}
		refused := err != nil && setup(err) != err // a right that we lack does not come by itself
		if !logged && (refused || time.Since(began) > time.Minute) {
			logged = true
			why := "it is in use"
			if !streaming {
				why = "slot " + l.slot + " does not stream yet"
			}
			l.log.Warn("a replication slot whose work another one has taken over holds back WAL, and is not dropped", "slots", strings.Join(left, ","), "why", why, "error", err,
				"fix", "if RELAY_SLOT is what it should be, as the slot's owner or a superuser: SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name IN ('"+strings.Join(left, "', '")+"')")
		}
		if refused || !relay.Sleep(ctx, 2*time.Second) {
			return
		}
	}
}

// dropOnce drops what can be dropped, and returns what is left, and whether our own slot is of use.
func (l *lease) dropOnce(ctx context.Context) (left []string, streaming bool, err error) {
	err = l.onConn(ctx, "set", func(ctx context.Context, conn *pgx.Conn) error {
		ctx, cancel := context.WithTimeout(ctx, factMost)
		defer cancel()
		var name string
		var active bool
		var idle []string
		err := each(ctx, conn, []any{&name, &active}, func() error {
			left = append(left, name)
			if !active {
				idle = append(idle, name)
			}
			return nil
		}, abandonedSQL)
		if err == nil && len(left) > 0 {
			err = conn.QueryRow(ctx, streamingSQL, l.slot, l.epoch).Scan(&streaming)
		}
		for _, name := range idle {
			if err != nil || !streaming {
				break
			}
			if _, err = conn.Exec(ctx, dropSlotSQL, name); err == nil {
				l.log.Info("dropped the replication slot of which this one has taken over", "dropped", name)
				left = slices.DeleteFunc(left, func(s string) bool { return s == name })
			}
		}
		return err
	})
	return left, streaming, err
}
