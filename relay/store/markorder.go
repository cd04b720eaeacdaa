package store

import (
	"context"
	"maps"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// part is a part of a batch of marks. What is found out about its events is given by their places
// in the whole batch.
type part struct {
	marks []relay.Mark
	from  int   // the place of the first, when they are next to each other
	at    []int // otherwise the place of each
}

func (p part) place(i int) int {
	if p.at == nil {
		return p.from + i
	}
	return p.at[i]
}

// and is the part with one more event of another.
func (p part) and(other part, i int) part {
	return part{marks: append(p.marks, other.marks[i]), at: append(p.at, other.place(i))}
}

// mark is one transaction of Mark, and the look at what it has not found. later are the events that
// have to be marked again, and locked those of them whose rows exist. Events of keys in blocked are
// among later.
func (l *lease) mark(ctx context.Context, of part, n notes, blocked map[string]bool) (later, locked []int, err error) {
	return l.markNow(ctx, l.left.behind(of), n, blocked)
}

// markNow is mark for events that have no leftover in front.
func (l *lease) markNow(ctx context.Context, of part, n notes, blocked map[string]bool) (later, locked []int, err error) {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	err = l.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		later, locked, err = l.markInOrder(ctx, conn, of, n, blocked)
		if isLocked(err) && !l.marks.skip {
			l.marks.skip = true
			later, locked, err = l.markInOrder(ctx, conn, of, n, blocked)
		}
		if err == nil {
			// A locked row of another batch will come again.
			l.marks.skip = l.marks.skip && (len(later) > 0 || l.left.watching())
		}
		return err
	})
	return later, locked, err
}

// markInOrder marks what can be marked, but no event whose key has an earlier one that cannot be.
// If the relay dies now, the next owner delivers that one again, and what arrives again has to be a
// suffix.
func (l *lease) markInOrder(ctx context.Context, conn *pgx.Conn, of part, n notes, blocked map[string]bool) (later, locked []int, err error) {
	now, later, locked, err := l.notYet(ctx, conn, of, blocked)
	if err != nil {
		return nil, nil, err
	}
	w := l.store.writes(now.marks)
	found, err := l.write(ctx, conn, n, w)
	if err != nil || found >= len(w.delivered)+len(w.refused) {
		return later, locked, err
	}
	some, theirs, err := l.missing(ctx, conn, now)
	return append(later, some...), append(locked, theirs...), err
}

// notYet finds the events that must not be marked now: those whose rows cannot be, and all behind
// one of these in its key; now are the others. It is asked for what one statement could mark in
// part: rows of several transactions, of which the later one may be visible sooner, and rows that
// are locked. What becomes locked after this look is still skipped alone.
func (l *lease) notYet(ctx context.Context, conn *pgx.Conn, of part, blocked map[string]bool) (now part, later, locked []int, err error) {
	seen, taken := &l.marks.seen, map[relay.UUID]bool(nil)
	mixed := seen.mayMix(of.marks)
	if mixed {
		if *seen, err = takeSnapshot(ctx, conn); err != nil {
			return now, nil, nil, err
		}
	}
	if l.marks.skip {
		var id [16]byte
		taken = make(map[relay.UUID]bool)
		if err := each(ctx, conn, []any{&id}, func() error { taken[id] = true; return nil }, lockedSQL, idsOf(of.marks)); err != nil {
			return now, nil, nil, err
		}
	}
	if !mixed && len(taken) == 0 && len(blocked) == 0 {
		return of, nil, nil, nil
	}
	behind := maps.Clone(blocked) // what a transaction finds is of no account when it fails
	for i := range of.marks {
		m := &of.marks[i]
		switch {
		case taken[m.ID] && l.store.changesRow(m):
			locked = append(locked, of.place(i))
		case behind[m.Key]:
		case mixed && l.store.changesRow(m) && seen.hides(m.XID):
		default:
			now = now.and(of, i)
			continue
		}
		behind[m.Key] = true
		later = append(later, of.place(i))
	}
	return now, later, locked, nil
}
