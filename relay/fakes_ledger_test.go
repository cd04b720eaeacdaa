package relay_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// entry is a row of the ledger in memory.
type entry struct {
	id        relay.UUID
	sink, key string
	position  int64
	state     relay.State
	next      time.Time // of a waiting one; zero: ready
	reason    relay.Reason
	lastError string
	attempts  int
	detached  bool
	discarded bool
	replayed  time.Time
}

func (e *entry) waiting() bool { return e.state == relay.StateRetry && !e.next.IsZero() }
func (e *entry) ready() bool   { return e.state == relay.StateRetry && e.next.IsZero() }

// blocks reports whether later entries of the key are held behind it.
func (e *entry) blocks() bool { return !e.detached && (e.waiting() || e.state != relay.StateRetry) }

// entriesOf returns the entries of one event. mu is held, as in all that follows.
func (w *world) entriesOf(id relay.UUID) (of []*entry) {
	for _, e := range w.ledger {
		if e.id == id {
			of = append(of, e)
		}
	}
	return of
}

// stands describes the ledger of a sink, by position: "a1 retry, a2 held".
func (w *world) stands(sink string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, e := range w.ledger {
		if e.sink != sink {
			continue
		}
		state := string(e.state)
		if e.ready() {
			state = "ready"
		}
		all = append(all, label(e.id)+" "+state)
	}
	return strings.Join(all, ", ")
}

// park writes the entries of a mark.
func (w *world) park(m *relay.Mark) {
	for _, p := range m.Parked {
		if slices.ContainsFunc(w.ledger, func(e *entry) bool { return e.id == m.ID && e.sink == p.Sink }) {
			continue
		}
		e := &entry{
			id: m.ID, sink: p.Sink, key: m.Key, position: m.Position, state: p.State, reason: p.Reason, lastError: p.Error,
			attempts: p.Attempts, detached: p.Detached,
		}
		if p.State == relay.StateRetry {
			e.next = time.Now().Add(p.Delay)
		}
		if p.State == relay.StateHeld && !slices.ContainsFunc(w.ledger, func(o *entry) bool {
			return o.sink == e.sink && o.key == e.key && o.position < e.position && o.blocks()
		}) {
			e.state = relay.StateRetry
		}
		w.ledger = append(w.ledger, e)
		slices.SortFunc(w.ledger, func(a, b *entry) int { return int(a.position - b.position) })
	}
}

// tell makes a row say what its entries say.
func (w *world) tell(id relay.UUID) {
	r := w.rows[id]
	r.status, r.lastError = "sent", ""
	var errs []string
	for _, e := range w.entriesOf(id) {
		switch {
		case e.state == relay.StateDead:
			r.status = "dead_letter"
		case e.attempts > 0 && r.status != "dead_letter":
			r.status = "failed"
		case r.status == "sent":
			r.status = "pending"
		}
		if e.lastError != "" {
			errs = append(errs, e.sink+": "+e.lastError)
		}
	}
	slices.Sort(errs)
	r.lastError = strings.Join(errs, "; ")
}

func (l *lease) LastPosition() (last int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.ledger {
		last = max(last, e.position)
	}
	return last
}

func (l *lease) Blocking(_ context.Context, f func(sink string, keyHash uint32, entries int)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.ledger {
		if !e.detached {
			f(e.sink, relay.KeyHash(e.key), 1)
		}
	}
	return nil
}

func (l *lease) Due(_ context.Context, sink string, limit, _ int) (due []relay.Entry, next time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next = -1
	for _, e := range l.ledger {
		if e.sink != sink || e.state != relay.StateRetry {
			continue
		}
		if left := time.Until(e.next); e.waiting() && left > 0 {
			if next < 0 || left < next {
				next = left
			}
			continue
		}
		if len(due) == limit {
			break
		}
		_, there := l.rows[e.id]
		ev := l.content[e.id]
		ev.CommitLSN, ev.XID, ev.CommittedAt, ev.CommitEnd = 0, 0, 0, 0
		due = append(due, relay.Entry{
			Event: ev, Position: e.position, KeyHash: relay.KeyHash(e.key), Attempts: e.attempts, Detached: e.detached,
			ReplayedAt: e.replayed, Gone: !there, Discarded: e.discarded,
		})
	}
	return due, next, nil
}

func (l *lease) Resolve(_ context.Context, sink string, outcomes []relay.Outcome) (err error) {
	l.change(func() {
		if l.onResolve != nil {
			if err = l.onResolve(); err != nil {
				return
			}
		}
		if l.epoch != l.world.epoch {
			err = relay.ErrFenced
			return
		}
		for i := range outcomes {
			l.resolve(sink, &outcomes[i])
		}
		for i := range outcomes {
			l.free(sink, outcomes[i].Entry.Event.AggregateID)
		}
	})
	return err
}

