package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// Changes lets the store take part in changes of the number of slots. create makes a shard's slot,
// or returns where the one begins that is there; nil where nothing is streamed. onlyStreams is that
// nothing may be polled (RELAY_MODE=cdc).
func (s *Store) Changes(create func(context.Context, relay.Shard) (relay.LSN, error), onlyStreams bool) {
	if create == nil {
		create = func(context.Context, relay.Shard) (relay.LSN, error) { return 0, nil }
	}
	s.create, s.onlyStreams = create, onlyStreams
}

// changer is what works on a change, while one is under way.
type changer struct {
	store  *Store
	log    hclog.Logger
	conn   *pgx.Conn
	said   string    // the slot that is waited for
	since  time.Time // it is
	logged time.Time
	unread map[string]time.Time // old slots that are not past the switch: since when they are not streamed
	idle   time.Time            // since when no old slot is streamed, at a try to make the new ones

	lives lives // of the changer, where that is another process; see outwait
}

// change works on changes until there is none, or ctx ends.
func (s *Store) change(ctx context.Context) {
	c := &changer{store: s, log: s.log.Named("change")}
	backoff := relay.Backoff{Min: s.cfg.AcquireInterval, Max: 5 * time.Second}
	for ctx.Err() == nil {
		err := c.connected(ctx, backoff.Reset)
		if err == nil || ctx.Err() != nil {
			return
		}
		wait := backoff.Next()
		c.log.Warn("the change of the number of slots does not go on", "error", err, "backoff", wait)
		relay.Sleep(ctx, wait)
	}
}

// waiting logs for whom the change waits, once that lasts, and then from time to time.
func (c *changer) waiting(ctx context.Context, set *TableSet, slot string) {
	if slot != c.said {
		c.said, c.since = slot, time.Now()
	}
	if time.Since(c.since) <= waitsLong || time.Since(c.logged) <= warnEvery {
		return
	}
	c.logged = time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
	defer cancel()
	waits := "the old slot " + slot
	if change, err := ReadChange(ctx, c.conn, set); err == nil && change != nil {
		waits = change.Waits()
	}
	c.log.Warn("the change of the number of slots takes long", "waits_for", waits, "switch", set.Switch, "for", time.Since(c.since).Round(time.Second))
}

// waitsLong is how long something may be waited for in silence.
const waitsLong = 5 * time.Second

// connected works on the change over one connection. It returns nil when there is none any more.
func (c *changer) connected(ctx context.Context, worked func()) (err error) {
	cfg := &c.store.cfg
	if c.conn, err = c.store.connect(ctx, "change "+cfg.Slot); err != nil {
		return err
	}
	defer func() { closeConn(c.conn) }()
	for noted := (time.Time{}); ; { // since when the change is under way that is noted to be ours
		set, mine, err := c.mine(ctx)
		switch {
		case err != nil:
			return err
		case set == nil || set.Target == 0 || set.Slot != cfg.Slot:
			return nil
		case mine && !noted.Equal(set.Since):
			if _, err := c.conn.Exec(ctx, changerSQL, c.store.storable(cfg.Owner)); err != nil {
				return fmt.Errorf("note who changes the number of slots: %w", setup(err))
			}
			noted = set.Since
			c.log.Info("changing the number of slots", "from", set.Shards, "to", set.Target, "state", set.State)
		case mine:
			err = c.step(ctx, set)
			c.noteTrouble(ctx, set, err)
		default:
			c.unread = nil
			err = c.outwait(ctx)
		}
		if err != nil {
			return err
		}
		worked()
		if !relay.Sleep(ctx, cfg.AcquireInterval) {
			return ctx.Err()
		}
	}
}

// step does what there is to do in the state that a change is in.
func (c *changer) step(ctx context.Context, set *TableSet) error {
	if set.State == SetMaking {
		return c.makeSlots(ctx, set)
	}
	if err := c.forgo(ctx, set); err != nil {
		return err
	}
	return c.switchOver(ctx, set)
}

