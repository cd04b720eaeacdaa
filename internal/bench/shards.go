package bench

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

// Sharded is one backlog drained from several slots.
type Sharded struct {
	Shards int `json:"shards"`
	Relays int `json:"relays"`
	Rows   int `json:"rows"`
	// Reference is the drain by as many bare readers as slots: what the walsenders can do.
	Reference   Run    `json:"reference"`
	ReferenceBy string `json:"reference_by"`
	Run         Run    `json:"run"` // of all relays and walsenders together
	Marked      int64  `json:"rows_marked"`
	// The ratios are by the rates of the round's first.
	Ratio          float64 `json:"ratio"`
	ReferenceRatio float64 `json:"reference_ratio"`
}

// shards measures each number of slots in turn, and again.
func (b *database) shards(ctx context.Context, target *target, o Options, printf func(string, ...any)) (all []Sharded, err error) {
	for range o.Repeat {
		first := len(all)
		for _, n := range o.Shards {
			s, err := b.sharded(ctx, target, o, n, printf)
			if err != nil {
				return nil, err
			}
			all = append(all, *s)
			last := &all[len(all)-1]
			last.Ratio = last.Run.PerSecond / all[first].Run.PerSecond
			last.ReferenceRatio = last.Reference.PerSecond / all[first].Reference.PerSecond
		}
	}
	return all, nil
}

// sharded measures the drain of a backlog from n slots: first by bare readers, from copies of the
// slots, then by relays.
func (b *database) sharded(ctx context.Context, target *target, o Options, n int, printf func(string, ...any)) (*Sharded, error) {
	perTx := o.Shapes[0]
	rows := o.Rows / perTx * perTx
	printf("filling a backlog of %d rows, %d a transaction, for %d slots", rows, perTx, n)
	set := relay.Set{Slot: b.name + "_s", Publication: b.publication, Shards: n}
	if err := b.makeSet(ctx, set); err != nil {
		return nil, err
	}
	s := &Sharded{Shards: n, Relays: n}
	if o.Relays > 0 {
		s.Relays = min(o.Relays, n)
	}
	relays, err := b.startSharing(ctx, set, o, s.Relays)
	for _, r := range relays {
		defer r.kill()
	}
	if err != nil {
		return nil, err
	}
	if err := freeze(relays); err != nil {
		return nil, err
	}
	if err := b.fill(ctx, target.eventType, rows, perTx, o.RowBytes); err != nil {
		return nil, err
	}
	if err := b.conn.QueryRow(ctx, `SELECT count(*) FROM saga_outbox`).Scan(&s.Rows); err != nil {
		return nil, err
	}
	if s.Reference, s.ReferenceBy, err = b.shardedReference(ctx, set, s.Rows); err != nil {
		return nil, err
	}
	printf("  %d × %s: %.0f events/s", n, s.ReferenceBy, s.Reference.PerSecond)
	if s.Run, err = b.shardedRun(ctx, set, relays, s.Rows); err != nil {
		return nil, err
	}
	printf("  relays (%d): %.0f events/s", s.Relays, s.Run.PerSecond)
	if s.Marked, err = b.marked(ctx, s.Rows); err != nil {
		return nil, err
	}
	return s, b.clear(ctx)
}

// makeSet divides the table, and makes what relays of the set would find.
func (b *database) makeSet(ctx context.Context, set relay.Set) error {
	if _, err := store.MakeSet(ctx, b.conn, set); err != nil {
		return err
	}
	for _, shard := range set.All() {
		if _, err := cdc.EnsurePublication(ctx, b.conn, shard); err != nil {
			return err
		}
		b.slots = append(b.slots, shard.Slot)
		if _, err := b.conn.Exec(ctx, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, shard.Slot); err != nil {
			return fmt.Errorf("create slot %s: %w", shard.Slot, err)
		}
		if err := b.noteSlot(ctx, shard.Slot); err != nil {
			return err
		}
		if _, err := b.conn.Exec(ctx, `UPDATE saga_outbox_relay SET shard = $2, shards = $3 WHERE slot = $1`, shard.Slot, shard.Index, set.Shards); err != nil {
			return fmt.Errorf("note slot %s: %w", shard.Slot, err)
		}
	}
	return nil
}

