package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// A change of the number of slots, from the set that is to the target. Its state is in the row of
// saga_outbox_set, so that whoever comes next goes on with it. One relay at a time is the changer:
// it has the advisory lock of the change, and any may be it.
//
//	(none) ── BeginChange ──▶ making ── all new slots are there ──▶ draining ── all old slots have
//	   ▲                        │                                     │  stopped: the switch ──▶ (none)
//	   └──────── CancelChange ──┴─────────────────────────────────────┘
//
//   - making: the changer makes the new slots, which nobody reads yet, and their rows. The highest
//     position at which one of them begins is the switch.
//   - draining: the old slots go on until all of them have delivered and noted everything up to the
//     switch, and are given back. Then nobody takes them again. So what was committed before the
//     switch is delivered by the old slots, in the order of commits. No slot stops before the last
//     one is there: that one may have a large backlog, and the others' keys are not to wait for it.
//   - the switch is one transaction, behind the lock of the set, while no old slot has an owner. It
//     fences the old rows, gives each ledger entry to the slot of its key's shard, with its
//     position, and makes the target the set. The new rows are marked up to the WAL's end: what the
//     old slots have delivered past the switch comes again from the new ones, and is looked up.
//
// Where nothing can be streamed there are no slots to be made. The switch is at 0, so the old slots
// are given back at once, and the new rows owe a sweep.
//
// The crashes:
//
//   - of the changer, before the new slots are noted: the next one finds those that are there, and
//     makes the rest. Nobody has read them;
//   - of the changer, at any time after: what there is to do is in the database;
//   - of a changer that freezes: the others see that it asks nothing, and end its session;
//   - of an old owner, before all slots have passed the switch: another takes the slot, as ever, and
//     goes on. After it, and before it was released: another takes it, finds what was not marked, and
//     gives it back;
//   - of an old owner that freezes: it has the lock until its time is over, and nothing is switched
//     meanwhile. Then as above. When it wakes up after the switch, its epoch is gone;
//   - of the switch, before its commit: nothing has happened. After it: the set is another one;
//   - of a new slot, dropped by somebody before it is read: its first owner finds that it is gone,
//     and sweeps the table, as ever;
//   - of the stream of an old slot, whose owner polls now, or waits for somebody to fix something:
//     it does not come to the switch. After a while the switch is put at 0, as where nothing can be
//     streamed, and the new slots owe a sweep, which finds what the old one has not delivered;
//   - of a cancel, at any time before the switch: the new rows have an heir, and their slots are
//     dropped like those of any row with an heir. The old slots are free to be taken again;
//   - the database is restored in another cluster: the positions mean nothing, and making begins
//     again.

// changeClass is the class of the changer's advisory lock: "SAGC" in ASCII.
const changeClass = 0x53414743