// noteTrouble notes for all relays why a step has failed, or that none has.
func (c *changer) noteTrouble(ctx context.Context, set *TableSet, err error) {
	text := ""
	if err != nil {
		text = c.store.storable(validText(err.Error()))
	}
	if ctx.Err() != nil || text == set.Trouble {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
	defer cancel()
	if _, err := c.conn.Exec(ctx, troubleSQL, text); err != nil {
		c.log.Debug("noting why the change of the number of slots does not go on", "error", err)
	}
}

// mine reads the set, and reports whether we are the changer. Behind a pooler a session has no
// lock: each step is safe if two take it.
func (c *changer) mine(ctx context.Context) (set *TableSet, mine bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
	defer cancel()
	set, err = ReadSet(ctx, c.conn)
	if err != nil || set == nil || set.Target == 0 {
		return set, false, err
	}
	if isPooled(c.conn) {
		return set, true, nil
	}
	err = c.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE `+heldHere("$1")+` AND pid = pg_backend_pid()) OR pg_try_advisory_lock($1::bigint::int, 0)`, int64(changeClass)).Scan(&mine)
	if err != nil {
		return nil, false, fmt.Errorf("ask who changes the number of slots: %w", setup(err))
	}
	return set, mine, nil
}

// makeSlots makes the new slots, and notes where they begin.
func (c *changer) makeSlots(ctx context.Context, set *TableSet) error {
	target := set.target()
	names := target.Slots()
	if err := c.knowSystem(ctx, set); err != nil {
		return err
	}
	c.dropSlots(ctx, names) // of an earlier set; a new one begins here
	own := *set
	if still, err := c.locked(ctx, &own, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, newRowsSQL, names)
		return err
	}); !still || err != nil {
		return err
	}
	at := make([]relay.LSN, target.Shards)
	for i, shard := range target.All() {
		// The server waits for all transactions under way, and that has no limit.
		lsn, err := c.alive(ctx, set, func(ctx context.Context) (relay.LSN, error) { return c.store.create(ctx, shard) })
		if errors.Is(err, errGivenUp) {
			c.dropSlots(ctx, names)
			return nil
		}
		if problem := (*relay.SetupError)(nil); errors.As(err, &problem) && problem.Streaming {
			poll, err := c.mayPoll(ctx, set)
			if err != nil {
				return err
			}
			if poll {
				c.log.Warn("nothing can be streamed, so the new slots are not made", "error", problem)
				clear(at)
				break
			}
		}
		if err != nil {
			return fmt.Errorf("make slot %q: %w", shard.Slot, err)
		}
		at[i] = lsn
	}
	still, err := c.locked(ctx, &own, func(ctx context.Context, tx pgx.Tx) error {
		for i, name := range names {
			if _, err := tx.Exec(ctx, madeSQL, name, int64(at[i])); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, drainSQL, int64(slices.Max(at)))
		return err
	})
	switch {
	case err != nil:
		return err
	case !still: // given up meanwhile
		c.dropSlots(ctx, names)
		return nil
	}
	if slices.Max(at) > 0 {
		c.log.Info("the new slots are made", "slots", len(names), "switch", slices.Max(at))
	}
	return nil
}

// locked runs f in a transaction in which the change cannot be given up, and reports whether it is
// still in the state that we know.
func (c *changer) locked(ctx context.Context, set *TableSet, f func(context.Context, pgx.Tx) error) (still bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
	defer cancel()
	err = pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		now, err := scanSet(tx.QueryRow(ctx, readSetSQL+` FOR UPDATE`))
		if err != nil || now == nil || now.Set != set.Set || now.Target != set.Target || now.State != set.State || !now.Since.Equal(set.Since) {
			return err
		}
		still = true
		return f(ctx, tx)
	})
	if err != nil {
		return false, fmt.Errorf("note the new slots: %w", setup(err))
	}
	return still, nil
}

// dropSlots drops those slots whose rows have an heir.
func (c *changer) dropSlots(ctx context.Context, names []string) {
	ctx, cancel := context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
	defer cancel()
	for _, name := range names {
		if _, err := c.conn.Exec(ctx, dropSlotSQL, name); err != nil {
			c.log.Warn("a slot that nobody needs is not dropped", "slot", name, "error", err)
		}
	}
}

// switchOver makes the target the set, once all old slots have stopped.
func (c *changer) switchOver(ctx context.Context, set *TableSet) error {
	waits, moved := "", 0
	changed := false
	for _, slot := range set.Slots() { // of a relay that is no more; see endMarks
		if free, err := c.unowned(ctx, slot); err != nil {
			return err
		} else if !free {
			c.waiting(ctx, set, slot)
			return nil
		}
		if err := c.store.endMarks(ctx, c.conn, slot); err != nil {
			return err
		}
	}
	err := pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		bounded, cancel := context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
		defer cancel()
		err := c.store.lockSet(bounded, tx, set.Shard(0))
		if err != nil {
			return err
		}
		now, err := scanSet(tx.QueryRow(bounded, readSetSQL+` FOR UPDATE`))
		if err != nil || now == nil || now.Set != set.Set || now.Target != set.Target || now.State != SetDraining || !now.Since.Equal(set.Since) {
			return err
		}
		again, err := c.elsewhere(bounded, tx, now)
		if err != nil || again {
			return err
		}
		var old []slotSeen
		if old, waits, err = c.stopped(bounded, tx, now); err != nil || waits != "" {
			return err
		}
		moved, err = c.switchRows(ctx, tx, now, old)
		changed = err == nil
		return err
	})
	switch {
	case errors.Is(err, errTaken), errors.Is(err, relay.ErrSetChanged), sessions.Code(err) == sessions.LockNotAvailable:
		return nil
	case err != nil:
		return fmt.Errorf("switch to the new slots: %w", setup(err))
	case waits != "":
		c.waiting(ctx, set, waits)
	case changed:
		c.log.Info("the number of slots has changed", "from", set.Shards, "to", set.Target, "ledger_entries", moved)
	}
	return nil
}

// elsewhere reports whether the new slots were made in another cluster, or are not those of this
// set, which has got another name. Then they are made again.
func (c *changer) elsewhere(ctx context.Context, tx pgx.Tx, set *TableSet) (again bool, err error) {
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM saga_outbox_relay r, pg_control_system() s WHERE r.slot = ANY($1::text[]) AND r.system_id <> s.system_identifier)
		OR (SELECT count(*) FROM saga_outbox_relay WHERE slot = ANY($1::text[]) AND heir IS NULL) < cardinality($1::text[])`, set.target().Slots()).Scan(&again)
	if err == nil && again {
		_, err = tx.Exec(ctx, remakeSQL)
	}
	return again, err
}

