package store

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// leftovers are outcomes that neither the table nor the ledger takes, so that only this process
// knows of them: the events are done, and their rows are still pending. While the lease lasts, they
// are left out of sweeps and look-ups. They are tried again until they are written. A process that
// ends before forgets them; the next owner finds their rows, and delivers them again.
type leftovers struct {
	mu    sync.Mutex // guards what follows
	marks map[relay.UUID]*leftover
	// lines count the events in marks that their key waits for at a sink. What comes later of such
	// a key is kept here too, or it would pass them in the ledger.
	lines map[lineOf]int
	// outcomes of ledger entries that Resolve could not write.
	outcomes map[entryOf]*unwritten
	pause    time.Duration
	next     time.Time // when they are tried again; zero: there are no leftovers

	// Rows that retention could not remove, and when; rows that hybrid mode could not claim for a
	// lock, since when.
	unprunable map[relay.UUID]time.Time
	unclaimed  map[relay.UUID]time.Time

	// locked is rows that could not be marked because they are locked, since when.
	locked map[relay.UUID]time.Time

	entries bool                // the ledger may have entries of relay.MarkSink
	logged  map[relay.UUID]bool // rows that were logged when they were parked

	sessionEnded time.Time // see lease.restartSession

	known relay.Unmarked // the last count of the entries
	stale time.Time      // when to count again
}

// leftover is one of them.
type leftover struct {
	mark  relay.Mark
	why   cause
	since time.Time
}

// mostLeftovers bounds the memory that leftovers take. Beyond it a batch is tried again as a whole.
const mostLeftovers = 10_000

var errNoRoom = fmt.Errorf("of more than %d events neither the table nor the ledger takes what became of them", mostLeftovers)

// The pause between two tries to write leftovers grows from the one to the other.
const (
	leftoverMin = time.Second
	leftoverMax = time.Minute
)

// keep notes marks as leftovers.
func (l *leftovers) keep(marks []relay.Mark, why cause) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.marks)+len(marks) > mostLeftovers {
		return fmt.Errorf("%w: %s", errNoRoom, why.text)
	}
	if l.marks == nil {
		l.marks, l.lines = make(map[relay.UUID]*leftover), make(map[lineOf]int)
	}
	for i := range marks {
		m := marks[i]
		if old := l.marks[m.ID]; old != nil {
			old.why = why
			continue
		}
		l.marks[m.ID] = &leftover{mark: m, why: why, since: time.Now()}
		for j := range m.Parked {
			l.lines[lineOf{m.Parked[j].Sink, m.Key}]++
		}
	}
	l.retry()
	return nil
}

// retry sets the time of the first try. It is called with mu held.
func (l *leftovers) retry() {
	if l.next.IsZero() {
		l.pause, l.next = leftoverMin, time.Now().Add(leftoverMin)
	}
}

// drop forgets an event: it was written.
func (l *leftovers) drop(m *relay.Mark) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.marks[m.ID] == nil {
		return
	}
	delete(l.marks, m.ID)
	for j := range m.Parked {
		line := lineOf{m.Parked[j].Sink, m.Key}
		if l.lines[line]--; l.lines[line] == 0 {
			delete(l.lines, line)
		}
	}
}

// has reports whether an event is among them.
func (l *leftovers) has(id relay.UUID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.marks[id] != nil
}

// behind keeps those of the marks that have to wait behind leftovers of their key, and returns the
// others.
func (l *leftovers) behind(of part) (rest part) {
	l.mu.Lock()
	none := len(l.lines) == 0
	l.mu.Unlock()
	if none {
		return of
	}
	for i := range of.marks {
		m := &of.marks[i]
		if !l.has(m.ID) && (!l.blocks(m) || l.keep(of.marks[i:i+1], waitsBehind) != nil) {
			rest = rest.and(of, i)
		}
	}
	return rest
}

// waitsBehind is why an event is kept that nothing is wrong with.
var waitsBehind = cause{text: "waits behind another event of its key"}

// blocks reports whether a mark has to wait behind leftovers.
func (l *leftovers) blocks(m *relay.Mark) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for j := range m.Parked {
		if l.lines[lineOf{m.Parked[j].Sink, m.Key}] > 0 {
			return true
		}
	}
	return false
}

