package doctor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
	"github.com/sagaz-relay/relay/relay/store"
)

func dropSlot(name string) Step {
	return sql(`SELECT pg_drop_replication_slot(%s);`, term.Literal(name))
}

func bytesText(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%d kB", n>>10)
	case n < 10<<30:
		return fmt.Sprintf("%d MB", n>>20)
	default:
		return fmt.Sprintf("%d GB", n>>30)
	}
}

// checkSlotsFree checks whether the server has room for the slots that the relay will make.
func (ex *exam) checkSlotsFree(ctx context.Context) {
	const check = "slots free"
	stream, _ := ex.streaming()
	if !stream {
		return
	}
	var used, most int
	var ours, idle []string
	if !ex.ask(ctx, check, `SELECT count(*), current_setting('max_replication_slots')::int, coalesce(array_agg(slot_name::text) FILTER (WHERE slot_name = ANY($1)), '{}'),
		coalesce(array_agg(slot_name::text || coalesce(' (of database ' || database || ')', '') ORDER BY slot_name) FILTER (WHERE NOT active AND NOT slot_name = ANY($1)), '{}') FROM pg_replication_slots`,
		[]any{ex.set.Slots()}, &used, &most, &ours, &idle) {
		return
	}
	wanted := len(ex.set.Slots()) - len(ours)
	if most-used >= wanted {
		ex.ok(check, "%d of max_replication_slots = %d in use", used, most)
		return
	}
	whose := ""
	if len(idle) > 0 {
		whose = "; nothing reads " + strings.Join(idle, ", ") + " now"
	}
	ex.refuses(check, cdc.NoSlotFree(fmt.Errorf("%d of max_replication_slots = %d in use, %d more needed%s", used, most, wanted, whose)))
}

func (ex *exam) checkSendersFree(ctx context.Context) {
	const check = "walsenders"
	stream, _ := ex.streaming()
	if !stream {
		return
	}
	var used, most, active int
	if !ex.ask(ctx, check, `SELECT (SELECT count(*) FROM pg_stat_replication WHERE application_name IS DISTINCT FROM 'sagaz-relay slot check'), current_setting('max_wal_senders')::int,
		(SELECT count(*) FROM pg_replication_slots WHERE slot_name = ANY($1) AND active)`, []any{ex.set.Slots()}, &used, &most, &active) {
		return
	}
	if wanted := len(ex.set.Slots()) - active; most-used < wanted {
		ex.refuses(check, sessions.NoSenderFree(fmt.Errorf("%d of max_wal_senders = %d in use, %d more needed", used, most, wanted)))
		return
	}
	ex.ok(check, "%d of max_wal_senders = %d in use", used, most)
}

// littleKept is a max_slot_wal_keep_size, in bytes, that a short standstill uses up.
const littleKept = 1 << 30

func (ex *exam) checkKeepSize(ctx context.Context) {
	const check = "slot WAL limit"
	var megabytes int64
	if stream, _ := ex.streaming(); !stream || !ex.ask(ctx, check, `SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'`, nil, &megabytes) {
		return
	}
	raise := []Step{do("about a third of the volume of pg_wal, at least some GB:"), sql(`ALTER SYSTEM SET max_slot_wal_keep_size = '10GB';`), sql(`SELECT pg_reload_conf();`)}
	switch keep := megabytes << 20; {
	case megabytes < 0:
		ex.add(Finding{
			Check: check, Severity: Note, Summary: "max_slot_wal_keep_size is unlimited",
			Why: "A slot that is not read keeps WAL until the database's disk is full. With a limit the server gives the slot up instead, and the relay finds in the table what it missed.",
			Fix: raise,
		})
	case int64(ex.cfg.WALBudget) > keep:
		ex.add(Finding{
			Check: check, Severity: Degraded, Summary: fmt.Sprintf("max_slot_wal_keep_size is %s, less than RELAY_WAL_BUDGET = %s", bytesText(keep), bytesText(int64(ex.cfg.WALBudget))),
			Why: "The server gives the slot up before the relay moves it, and the whole table has to be looked over.",
			Fix: []Step{do("set RELAY_WAL_BUDGET to %d, half of it, or to 0, which means just that", keep/2)},
		})
	case keep < littleKept:
		ex.add(Finding{
			Check: check, Severity: Note, Summary: "max_slot_wal_keep_size is only " + bytesText(keep),
			Why: "A short standstill uses it up; then the server gives the slot up, and the relay has to look over the whole table.",
			Fix: raise,
		})
	default:
		ex.ok(check, "max_slot_wal_keep_size is %s", bytesText(keep))
	}
}