// stopped returns the old slots, and one of them that has not stopped yet.
func (c *changer) stopped(ctx context.Context, tx pgx.Tx, set *TableSet) (old []slotSeen, waits string, err error) {
	rows, err := tx.Query(ctx, oldSlotsSQL, int64(lockClass), set.Slots(), int64(set.Switch))
	if err != nil {
		return nil, "", err
	}
	var s slotSeen
	var goesOn bool
	_, err = pgx.ForEachRow(rows, []any{&s.slot, &s.seen.owner, &s.seen.epoch, &s.seen.left, &goesOn}, func() error {
		if goesOn && waits == "" {
			waits = s.slot
		}
		old = append(old, s)
		return nil
	})
	return old, waits, err
}

// switchRows does what the switch is. Whoever marks by an old row holds its lock until that is
// committed, and finds another epoch afterwards.
func (c *changer) switchRows(ctx context.Context, tx pgx.Tx, set *TableSet, old []slotSeen) (moved int, err error) {
	target := set.target()
	heir := target.Shard(0)
	names := set.Slots()
	bounded, cancel := context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
	defer cancel()
	if _, err := tx.Exec(bounded, planSettingsSQL); err != nil {
		return 0, err
	}
	if _, err := tx.Exec(bounded, lockRowsSQL, names); err != nil {
		return 0, err
	}
	if _, err := tx.Exec(bounded, newSetSQL, target.Slots(), names, target.Generation); err != nil {
		return 0, err
	}
	for i := range old {
		var tag pgconn.CommandTag
		if tag, err = tx.Exec(bounded, bequeathSQL, old[i].slot, heir.Slot, old[i].seen.epoch); err != nil {
			return 0, err
		}
		if tag.RowsAffected() == 0 && !old[i].seen.left { // it is there, and is another's by now
			return 0, errTaken
		}
	}
	for i := range old {
		n, err := c.store.moveLedger(ctx, tx, heir, old[i].slot, 0, c.log)
		if moved += n; err != nil {
			return moved, err
		}
	}
	bounded, cancel = context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
	defer cancel()
	_, err = tx.Exec(bounded, switchSQL)
	return moved, err
}

// unowned reports whether no session has a slot's lock.
func (c *changer) unowned(ctx context.Context, slot string) (free bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
	defer cancel()
	if err := c.conn.QueryRow(ctx, `SELECT NOT `+lockHeld("$2"), int64(lockClass), slot).Scan(&free); err != nil {
		return false, fmt.Errorf("look whether slot %q has an owner: %w", slot, setup(err))
	}
	return free, nil
}

// knowSystem makes the old slots' positions those of this cluster, where they are of another.
func (c *changer) knowSystem(ctx context.Context, set *TableSet) error {
	ctx, cancel := context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
	defer cancel()
	for _, slot := range set.Slots() {
		var epoch int64
		err := c.conn.QueryRow(ctx, `SELECT coalesce(max(epoch), 0) FROM saga_outbox_relay WHERE slot = $1`, slot).Scan(&epoch)
		if err == nil {
			err = c.store.knowSystem(ctx, c.conn, slot, epoch, c.log)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
