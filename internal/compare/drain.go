package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Patience of one run.
const (
	patience  = 2 * time.Minute
	fineLook  = 10 * time.Millisecond // how exactly the end of a run is seen
	firstLook = 5 * time.Millisecond
)

// figures are what one run found.
type figures map[string]float64

// drain measures how a contestant delivers a backlog.
func drain(ctx context.Context, t *site, o options, s shape) (rows int, f figures, err error) {
	rows = o.rowsOf(t.c, s)
	f = figures{}
	ref := t.name + "_ref"
	if err := t.makeSlot(ctx, ref); err != nil {
		return rows, nil, err
	}
	if err := t.fill(ctx, rows, s.perTx, s.rowBytes); err != nil {
		return rows, nil, err
	}
	if !t.c.slow { // of so few rows it would measure its own start
		if err := t.reference(ctx, ref, rows, f); err != nil {
			return rows, nil, err
		}
	}
	if err := t.exec(ctx, `SELECT pg_drop_replication_slot($1)`, ref); err != nil {
		return rows, nil, err
	}

	m := t.measure()
	defer m.stop()
	started := time.Now()
	p, err := t.start()
	if err != nil {
		return rows, nil, err
	}
	defer p.stop()
	m.add(p.PID())
	n, err := t.wait(ctx, p, firstLook, func() (int, error) { return t.out.stored(ctx) }, 1)
	if err != nil {
		return rows, nil, fmt.Errorf("until the first message: %w", err)
	}
	first, atFirst := time.Now(), m.used()
	f["first_event_seconds"] = first.Sub(started).Seconds()
	if _, err := t.wait(ctx, p, fineLook, func() (int, error) { return t.out.stored(ctx) }, rows); err != nil {
		return rows, nil, fmt.Errorf("until the last message: %w", err)
	}
	delivered := time.Now()
	f["events_per_second"] = float64(rows) / delivered.Sub(started).Seconds()
	if rest := rows - n; rest > rows/20 {
		f["events_per_second_after_first"] = float64(rest) / delivered.Sub(first).Seconds()
	}
	if t.c.marked != nil {
		if _, err := t.wait(ctx, p, fineLook, func() (int, error) { return t.c.marked(ctx, t) }, rows); err != nil {
			return rows, nil, fmt.Errorf("until the last mark: %w", err)
		}
		f["marked_per_second"] = float64(rows) / time.Since(started).Seconds()
		f["marked_per_second_after_first"] = float64(rows-n) / time.Since(first).Seconds()
	}
	perMillion := 1e6 / float64(rows)
	atEnd := m.used()
	for _, group := range groups {
		f["cpu_"+group] = atEnd[group] * perMillion
		f["cpu_all"] += atEnd[group] * perMillion
	}
	if rest := rows - n; rest > rows/20 {
		f["cpu_contestant_after_first"] = (atEnd[ofContestant] - atFirst[ofContestant]) * 1e6 / float64(rest)
	}
	f["peak_bytes"] = peakMemory(p.PID())
	if ref, ok := f["reference_per_second"]; ok {
		f["ratio"] = f["events_per_second"] / ref
		if after, ok := f["events_per_second_after_first"]; ok {
			f["ratio_after_first"] = after / ref
		}
		if marked, ok := f["marked_per_second_after_first"]; ok {
			f["ratio_marked_after_first"] = marked / ref
		}
	}
	p.stop()
	return rows, f, t.check(ctx, rows, f)
}

// reference drains a slot to nowhere.
func (t *site) reference(ctx context.Context, slot string, rows int, f figures) error {
	var end string
	if err := t.conn.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&end); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "pg_recvlogical", "-d", t.dsn, "--slot", slot, "--start", "--no-loop", "-f", os.DevNull,
		"-o", "proto_version=1", "-o", "publication_names="+reference, "--endpos="+end)
	m := t.measure()
	defer m.stop()
	started := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pg_recvlogical: %w: %s", err, strings.TrimSpace(string(out)))
	}
	f["reference_per_second"] = float64(rows) / time.Since(started).Seconds()
	f["reference_cpu_walsender"] = m.used()[ofWalsender] * 1e6 / float64(rows)
	return nil
}

// wait looks until count has reached want, and returns the count then. While there is a long way to
// go it looks seldom: the contestant pays for each look.
func (t *site) wait(ctx context.Context, p *process, look time.Duration, count func() (int, error), want int) (int, error) {
	started := time.Now()
	var problem error
	for pause := look; ; {
		n, err := count()
		if err == nil && n >= want {
			return n, nil
		}
		problem = err
		if err == nil && n > 0 {
			elapsed := time.Since(started)
			pause = min(max(time.Duration(float64(elapsed)*float64(want-n)/float64(n)/4), look), 250*time.Millisecond)
		}
		select {
		case <-p.Done():
			return n, p.ended()
		case <-ctx.Done():
			return n, ctx.Err()
		case <-time.After(pause):
		}
		if time.Since(started) > patience {
			return n, errors.Join(fmt.Errorf("%d of %d after %s", n, want, patience), problem)
		}
	}
}

// check reads everything back: each event is there once, with its header.
func (t *site) check(ctx context.Context, rows int, f figures) error {
	a := newArrivals(t.c.header)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	total, err := t.out.stored(ctx)
	if err != nil {
		return err
	}
	ended, err := t.out.consume(ctx, a.take)
	if err != nil {
		return err
	}
	for {
		seen, distinct, odd := a.counts()
		if odd != "" {
			return errors.New(odd)
		}
		if seen >= total {
			f["repeated"], f["lost"] = float64(seen-distinct), float64(rows-distinct)
			if seen != rows || distinct != rows {
				return fmt.Errorf("%d messages of %d events, want %d", seen, distinct, rows)
			}
			cancel()
			return <-ended
		}
		select {
		case err := <-ended:
			return fmt.Errorf("%d of %d messages were read: %w", seen, total, err)
		case <-time.After(fineLook):
		}
	}
}
