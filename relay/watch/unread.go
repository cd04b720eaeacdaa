package watch

import (
	"context"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// How many events the stream has not brought yet is nowhere to be read. Its position does not show
// it: a transaction's changes come with its commit, and lie in the WAL before it, among those of
// others. What lies behind may be our own marks, or other tables' rows. So whenever much WAL is
// unread, the rows that wait are counted in the table, for a small share of the time. Between two
// counts what was admitted is taken off, which is exact, and the WAL that was written since is
// taken for events of the usual size. Nothing is counted while the stream keeps up.

const (
	// backlogLimit is where the backlog's exact size does not matter any more.
	backlogLimit = 1_000_000
	// countPause is the least time between two counts: shorter than that between two looks at the
	// slot, which a count follows.
	countPause = (slotEvery - 1) * sampleInterval
	// countShare bounds the counting: the pause is so many times what it took.
	countShare = relay.LookShare / 10

	ordinaryWALPerEvent = 1500
	// walPerMark is about what the mark of an event writes, which is not to be taken for new
	// events.
	walPerMark = 500
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
}

// behind reports whether the server has something to send: a transaction's rest, or more WAL than
// passes by in a moment.
func (r *reading) behind() bool {
	return r.inside >= largeTransaction || r.walEnd >= r.read+relay.CaughtUpBytes
}

// readingOf returns it, by a look at the server.
func readingOf(work *relay.WorkSnapshot, info *relay.SlotInfo) reading {
	return reading{
		walEnd: info.WALEnd, read: max(work.Read, info.ConfirmedFlush), inside: work.Inside,
		admitted: work.Admitted, marked: work.Marked, inflight: work.Inflight,
	}
}

// waitingRows are how many rows were pending and in no ledger, soon after at.
type waitingRows struct {
	rows int
	at   reading
	err  error
	took time.Duration
}

// fallsBehind reports whether a large transaction has begun to arrive, which is not to wait for the
// next look at the slot.
func (o *sampler) fallsBehind(work *relay.WorkSnapshot) bool {
	if o.unread.known || o.counting != nil || !o.counts.Due() {
		return false
	}
	return work.Inside >= largeTransaction && len(o.about.Slots) == 1
}

// countWaiting begins to count the rows that wait, when that is needed. It may take long, and the
// others have to go on meanwhile.
func (o *sampler) countWaiting(ctx context.Context) {
	if o.counting != nil || !o.counts.Due() {
		return
	}
	work := o.work()
	if work == nil {
		return
	}
	at := readingOf(work, &o.sample.info)
	// Which of several slots brings a row, the table does not show.
	if work.Mode != relay.ModePolling && (len(o.about.Slots) > 1 || !o.sample.info.Exists || !at.behind()) {
		return
	}
	done := make(chan waitingRows, 1)
	o.counting = done
	go func() {
		began := time.Now()
		rows, err := o.facts.Backlog(ctx, backlogLimit)
		done <- waitingRows{rows, at, err, time.Since(began)}
	}()
}

// takeCount takes what came of it.
func (o *sampler) takeCount() {
	select {
	case c := <-o.counting:
		o.counting = nil
		o.counts.After(c.took, countPause, countShare, tableCeiling)
		if c.err == nil {
			o.backlog = c.rows
			o.unread.counted(c, o.about.Hybrid)
		}
	default:
	}
}

// unreadEstimate is how many events the stream has not brought yet.
type unreadEstimate struct {
	from     relay.LSN
	admitted uint64
	perEvent float64 // WAL bytes

	known bool // the rows were counted since the stream fell behind
	at    reading
	rows  int // that were not read then
}

// counted takes a count. Rows in flight are among those counted, but in hybrid mode, where they are
// claimed.
func (u *unreadEstimate) counted(c waitingRows, hybrid bool) {
	u.known, u.at, u.rows = c.rows < backlogLimit, c.at, c.rows
	if !hybrid {
		u.rows = max(0, c.rows-c.at.inflight)
	}
}

func (u *unreadEstimate) events(now reading) float64 {
	if u.from == 0 || now.read < u.from { // the latter after a restore
		*u = unreadEstimate{from: now.read, admitted: now.admitted, perEvent: ordinaryWALPerEvent}
	}
	if n := now.admitted - u.admitted; n >= 1000 && now.read > u.from {
		u.perEvent = max(100, float64(now.read-u.from)/float64(n))
		u.from, u.admitted = now.read, now.admitted
	}
	if !now.behind() {
		u.known = false
		return 0
	}
	if u.known {
		since := float64(bytesBetween(u.at.walEnd, now.walEnd)) - walPerMark*float64(now.marked-u.at.marked)
		return max(0, float64(u.rows)-float64(now.admitted-u.at.admitted)) + float64(int64(max(0, since)/u.perEvent))
	}
	return max(0, float64(int64(float64(bytesBetween(now.read, now.walEnd))/u.perEvent)-int64(now.inside)))
}

// bytesBetween is how much WAL there is between two positions, 0 when they are the other way round.
func bytesBetween(from, to relay.LSN) relay.LSN { return to - min(from, to) }
