package watch

import (
	"context"
	"slices"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

const (
	sampleInterval = time.Second
	slotEvery      = 5 // samples between two looks at the ledger and the table, at least
)

// sampler looks at one slot's work, and at the database, for the metrics and the status.
type sampler struct {
	s      *slotWatch
	about  *relay.About
	facts  relay.Facts
	sample slotSample // what is known; a copy of it is exported
	ledger relay.Schedule
	table  relay.Schedule
	counts relay.Schedule // of the rows that wait

	looking  <-chan tableLook // the table's rows are being counted
	lookedAt time.Time        // when that was begun last; before that, when the sampler was
	begun    bool             // something was streamed
	counting <-chan waitingRows

	// The oldest event parked since the last count of the ledger, and before it.
	parked  [2]relay.Timestamp
	oldest  relay.Timestamp // created_at of the oldest pending row at the last look at the table
	updates relay.TableUpdates
	recent  recentUpdates
	first   bool // our slot is the first one: we speak for the whole table
}

func newSampler(s *slotWatch, facts relay.Facts) *sampler {
	about := &s.w.about
	o := &sampler{s: s, about: about, facts: facts, first: s.first, lookedAt: time.Now()}
	o.sample.hotRatio, o.sample.sinks, o.sample.since = -1, about.Sinks, time.Now()
	return o
}

// run takes samples until ctx ends: each second, and when the engine has looked at the slot.
func (o *sampler) run(ctx context.Context) {
	defer func() {
		if o.looking != nil {
			<-o.looking // it ends with ctx
		}
		if o.counting != nil {
			<-o.counting // this one too
		}
	}()
	tick := time.NewTicker(sampleInterval)
	defer tick.Stop()
	for {
		o.once(ctx)
		select {
		case <-tick.C:
		case info := <-o.s.seen:
			o.saw(ctx, info)
		case c := <-o.counting:
			o.takeCount(c)
		case <-ctx.Done():
			return
		}
	}
}

// once takes a sample.
func (o *sampler) once(ctx context.Context) {
	work := o.work()
	if work == nil {
		return // it ends just now
	}
	o.begun = o.begun || work.Streaming
	o.countWaiting(ctx, work)
	o.lookAtTable(ctx, work)
	if work = o.work(); work != nil {
		o.export(work)
	}
}

// work is what the engine does for our slot now, nil when it does not work on it.
func (o *sampler) work() *relay.WorkSnapshot {
	now := o.about.Snapshot()
	for i := range now.Slots {
		if now.Slots[i].Slot == o.s.slot {
			return now.Slots[i].Work
		}
	}
	return nil
}

// look takes a look at the slot.
func (o *sampler) look(info relay.SlotInfo) {
	s := &o.sample
	// Who only polls has no slot, and misses none.
	s.info, s.looked = info, info.Exists || o.about.Mode != relay.ModePolling
	switch {
	case info.Active:
		s.inactive = time.Time{}
	case info.InactiveFor != nil:
		s.inactive = time.Now().Add(-*info.InactiveFor)
	case s.inactive.IsZero():
		s.inactive = time.Now()
	}
	s.budget = info.WALBudget(o.about.WALBudget)
	o.s.mu.Lock()
	o.s.info = info
	o.s.mu.Unlock()
}

// saw takes the engine's look at the slot, and asks for the table's updates.
func (o *sampler) saw(ctx context.Context, info relay.SlotInfo) {
	s := &o.sample
	o.look(info)
	if !o.first {
		return
	}
	if now, err := o.facts.Updates(ctx); err == nil {
		if updates := now.All - o.updates.All; o.updates.All > 0 && updates > 0 {
			s.hotRatio = float64(now.HOT-o.updates.HOT) / float64(updates)
		}
		o.updates = now
		o.recent.add(now)
	}
	hot := o.recent.hotShare()
	o.s.mu.Lock()
	o.s.hot = hot
	o.s.mu.Unlock()
}

// lookAtTable counts the ledger's entries and the table's rows, each as often as its cost allows.
func (o *sampler) lookAtTable(ctx context.Context, work *relay.WorkSnapshot) {
	if began := time.Now(); o.ledger.Due() {
		if counts, err := o.facts.Counts(ctx); err == nil {
			// Entries about marks are no events that wait: Remark counts them.
			o.sample.ledger = slices.DeleteFunc(counts, func(c relay.LedgerCount) bool { return c.Sink == relay.MarkSink })
			// What was parked just now may not be written yet.
			o.parked = [2]relay.Timestamp{0, o.parked[0]}
		}
		o.ledger.After(time.Since(began), slotEvery*sampleInterval, relay.LookShare, ledgerCeiling)
	}
	if o.looking == nil && o.table.Due() && (o.first || !work.Streaming) && !o.catchesUp(work) {
		// It may take a minute, and the others have to go on meanwhile.
		done := make(chan tableLook, 1)
		o.looking, o.lookedAt = done, time.Now()
		go func() {
			began := time.Now()
			t, err := o.facts.Table(ctx)
			done <- tableLook{t, err, time.Since(began)}
		}()
	}
	select {
	case l := <-o.looking:
		o.looking = nil
		if l.err == nil {
			o.oldest = l.table.OldestPending
			if o.first {
				o.sample.rows = l.table.Rows
			}
		}
		ceiling := tableCeiling
		if l.err == nil && countedOf(&l.table) < smallTable {
			ceiling = smallTableCeiling
		}
		o.table.After(l.took, slotEvery*sampleInterval, relay.LookShare, ceiling)
	default:
	}
}

// catchesUp reports whether the table's rows are not to be counted now: the stream brings a backlog, or
// is about to. The counting, which reads the table once for each status that no index serves, would
// take a fifth of two cores from it. It waits for a minute at most.
func (o *sampler) catchesUp(work *relay.WorkSnapshot) bool {
	since := time.Since(o.lookedAt)
	if !work.Streaming {
		return work.Mode == relay.ModeCDC && !o.begun && since < beginPause
	}
	now := readingOf(work, &o.sample.info)
	return now.behind() && since < catchUpPause
}

// tableLook is what came of counting the table's rows.
type tableLook struct {
	table relay.TableInfo
	err   error
	took  time.Duration
}

// ledgerCeiling bounds the pause between two counts of the ledger, whatever they cost: alerts
// depend on them. One that had to wait for a busy machine is no measure for the next.
const ledgerCeiling = time.Minute

const (
	// catchUpPause is the least time between two counts of the table's rows while a backlog is read,
	// beginPause how long the first one waits for the stream.
	catchUpPause = time.Minute
	beginPause   = 5 * time.Second
	// tableCeiling bounds the pause between two counts of the table's rows, whatever they cost.
	tableCeiling = time.Hour
	// smallTable is how many rows, the sent ones apart, cost next to nothing to count: if it took
	// long, the machine was busy.
	smallTable = 10_000
	// smallTableCeiling bounds the pause between two counts of so few.
	smallTableCeiling = 15 * time.Second
)

// countedOf is the number of rows that were counted one by one.
func countedOf(t *relay.TableInfo) (n int64) {
	for status, rows := range t.Rows {
		if status != "sent" {
			n += rows
		}
	}
	return n
}

// export makes what is known now visible.
func (o *sampler) export(work *relay.WorkSnapshot) {
	s := o.sample
	s.epoch, s.unmarked = work.Epoch, work.Unmarked.Events
	s.limit = [2]int{work.MaxEvents, work.MaxBytes}
	oldest := time.Time{}
	if work.OldestAt != 0 {
		oldest = work.OldestAt.Time()
	}
	s.mode, s.streaming, s.inflight, s.bytes = work.Mode, work.Streaming, work.Inflight, work.Bytes
	if at := work.OldestCommit; at != 0 {
		s.lag = max(0, time.Since(at.Time()).Seconds())
	}
	entries := 0
	for i, shelf := range work.Sinks {
		entries += shelf.Entries
		if at := o.s.oldestParked(i); at != 0 && shelf.Entries > 0 && (o.parked[0] == 0 || at < o.parked[0]) {
			o.parked[0] = at
		}
	}
	for _, at := range o.parked {
		if entries > 0 && at != 0 && (oldest.IsZero() || at.Time().Before(oldest)) {
			oldest = at.Time()
		}
	}
	for _, c := range s.ledger {
		if c.State != relay.StateDead && !c.Oldest.IsZero() && (oldest.IsZero() || c.Oldest.Before(oldest)) {
			oldest = c.Oldest
		}
	}
	if at := o.oldest.Time(); !work.Streaming && o.oldest != 0 && (oldest.IsZero() || at.Before(oldest)) {
		oldest = at
	}
	if !oldest.IsZero() {
		s.oldest = max(0, time.Since(oldest).Seconds())
	}
	o.s.w.metrics.slots.set(o.s.slot, &s)
}
