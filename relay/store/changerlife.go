package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// errGivenUp ends what a changer does for a change that is given up.
var errGivenUp = errors.New("the change was given up")

// alive runs create, and asks from time to time meanwhile whether the change still goes on, so that
// the others see that we live.
func (c *changer) alive(ctx context.Context, set *TableSet, create func(context.Context) (relay.LSN, error)) (at relay.LSN, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		at, err = create(ctx)
	}()
	tick := time.NewTicker(c.store.cfg.LeaseTTL / 3)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return at, err
		case <-tick.C:
		}
		asking, stop := context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
		now, lost := ReadSet(asking, c.conn)
		stop()
		if lost == nil && (now == nil || now.Set != set.Set || now.Target != set.Target || !now.Since.Equal(set.Since)) {
			lost = errGivenUp
		}
		if lost != nil { // else with the connection the changer's lock is gone, too
			cancel()
			<-done
			return 0, lost
		}
	}
}

// outwait ends the session of a changer that has asked nothing for the time of a lease: its process
// is frozen, or cut off. Where we may not see what it asks, nothing is done.
func (c *changer) outwait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
	defer cancel()
	silent, since, err := c.lives.look(ctx, c.conn, changeClass, time.Now(), c.store.cfg.LeaseTTL, nil)
	if err != nil || silent == nil {
		return err
	}
	c.log.Warn("who changes the number of slots shows no sign of life, ending its session", "backend", silent[0], "for", time.Since(since).Round(time.Millisecond))
	c.lives = nil
	return endSessions(ctx, c.conn, silent)
}

// unreadLeases is for how many times RELAY_LEASE_TTL an old slot may not be streamed, before the
// change goes on without it.
const unreadLeases = 3

// mayPoll reports whether the new slots may begin without being streamed: nothing is streamed
// anyway, and has not been for long. Otherwise a person has to mend what keeps a new slot from being
// made, and the old ones go on meanwhile.
func (c *changer) mayPoll(ctx context.Context, set *TableSet) (bool, error) {
	if c.store.onlyStreams {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
	defer cancel()
	var streamed bool
	err := c.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = ANY($1::text[]) AND database = current_database() AND active)`, set.Slots()).Scan(&streamed)
	switch {
	case err != nil:
		return false, fmt.Errorf("look whether the old slots are streamed: %w", setup(err))
	case streamed:
		c.idle = time.Time{}
		return false, nil
	case c.idle.IsZero():
		c.idle = time.Now()
	}
	return time.Since(c.idle) > c.store.unreadFor, nil
}

// forgo puts the switch at 0 once an old slot that has not come to it has not been streamed for
// long: its owner polls. The new slots owe a sweep then.
func (c *changer) forgo(ctx context.Context, set *TableSet) error {
	bounded, cancel := context.WithTimeout(ctx, c.store.cfg.LeaseTTL)
	defer cancel()
	var unread []string
	if err := c.conn.QueryRow(bounded, unreadSQL, set.Slots(), int64(set.Switch)).Scan(&unread); err != nil {
		return fmt.Errorf("look whether the old slots are streamed: %w", setup(err))
	}
	slot, before := "", c.unread
	c.unread = make(map[string]time.Time)
	for _, name := range unread {
		since, was := before[name]
		if !was {
			since = time.Now()
		}
		if c.unread[name] = since; time.Since(since) > c.store.unreadFor {
			slot = name
		}
	}
	if slot == "" {
		return nil
	}
	still, err := c.locked(ctx, set, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sweepNewSQL, set.target().Slots())
		if err == nil {
			_, err = tx.Exec(ctx, forgoSQL)
		}
		return err
	})
	if still {
		c.log.Warn("an old slot is not streamed: the number of slots is changed without it, and the table is looked over", "slot", slot, "switch", set.Switch)
		set.Switch = 0
	}
	return err
}