func (l *lease) resolve(sink string, o *relay.Outcome) {
	at := slices.IndexFunc(l.ledger, func(e *entry) bool { return e.sink == sink && e.id == o.Entry.Event.ID })
	if at < 0 {
		l.t.Errorf("resolved %s of %s, which is not in the ledger", label(o.Entry.Event.ID), sink)
		return
	}
	e := l.ledger[at]
	switch o.Fate {
	case relay.FateDelivered, relay.FateDropped:
		l.ledger = slices.Delete(l.ledger, at, at+1)
	case relay.FateRefused:
		e.state, e.next = relay.StateRetry, time.Now().Add(o.Delay)
		e.reason, e.lastError, e.attempts = o.Reason, o.Error, o.Attempts
		for _, behind := range l.ledger[at+1:] {
			if behind.sink == sink && behind.key == e.key && behind.ready() && !behind.detached && !e.detached {
				behind.state = relay.StateHeld
			}
		}
	case relay.FateDead:
		e.state, e.next = relay.StateDead, time.Time{}
		e.reason, e.lastError, e.attempts = o.Reason, o.Error, o.Attempts
		e.detached = e.detached || o.Detach
	}
	if l.rows[e.id] != nil {
		l.tell(e.id)
	}
}

// free lets the held entries of a key go, up to the next one that blocks.
func (l *lease) free(sink, key string) {
	for _, e := range l.ledger {
		if e.sink != sink || e.key != key || e.detached {
			continue
		}
		if e.waiting() || e.state == relay.StateDead {
			return
		}
		e.state = relay.StateRetry
	}
}

func (l *lease) Counts(context.Context) ([]relay.LedgerCount, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var counts []relay.LedgerCount
	for _, e := range l.ledger {
		at := slices.IndexFunc(counts, func(c relay.LedgerCount) bool { return c.Sink == e.sink && c.State == e.state })
		if at < 0 {
			at = len(counts)
			counts = append(counts, relay.LedgerCount{Sink: e.sink, State: e.state})
		}
		counts[at].N++
	}
	return counts, nil
}

// fenced does f if the lease is not a zombie's.
func (l *lease) fenced(f func()) (err error) {
	l.change(func() {
		if l.epoch != l.world.epoch {
			err = relay.ErrFenced
			return
		}
		f()
	})
	return err
}

func (l *lease) Confirm(_ context.Context, at relay.LSN) error {
	return l.fenced(func() { l.noted = max(l.noted, at) })
}

func (l *lease) Recovery() relay.Recovery { return l.found }

func (l *lease) OweSweep(_ context.Context, cause string) error {
	return l.fenced(func() {
		l.note("owe " + cause)
		l.recovery = relay.Recovery{Owed: true, Cause: cause}
	})
}

// A snapshot is the number of transactions that it sees.
func (l *lease) horizon() relay.Horizon {
	return relay.Horizon{Snapshot: fmt.Sprint(uint64(l.next)), WAL: l.next}
}

func (l *lease) SweepFrom(_ context.Context, slotAt relay.LSN) (h relay.Horizon, err error) {
	err = l.fenced(func() {
		l.note("sweep")
		h = l.horizon()
		if l.recovery.Snapshot == "" || l.sweepAt != slotAt {
			l.recovery.Snapshot, l.sweepAt = h.Snapshot, slotAt
		}
		h.Snapshot = l.recovery.Snapshot
	})
	return h, err
}

func (l *lease) EndSweep(_ context.Context, confirmed relay.LSN) (marked relay.LSN, err error) {
	err = l.fenced(func() {
		l.note("swept")
		l.recovery = relay.Recovery{}
		l.noted, l.marked = confirmed, l.next
		marked = l.marked
	})
	return marked, err
}

func (l *lease) Horizon(context.Context) (relay.Horizon, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.horizon(), nil
}

func (l *lease) Backlog(context.Context, int) (n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.rows {
		if r.status == "pending" {
			n++
		}
	}
	return n, nil
}

func (l *lease) Sweep(_ context.Context, q relay.SweepQuery, f func([]relay.Event) error) error {
	seen := relay.LSN(1 << 62)
	if q.Seen != "" {
		if _, err := fmt.Sscan(q.Seen, (*uint64)(&seen)); err != nil {
			return err
		}
	}
	wanted := map[relay.SweepKind]string{relay.SweepPending: "pending", relay.SweepClaimed: "claimed", relay.SweepFailed: "failed"}[q.Kind]
	var ids []relay.UUID
	l.mu.Lock()
	err := pop(&l.sweepErrs)
	for _, ev := range l.wal {
		if ev.CommitLSN < seen {
			ids = append(ids, ev.ID)
		}
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	for len(ids) > 0 {
		n := min(len(ids), 10)
		var found []relay.Event
		l.mu.Lock()
		for _, id := range ids[:n] {
			if r := l.rows[id]; r != nil && r.status == wanted && len(l.entriesOf(id)) == 0 {
				ev := l.content[id]
				ev.CommitLSN, ev.XID, ev.CommittedAt, ev.CommitEnd, ev.Ordinal = 0, 0, 0, 0, 0
				found = append(found, ev)
			}
		}
		l.mu.Unlock()
		ids = ids[n:]
		if len(found) > 0 {
			if err := f(found); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lease) Prune(context.Context, time.Duration, bool, int) (int, error) { return 0, nil }
