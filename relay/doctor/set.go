package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

// checkSet finds out among how many slots the table is divided. Where it cannot be read, the
// settings count: what is missing is reported with the tables.
func (ex *exam) checkSet(ctx context.Context) {
	const check = "slots"
	set, err := store.SetOf(ctx, ex.conn, ex.cfg.Set)
	var refused *relay.SetupError
	switch {
	case errors.As(err, &refused):
	case err != nil:
		ex.unknown(check, err)
	default:
		ex.set = *set
	}
	if err := store.Divisible(ex.version, ex.set.Shards); errors.As(err, &refused) {
		ex.refuses(check, refused)
		return
	}
	want := ex.cfg.Set.Shards
	if ex.set.Target != 0 {
		ex.add(Finding{
			Check: check, Severity: Note, Summary: fmt.Sprintf("the number of slots is being changed from %d to %d: %s%s", ex.set.Shards, ex.set.Target, ex.set.State, ex.changeWaits(ctx)),
			Why: "Relays that run finish it.", Fix: []Step{run("sagaz-relay status")},
		})
	}
	if ex.set.Generation != 0 && want != ex.set.Shards && want != ex.set.Target {
		soon := ""
		if ex.set.Target != 0 {
			soon = fmt.Sprintf(", soon among %d", ex.set.Target)
		}
		ex.add(Finding{
			Check: check, Severity: Note, Summary: fmt.Sprintf("RELAY_SHARDS is %d, and the table is divided among %d%s", want, ex.set.Shards, soon),
			Why: "The database has the number since the first start; the setting is only compared.", Fix: []Step{do("set RELAY_SHARDS=%d", cmp.Or(ex.set.Target, ex.set.Shards))},
		})
		return
	}
	if ex.set.Shards > 1 {
		ex.ok(check, "the table's events are divided among %d", ex.set.Shards)
	}
}

// changeWaits is for whom the change waits that is under way.
func (ex *exam) changeWaits(ctx context.Context) string {
	change, err := store.ReadChange(ctx, ex.conn, &ex.set)
	if err != nil || change == nil { // status shows why, or it is through
		return ""
	}
	ex.change = change
	return ", and waits for: " + change.Waits()
}

// stopped reports whether a slot has stopped for the change that is under way, so that nobody is to
// own it.
func (ex *exam) stopped(slot string) bool {
	return ex.change != nil && slices.ContainsFunc(ex.change.Old, func(o relay.OldSlot) bool { return o.Slot == slot && o.Stopped })
}