// slot is what the server has of a slot.
type slot struct {
	name, kind, plugin, database, walStatus, invalid string
	active, failover                                 bool
	retained                                         int64
	known                                            bool // a relay has had its lease
	justLeft                                         bool // its work went to others, so lately that they may be about to drop it
}

// ours reports whether a relay of this database can have made the slot.
func (s *slot) ours(database string) bool {
	return s.kind == "logical" && s.plugin == "pgoutput" && s.database == database
}

func orNone(s string) string { return cmp.Or(s, "none") }

// slots reads all of them. Columns that came with later versions are read from the row as JSON.
func (ex *exam) slots(ctx context.Context) ([]slot, error) {
	known, justLeft := "false", "false"
	if ex.relayTable {
		known = "EXISTS (SELECT FROM saga_outbox_relay r WHERE r.slot = s.slot_name)"
	}
	if ex.relayTable && ex.set.Generation != 0 { // else the table may have no column for heirs yet
		justLeft = store.JustBequeathedSQL("s.slot_name")
	}
	rows, err := ex.conn.Query(ctx, `SELECT slot_name::text, slot_type, coalesce(plugin::text, ''), coalesce(database::text, ''), coalesce(wal_status, ''),
		coalesce(to_jsonb(s)->>'invalidation_reason', ''), active, coalesce((to_jsonb(s)->>'failover')::bool, false),
		coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn), 0)::bigint, `+known+`, `+justLeft+`
		FROM pg_replication_slots s ORDER BY slot_name`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (s slot, err error) {
		return s, row.Scan(&s.name, &s.kind, &s.plugin, &s.database, &s.walStatus, &s.invalid, &s.active, &s.failover, &s.retained, &s.known, &s.justLeft)
	})
}

func (ex *exam) checkSlots(ctx context.Context) {
	all, err := ex.slots(ctx)
	if err != nil {
		ex.unknown("slot", err)
		return
	}
	for _, name := range ex.set.Slots() {
		i := slices.IndexFunc(all, func(s slot) bool { return s.name == name })
		if i < 0 {
			ex.missingSlot(name)
			continue
		}
		wrong := ex.checkSlot(&all[i])
		if stream, _ := ex.streaming(); stream && !wrong {
			ex.checkFailover(ctx, &all[i])
		}
	}
}

func (ex *exam) missingSlot(name string) {
	const check = "slot"
	switch stream, _ := ex.streaming(); {
	case !stream:
		ex.ok(check, "%s: not there, and not needed for RELAY_MODE=polling", name)
	case len(ex.running) > 0:
		ex.add(Finding{
			Check: check, Severity: Degraded, Summary: name + ": not there, though a relay runs",
			Why: "The relay polls, or is about to make it and to look over the table for what was missed.", Fix: []Step{do("see what it logs; the problems above may keep it from making the slot")},
		})
	default:
		ex.add(Finding{Check: check, Severity: Note, Summary: name + ": not there yet; a relay makes it when it starts (sagaz-relay migrate --slot does, too)"})
	}
}