const (
	beginChangeSQL = `UPDATE saga_outbox_set SET target = $1, state = '` + SetMaking + `', switch_lsn = NULL, since = now(), changer = NULL, trouble = NULL WHERE target IS NULL AND shards <> $1`

	endChangeSQL = `UPDATE saga_outbox_set SET target = NULL, state = NULL, switch_lsn = NULL, since = NULL, changer = NULL, trouble = NULL`

	changerSQL = `UPDATE saga_outbox_set SET changer = $1 WHERE target IS NOT NULL`

	troubleSQL = `UPDATE saga_outbox_set SET trouble = nullif($1, '') WHERE target IS NOT NULL AND trouble IS DISTINCT FROM nullif($1, '')`

	// disownSQL gives the new slots of a change that is given up an heir.
	disownSQL = `UPDATE saga_outbox_relay SET epoch = epoch + 1, heir = $2, owner = 'none: the change was given up', pooled = true, released_at = NULL, renewed_at = now() + interval '100 years'
		WHERE slot = ANY($1::text[]) AND heir IS NULL`

	// newRowsSQL makes the rows of the new slots $1, or takes those that are left of an earlier
	// set.
	newRowsSQL = `INSERT INTO saga_outbox_relay AS s (slot, shard, shards, epoch, owner, released_at, sweep_owed, sweep_cause, system_id, timeline)
		SELECT slot, n - 1, cardinality($1::text[]), 0, '', now(), false, '', (SELECT system_identifier FROM pg_control_system()), left(pg_walfile_name(pg_current_wal_lsn()), 8)
			FROM unnest($1::text[]) WITH ORDINALITY AS t (slot, n)
		ON CONFLICT (slot) DO UPDATE SET shard = excluded.shard, shards = excluded.shards, owner = '', pooled = false, released_at = now(), renewed_at = now(), heir = NULL, member = NULL,
			confirmed_lsn = '0/0', sweep_owed = false, sweep_cause = '', sweep_snapshot = NULL, sweep_lsn = NULL, doubt_since = NULL, system_id = excluded.system_id, timeline = excluded.timeline`

	madeSQL = `UPDATE saga_outbox_relay SET confirmed_lsn = '0/0'::pg_lsn + $2::numeric, sweep_owed = $2::numeric = 0, sweep_cause = CASE WHEN $2::numeric = 0 THEN 'not streamed' ELSE '' END WHERE slot = $1`

	drainSQL = `UPDATE saga_outbox_set SET state = '` + SetDraining + `', trouble = NULL, switch_lsn = '0/0'::pg_lsn + $1::numeric`

	// forgoSQL lets the old slots stop where they are; sweepNewSQL has their rows found.
	forgoSQL    = `UPDATE saga_outbox_set SET switch_lsn = '0/0'`
	sweepNewSQL = `UPDATE saga_outbox_relay SET sweep_owed = true, sweep_cause = 'not streamed', sweep_snapshot = NULL WHERE slot = ANY($1::text[]) AND heir IS NULL`

	remakeSQL = `UPDATE saga_outbox_set SET state = '` + SetMaking + `', switch_lsn = NULL`

	// switchSQL makes the target the set.
	switchSQL = `UPDATE saga_outbox_set SET shards = target, generation = generation + 1, target = NULL, state = NULL, switch_lsn = NULL, since = NULL, changer = NULL, trouble = NULL`

	lockRowsSQL = `SELECT slot FROM saga_outbox_relay WHERE slot = ANY($1::text[]) FOR UPDATE`

	// newSetSQL gives the new rows $1 what the old ones $2 leave.
	newSetSQL = `UPDATE saga_outbox_relay h SET epoch = (SELECT max(epoch) FROM saga_outbox_relay) + 1, marked_lsn = pg_current_wal_insert_lsn(), sinks = coalesce(o.sinks, h.sinks), generation = $3,
			sweep_owed = h.sweep_owed OR o.owed, sweep_cause = CASE WHEN o.owed THEN o.cause ELSE h.sweep_cause END
		FROM (SELECT (array_agg(sinks ORDER BY renewed_at DESC) FILTER (WHERE sinks IS NOT NULL))[1] AS sinks,
			bool_or(sweep_owed) OR count(*) < cardinality($2::text[]) AS owed, coalesce(max(sweep_cause) FILTER (WHERE sweep_owed), 'first start') AS cause
			FROM saga_outbox_relay WHERE slot = ANY($2::text[]) AND heir IS NULL) o WHERE h.slot = ANY($1::text[])`
)

// oldSlotsSQL is what keeps the old slots $2 from being switched: $3 is the switch.
var oldSlotsSQL = `SELECT n.slot, coalesce(r.owner, ''), coalesce(r.epoch, 0), r.slot IS NULL, ` + goesOn() + fromOldSQL

// goesOn is true for an old slot that has not stopped. One without a row, or whose row has an heir,
// is nobody's: a relay of another version has taken the table over. The switch waits for it only
// while it has to be read that far.
func goesOn() string {
	return `(r.slot IS NULL AND $3::numeric > 0 OR ` + lockHeld("n.slot") + ` OR r.slot IS NOT NULL AND r.released_at IS NULL
		OR coalesce(r.confirmed_lsn < '0/0'::pg_lsn + $3::numeric, false))`
}

const fromOldSQL = ` FROM unnest($2::text[]) WITH ORDINALITY AS n (slot, i) LEFT JOIN saga_outbox_relay r ON r.slot = n.slot AND r.heir IS NULL ORDER BY n.i`

// unreadSQL finds the old slots $1 that are not streamed, and have not come to the switch $2.
const unreadSQL = `SELECT coalesce(array_agg(n.slot), '{}') FROM unnest($1::text[]) AS n (slot) LEFT JOIN saga_outbox_relay r ON r.slot = n.slot AND r.heir IS NULL
		WHERE coalesce(r.confirmed_lsn, '0/0') < '0/0'::pg_lsn + $2::numeric AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.slot_name = n.slot AND s.active)`

// CheckChange looks whether the number of slots may be changed. It reports false where there is
// nothing to do: there are as many already, and no change is under way. One that is under way to
// another number is an error, one to the same is gone on with.
func CheckChange(ctx context.Context, conn *pgx.Conn, shards int) (todo bool, err error) {
	if shards < 1 || shards > relay.MaxShards {
		return false, &relay.SetupError{Problem: fmt.Sprintf("the table cannot be divided among %d slots", shards), Fix: fmt.Sprintf("1 to %d", relay.MaxShards)}
	}
	set, err := ReadSet(ctx, conn)
	switch {
	case err != nil:
		return false, err
	case set == nil:
		return false, &relay.SetupError{Problem: "nothing says how the table is divided", Fix: "run: sagaz-relay migrate"}
	case set.Target == shards:
		return true, nil
	case set.Target != 0:
		return false, &relay.SetupError{
			Problem: fmt.Sprintf("the number of slots is being changed from %d to %d", set.Shards, set.Target),
			Fix:     fmt.Sprintf("wait until that is through, or give it up: sagaz-relay migrate --shards %d", set.Shards),
		}
	case set.Shards == shards:
		return false, nil
	}
	return true, mayChange(ctx, conn, set, shards)
}

