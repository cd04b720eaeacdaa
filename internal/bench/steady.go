package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// Steady is a drain from the moment at which the slot is read: the start of the process is not in
// its rate and CPU, and is beside them.
type Steady struct {
	Rows      int     `json:"rows"`
	Start     float64 `json:"start_seconds"` // from the start of the process until the slot was read
	Seconds   float64 `json:"seconds"`       // from then on, until all rows were marked
	PerSecond float64 `json:"events_per_second"`
	// CPU of an event in µs; 0 when the server is not on this machine.
	Walsender float64 `json:"walsender_us"`
	Marks     float64 `json:"marks_us"`
	Relay     float64 `json:"relay_us"` // or of the bare publisher
	PeakRSS   int64   `json:"peak_rss_bytes,omitempty"`
}

// backendsSQL are the processes that serve a slot, and write its marks.
const backendsSQL = `SELECT coalesce((SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1), 0),
	coalesce((SELECT array_agg(pid) FROM pg_stat_activity WHERE datname = current_database() AND starts_with(application_name, 'sagaz-relay marks')), '{}')`

// usedSince is what processes had used at a moment.
type usedSince struct {
	relay, walsender int
	before           map[int]float64
}

// steadyRun drains a slot with a relay, whose backlog ends at a position. How far it is, is read off
// the server, so that the relay does not pay for it; only its last rows are counted by the relay
// itself.
func (b *database) steadyRun(ctx context.Context, args []string, slot, end string, rows int, env ...string) (run Steady, err error) {
	if err := b.noteSlot(ctx, slot); err != nil {
		return run, err
	}
	began := time.Now()
	r, err := b.startRelay(args, append([]string{"RELAY_SLOT=" + slot, "RELAY_MODE=" + relay.ModeCDC}, env...)...)
	if err != nil {
		return run, err
	}
	defer r.kill()
	from := usedSince{relay: r.cmd.Process.Pid, before: make(map[int]float64)}
	for from.walsender == 0 {
		if err := r.sleep(ctx, 2*time.Millisecond); err != nil {
			return run, err
		}
		if err := b.admin.QueryRow(ctx, `SELECT coalesce((SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1), 0)`, slot).Scan(&from.walsender); err != nil {
			return run, err
		}
	}
	from.before[from.relay], from.before[from.walsender] = cpuOf(from.relay), cpuOf(from.walsender)
	started := time.Now()
	marked := func() (n int) {
		if m, err := readMarks(r.addr); err == nil {
			n = m.marked
		}
		return n
	}
	for looked := started; ; {
		if err := r.sleep(ctx, 5*time.Millisecond); err != nil {
			return run, err
		}
		// Some of the last hundred rows are marked. Others may have written before the end was
		// noted, so the relay is asked now and then, too.
		const near = `SELECT coalesce((SELECT marked_lsn + 65536 >= $2::pg_lsn FROM saga_outbox_relay WHERE slot = $1), false)`
		var is bool
		if err := b.conn.QueryRow(ctx, near, slot, end).Scan(&is); err != nil {
			return run, err
		}
		if !is && time.Since(looked) < time.Second {
			continue
		}
		if looked = time.Now(); marked() >= rows {
			break
		}
	}
	run.Rows, run.Start, run.Seconds = rows, started.Sub(began).Seconds(), time.Since(started).Seconds()
	run.PerSecond = float64(rows) / run.Seconds
	if err := b.used(ctx, slot, from, &run); err != nil {
		return run, err
	}
	_, run.PeakRSS, err = r.stop()
	return run, err
}

// used notes the CPU that was used since.
func (b *database) used(ctx context.Context, slot string, from usedSince, run *Steady) error {
	var walsender int
	var marks []int
	if err := b.conn.QueryRow(ctx, backendsSQL, slot).Scan(&walsender, &marks); err != nil {
		return fmt.Errorf("look for the server's processes: %w", err)
	}
	an := func(pid int) float64 { return max(0, cpuOf(pid)-from.before[pid]) / float64(run.Rows) * 1e6 }
	if walsender == from.walsender && isPostgres(walsender) {
		run.Walsender = an(walsender)
	}
	for _, pid := range marks {
		if isPostgres(pid) {
			run.Marks += an(pid)
		}
	}
	run.Relay = an(from.relay)
	return nil
}
