package engine_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// entriesOf describes the ledger of a sink, by position: "a1 retry, a2 held".
func (w *world) entriesOf(sink string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, e := range w.ledger.Entries {
		if e.Sink != sink {
			continue
		}
		state := string(w.ledger.State(e))
		if state == string(relay.StateRetry) && e.Next.IsZero() {
			state = "ready"
		}
		all = append(all, label(e.ID)+" "+state)
	}
	return strings.Join(all, ", ")
}

// setFate gives a row the status that follows from its entries.
func (l *lease) setFate(id relay.UUID) {
	r := l.rows[id]
	r.status, r.lastError = "sent", ""
	var errs []string
	for _, e := range l.ledger.Of(id) {
		switch {
		case e.Dead:
			r.status = "dead_letter"
		case e.Attempts > 0 && r.status != "dead_letter":
			r.status = "failed"
		case r.status == "sent":
			r.status = "pending"
		}
		if e.Error != "" {
			errs = append(errs, e.Sink+": "+e.Error)
		}
	}
	slices.Sort(errs)
	r.lastError = strings.Join(errs, "; ")
}

func (l *lease) LastPosition() (last int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.ledger.Entries {
		last = max(last, e.Position)
	}
	return last
}

func (l *lease) Blocking(_ context.Context, mask uint32, f func(sink string, bucket uint32, entries, blocking int)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.ledger.Entries {
		blocking := 1
		if e.Detached {
			blocking = 0
		}
		f(e.Sink, relay.KeyHash(e.Key)&mask, 1, blocking)
	}
	return nil
}

func (l *lease) Due(_ context.Context, sink string, limit, _ int) (due []relay.Entry, next time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	found, next := l.ledger.Due(sink, limit, time.Now())
	for _, e := range found {
		_, there := l.rows[e.ID]
		ev := l.content[e.ID]
		ev.CommitLSN, ev.XID, ev.CommittedAt, ev.CommitEnd = 0, 0, 0, 0
		due = append(due, relay.Entry{
			Event: ev, Position: e.Position, KeyHash: relay.KeyHash(e.Key), Attempts: e.Attempts, Detached: e.Detached,
			ReplayedAt: e.Replayed, Gone: !there, Discarded: e.Discarded,
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
		if l.epoch != l.place.epoch {
			err = relay.ErrFenced
			return
		}
		for i := range outcomes {
			id := outcomes[i].Entry.Event.ID
			if !l.ledger.Resolve(sink, &outcomes[i], time.Now()) {
				l.t.Errorf("resolved %s of %s, which is not in the ledger", label(id), sink)
			} else if l.rows[id] != nil {
				l.setFate(id)
			}
		}
	})
	return err
}

func (l *lease) Heal(context.Context, string, int32) (int, int32, error) {
	return 0, math.MinInt32, nil
}

func (l *lease) Counts(context.Context) ([]relay.LedgerCount, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var counts []relay.LedgerCount
	for _, e := range l.ledger.Entries {
		state := l.ledger.State(e)
		at := slices.IndexFunc(counts, func(c relay.LedgerCount) bool { return c.Sink == e.Sink && c.State == state })
		if at < 0 {
			at = len(counts)
			counts = append(counts, relay.LedgerCount{Sink: e.Sink, State: state})
		}
		counts[at].N++
		if happened := e.At.Time(); e.At != 0 && (counts[at].Oldest.IsZero() || happened.Before(counts[at].Oldest)) {
			counts[at].Oldest = happened
		}
	}
	return counts, nil
}

// fenced does f if the lease is not a zombie's.
func (l *lease) fenced(f func()) (err error) {
	l.change(func() {
		if l.epoch != l.place.epoch {
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
	if err := pop(&l.horizonErrs); err != nil {
		return relay.Horizon{}, err
	}
	return l.horizon(), nil
}

func (l *lease) Backlog(context.Context, int) (n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, r := range l.rows {
		if r.status == "pending" && l.has(l.content[id].AggregateID) && len(l.ledger.Of(id)) == 0 {
			n++
		}
	}
	return n, nil
}

func (l *lease) Sweep(ctx context.Context, q relay.SweepQuery, f func([]relay.Event) error) error {
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
	cost := l.sweepCost
	for _, ev := range l.wal {
		if l.has(ev.AggregateID) && ev.CommitLSN < seen && ev.CommittedAt >= q.Since {
			ids = append(ids, ev.ID)
		}
	}
	l.mu.Unlock()
	if cost != nil && !relay.Sleep(ctx, cost(q)) {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	for len(ids) > 0 {
		n := min(len(ids), 10)
		var found []relay.Event
		l.mu.Lock()
		for _, id := range ids[:n] {
			if r := l.rows[id]; r != nil && r.status == wanted && len(l.ledger.Of(id)) == 0 {
				ev := l.content[id]
				ev.CreatedAt = max(ev.CreatedAt, ev.CommittedAt)
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

func (l *lease) Prune(context.Context, time.Duration, bool, int) (int, error) {
	l.change(func() { l.pruned = append(l.pruned, l.shard.Slot) })
	return 0, nil
}