// BeginChange asks for another number of slots, after CheckChange. Who works as a relay makes the
// change; ReadSet shows how far it is. The publications of the new slots have to be there.
func BeginChange(ctx context.Context, conn *pgx.Conn, shards int) (begun bool, err error) {
	if todo, err := CheckChange(ctx, conn, shards); !todo || err != nil {
		return false, err
	}
	if _, err := conn.Exec(ctx, beginChangeSQL, shards); err != nil {
		return false, fmt.Errorf("begin to change the number of slots: %w", setup(err))
	}
	set, err := ReadSet(ctx, conn)
	if err == nil && set != nil && set.Target != shards {
		err = errors.New("another change of the number of slots has begun in this moment")
	}
	return err == nil, err
}

// longestName is how long PostgreSQL lets a slot's name be.
const longestName = 63

// mayChange looks for what would keep the new slots from being made.
func mayChange(ctx context.Context, conn *pgx.Conn, set *TableSet, shards int) error {
	if err := divisible(ctx, conn, shards); err != nil {
		return err
	}
	target := set.Set
	target.Shards = shards
	last := target.Shard(shards - 1)
	for _, name := range []struct{ variable, name string }{{"RELAY_SLOT", last.Slot}, {"RELAY_PUBLICATION", last.Publication}} {
		if len(name.name) > longestName {
			return &relay.SetupError{Problem: fmt.Sprintf("the name %s has %d characters, and PostgreSQL takes %d", name.name, len(name.name), longestName), Fix: "set a shorter " + name.variable + " first"}
		}
	}
	return room(ctx, conn, set, target)
}

// roomSQL is how many replication slots and walsenders others use, $1 are the slots now and $2 the
// new ones, and how many there may be. Where nothing can be streamed there is room.
const roomSQL = `SELECT current_setting('wal_level') = 'logical', (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> ALL($2::text[])), current_setting('max_replication_slots')::int,
	(SELECT count(*) FROM pg_stat_replication) - (SELECT count(*) FROM pg_replication_slots WHERE slot_name = ANY($1::text[]) AND active), current_setting('max_wal_senders')::int`

// room looks whether the server has room for the new slots. Old and new ones are there together. Of
// the walsenders one more is needed, to make the new ones while the old ones are read, and the new
// ones are read when the old ones are not any more.
func room(ctx context.Context, conn *pgx.Conn, set *TableSet, target relay.Set) error {
	var streams bool
	var slots, mostSlots, senders, mostSenders int
	if err := conn.QueryRow(ctx, roomSQL, set.Slots(), target.Slots()).Scan(&streams, &slots, &mostSlots, &senders, &mostSenders); err != nil {
		return fmt.Errorf("count the server's slots: %w", setup(err))
	}
	shards := target.Shards
	needed := senders + max(set.Shards+1, shards)
	switch {
	case !streams:
		return nil
	case mostSlots-slots < shards:
		return &relay.SetupError{
			Problem: fmt.Sprintf("the change makes %s next to the %d that are there, and the server has room for %d (max_replication_slots = %d)", relay.SlotsText(shards), slots, mostSlots-slots, mostSlots),
			Fix:     fmt.Sprintf("ALTER SYSTEM SET max_replication_slots = %d; and restart PostgreSQL; or drop slots that nobody needs", slots+shards),
		}
	case mostSenders < needed:
		return &relay.SetupError{
			Problem: fmt.Sprintf("to change %d slots to %d takes %d walsenders, others use %d, and max_wal_senders is %d", set.Shards, shards, needed-senders, senders, mostSenders),
			Fix:     fmt.Sprintf("ALTER SYSTEM SET max_wal_senders = %d; and restart PostgreSQL", needed),
		}
	}
	return nil
}

// CancelChange gives a change up that is under way, and reports whether there was one. What was
// made for it is dropped by the relays.
func CancelChange(ctx context.Context, conn *pgx.Conn) (was bool, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		set, err := scanSet(tx.QueryRow(ctx, readSetSQL+` FOR UPDATE`))
		if err != nil || set == nil || set.Target == 0 {
			return err
		}
		was = true
		if _, err := tx.Exec(ctx, disownSQL, set.target().Slots(), set.Shard(0).Slot); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, endChangeSQL)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("give the change of the number of slots up: %w", setup(err))
	}
	return was, nil
}

// target is the set that a change leads to.
func (s *TableSet) target() *relay.Set {
	target := s.Set
	target.Shards, target.Generation = s.Target, s.Generation+1
	return &target
}
