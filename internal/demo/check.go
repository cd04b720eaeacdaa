package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/relay/verify"
	"github.com/sagaz-relay/relay/sinks/file"
)

// catchUpTimeout is for the relay to deliver what was committed last; it takes a second.
const catchUpTimeout = 60 * time.Second

// check waits until the relay has caught up, stops it, and prints which promises held.
func (d *Demo) check(ctx context.Context) error {
	s := d.screen
	s.printf("")
	s.printf("writers stopped, waiting for the relay to catch up …")
	began := time.Now()
	end, err := d.caughtUp(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return ErrInterrupted
		}
		return err
	}
	waited := time.Since(began)

	d.stopRelay()
	<-d.relayEnded
	if d.relayErr != nil {
		return fmt.Errorf("the relay: %w", d.relayErr)
	}
	// The file is read only now, so that nothing comes after the look.
	checker := d.shop.Checker
	err = file.Read(d.eventsPath(), func(line file.Line) error {
		checker.Deliver("file", verify.Event{ID: line.EventID, Key: line.Key})
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // not there when nothing was ever delivered
		return err
	}
	d.summary(end, waited)
	return d.promises(checker.Report(), end)
}

// ending is the state of the database at the end.
type ending struct {
	sent, rows         int
	statuses           string
	target, confirmed  string // WAL positions
	behind             int64  // bytes from confirmed to target, negative when it is past
	rowsSent, slotDone bool
}

// caughtUp waits until every row is sent and the slot has passed all that the load wrote. It
// returns what it last saw also when that did not happen in time.
func (d *Demo) caughtUp(ctx context.Context) (*ending, error) {
	end := &ending{}
	// All writers have their answers, so their commits lie before this. What comes after is from
	// the relay and the server: marks, the lease, checkpoints.
	if err := d.conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&end.target); err != nil {
		return nil, fmt.Errorf("read the WAL position: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, d.Patience)
	defer cancel()
	for poll := 20 * time.Millisecond; ; poll = min(2*poll, 500*time.Millisecond) {
		rows, err := d.conn.Query(ctx, `SELECT status, count(*) FROM saga_outbox GROUP BY status ORDER BY status`)
		if err != nil {
			return nil, fmt.Errorf("count the rows: %w", err)
		}
		end.sent, end.rows = 0, 0
		var statuses []string
		for rows.Next() {
			var status string
			var n int
			if err := rows.Scan(&status, &n); err != nil {
				rows.Close()
				return nil, fmt.Errorf("count the rows: %w", err)
			}
			end.rows += n
			if status == "sent" {
				end.sent = n
			}
			statuses = append(statuses, thousands(n)+" "+status)
		}
		if err := rows.Err(); err != nil {
			return nil, fmt.Errorf("count the rows: %w", err)
		}
		end.statuses = strings.Join(statuses, ", ")
		err = d.conn.QueryRow(ctx, `SELECT confirmed_flush_lsn::text, pg_wal_lsn_diff($2::text::pg_lsn, confirmed_flush_lsn)::bigint
			FROM pg_replication_slots WHERE slot_name = $1`, d.relay.Slot, end.target).Scan(&end.confirmed, &end.behind)
		if err != nil {
			return nil, fmt.Errorf("look at the slot: %w", err)
		}
		end.rowsSent, end.slotDone = end.sent == end.rows, end.behind <= 0
		if end.rowsSent && end.slotDone {
			return end, nil
		}
		select {
		case <-time.After(poll):
		case <-d.relayEnded:
			return nil, fmt.Errorf("the relay ended early: %w", d.relayErr)
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return end, nil
			}
			return nil, context.Cause(ctx)
		}
	}
}

// summary prints what was done and how fast.
func (d *Demo) summary(end *ending, waited time.Duration) {
	s, counts := d.screen, d.shop.Totals()
	_, times := d.watch.look()
	s.printf("")
	lines := []string{
		fmt.Sprintf("%s events in %s transactions over %s: %s orders, %s of them cancelled with compensations.", thousands(counts.Events),
			thousands(counts.Transactions), seconds(d.took), thousands(counts.Orders), thousands(counts.Cancelled)),
		fmt.Sprintf("Rolled back besides: %s transactions and %s savepoints, with %s events.", thousands(counts.RolledBack),
			thousands(counts.Savepoints), thousands(counts.Discarded)),
	}
	if times.n > 0 {
		lines = append(lines, fmt.Sprintf("Commit to acknowledged: p50 %s, p99 %s, longest %s. Measured from sending COMMIT to the event's line being synced to the file.",
			millis(times.quantile(0.50)), millis(times.quantile(0.99)), millis(times.longest)))
	}
	if end.rowsSent && end.slotDone {
		lines = append(lines, fmt.Sprintf("Caught up %s after the last commit.", seconds(waited)))
	} else {
		lines = append(lines, fmt.Sprintf("The relay has not caught up %s after the last commit.", seconds(waited)))
	}
	for _, line := range lines {
		for _, part := range wrap(line, s.width()-1) {
			s.printf("%s", part)
		}
	}
	s.printf("")
}

// promises prints a line for each promise and returns an error if one did not hold.
func (d *Demo) promises(report *verify.Report, end *ending) error {
	f := report.Sinks[0]
	counts := d.shop.Totals()
	broken, checked := 0, 0
	promise := func(held bool, what, format string, args ...any) {
		checked++
		if !held {
			broken++
		}
		d.screen.item(held, what, fmt.Sprintf(format, args...))
	}
	promise(len(f.Missing) == 0 && report.Committed > 0, "every committed event delivered", "%s committed, %s missing in the file",
		thousands(report.Committed), thousands(len(f.Missing)))
	promise(len(f.Unknown) == 0, "nothing that was rolled back", "%s events rolled back, %s delivered that were never committed",
		thousands(counts.Discarded), thousands(len(f.Unknown)))
	promise(len(f.OutOfOrder)+len(f.WrongKey) == 0, "commit order within each key", "%s keys, %s events out of order",
		thousands(report.Keys), thousands(len(f.OutOfOrder)+len(f.WrongKey)))
	promise(len(f.Duplicates) == 0, "no event twice", "%s lines, %s duplicates", thousands(f.Delivered), thousands(len(f.Duplicates)))
	promise(end.rowsSent && end.rows == report.Committed, "every row marked sent", "%s rows: %s", thousands(end.rows), end.statuses)
	promise(end.slotDone, "slot lag 0", "the load ends at %s, the slot is confirmed to %s", end.target, end.confirmed)
	d.screen.printf("")
	if broken > 0 {
		return errors.Join(fmt.Errorf("%d of %d promises did not hold", broken, checked), report.Err())
	}
	d.screen.printf("All %d promises held.", checked)
	return nil
}
