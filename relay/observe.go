package relay

import (
	"context"
	"slices"
	"time"
)

const (
	observeInterval = time.Second
	slotEvery       = 5 // observations between two looks at the slot
)

// observer looks at one pipeline, and at the database, for its metrics.
type observer struct {
	p      *pipeline
	unread unreadEstimate
	sample slotSample // what is known; a copy of it is exported
	ledger schedule
	table  schedule
	counts schedule // of the rows that wait

	looking  <-chan tableLook // the table's rows are being counted
	counting <-chan waitingRows

	parked  [2]Timestamp // the oldest event parked since the last count of the ledger, and before it
	backlog int
	oldest  Timestamp // created_at of the oldest pending row at the last look at the table
	updates TableUpdates
	recent  recentUpdates
	first   bool // our slot is the first one: we speak for the whole table
}

// observe keeps the pipeline's gauges up to date until ctx ends, notes the watermark now and then, and sees to it that the slot does
// not hold back too much WAL.
func (p *pipeline) observe(ctx context.Context) error {
	o := &observer{p: p, first: p.slot == p.cfg.Slots[0]}
	o.sample.epoch, o.sample.limit, o.sample.hotRatio = p.lease.Epoch(), [2]int{p.cfg.InflightEvents, p.cfg.InflightBytes}, -1
	o.sample.sinks = sinkNames(p.sinks)
	defer func() {
		if o.looking != nil {
			<-o.looking // it ends with ctx
		}
		if o.counting != nil {
			<-o.counting // this one too
		}
	}()
	for n := 0; ; n++ {
		o.takeCount()
		if n%slotEvery == 0 || o.fallsBehind() {
			o.lookAtSlot(ctx)
			o.countWaiting(ctx) // now: what was committed between the two would be counted twice
		}
		o.lookAtTable(ctx)
		if p.wantsConfirm() {
			if err := p.confirm(ctx); err != nil {
				p.log.Debug("noting the watermark", "error", err)
			}
		}
		o.export()
		if !Sleep(ctx, observeInterval) {
			return nil
		}
	}
}

// lookAtSlot asks the server about the slot and the table's updates.
func (o *observer) lookAtSlot(ctx context.Context) {
	info, err := o.p.lease.Slot(ctx)
	if err != nil {
		o.p.log.Debug("looking at the slot", "error", err) // who needs the slot says it louder
		return
	}
	s := &o.sample
	s.info, s.looked = info, info.Exists || o.p.cfg.Mode != ModePolling // who only polls has no slot, and misses none
	switch {
	case info.Active:
		s.inactive = time.Time{}
	case info.InactiveFor != nil:
		s.inactive = time.Now().Add(-*info.InactiveFor)
	case s.inactive.IsZero():
		s.inactive = time.Now()
	}
	s.budget = o.p.walBudget(info)
	defer func() { o.p.saw(info, o.recent.hotShare()) }()
	o.p.mindWAL(info)
	if !o.first {
		return
	}
	if now, err := o.p.lease.Updates(ctx); err == nil {
		if updates := now.All - o.updates.All; o.updates.All > 0 && updates > 0 {
			s.hotRatio = float64(now.HOT-o.updates.HOT) / float64(updates)
		}
		o.updates = now
		o.recent.add(now)
	}
}