// due returns the leftovers, the marks in their order, when it is time to try them again.
func (l *leftovers) due() (marks []relay.Mark, outcomes []*unwritten) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.marks)+len(l.outcomes) == 0 {
		l.next = time.Time{}
	}
	if l.next.IsZero() || time.Now().Before(l.next) {
		return nil, nil
	}
	l.pause = min(2*l.pause, leftoverMax)
	l.next = time.Now().Add(l.pause)
	for _, left := range l.marks {
		marks = append(marks, left.mark)
	}
	slices.SortFunc(marks, func(a, b relay.Mark) int { return cmp.Compare(a.Position, b.Position) })
	for _, u := range l.outcomes {
		outcomes = append(outcomes, u)
	}
	return marks, outcomes
}

// count adds them to what is known of the ledger.
func (l *leftovers) count(u *relay.Unmarked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u.Memory = len(l.marks) + len(l.outcomes)
	u.Events += u.Memory
	older := func(since time.Time, why cause) {
		if u.Oldest.IsZero() || since.Before(u.Oldest) {
			u.Oldest, u.Cause = since, why.text
		}
	}
	for _, left := range l.outcomes {
		older(left.since, left.why)
	}
	for _, left := range l.marks {
		older(left.since, left.why)
	}
}

// counted returns the last count of the entries, while it is not worth making another.
func (l *leftovers) counted() (u relay.Unmarked, is bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known, l.known.Events > 0 && time.Now().Before(l.stale)
}

// keepCount keeps a count, and for how long, by what it took.
func (l *leftovers) keepCount(u relay.Unmarked, took time.Duration) {
	const cheap, share = 50 * time.Millisecond, 50
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known, l.stale = u, time.Time{}
	if took > cheap {
		l.stale = time.Now().Add(share * took)
	}
}

// watching reports whether rows are known to be locked.
func (l *leftovers) watching() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.locked) > 0
}

// lockedSince notes which of a batch's rows are locked, and returns those that have been for too
// long.
func (l *leftovers) lockedSince(marks []relay.Mark, locked []int) (overdue []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.locked
	now := time.Now()
	still := make(map[relay.UUID]bool, len(locked))
	for _, i := range locked {
		id := marks[i].ID
		still[id] = true
		since, known := was[id]
		switch {
		case !known:
			if l.locked == nil {
				l.locked = make(map[relay.UUID]time.Time)
			}
			l.locked[id] = now
		case now.Sub(since) >= lockedFor:
			overdue = append(overdue, i)
		}
	}
	for i := range marks {
		if id := marks[i].ID; !still[id] {
			delete(l.locked, id)
		}
	}
	return overdue
}

// unlocked forgets rows that were locked.
func (l *leftovers) unlocked(marks []relay.Mark) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range marks {
		delete(l.locked, marks[i].ID)
	}
}

// first reports whether nothing was logged yet of an event that is parked.
func (l *leftovers) first(id relay.UUID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.logged[id] {
		return false
	}
	if l.logged == nil || len(l.logged) >= mostLeftovers {
		l.logged = make(map[relay.UUID]bool)
	}
	l.logged[id] = true
	return true
}

// longUnclaimed notes that a row could not be claimed because it is locked, and reports whether
// that has lasted.
func (l *leftovers) longUnclaimed(id relay.UUID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	since, known := l.unclaimed[id]
	if !known {
		if l.unclaimed == nil || len(l.unclaimed) >= mostLeftovers {
			l.unclaimed = make(map[relay.UUID]time.Time)
		}
		l.unclaimed[id] = time.Now()
		return false
	}
	return time.Since(since) >= lockedFor
}

// claimed forgets rows that could not be claimed.
func (l *leftovers) claimed(events []relay.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range events {
		if len(l.unclaimed) == 0 {
			return
		}
		delete(l.unclaimed, events[i].ID)
	}
}

// refusesPrune notes that retention could not remove a row.
func (l *leftovers) refusesPrune(id relay.UUID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.unprunable) >= mostLeftovers {
		return fmt.Errorf("more than %d rows cannot be removed", mostLeftovers)
	}
	if l.unprunable == nil {
		l.unprunable = make(map[relay.UUID]time.Time)
	}
	l.unprunable[id] = time.Now()
	return nil
}

// pruneAgain is when retention tries again to remove a row that it could not.
const pruneAgain = time.Hour

// notPrunable are the rows that retention leaves out.
func (l *leftovers) notPrunable() uuids {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := uuids{}
	for id, at := range l.unprunable {
		if time.Since(at) >= pruneAgain {
			delete(l.unprunable, id)
			continue
		}
		ids = append(ids, id)
	}
	return ids
}

// expect notes whether the ledger may have entries of relay.MarkSink.
func (l *leftovers) expect(entries bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = entries
}

// expects reports it.
func (l *leftovers) expects() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries
}
