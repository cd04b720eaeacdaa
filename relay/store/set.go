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

// One table has one set of slots: those that saga_outbox_set names, and of which each delivers the
// keys of its shard. Rows of saga_outbox_relay without an heir are slots that somebody delivers
// through.
//
// Taking a lease looks at the set and at all rows, in the same transaction and behind a lock of the
// set. So two of these cannot miss each other. A slot of another name (RELAY_SLOT), or of a relay
// that knows no shards, is not of our set. If it has an owner that is alive, nothing is taken: both
// would deliver the same events. If none has, RELAY_SLOT was changed, or another version was here,
// and our set inherits. The old rows get an heir and an epoch that fences a zombie. Their ledger
// entries go in front of ours, each to the slot of its key's shard, and our rows get marked_lsn and
// owe a sweep. One transaction, so there is no crash in its middle:
//
//   - before its commit: the old rows have no heir, everything is as it was, and the next to take a
//     lease does all of it;
//   - after it, before an old replication slot is dropped: the row with an heir shows that the slot
//     is not needed. The owners drop the slots of such rows, but only once all slots of the set
//     stream and owe no sweep. RELAY_SLOT may be mistyped, and name slots that are of no use to us.
//     Until then they hold back WAL, and have no other effect;
//   - after it, before the others of our set are taken: their rows are there, with all that they
//     inherit;
//   - an owner of an old slot that was frozen since before: its epoch is gone, its marks are
//     refused, and it stops;
//   - back to the old name: the old rows lose their heirs, and inherit from those that had
//     inherited.
//
// An event that the old owner had published and not marked is pending, and found by the sweep. What
// it had marked, its own slot may deliver again, which does not matter: nothing reads that slot any
// more. What the new slot delivers of it, if that existed, is looked up, because it is not past
// marked_lsn.
//
// A relay of a version before this one knows no set. While it owns its slot we wait as standby,
// like for any other. Once its slot has an heir its row looks as if an owner behind a pooler had
// it: so that relay waits as standby, too. While relays of ours own slots it sees these, and waits;
// when none does, it takes over all that they have left.

// setClass is the class of the advisory lock behind which leases of any slot are taken: "SAGS" in
// ASCII.
const setClass = 0x53414753

// othersSQL returns the slots that are not of the set with the names $2, the newest first, but for
// those that a change of the set makes.
var othersSQL = `SELECT r.slot, r.owner, r.epoch, extract(epoch FROM r.renewed_at)::text, r.pooled, r.released_at IS NOT NULL, coalesce(r.member, 0), r.taken_at, r.shard, r.shards, ` + lockHeld("r.slot") + `
	FROM saga_outbox_relay r, saga_outbox_set s WHERE r.slot <> ALL($2::text[]) AND r.heir IS NULL
		AND NOT (s.target IS NOT NULL AND r.shards = s.target AND starts_with(r.slot, s.slot)) ORDER BY r.renewed_at DESC, r.slot`

// shareSetSQL keeps the set as it is until the end of the transaction, nameSetSQL names it. By a
// change that is under way new slots of the new name are made, then.
const (
	shareSetSQL = readSetSQL + ` FOR SHARE`
	nameSetSQL  = `UPDATE saga_outbox_set SET publication = coalesce(nullif($2, ''), publication), state = CASE WHEN slot = $1 THEN state WHEN target IS NOT NULL THEN '` + SetMaking + `' END,
		switch_lsn = CASE WHEN slot = $1 THEN switch_lsn END, slot = $1`
)

