package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
	"github.com/sagaz-relay/relay/relay/watch"
)

// drain measures one backlog: reference, relay, reference.
func (b *database) drain(ctx context.Context, target *target, o Options, perTx int, printf func(string, ...any)) (*Drain, error) {
	rows := o.Rows / perTx * perTx
	slots, err := b.makeSlots(ctx, 3, func() error { return b.fill(ctx, target.eventType, rows, perTx, o.RowBytes) })
	if err != nil {
		return nil, err
	}
	if err := b.conn.QueryRow(ctx, `SELECT count(*) FROM saga_outbox`).Scan(&rows); err != nil {
		return nil, err
	}
	d := &Drain{RowsPerTx: perTx, Rows: rows}
	var end string
	if err := b.conn.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&end); err != nil {
		return nil, err
	}
	reference := func(slot string) error {
		run, by, err := b.reference(ctx, b.admin, slot, b.publication, end)
		if err != nil {
			return err
		}
		run.PerSecond = float64(rows) / run.Seconds
		d.ReferenceBy = by
		d.ReferenceRuns = append(d.ReferenceRuns, run)
		printf("  %s: %.0f events/s", by, run.PerSecond)
		return nil
	}
	if err := reference(slots[0]); err != nil {
		return nil, err
	}
	if d.Relay, err = b.relayRun(ctx, slots[1], rows, relay.ModeCDC); err != nil {
		return nil, err
	}
	printf("  relay: %.0f events/s", d.Relay.PerSecond)
	if err := reference(slots[2]); err != nil {
		return nil, err
	}
	for _, run := range d.ReferenceRuns {
		d.Reference.Seconds += run.Seconds / float64(len(d.ReferenceRuns))
		d.Reference.CPU += run.CPU / float64(len(d.ReferenceRuns))
		d.Reference.WalsenderCPU += run.WalsenderCPU / float64(len(d.ReferenceRuns))
	}
	d.Reference.PerSecond = float64(rows) / d.Reference.Seconds
	d.Ratio = d.Relay.PerSecond / d.Reference.PerSecond
	if d.Marked, err = b.marked(ctx, rows); err != nil {
		return nil, err
	}
	return d, b.clear(ctx)
}

// marked is how many of so many rows have their mark.
func (b *database) marked(ctx context.Context, rows int) (n int64, err error) {
	sql := `SELECT count(*) FROM saga_outbox WHERE status = 'sent'`
	if b.relay.Mark != "update" {
		sql = `SELECT ` + strconv.Itoa(rows) + ` - count(*) FROM saga_outbox`
	}
	return n, b.conn.QueryRow(ctx, sql).Scan(&n)
}

// reference reads a slot to its end and throws everything away.
func (b *database) reference(ctx context.Context, conn *pgx.Conn, slot, publication, end string) (run Run, by string, err error) {
	path, err := exec.LookPath("pg_recvlogical")
	if err != nil {
		run, err = b.bareReader(ctx, conn, slot, publication, end)
		return run, "bare reader", err
	}
	cmd := exec.CommandContext(ctx, path, "-d", b.dsn, "--slot", slot, "--start", "--no-loop", "-f", os.DevNull,
		"-o", "proto_version=1", "-o", "publication_names="+publication, "--endpos="+end)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	started := time.Now()
	if err := cmd.Start(); err != nil {
		return run, "", fmt.Errorf("start pg_recvlogical: %w", err)
	}
	watch := watchWalsender(ctx, conn, slot)
	if err := cmd.Wait(); err != nil {
		return run, "", fmt.Errorf("pg_recvlogical: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	run.Seconds = time.Since(started).Seconds()
	run.WalsenderCPU = watch()
	run.CPU, run.PeakRSS = usage(cmd.ProcessState)
	return run, "pg_recvlogical", nil
}

// bareReader is pg_recvlogical's work in Go, for machines without it.
func (b *database) bareReader(ctx context.Context, admin *pgx.Conn, slot, publication, end string) (run Run, err error) {
	until, err := pglogrepl.ParseLSN(end)
	if err != nil {
		return run, err
	}
	cfg, err := pgconn.ParseConfig(b.dsn)
	if err != nil {
		return run, errors.New("DATABASE_URL: cannot be read")
	}
	cfg.RuntimeParams["replication"] = "database"
	started := time.Now()
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return run, store.ConnectCause(err)
	}
	defer conn.Close(ctx) //nolint:errcheck // the slot is thrown away
	err = pglogrepl.StartReplication(ctx, conn, slot, 0, pglogrepl.StartReplicationOptions{
		Mode:       pglogrepl.LogicalReplication,
		PluginArgs: []string{"proto_version '1'", "publication_names '" + publication + "'"},
	})
	if err != nil {
		return run, err
	}
	watch := watchWalsender(ctx, admin, slot)
	for {
		msg, err := conn.Frontend().Receive()
		if err != nil {
			return run, err
		}
		data, ok := msg.(*pgproto3.CopyData)
		if !ok {
			return run, fmt.Errorf("bare reader: unexpected %T", msg)
		}
		var at pglogrepl.LSN
		switch data.Data[0] {
		case pglogrepl.XLogDataByteID:
			x, err := pglogrepl.ParseXLogData(data.Data[1:])
			if err != nil {
				return run, err
			}
			at = x.WALStart
		case pglogrepl.PrimaryKeepaliveMessageByteID:
			k, err := pglogrepl.ParsePrimaryKeepaliveMessage(data.Data[1:])
			if err != nil {
				return run, err
			}
			at = k.ServerWALEnd
			if k.ReplyRequested {
				if err := pglogrepl.SendStandbyStatusUpdate(ctx, conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: 1}); err != nil {
					return run, err
				}
			}
		}
		if at >= until {
			run.Seconds = time.Since(started).Seconds()
			run.WalsenderCPU = watch()
			return run, nil
		}
	}
}

