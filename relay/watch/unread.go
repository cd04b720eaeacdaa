package watch

import (
	"context"
	"math"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// How many events wait for a slot's owner: those in flight, in the ledger, and those that are not
// read yet. The first two are known exactly. How many the stream has not brought yet is nowhere to
// be read. Its position does not show it: a transaction's changes come with its commit, and lie in
// the WAL before it, among those of others. What lies behind may be our own marks, or other tables'
// rows. So the rows that wait are counted in the table, for a small share of the time: when much
// WAL is unread, when the budget in flight is spent, and while nothing is streamed (before the
// stream begins, while it is interrupted, in a recovery, in polling mode). Once that was so, until
// a count shows that the stream keeps up. Between two counts what was admitted is taken off, which
// is exact, and what the server has counted as inserted is added, each slot's part of it. That is
// not exact: sessions report it once a second, and what is rolled back is among it.
//
// The sum over all relays is the backlog. So nothing of a lease that is lost is counted, from the
// moment on at which it is; and slots without an owner are counted by one of the relays
// (relay/store/unowned.go).

const (
	// backlogLimit is where the backlog's exact size does not matter any more.
	backlogLimit = 1_000_000
	// countPause is the least time between two counts.
	countPause = sampleInterval - sampleInterval/10
	// countShare bounds the counting: the pause is so many times what it took.
	countShare = relay.LookShare / 10

	// countedSlots are so many that their counts, each a look at the whole table, may have that
	// share; those of more slots share it.
	countedSlots = 8

	ordinaryWALPerEvent = 1500
	// largeTransaction is how many events of a transaction are brought before its rest is worth
	// counting.
	largeTransaction = 1000
)

// reading is how far a pipeline has come with the WAL.
type reading struct {
	walEnd, read     relay.LSN
	inside           int // see pipeline
	admitted, marked uint64
	inflight         int
	// table: nothing comes from the slot now, so what waits is to be found in the table only.
	table bool
	// filled: the budget is spent, so the stream may have more.
	filled bool
}

// behind reports whether there may be more to come than what passes by in a moment: from the table,
// or from the server, the rest of a transaction for one.
func (r *reading) behind() bool {
	return r.table || r.filled || r.inside >= largeTransaction || r.walEnd >= r.read+relay.CaughtUpBytes
}

// readingOf returns it, by a look at the server.
func readingOf(work *relay.WorkSnapshot, info *relay.SlotInfo) reading {
	return reading{
		walEnd: info.WALEnd, read: max(work.Read, info.ConfirmedFlush), inside: work.Inside,
		admitted: work.Admitted, marked: work.Marked, inflight: work.Inflight, table: work.Mode != relay.ModeCDC || !work.Streaming,
		filled: work.Inflight > 0 && (work.Inflight >= work.MaxEvents || work.Bytes >= work.MaxBytes),
	}
}

// waitingRows are how many rows were pending and in no ledger, soon after at.
type waitingRows struct {
	rows int
	at   reading
	err  error
	came int64 // rows that had been inserted, by the server's statistics
	took time.Duration
}

// countWaiting begins to count the rows that wait, when that is needed. It may take long, and the
// others have to go on meanwhile.
func (o *sampler) countWaiting(ctx context.Context, work *relay.WorkSnapshot) {
	o.s.mu.Lock()
	known := o.s.unread.known
	o.s.mu.Unlock()
	if at := readingOf(work, &o.sample.info); o.counting != nil || !known && !at.behind() {
		return
	}
	if known {
		if now, err := o.facts.Updates(ctx); err == nil {
			o.s.mu.Lock()
			o.s.unread.came = now.Inserts
			o.s.mu.Unlock()
		}
	}
	if !o.counts.Due() {
		return
	}
	if work.Mode != relay.ModePolling { // who only polls may have no slot
		// Now: what was committed between the two would be counted twice.
		info, err := o.facts.Slot(ctx)
		if err != nil {
			return
		}
		o.look(info)
		if work = o.work(); work == nil {
			return
		}
	}
	at := readingOf(work, &o.sample.info)
	if !known && !at.behind() {
		return
	}
	done := make(chan waitingRows, 1)
	o.counting = done
	go func() {
		began := time.Now()
		rows, err := o.facts.Backlog(ctx, backlogLimit)
		took := time.Since(began)
		now, _ := o.facts.Updates(ctx) // without it none have come
		done <- waitingRows{rows, at, err, now.Inserts, took}
	}()
}

// takeCount takes what came of it.
func (o *sampler) takeCount(c waitingRows) {
	o.counting = nil
	o.counts.After(c.took, countPause, countShare*max(1, o.s.unread.shards/countedSlots), tableCeiling)
	if c.err != nil {
		return
	}
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	o.s.unread.counted(c, o.about.Hybrid)
}

// unreadEstimate is how many events wait that are not read yet.
type unreadEstimate struct {
	// Of each event of ours, so many are in the WAL: those of the other slots' keys are read, too.
	shards   int
	from     relay.LSN
	admitted uint64
	perEvent float64 // WAL bytes

	known bool // the rows were counted, and the last count did not show that the stream keeps up
	limit bool // there were more than are counted
	at    reading
	rows  int   // that were not read then
	had   int64 // rows that had been inserted then
	came  int64 // rows that have been inserted by now
}

// counted takes a count. Rows in flight are among those counted, but in hybrid mode, where they are
// claimed.
func (u *unreadEstimate) counted(c waitingRows, hybrid bool) {
	rows := c.rows
	if !hybrid {
		rows = max(0, rows-c.at.inflight)
	}
	u.at, u.rows, u.limit, u.had, u.came = c.at, rows, c.rows >= backlogLimit, c.came, c.came
	u.known = c.at.behind() || rows >= largeTransaction
}

func (u *unreadEstimate) events(now reading) float64 {
	if u.from == 0 || now.read < u.from { // the latter after a restore
		u.from, u.admitted, u.perEvent = now.read, now.admitted, ordinaryWALPerEvent*float64(u.shards)
	}
	if n := now.admitted - u.admitted; n >= 1000 && now.read > u.from {
		u.perEvent = max(100, float64(now.read-u.from)/float64(n))
		u.from, u.admitted = now.read, now.admitted
	}
	unread := math.Floor(max(0, float64(bytesBetween(now.read, now.walEnd))/u.perEvent-float64(now.inside)))
	switch {
	case u.known && !(u.limit && !now.table):
		rows := float64(u.rows) - float64(now.admitted-u.at.admitted)
		if now.behind() {
			rows += math.Floor(max(0, float64(u.came-u.had)) / float64(u.shards))
		}
		return max(0, rows)
	case now.table || now.read == 0 || !now.behind():
		return 0
	}
	return unread
}

// bytesBetween is how much WAL there is between two positions, 0 when they are the other way round.
func bytesBetween(from, to relay.LSN) relay.LSN { return to - min(from, to) }

// waiting is how many events wait for the slot's owner now, as the engine has it.
func (s *slotWatch) waiting(work *relay.WorkSnapshot) float64 {
	if work.Lost {
		return 0 // whoever has the slot next counts them
	}
	sum := float64(work.Inflight)
	for i := range work.Sinks {
		sum += float64(work.Sinks[i].InLedger)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := readingOf(work, &s.info)
	return sum + s.unread.events(now)
}

// pending is how many events wait for this relay now: on the slots that it owns, and on those
// without an owner for which it speaks.
func (w *Watch) pending() (sum float64) {
	now := w.about.Snapshot()
	for i := range now.Slots {
		if work := now.Slots[i].Work; work != nil {
			if s := w.slot(now.Slots[i].Slot); s != nil {
				sum += s.waiting(work)
			}
		}
	}
	for _, rows := range now.Unowned {
		sum += float64(rows)
	}
	return sum
}