// checkSlot reports what is wrong with one of our slots, and returns whether anything is.
func (ex *exam) checkSlot(s *slot) (wrong bool) {
	const check = "slot"
	stream, _ := ex.streaming()
	foreign := cdc.ForeignSlot(s.name, s.kind, s.plugin, s.database, ex.dbraw)
	add := func(f Finding) bool {
		f.Check, f.Summary = check, s.name+": "+f.Summary
		ex.add(f)
		return true
	}
	gone := s.walStatus == "lost" || s.invalid != ""
	switch {
	case !stream && !s.ours(ex.dbraw):
		ex.ok(check, "%s: somebody else's, and not needed for RELAY_MODE=polling", s.name)
		return false
	case !stream:
		return add(Finding{
			Severity: Degraded, Summary: fmt.Sprintf("holds back %s of WAL, and RELAY_MODE=polling never reads it", bytesText(s.retained)),
			Why: "The WAL that it keeps fills the database's disk.", Fix: []Step{dropSlot(s.name)},
		})
	case foreign != nil:
		ex.refuses(check, foreign)
		return true
	case gone:
		return add(Finding{
			Severity: Degraded, Summary: strings.TrimSpace("the server has given it up " + s.invalid),
			Why: "It delivers nothing any more. Rows that were not delivered are still pending in the table: a relay that starts drops the slot, finds them, and makes a new one.",
			Fix: []Step{do("start a relay; or by hand:"), dropSlot(s.name)},
		})
	case s.walStatus == "unreserved":
		return add(Finding{
			Severity: Degraded, Summary: fmt.Sprintf("about to be lost: it is behind by %s, more than max_slot_wal_keep_size", bytesText(s.retained)),
			Why: "At the next checkpoint the server may remove WAL that it needs; the relay has to look over the whole table then.",
			Fix: []Step{do("start a relay, or fix what keeps it from delivering")},
		})
	case s.retained > ex.cfg.RetainedTooMuch:
		return add(Finding{
			Severity: Degraded, Summary: fmt.Sprintf("holds back %s of WAL", bytesText(s.retained)), Why: "It fills the database's disk, or the slot is given up at max_slot_wal_keep_size.",
			Fix: []Step{do("start a relay, or fix what keeps it from delivering; if no relay is to run again:"), dropSlot(s.name)},
		})
	case !s.active && len(ex.running) > 0 && ex.set.Target != 0:
		return add(Finding{
			Severity: Note, Summary: fmt.Sprintf("it is not read now: the number of slots is being changed from %d to %d", ex.set.Shards, ex.set.Target),
			Why: "An old slot stops at the switch, and the relays drop it after that.", Fix: []Step{run("sagaz-relay status")},
		})
	case !s.active && len(ex.running) > 0:
		return add(Finding{
			Severity: Degraded, Summary: "it is not read, though a relay runs", Why: "The relay is about to connect, or polls.", Fix: []Step{do("see what it logs")},
		})
	case !s.active:
		ex.ok(check, "%s: holds back %s of WAL; it is not read now", s.name, bytesText(s.retained))
	default:
		ex.ok(check, "%s: being read, holds back %s of WAL", s.name, bytesText(s.retained))
	}
	return false
}

// checkFailover looks whether a slot of ours, which the relay reads, would survive a failover,
// where there is a standby. A walsender that only runs commands or sends a base backup is none: its
// state is "startup" or "backup".
func (ex *exam) checkFailover(ctx context.Context, s *slot) {
	const check = "failover"
	if ex.version < 17 || !ex.cfg.Failover || ex.standby {
		return
	}
	var standbys int
	var physical []string
	var waits string
	if !ex.ask(ctx, check, `SELECT (SELECT count(*) FROM pg_stat_get_wal_senders() w WHERE w.state IN ('catchup', 'streaming') AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = w.pid AND s.slot_type = 'logical')),
		(SELECT coalesce(array_agg(slot_name::text), '{}') FROM pg_replication_slots WHERE slot_type = 'physical' AND active), current_setting('synchronized_standby_slots')`,
		nil, &standbys, &physical, &waits) || standbys == 0 {
		return
	}
	switch {
	case !s.failover:
		ex.add(Finding{
			Check: check, Severity: Note, Summary: fmt.Sprintf("slot %s is not kept on standbys", s.name),
			Why: "After a failover it is gone; the relay then looks over the whole table before it goes on. Nothing is lost, but it takes its time.",
			Fix: []Step{
				do(`while no relay runs, on a replication connection (psql "dbname=… replication=database"):  ALTER_REPLICATION_SLOT "%s" (FAILOVER true);`, s.name),
				do("or, while no relay runs, let it be made again:"), dropSlot(s.name),
			},
		})
	case waits == "" && len(physical) > 0:
		ex.add(Finding{
			Check: check, Severity: Note, Summary: "slots may get ahead of the standby",
			Why: "What the relay has read and the standby has not yet got is missing on the standby after a failover; the standby's own slot has to be named.",
			Fix: []Step{sql(`ALTER SYSTEM SET synchronized_standby_slots = %s;`, term.Literal(strings.Join(physical, ","))), sql(`SELECT pg_reload_conf();`)},
		})
	default:
		ex.ok(check, "slot %s is kept on standbys that run with sync_replication_slots = on", s.name)
	}
}