// lookAtTable counts the ledger's entries and the table's rows, each as often as its cost allows.
func (o *observer) lookAtTable(ctx context.Context) {
	if began := time.Now(); o.ledger.due() {
		if counts, err := o.p.lease.Counts(ctx); err == nil {
			// Entries about marks are no events that wait: Remark tells of them.
			o.sample.ledger = slices.DeleteFunc(counts, func(c LedgerCount) bool { return c.Sink == MarkSink })
			o.parked = [2]Timestamp{0, o.parked[0]} // what was parked just now may not be written yet
		}
		o.ledger.after(time.Since(began), slotEvery*observeInterval, lookShare, ledgerCeiling)
	}
	if o.looking == nil && o.table.due() && (o.first || !o.p.isStreaming()) {
		// It may take a minute, and the others have to go on meanwhile.
		done := make(chan tableLook, 1)
		o.looking = done
		go func() {
			began := time.Now()
			t, err := o.p.lease.Table(ctx)
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
		if l.err == nil && l.table.counted() < smallTable {
			ceiling = smallTableCeiling
		}
		o.table.after(l.took, slotEvery*observeInterval, lookShare, ceiling)
	default:
	}
}

// tableLook is what came of counting the table's rows.
type tableLook struct {
	table TableInfo
	err   error
	took  time.Duration
}

// ledgerCeiling bounds the pause between two counts of the ledger, whatever they cost: alerts hang on them. One that had to wait for a busy machine says
// little of the next.
const ledgerCeiling = time.Minute

const (
	// tableCeiling bounds the pause between two counts of the table's rows, whatever they cost.
	tableCeiling = time.Hour
	// smallTable is how many rows, the sent ones apart, cost next to nothing to count: if it took long, the machine was busy.
	smallTable = 10_000
	// smallTableCeiling bounds the pause between two counts of so few.
	smallTableCeiling = 15 * time.Second
)

// counted is the number of rows that were counted one by one.
func (t *TableInfo) counted() (n int64) {
	for status, rows := range t.Rows {
		if status != "sent" {
			n += rows
		}
	}
	return n
}

// export makes what is known now visible.
func (o *observer) export() {
	p, s := o.p, o.sample
	var st SlotStatus
	p.status(&st)
	p.mu.Lock()
	s.unmarked = p.unmarked.Events
	at := p.reading(s.info)
	oldest := time.Time{}
	if f := p.tracker.oldest(); f != nil && f.at() != 0 {
		oldest = f.at().Time()
	}
	p.mu.Unlock()
	s.mode, s.streaming, s.inflight, s.bytes, s.lag = st.Mode, st.Streaming, st.Inflight, st.Bytes, st.LagSeconds
	s.waiting = float64(st.Inflight)
	entries := 0
	for _, shelf := range p.shelves {
		s.waiting += float64(shelf.inLedger())
		n, _, _ := shelf.state()
		entries += n
		if at := shelf.parked(); at != 0 && (o.parked[0] == 0 || at < o.parked[0]) {
			o.parked[0] = at
		}
	}
	if st.Mode == ModePolling {
		s.waiting += max(0, float64(o.backlog-st.Inflight)) // in flight, they are pending still
	} else if s.info.Exists {
		s.waiting += o.unread.events(at)
	}
	for _, at := range o.parked {
		if entries > 0 && at != 0 && (oldest.IsZero() || at.Time().Before(oldest)) {
			oldest = at.Time()
		}
	}
	for _, c := range s.ledger {
		if c.State != StateDead && !c.Oldest.IsZero() && (oldest.IsZero() || c.Oldest.Before(oldest)) {
			oldest = c.Oldest
		}
	}
	if at := o.oldest.Time(); !st.Streaming && o.oldest != 0 && (oldest.IsZero() || at.Before(oldest)) {
		oldest = at
	}
	if !oldest.IsZero() {
		s.oldest = max(0, time.Since(oldest).Seconds())
	}
	p.awaits(s.waiting)
	p.metrics.slots.set(p.slot, &s)
}

// mindWAL isolates the sinks for which the oldest event waits when the slot holds back more WAL than the budget, so that their events go to
// the ledger and the slot goes on; it ends that at half the budget. It sheds WAL, never events.
func (p *pipeline) mindWAL(info SlotInfo) {
	budget := p.walBudget(info)
	if budget == 0 || !info.Exists {
		return
	}
	retained := int64(info.WALEnd - min(info.WALEnd, info.Restart))
	waitsFor := p.waitsFor()
	for i, s := range p.shelves {
		_, _, over := s.state()
		switch {
		case !over && retained > budget && waitsFor&(1<<i) != 0:
			s.isolate(true)
			p.health[i].isolate(isolatedWAL)
			p.log.Error("the slot holds back more WAL than its budget because of a sink: its events go to the ledger", "sink", s.sink,
				"retained_bytes", retained, "budget_bytes", budget)
		case over && retained <= budget/2:
			if ended, after := s.up(true); ended {
				p.health[i].restore(restoredWAL)
				p.log.Info("the slot is within its WAL budget again", "sink", s.sink, "isolated_for", after.Round(time.Second))
			}
		}
	}
}

// walBudget is how much WAL the slot may hold back; 0 when there is no limit.
func (p *pipeline) walBudget(info SlotInfo) int64 {
	if p.cfg.WALBudget != 0 {
		return int64(p.cfg.WALBudget)
	}
	return info.KeepSize / 2
}

// waitsFor returns a bit for each sink that the oldest event in flight is with, when it was the oldest at the last look already.
func (p *pipeline) waitsFor() (sinks uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.tracker.oldest()
	if f != nil && f == p.stuck {
		sinks = f.open
	}
	p.stuck = f
	return sinks
}
