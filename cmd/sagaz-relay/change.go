package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

// change has the relays divide the table among another number of slots.
func (m *migration) change(ctx context.Context, conn *pgx.Conn, old *store.TableSet, report func(format string, args ...any)) error {
	if m.shards == old.Shards {
		was, err := store.CancelChange(ctx, conn)
		if err != nil {
			return permission(err)
		}
		if was {
			report("the change from %d to %s is given up", old.Shards, relay.SlotsText(old.Target))
		} else {
			report("the table's events are %s already", relay.DividedText(old.Shards))
		}
		return m.dropPublications(ctx, conn, was && old.Target == 1, report)
	}
	if _, err := store.CheckChange(ctx, conn, m.shards); err != nil {
		return permission(err)
	}
	target := old.Set
	target.Shards = m.shards
	if err := m.publications(ctx, conn, target, report); err != nil {
		return err
	}
	if _, err := store.BeginChange(ctx, conn, m.shards); err != nil {
		return permission(err)
	}
	report("the change from %d to %s has begun", old.Shards, relay.SlotsText(m.shards))
	if m.noWait {
		report("the relays make it; sagaz-relay status shows how far they are")
		return nil
	}
	if err := m.follow(ctx, conn, report); err != nil {
		return err
	}
	report("the table's events are %s", relay.DividedText(m.shards))
	return m.dropPublications(ctx, conn, old.Shards == 1, report)
}

// followEvery is how often follow shows the progress of the same step.
const followEvery = 3 * time.Second

// follow waits until the change is through, and shows how far it is.
func (m *migration) follow(ctx context.Context, conn *pgx.Conn, report func(format string, args ...any)) error {
	said, last, began, shown := "", "", time.Now(), time.Time{}
	for {
		set, err := store.ReadSet(ctx, conn)
		switch {
		case err != nil:
			return err
		case set == nil:
			return errors.New("the set of slots was removed")
		case set.Target == 0 && set.Shards == m.shards:
			return nil
		case set.Target != m.shards:
			return fmt.Errorf("the change was given up: the table's events are %s", relay.DividedText(set.Shards))
		}
		change, err := store.ReadChange(ctx, conn, set)
		if err != nil {
			return err
		}
		// The next step is shown at once, what only counts down every few seconds.
		step := set.State + set.Changer
		if change != nil && (set.Changer != "" || time.Since(began) > followEvery) && (step != said || time.Since(shown) > followEvery) {
			if waits := term.Text(change.Waits()); waits != last {
				report("it waits for: %s", waits)
				said, last, shown = step, waits, time.Now()
			}
		}
		if !relay.Sleep(ctx, 200*time.Millisecond) {
			who := "the relays go on with the change"
			if set.Changer == "" {
				who = "the change waits for a relay that makes it"
			}
			fmt.Fprintln(m.progress, who+"; run the same again to see how far it is, or, to give it up, with", "--shards", set.Shards)
			return context.Cause(ctx)
		}
	}
}

// dropPublications drops those that no slot is read by any more: of the slots that there were, also
// where that change was not followed to its end, and of those of a change that was given up. Those
// that carry other tables, too, stay.
func (m *migration) dropPublications(ctx context.Context, conn *pgx.Conn, alone bool, report func(format string, args ...any)) error {
	if !m.publication {
		return nil
	}
	set, err := store.ReadSet(ctx, conn)
	if err != nil || set == nil {
		return err
	}
	former, err := store.FormerPublications(ctx, conn, set, alone)
	if err != nil {
		return permission(err)
	}
	for _, name := range former {
		if _, err := conn.Exec(ctx, `DROP PUBLICATION IF EXISTS `+term.Ident(name)); err != nil {
			return permission(err)
		}
		report("publication %s dropped", name)
	}
	return nil
}