// checkOtherSlots looks for slots that were left behind: under a former RELAY_SLOT, with another
// number of slots, or by something else in this database.
func (ex *exam) checkOtherSlots(ctx context.Context) {
	const check = "other slots"
	all, err := ex.slots(ctx)
	if err != nil {
		ex.unknown(check, err)
		return
	}
	former, err := store.FormerSlots(ctx, ex.conn, &ex.set)
	if err != nil {
		ex.unknown(check, err)
		return
	}
	wanted := ex.set.Slots()
	if ex.set.Target != 0 { // they are being made
		wanted = append(wanted, relay.Set{Slot: ex.set.Slot, Shards: ex.set.Target}.Slots()...)
	}
	found := false
	for i := range all {
		s := &all[i]
		of := slices.Contains(former, s.name)
		s.known = s.known || of
		if slices.Contains(wanted, s.name) || s.active || !s.known && s.retained <= ex.cfg.RetainedTooMuch {
			continue
		}
		found = true
		if s.justLeft && s.ours(ex.dbraw) && len(ex.running) > 0 {
			ex.add(Finding{
				Check: check, Severity: Note, Summary: fmt.Sprintf("slot %s was a relay's until just now; it holds back %s of WAL", s.name, bytesText(s.retained)),
				Why: "The number of slots was changed, or RELAY_SLOT. The relays that run drop it, usually within a minute.",
			})
			continue
		}
		whose, fix := "was a relay's (another RELAY_SLOT)", []Step{do("if no relay of this database is to run with it again:"), dropSlot(s.name)}
		if of {
			whose = fmt.Sprintf("was a relay's, when the table had another number of slots than %d", ex.set.Shards)
		}
		if !s.known || !s.ours(ex.dbraw) {
			whose, fix = "is not ours", []Step{do("find out who made it, and needs it (database %s, plugin %s): it is not for the relay's sake to drop", orNone(s.database), orNone(s.plugin))}
		}
		ex.add(Finding{
			Check: check, Severity: Degraded, Summary: fmt.Sprintf("slot %s %s; it is not read, and holds back %s of WAL", s.name, whose, bytesText(s.retained)),
			Why: "The WAL that it keeps fills the database's disk.", Fix: fix,
		})
	}
	if !found {
		ex.ok(check, "none left behind")
	}
}

func (ex *exam) checkOwners(ctx context.Context) {
	const check = "owner"
	if !ex.relayTable {
		return
	}
	owners, err := store.Owners(ctx, ex.conn, ex.cfg.LeaseTTL)
	if err != nil {
		ex.unknown(check, err)
		return
	}
	var owned, others []string
	for _, o := range owners {
		if !o.Running {
			continue
		}
		if !slices.Contains(ex.set.Slots(), o.Slot) {
			others = append(others, fmt.Sprintf("%s owns slot %s", o.Owner, o.Slot))
			continue
		}
		ex.running, owned = append(ex.running, o.Owner), append(owned, o.Slot)
		if o.Locked && o.Renewed > 2*ex.cfg.LeaseTTL {
			ex.add(Finding{
				Check: check, Severity: Degraded, Summary: fmt.Sprintf("%s owns slot %s, and has not renewed its lease for %s", o.Owner, o.Slot, o.Renewed.Round(time.Second)),
				Why: "It is frozen, or cut off from the database. Nothing is delivered until another relay takes over.",
				Fix: []Step{do("start another relay, which takes over by itself, or restart this one")},
			})
			continue
		}
		ex.ok(check, "%s owns slot %s, lease renewed %s ago", o.Owner, o.Slot, max(o.Renewed, 0).Round(100*time.Millisecond))
	}
	for _, slot := range ex.set.Slots() {
		if ex.running != nil && !slices.Contains(owned, slot) {
			if ex.stopped(slot) {
				ex.ok(check, "nobody owns slot %s: it has stopped for the change of the number of slots", slot)
				continue
			}
			ex.add(Finding{
				Check: check, Severity: Degraded, Summary: fmt.Sprintf("nobody owns slot %s, though a relay runs", slot),
				Why: "The events of its keys are not delivered. Another relay takes a free slot within seconds.", Fix: []Step{do("look again; if it stays so, see what the relays log about the slot")},
			})
		}
	}
	switch {
	case ex.running != nil:
	case len(others) > 0:
		ex.add(Finding{
			Check: check, Severity: Note, Summary: fmt.Sprintf("no relay with RELAY_SLOT=%s owns a slot, and others deliver the table's events: %s", ex.cfg.Set.Slot, strings.Join(others, ", ")),
			Why: "One with this RELAY_SLOT stands by as long as they live.", Fix: []Step{do("set their RELAY_SLOT here, too; or, to rename the slot, stop them first")},
		})
	default:
		ex.add(Finding{Check: check, Severity: Note, Summary: "no relay is running", Fix: []Step{run("sagaz-relay run")}})
	}
}
