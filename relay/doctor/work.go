package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
)

// countTimeout bounds the one query that reads the whole table, where no index on status helps.
const countTimeout = 10 * time.Second

func (ex *exam) checkRows(ctx context.Context) {
	const check = "rows"
	if ex.table == 0 {
		return
	}
	entry := "false"
	if ex.ledger {
		entry = "EXISTS (SELECT FROM saga_outbox_delivery d WHERE d.event_id = o.event_id)"
	}
	var all, pending, claimed, failed, dead, stuck, lostFailed, lostDead int64
	var oldest float64 // seconds
	err := pgx.BeginFunc(ctx, ex.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL statement_timeout = %d`, countTimeout.Milliseconds())); err != nil {
			return err
		}
		// What a person has discarded (relay/repair) stays a dead letter, and is no news.
		return tx.QueryRow(ctx, `SELECT (SELECT reltuples::bigint FROM pg_class WHERE oid = $2::bigint::oid),
				count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE status = 'claimed'), count(*) FILTER (WHERE status = 'failed'), count(*) FILTER (WHERE status = 'dead_letter'),
				count(*) FILTER (WHERE status = 'claimed' AND claimed_at < now() - $1::float8 * interval '1 second'),
				count(*) FILTER (WHERE status = 'failed' AND NOT `+entry+`),
				count(*) FILTER (WHERE status = 'dead_letter' AND NOT `+entry+` AND coalesce(last_error, '') NOT LIKE 'discarded: %'),
				coalesce(extract(epoch FROM now() - least(greatest(min(created_at) FILTER (WHERE status = 'pending' AND NOT `+entry+`), '0001-01-01'), now())), 0)::float8
			FROM saga_outbox o WHERE status IN ('pending', 'claimed', 'failed', 'dead_letter')`, ex.cfg.ClaimTimeout.Seconds(), int64(ex.table)).
			Scan(&all, &pending, &claimed, &failed, &dead, &stuck, &lostFailed, &lostDead, &oldest)
	})
	if err != nil {
		ex.unknown(check, err)
		return
	}
	among := ""
	if all >= 0 { // an estimate, after the first vacuum
		among = fmt.Sprintf(", of about %d", max(all, pending+claimed+failed+dead))
	}
	ex.ok(check, "%d pending, %d claimed, %d failed, %s%s", pending, claimed, failed, count(dead, "dead letter"), among)
	if age := time.Duration(oldest * float64(time.Second)); age > ex.cfg.PendingTooLong {
		f := Finding{
			Check: check, Severity: Degraded, Summary: fmt.Sprintf("the oldest pending one is %s old", age.Round(time.Second)), Why: "Consumers have been waiting for it for that long.",
			Fix: []Step{do("see what the relay logs, and the problems of sinks and slots here")},
		}
		if ex.running == nil {
			f.Fix = []Step{do("start a relay:"), run("sagaz-relay run")}
		}
		ex.add(f)
	}
	if stuck > 0 {
		ex.add(Finding{
			Check: check, Severity: Degraded, Summary: fmt.Sprintf("%d have been claimed for longer than STUCK_CLAIM_TIMEOUT_SECONDS = %.0f", stuck, ex.cfg.ClaimTimeout.Seconds()),
			Why: "The worker of the Python library that claimed them is dead, or hangs. A relay that runs takes them over when it looks over the table.",
			Fix: []Step{
				do("start a relay; or by hand:"),
				sql(`UPDATE saga_outbox SET status = 'pending', claimed_at = NULL, worker_id = NULL WHERE status = 'claimed' AND claimed_at < now() - interval '%.0f seconds';`, ex.cfg.ClaimTimeout.Seconds()),
			},
		})
	}
	if lostDead > 0 {
		ex.add(Finding{
			Check: check, Severity: Degraded, Summary: count(lostDead, "dead letter") + " without a ledger entry: the Python library's worker gave up",
			Why: "They are not delivered until a person retries them.", Fix: dealWith("-"),
		})
	}
	if lostFailed > 0 {
		ex.add(Finding{
			Check: check, Severity: Note, Summary: fmt.Sprintf("%d failed without a ledger entry: the Python library's worker tried them last", lostFailed),
			Why: "A relay that runs takes them over when it looks over the table.", Fix: []Step{do("to have them count as new:"), run("sagaz-relay dead-letter retry --state retry --sink -")},
		})
	}
}

// dealWith is what a person does about a sink's dead letters.
func dealWith(sink string) []Step {
	return []Step{
		do("see what they are, fix the cause, and then retry or discard them:"),
		run("sagaz-relay dead-letter list --sink %s", term.Shell(sink)), run("sagaz-relay dead-letter retry --sink %s", term.Shell(sink)), run("sagaz-relay dead-letter discard --sink %s", term.Shell(sink)),
	}
}

// settingOf is the setting that would name a sink.
func (ex *exam) settingOf(sink string) string {
	if ex.cfg.BrokerTypes == nil || slices.Contains(ex.cfg.BrokerTypes, sink) {
		return "BROKER_TYPE"
	}
	return "RELAY_SINKS"
}

func (ex *exam) checkLedger(ctx context.Context) {
	const check = "ledger"
	if !ex.ledger {
		return
	}
	rows, err := ex.conn.Query(ctx, `SELECT sink, slot, CASE WHEN discarded THEN 'discarded' ELSE state END, count(*), coalesce(extract(epoch FROM clock_timestamp() - min(parked_at)), 0)::float8
		FROM saga_outbox_delivery GROUP BY 1, 2, 3 ORDER BY 1, 2, 3`)
	if err != nil {
		ex.unknown(check, err)
		return
	}
	type group struct {
		Sink, Slot, State string
		N                 int64
		Oldest            float64
	}
	groups, err := pgx.CollectRows(rows, pgx.RowToStructByPos[group])
	if err != nil {
		ex.unknown(check, err)
		return
	}
	var parts, strangers []string
	strayed := make(map[string]int64)
	for _, g := range groups {
		parts = append(parts, fmt.Sprintf("%s %d %s", g.Sink, g.N, g.State))
		if g.Sink == relay.MarkSink {
			ex.add(Finding{
				Check: check, Severity: Degraded, Summary: fmt.Sprintf("%s of slot %s cannot be marked, the oldest for %s", count(g.N, "delivered row"), g.Slot, time.Duration(g.Oldest*float64(time.Second)).Round(time.Second)),
				Why: "The database does not take their status: a constraint, a trigger, a lock. They are tried again at growing pauses, and not delivered again.",
				Fix: []Step{run("sagaz-relay dead-letter list --state unmarked"), do("drop the constraint or trigger that the list names, or end the session that holds the lock")},
			})
			continue
		}
		if g.State == string(relay.StateDead) {
			ex.add(Finding{
				Check: check, Severity: Degraded, Summary: fmt.Sprintf("%s of sink %s, the oldest for %s", count(g.N, "dead letter"), g.Sink, time.Duration(g.Oldest*float64(time.Second)).Round(time.Second)),
				Why: "The broker refused them for good. They are not delivered until a person retries them; with RELAY_DEAD_LETTER=hold later events of their keys are held behind them.",
				Fix: dealWith(g.Sink),
			})
		}
		if !slices.Contains(ex.cfg.SinkNames, g.Sink) && !slices.Contains(strangers, g.Sink) {
			strangers = append(strangers, g.Sink)
		}
		if !slices.Contains(ex.set.Slots(), g.Slot) {
			strayed[g.Slot] += g.N
		}
	}
	for _, sink := range strangers {
		ex.add(Finding{
			Check: check, Severity: Degraded, Summary: fmt.Sprintf("entries of sink %s, which %s does not name", sink, ex.settingOf(sink)), Why: "No relay delivers them, and their rows are never done.",
			Fix: []Step{
				do("add %s to %s, or, if it is gone for good:", sink, ex.settingOf(sink)), run("sagaz-relay dead-letter discard --state all --sink %s", term.Shell(sink)),
				do("or, if it has another name now, while no relay runs:"), run("sagaz-relay sinks rename %s NEW", term.Shell(sink)),
			},
		})
	}
	for slot, n := range strayed {
		ex.add(Finding{
			Check: check, Severity: Degraded, Summary: fmt.Sprintf("%d entries of slot %s, which is not one of this table's", n, slot),
			Why: "They are delivered by that slot's owner; when it has none, a relay takes them over, in order, as it takes its lease.",
			Fix: []Step{
				do("stop the relays with RELAY_SLOT=%s, and start one with RELAY_SLOT=%s; if saga_outbox_relay has no row of the first, hand them over:",
					term.Shell(slot), term.Shell(ex.set.Slots()[0])),
				sql(`UPDATE saga_outbox_delivery SET slot = %s WHERE slot = %s;`, ex.set.SlotSQL("partition_key"), term.Literal(slot)),
			},
		})
	}
	if len(parts) == 0 {
		ex.ok(check, "empty: every event worked at the first try")
		return
	}
	ex.ok(check, "%s", strings.Join(parts, ", "))
}