const (
	// bequeathSQL fences the owners of slot $1 and makes $2 its heir. A relay that knows no heirs
	// takes the row for that of a living owner behind a pooler, and does not take the slot.
	bequeathSQL = `UPDATE saga_outbox_relay SET epoch = epoch + 1, heir = $2, owner = 'none: its work went to slot ' || $2, pooled = true, released_at = NULL,
			renewed_at = now() + interval '100 years', sweep_owed = true, sweep_cause = 'renamed', sweep_snapshot = NULL
		WHERE slot = $1 AND epoch = $3 AND heir IS NULL`

	// fellowsSQL makes the rows of a set's slots $1 that are not there yet.
	fellowsSQL = `INSERT INTO saga_outbox_relay (slot, shard, shards, epoch, owner, released_at)
		SELECT slot, n - 1, cardinality($1::text[]), 0, '', now() FROM unnest($1::text[]) WITH ORDINALITY AS s (slot, n) ON CONFLICT (slot) DO NOTHING`

	// inheritSQL is what a row of ours, one of $3, has of the old one. The WAL does not end before
	// what either has marked. $1 is the slot that is being taken. The others have no owner by now,
	// or one that does not know of all this: their epochs move, too.
	inheritSQL = `UPDATE saga_outbox_relay h SET marked_lsn = greatest(h.marked_lsn, o.marked_lsn), generation = greatest(h.generation, o.generation + 1), sinks = coalesce(o.sinks, h.sinks),
			epoch = greatest(h.epoch, o.epoch) + CASE WHEN h.slot = $1 THEN 0 ELSE 1 END, sweep_owed = true, sweep_cause = 'renamed', sweep_snapshot = NULL, doubt_since = least(o.doubt_since, h.doubt_since),
			system_id = coalesce(h.system_id, o.system_id), timeline = coalesce(h.timeline, o.timeline),
			pooled = h.pooled AND h.heir IS NULL, released_at = CASE WHEN h.heir IS NULL THEN h.released_at ELSE now() END,
			renewed_at = CASE WHEN h.heir IS NULL THEN h.renewed_at ELSE now() END, heir = NULL
		FROM saga_outbox_relay o WHERE h.slot = ANY($3::text[]) AND o.slot = $2`

	// frontSQL is by how much the entries of slot $2 have to move to be in front of those of $1.
	frontSQL = `SELECT CASE WHEN theirs >= ours THEN ours - theirs - 1 ELSE 0 END FROM (SELECT (SELECT min(position) FROM saga_outbox_delivery WHERE slot = ANY($1::text[])) AS ours,
		(SELECT max(position) FROM saga_outbox_delivery WHERE slot = $2) AS theirs) p WHERE theirs IS NOT NULL`

	moveAtOnce = 20_000

	// abandonedSQL finds the replication slots that are not needed: those of ours that have an
	// heir.
	abandonedSQL = `SELECT s.slot_name, s.active FROM pg_replication_slots s JOIN saga_outbox_relay r ON r.slot = s.slot_name
		WHERE r.heir IS NOT NULL AND s.slot_type = 'logical' AND s.plugin = 'pgoutput' AND s.database = current_database()`
	// streamingSQL is true when the slots of the owner's set, $3, are of use: they are read, and
	// the rows that they do not deliver were found.
	streamingSQL = `SELECT count(*) = cardinality($3::text[]) AND coalesce(bool_or(r.slot = $1 AND r.epoch = $2), false) FROM pg_replication_slots s JOIN saga_outbox_relay r ON r.slot = s.slot_name
		WHERE r.slot = ANY($3::text[]) AND NOT r.sweep_owed AND s.active AND s.slot_type = 'logical' AND s.plugin = 'pgoutput' AND s.database = current_database()`
	// dropSlotSQL looks again whether it is not needed: it may be that of a new set by now.
	dropSlotSQL = `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active AND database = current_database() AND plugin = 'pgoutput'
		AND EXISTS (SELECT FROM saga_outbox_relay WHERE slot = $1 AND heir IS NOT NULL)`
	// dropOriginSQL drops the slot's origin. A role may lack the right.
	dropOriginSQL = `SELECT pg_replication_origin_drop(o.roname) FROM pg_replication_origin o, pg_database d
		WHERE d.datname = current_database() AND o.roname = 'sagaz_relay_' || d.oid || '_' || $1::text`
)

