// Package ledgertest is the ledger in memory, in its simplest form: a list of entries by position,
// and each question answered by going through it. The engine's tests run on it, and a test in
// relay/store compares it with the SQL over random histories. So the order that the engine is
// tested with is the order that PostgreSQL gives.
package ledgertest

import (
	"cmp"
	"slices"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// Entry is a row of the ledger.
type Entry struct {
	ID        relay.UUID
	Sink, Key string
	Position  int64
	At        relay.Timestamp // of the event
	Next      time.Time       // not to be offered before; zero: at once
	Dead      bool
	Detached  bool
	Discarded bool
	Attempts  int
	Reason    relay.Reason
	Error     string
	Replayed  time.Time
}

// Ledger is the whole of it. The zero value is an empty one.
type Ledger struct{ Entries []*Entry } // by position

// blocks reports whether later entries of its line wait for an entry.
func (e *Entry) blocks() bool { return !e.Detached && !e.Discarded && (e.Dead || !e.Next.IsZero()) }

// inFront returns the entries of its line that are in front of an entry.
func (l *Ledger) inFront(of *Entry) (front []*Entry) {
	for _, e := range l.Entries {
		if !of.Detached && !e.Detached && e.Sink == of.Sink && e.Key == of.Key && e.Position < of.Position {
			front = append(front, e)
		}
	}
	return front
}

// State is what an entry is.
func (l *Ledger) State(e *Entry) relay.State {
	switch {
	case e.Dead:
		return relay.StateDead
	case e.Next.IsZero() && slices.ContainsFunc(l.inFront(e), (*Entry).blocks):
		return relay.StateHeld
	default:
		return relay.StateRetry
	}
}

// Of returns the entries of one event.
func (l *Ledger) Of(id relay.UUID) (of []*Entry) {
	for _, e := range l.Entries {
		if e.ID == id {
			of = append(of, e)
		}
	}
	return of
}

// Find returns one entry, or nil.
func (l *Ledger) Find(id relay.UUID, sink string) *Entry {
	for _, e := range l.Of(id) {
		if e.Sink == sink {
			return e
		}
	}
	return nil
}

// Add makes an entry, unless it is there.
func (l *Ledger) Add(e *Entry) {
	if l.Find(e.ID, e.Sink) != nil {
		return
	}
	l.Entries = append(l.Entries, e)
	slices.SortStableFunc(l.Entries, func(a, b *Entry) int { return cmp.Compare(a.Position, b.Position) })
}

// Park makes the entries of a mark.
func (l *Ledger) Park(m *relay.Mark, now time.Time) {
	for _, p := range m.Parked {
		e := &Entry{
			ID: m.ID, Sink: p.Sink, Key: m.Key, Position: m.Position, At: m.At, Dead: p.State == relay.StateDead, Detached: p.Detached,
			Attempts: p.Attempts, Reason: p.Reason, Error: p.Error,
		}
		if p.State == relay.StateRetry {
			e.Next = now.Add(p.Delay)
		}
		l.Add(e)
	}
}

// Due returns what may be offered to a sink, in three turns, each by position and at most limit.
// First come entries whose next attempt is due and that are the first of their line, then those
// that were discarded, then those that nothing blocks. The returned next is the time until the
// first next attempt that is not due, negative without one.
func (l *Ledger) Due(sink string, limit int, now time.Time) (due []*Entry, next time.Duration) {
	var delayed, discarded, free []*Entry
	next = -1
	for _, e := range l.Entries {
		switch {
		case e.Sink != sink:
		case e.Discarded:
			discarded = append(discarded, e)
		case e.Dead:
		case e.Next.After(now):
			if left := e.Next.Sub(now); next < 0 || left < next {
				next = left
			}
		case !e.Next.IsZero():
			if len(l.inFront(e)) == 0 {
				delayed = append(delayed, e)
			}
		case l.State(e) == relay.StateRetry:
			free = append(free, e)
		}
	}
	for _, turn := range [][]*Entry{delayed, discarded, free} {
		due = append(due, turn[:min(limit, len(turn))]...)
	}
	return due, next
}

// Resolve notes what became of an entry, and reports whether it was there.
func (l *Ledger) Resolve(sink string, o *relay.Outcome, now time.Time) bool {
	e := l.Find(o.Entry.Event.ID, sink)
	if e == nil {
		return false
	}
	switch o.Fate {
	case relay.FateDelivered, relay.FateDropped:
		l.Entries = slices.DeleteFunc(l.Entries, func(other *Entry) bool { return other == e })
		return true
	case relay.FateRefused:
		e.Next = now.Add(o.Delay)
	case relay.FateDead:
		e.Dead, e.Next, e.Detached = true, time.Time{}, e.Detached || o.Detach
	}
	e.Reason, e.Error, e.Attempts = o.Reason, o.Error, o.Attempts
	return true
}

// Retry is what dead-letter retry does.
func (l *Ledger) Retry(e *Entry, now time.Time) {
	switch {
	case e.Dead || e.Discarded:
		e.Dead, e.Discarded, e.Attempts, e.Next = false, false, 0, time.Time{}
	case e.Next.After(now):
		e.Next = now
	}
}

// Discard is what dead-letter discard does.
func (l *Ledger) Discard(e *Entry) { e.Dead, e.Next, e.Discarded = false, time.Time{}, true }
