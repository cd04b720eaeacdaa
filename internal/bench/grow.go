package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Axis is something that grows, and the values at which it is measured.
type Axis struct {
	Name   string `json:"name"`
	Values []int  `json:"values"`
}

// axes are what may grow, and where it is measured unless the user says otherwise.
var axes = []struct {
	name        string
	values      []int
	least, most int
}{
	{"waiting", []int{10_000, 100_000, 1_000_000, 5_000_000}, 1, 1 << 30},
	{"sent", []int{0, 1_000_000, 10_000_000}, 0, 1 << 30},
	{"keys", []int{1, 100, 10_000, 1_000_000}, 1, 1 << 30},
	{"lanes", []int{1, 4, 16, 64}, 1, 256},
	{"ledger", []int{0, 10}, 0, 100},
	{"headers", []int{2, 20}, 2, 1000},
}

// Growable are the names of what may grow.
func Growable() (names []string) {
	for _, a := range axes {
		names = append(names, a.name)
	}
	return names
}

// ParseAxes reads what is to grow: names, each with values or not, or "all".
func ParseAxes(texts []string) (all []Axis, err error) {
	for _, text := range texts {
		name, list, hasValues := strings.Cut(text, "=")
		if name == "all" && !hasValues {
			for _, a := range axes {
				all = append(all, Axis{a.name, a.values})
			}
			continue
		}
		i := slices.Index(Growable(), name)
		if i < 0 {
			return nil, fmt.Errorf("--grow=%s: want all, or one of %s", text, strings.Join(Growable(), ", "))
		}
		one := Axis{Name: name, Values: axes[i].values}
		if hasValues {
			one.Values = nil
			for _, v := range strings.Split(list, ",") {
				n, err := strconv.Atoi(strings.TrimSpace(v))
				if err != nil || n < axes[i].least || n > axes[i].most {
					return nil, fmt.Errorf("--grow=%s: want numbers from %d to %d", text, axes[i].least, axes[i].most)
				}
				one.Values = append(one.Values, n)
			}
		}
		all = append(all, one)
	}
	return all, nil
}

// Growth is one drain at a value of an axis, everything else in the middle.
type Growth struct {
	Axis  string `json:"axis"`
	Value int    `json:"value"`
	Round int    `json:"round"`
	Steady
}

// work is one point: what a relay has to drain, and under which circumstances.
type work struct {
	waiting, sent, keys, lanes, ledger, headers int
}

// middle is the point around which each axis grows by itself.
func (o Options) middle() work {
	return work{waiting: o.Rows, sent: 0, keys: 10_000, lanes: 4, ledger: 0, headers: 2}
}

func (w work) at(axis string, value int) work {
	*map[string]*int{"waiting": &w.waiting, "sent": &w.sent, "keys": &w.keys, "lanes": &w.lanes, "ledger": &w.ledger, "headers": &w.headers}[axis] = value
	return w
}

// grow measures each axis by itself, its values in turn: up in one round, down in the next, so that
// a drift of the machine counts for all of them.
func (b *database) grow(ctx context.Context, t *target, program Program, o Options, printf func(string, ...any)) (all []Growth, err error) {
	for _, axis := range o.Grow {
		tables := map[int]*database{0: b} // by the number of old rows: they are made once
		defer func() {
			for sent, other := range tables {
				if sent != 0 {
					err = errors.Join(err, other.close())
				}
			}
		}()
		for round := range o.Repeat {
			values := slices.Clone(axis.Values)
			if round%2 == 1 {
				slices.Reverse(values)
			}
			for _, value := range values {
				w := o.middle().at(axis.Name, value)
				on := tables[w.sent]
				if on == nil {
					printf("making %d sent rows", w.sent)
					if on, err = b.withSent(ctx, t, program, w.sent); err != nil {
						return nil, err
					}
					tables[w.sent] = on
				}
				run, err := on.growOnce(ctx, t, o, w)
				if err != nil {
					return nil, fmt.Errorf("%s=%d: %w", axis.Name, value, err)
				}
				printf("%s=%d: %.0f events/s; CPU an event: walsender %.1f µs, marks %.1f, relay %.1f; started in %.2f s", axis.Name, value, run.PerSecond, run.Walsender, run.Marks, run.Relay, run.Start)
				all = append(all, Growth{Axis: axis.Name, Value: value, Round: round + 1, Steady: run})
			}
		}
	}
	return all, nil
}

// growOnce drains one backlog.
func (b *database) growOnce(ctx context.Context, t *target, o Options, w work) (run Steady, err error) {
	rows := row{eventType: t.eventType, bytes: o.RowBytes, keys: w.keys, headers: w.headers}
	perTx := min(o.Shapes[0], w.waiting)
	waiting := w.waiting / perTx * perTx
	slot := b.name + "_0"
	if err := b.block(ctx, slot, w); err != nil {
		return run, err
	}
	var before, after int
	const count = `SELECT count(*) FROM saga_outbox WHERE status = 'pending'`
	if err := b.conn.QueryRow(ctx, count).Scan(&before); err != nil {
		return run, err
	}
	var end string
	fill := func() error {
		if err := b.fillWith(ctx, rows, waiting, perTx); err != nil {
			return err
		}
		end, err = b.walEnd(ctx)
		return err
	}
	if _, err := b.makeSlots(ctx, 1, fill); err != nil {
		return run, err
	}
	if err := b.conn.QueryRow(ctx, count).Scan(&after); err != nil {
		return run, err
	}
	// All points pay for the first change of a page after a checkpoint, or a backlog that is larger
	// than max_wal_size alone would. It is a superuser's, or pg_checkpoint's.
	_, _ = b.conn.Exec(ctx, `CHECKPOINT`)
	if run, err = b.steadyRun(ctx, o.relayArgs(), slot, end, after-before, "RELAY_LANES="+strconv.Itoa(w.lanes)); err != nil {
		return run, err
	}
	if w.sent == 0 {
		return run, b.clear(ctx)
	}
	for _, slot := range b.slots {
		if err := b.dropSlot(ctx, slot); err != nil {
			return run, err
		}
	}
	b.slots = nil
	// The old rows stay; what was drained is at the table's end, which a vacuum cuts off.
	for _, statement := range []string{
		`DELETE FROM saga_outbox WHERE created_at > now() - interval '1 day'`, `VACUUM saga_outbox`,
		`TRUNCATE saga_outbox_archive, saga_outbox_relay, saga_outbox_set, saga_outbox_delivery`,
	} {
		if _, err := b.conn.Exec(ctx, statement); err != nil {
			return run, err
		}
	}
	return run, nil
}