// moveSQL gives us $6 entries of slot $2, by key from the last on, with the others of the last
// one's event, and returns the last of these. They go to slot $1, or to that of the key's shard
// of $7, whose name begins so. An entry that a person's SQL changes in that moment is moved as
// well: nothing comes back for one that is left.
var moveSQL = `WITH part AS (SELECT event_id, sink FROM saga_outbox_delivery WHERE slot = $2 AND (event_id, sink) > ($4::uuid, $5::text) ORDER BY event_id, sink LIMIT $6),
		moved AS (UPDATE saga_outbox_delivery d SET slot = $1::text || CASE WHEN $7::integer > 1 THEN '_' || ` + shardOf + ` || 'of' || $7::integer ELSE '' END, position = d.position + $3 WHERE d.event_id = ANY(ARRAY(SELECT event_id FROM part)) AND d.slot = $2 RETURNING true)
		SELECT event_id::text, sink, (SELECT count(*) FROM moved) FROM part ORDER BY event_id DESC, sink DESC LIMIT 1`

// shardOf is the shard of an entry's key, of $7.
var shardOf = relay.ShardSQL("d.partition_key", "$7::integer")

// lockSet keeps everybody else from taking a lease of any slot, looks whether ours is of the set
// still, and gives the set our name. Where others of another name live, that is undone with the
// transaction. errSetBusy means that another relay is about to take one.
func (s *Store) lockSet(ctx context.Context, tx pgx.Tx, shard relay.Shard) error {
	var first bool
	if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1, 0)`, int32(setClass)).Scan(&first); err != nil {
		return fmt.Errorf("lock the set of slots: %w", setup(err))
	}
	if !first {
		return errSetBusy
	}
	set, err := scanSet(tx.QueryRow(ctx, shareSetSQL))
	own := &shard.Set
	switch {
	case err != nil:
		return err
	case set == nil:
		return errTaken
	case set.Shards != own.Shards || own.Generation != 0 && set.Generation != own.Generation:
		return relay.ErrSetChanged
	case set.Slot == own.Slot && (set.Publication == own.Publication || own.Publication == ""):
		return nil
	}
	if _, err := tx.Exec(ctx, nameSetSQL, own.Slot, own.Publication); err != nil {
		return fmt.Errorf("name the set of slots: %w", setup(err))
	}
	return nil
}

// others returns the slots that are not of our set, behind the lock of the set. errTaken means that
// one of them has an owner that is alive. The roster reports that one (session.living).
func (s *Store) others(ctx context.Context, tx pgx.Tx, shard relay.Shard, judged map[string]sighting) (all []slotSeen, err error) {
	rows, err := tx.Query(ctx, othersSQL, int64(lockClass), shard.Set.Slots())
	if err != nil {
		return nil, fmt.Errorf("look for other slots of the table: %w", setup(err))
	}
	var m slotSeen
	_, err = pgx.ForEachRow(rows, []any{
		&m.slot, &m.seen.owner, &m.seen.epoch, &m.seen.renewed, &m.seen.pooled, &m.seen.left, &m.seen.member, &m.taken, &m.shard, &m.shards, &m.locked,
	}, func() error {
		all = append(all, m)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for other slots of the table: %w", setup(err))
	}
	for _, m := range all {
		if m.locked || m.seen.pooled && !m.seen.left && judged[m.slot] != m.seen {
			return nil, errTaken
		}
	}
	return all, nil
}

// inherit takes over what other slots have left, the newest first, each in front of what is there.
// It may move a large ledger, piece by piece: each statement is a sign of life for those who wait
// for the lease.
func (s *Store) inherit(ctx context.Context, tx pgx.Tx, shard relay.Shard, all []slotSeen, log hclog.Logger) error {
	for i := range all {
		m := &all[i]
		heir := shard.Set.Shard(0).Slot
		if m.shards == shard.Set.Shards {
			heir = shard.Set.Shard(m.shard).Slot
		}
		tag, err := tx.Exec(ctx, bequeathSQL, m.slot, heir, m.seen.epoch)
		if err == nil && tag.RowsAffected() == 0 {
			return errTaken
		}
		if err != nil {
			return fmt.Errorf("inherit from slot %q: %w", m.slot, setup(err))
		}
		moved, err := s.inheritLedger(ctx, tx, shard, m.slot, log)
		if err != nil {
			return fmt.Errorf("inherit the ledger of slot %q: %w", m.slot, setup(err))
		}
		log.Warn("the table had another slot, whose owner is gone: this one takes over", "from", m.slot, "last_owner", m.seen.owner, "ledger_entries", moved)
	}
	return nil
}

// inheritRows gives the rows of our set what they have of another one.
func (s *Store) inheritRows(ctx context.Context, tx pgx.Tx, shard relay.Shard, from *slotSeen) error {
	slots := []string{shard.Slot}
	if from.seen.epoch > 0 { // else it had no owner, and nothing has to be found again for the others
		slots = shard.Set.Slots()
		if _, err := tx.Exec(ctx, fellowsSQL, slots); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, inheritSQL, shard.Slot, from.slot, slots)
	return err
}

func (s *Store) inheritLedger(ctx context.Context, tx pgx.Tx, shard relay.Shard, from string, log hclog.Logger) (moved int, err error) {
	bounded := func(sql string, args []any, dest ...any) error {
		ctx, cancel := context.WithTimeout(ctx, 10*s.cfg.LeaseTTL)
		defer cancel()
		return tx.QueryRow(ctx, sql, args...).Scan(dest...)
	}
	if _, err := tx.Exec(ctx, planSettingsSQL); err != nil {
		return 0, err
	}
	var by *int64
	if err := bounded(frontSQL, []any{shard.Set.Slots(), from}, &by); errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	if by == nil {
		by = new(int64)
	}
	return s.moveLedger(ctx, tx, shard, from, *by, log)
}

// moveLedger moves the entries of a slot to those of the shard's set, and by so much.
func (s *Store) moveLedger(ctx context.Context, tx pgx.Tx, shard relay.Shard, from string, by int64, log hclog.Logger) (moved int, err error) {
	bounded := func(sql string, args []any, dest ...any) error {
		ctx, cancel := context.WithTimeout(ctx, 10*s.cfg.LeaseTTL)
		defer cancel()
		return tx.QueryRow(ctx, sql, args...).Scan(dest...)
	}
	last, sink, logged := "00000000-0000-0000-0000-000000000000", "", time.Now()
	for {
		var n int
		err := bounded(moveSQL, []any{shard.Set.Slot, from, by, last, sink, moveAtOnce, shard.Set.Shards}, &last, &sink, &n)
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

// dropAbandoned drops the replication slots that have an heir, now or whenever there may be some.
// It is the affair of the first shard's owner.
func (l *lease) dropAbandoned(ctx context.Context) {
	if l.heirs {
		l.dropAll(ctx)
	}
	for {
		select {
		case <-l.abandoned:
			l.dropAll(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// dropAll drops them until no such slot is left. What keeps it from that for a minute is logged,
// once.
func (l *lease) dropAll(ctx context.Context) {
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
	err = l.onConn(ctx, "prune", func(ctx context.Context, conn *pgx.Conn) error {
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
			err = conn.QueryRow(ctx, streamingSQL, l.slot, l.epoch, l.shard.Set.Slots()).Scan(&streaming)
		}
		for _, name := range idle {
			if err != nil || !streaming {
				break
			}
			if _, err = conn.Exec(ctx, dropSlotSQL, name); err == nil {
				_, _ = conn.Exec(ctx, dropOriginSQL, name) // it is only one that nobody needs
				l.log.Info("dropped the replication slot of which this one has taken over", "dropped", name)
				left = slices.DeleteFunc(left, func(s string) bool { return s == name })
			}
		}
		return err
	})
	return left, streaming, err
}