// relayRun drains a slot with this program, as a process of its own, so that its CPU and memory are
// its own.
func (b *database) relayRun(ctx context.Context, slot string, rows int, mode string) (run Run, err error) {
	if mode != relay.ModePolling {
		if err := b.noteSlot(ctx, slot); err != nil {
			return run, err
		}
	}
	started := time.Now()
	r, err := b.startRelay([]string{"run"}, "RELAY_SLOT="+slot, "RELAY_MODE="+mode)
	if err != nil {
		return run, err
	}
	defer r.kill()
	watch := func() float64 { return 0 }
	if mode != relay.ModePolling {
		watch = watchWalsender(ctx, b.admin, slot)
	}
	for wait := look; ; {
		if err := r.sleep(ctx, wait); err != nil {
			return run, err
		}
		if marked, err := markedSoFar(r.addr); err == nil {
			if marked >= rows {
				break
			}
			wait = untilNextLook(marked, rows, time.Since(started))
		}
	}
	run.Seconds = time.Since(started).Seconds()
	run.PerSecond = float64(rows) / run.Seconds
	run.WalsenderCPU = watch()
	run.CPU, run.PeakRSS, err = r.stop()
	return run, err
}

// look is how exactly the end of a run is seen.
const look = 10 * time.Millisecond

// untilNextLook is a quarter of the time that the rest takes at the rate so far. The relay pays for
// each look, with a page that has charts: one every 10 ms was an eighth of its CPU.
func untilNextLook(marked, rows int, elapsed time.Duration) time.Duration {
	if marked == 0 {
		return look
	}
	rest := time.Duration(float64(elapsed) * float64(rows-marked) / float64(marked))
	return min(max(rest/4, look), 500*time.Millisecond)
}

// markedSoFar asks a relay's status.
func markedSoFar(addr string) (int, error) {
	client := http.Client{Timeout: time.Second}
	resp, err := client.Get("http://" + addr + "/status.json")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	var st watch.Status
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil || len(st.Slots) == 0 {
		return 0, errors.Join(err, errors.New("no status"))
	}
	return int(st.Slots[0].Marked), nil
}

func usage(p *os.ProcessState) (cpu float64, peak int64) {
	cpu = (p.UserTime() + p.SystemTime()).Seconds()
	if r, ok := p.SysUsage().(*syscall.Rusage); ok {
		peak = int64(r.Maxrss)
		if runtime.GOOS == "linux" {
			peak <<= 10 // kilobytes there, bytes on macOS
		}
	}
	return cpu, peak
}

func cpuName() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for _, line := range strings.Split(string(text), "\n") {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimLeft(name, "\t: ")
		}
	}
	return runtime.GOARCH
}

func cores() int { return runtime.NumCPU() }