// shardedReference drains copies of the set's slots, all at once, to nowhere.
func (b *database) shardedReference(ctx context.Context, set relay.Set, rows int) (all Run, by string, err error) {
	var end string
	if err := b.conn.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&end); err != nil {
		return all, "", err
	}
	for _, shard := range set.All() {
		b.slots = append(b.slots, "copy_"+shard.Slot)
		if _, err := b.conn.Exec(ctx, `SELECT pg_copy_logical_replication_slot($1, $2)`, shard.Slot, "copy_"+shard.Slot); err != nil {
			return all, "", fmt.Errorf("copy slot %s: %w", shard.Slot, err)
		}
	}
	runs, names := make([]Run, set.Shards), make([]string, set.Shards)
	group, one := errgroup.WithContext(ctx)
	started := time.Now()
	for i, shard := range set.All() {
		conn, err := pgx.Connect(ctx, b.dsn) // each looks for its walsender
		if err != nil {
			return all, "", fmt.Errorf("connect: %w", store.ConnectCause(err))
		}
		defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // read only
		group.Go(func() error {
			run, name, err := b.reference(one, conn, "copy_"+shard.Slot, shard.Publication, end)
			runs[i], names[i] = run, name
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return all, "", err
	}
	all.Seconds = time.Since(started).Seconds()
	for _, shard := range set.All() {
		if err := b.dropSlot(ctx, "copy_"+shard.Slot); err != nil {
			return all, "", err
		}
	}
	all.PerSecond = float64(rows) / all.Seconds
	for _, run := range runs {
		all.CPU += run.CPU
		all.WalsenderCPU += run.WalsenderCPU
	}
	return all, names[0], nil
}

// frozenFor is longer than a backlog takes to fill and to be read by the reference.
const frozenFor = "1h"

// startSharing starts relays of the set and waits until each streams its share of the slots.
func (b *database) startSharing(ctx context.Context, set relay.Set, o Options, n int) (relays []*relayProcess, err error) {
	for i := range n {
		r, err := b.startRelay(o.relayArgs(), "RELAY_SLOT="+set.Slot, "RELAY_SHARDS="+strconv.Itoa(set.Shards), "RELAY_MODE="+relay.ModeCDC,
			"RELAY_LEASE_TTL="+frozenFor, "RELAY_WAL_SENDER_TIMEOUT="+frozenFor, "WORKER_ID=bench-"+strconv.Itoa(i))
		if err != nil {
			return relays, err
		}
		relays = append(relays, r)
	}
	for began := time.Now(); ; {
		total, least := 0, set.Shards
		for _, r := range relays {
			if err := r.sleep(ctx, look); err != nil {
				return relays, err
			}
			m, _ := readMarks(r.addr) // one that does not answer yet streams nothing
			total, least = total+m.streams, min(least, m.streams)
		}
		if total == set.Shards && least == set.Shards/n {
			return relays, nil
		}
		if time.Since(began) > time.Minute {
			return relays, fmt.Errorf("%d relays have not shared %d slots out within a minute: see their logs, the first is %s", n, set.Shards, relays[0].log)
		}
	}
}

// shardedRun lets the relays go on, and stops them when all rows are marked.
func (b *database) shardedRun(ctx context.Context, set relay.Set, relays []*relayProcess, rows int) (run Run, err error) {
	used, err := b.watchBackends(ctx, set)
	if err != nil {
		return run, err
	}
	for _, r := range relays {
		run.CPU -= cpuOf(r.cmd.Process.Pid) // what the start has cost
	}
	started := time.Now()
	if err := thaw(relays); err != nil {
		return run, err
	}
	for wait, marked := look, 0; marked < rows; wait = untilNextLook(marked, rows, time.Since(started)) {
		marked = 0
		for _, r := range relays {
			if err := r.sleep(ctx, wait/time.Duration(len(relays))); err != nil {
				return run, err
			}
			m, err := readMarks(r.addr)
			if err == nil {
				marked += m.marked
			}
		}
	}
	run.Seconds = time.Since(started).Seconds()
	run.PerSecond = float64(rows) / run.Seconds
	run.WalsenderCPU, run.MarksCPU = used()
	for _, r := range relays {
		cpu, peak, err := r.stop()
		if err != nil {
			return run, err
		}
		run.CPU += cpu
		run.PeakRSS += peak
	}
	return run, nil
}

// marks is what a relay exports of its work.
type marks struct {
	marked  int // rows since it began, whatever slots it has had
	streams int // slots that it streams from now
}

// readMarks asks a relay.
func readMarks(addr string) (m marks, err error) {
	client := http.Client{Timeout: time.Second}
	resp, err := client.Get("http://" + addr + "/metrics")
	if err != nil {
		return m, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, labels, _ := strings.Cut(lines.Text(), "{")
		_, text, _ := strings.Cut(labels, "} ")
		value, _ := strconv.ParseFloat(text, 64) // other lines are of no interest
		switch name {
		case "outbox_marked_events_total":
			m.marked = int(value)
		case "outbox_stream_up":
			m.streams += int(value)
		}
	}
	return m, lines.Err()
}
