package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// halving finds, in a batch that failed for good without saying for which row, the rows that it
// failed for. It writes [lo, hi) of a batch. When that fails for what may be the fault of a row, it
// writes each half in order, until the rows at fault are alone. Those go to refused, with the
// reason; all others are written.
//
// n rows at fault among m cost about 2 n log m transactions. The work is bounded: what has not been
// taken apart when it ends, or follows on many rows that all fail, goes to refused as it is. That
// is safe for everything that refused stores to be tried again, and a table that refuses every row
// stops no event.
type halving struct {
	write   func(lo, hi int) error
	refused func(lo, hi int, why error) error
	// fault reports whether an error may be the fault of a row.
	fault func(error) bool
	left  int // writes that may still be made
	until time.Time
	// giveUp is after how many rows that failed alone the next ones are not taken apart; 0:
	// allAtFault.
	giveUp int

	alone int // rows that have failed alone since a write has succeeded
}

// One batch may cost so many transactions, and so much time.
const halvingWrites = 1500

var halvingFor = 3 * time.Second

// allAtFault is after how many rows that failed alone, without a write that succeeded in between,
// the next ones are not taken apart.
const allAtFault = 64

// run writes [lo, hi).
func (h *halving) run(lo, hi int) error {
	if lo == hi {
		return nil
	}
	h.left--
	err := h.write(lo, hi)
	if err == nil {
		h.alone = 0
	}
	if err == nil || !h.fault(err) {
		return err
	}
	return h.split(lo, hi, err)
}

// split goes on after [lo, hi) has failed.
func (h *halving) split(lo, hi int, why error) error {
	if hi-lo == 1 {
		h.alone++
	}
	if hi-lo == 1 || h.left <= 0 || h.alone >= cmp.Or(h.giveUp, allAtFault) || time.Now().After(h.until) {
		return h.refused(lo, hi, why)
	}
	mid := lo + (hi-lo)/2
	if err := h.run(lo, mid); err != nil {
		return err
	}
	return h.run(mid, hi)
}

// Transient errors are taken for the fault of a row when a batch has failed so often, and for so
// long. One that had no answer in time has waited long enough.
const (
	transientTries = 5
	silentTries    = 2
	transientFor   = 3 * time.Second
)

// streaks count, for each kind of statement, the failures in a row that look transient.
type streaks struct {
	mu   sync.Mutex // guards what follows
	runs map[string]failures
}

type failures struct {
	n     int
	since time.Time
}

// over notes a failure and reports whether there were enough.
func (s *streaks) over(what string, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.runs[what]
	if f.n == 0 {
		f.since = time.Now()
	}
	f.n++
	if s.runs == nil {
		s.runs = make(map[string]failures)
	}
	s.runs[what] = f
	tries := transientTries
	if errors.Is(err, context.DeadlineExceeded) {
		tries = silentTries
	}
	return f.n >= tries && time.Since(f.since) >= transientFor
}

// reset notes that it went well.
func (s *streaks) reset(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.runs, what)
}

// batched writes a batch of n in one go, and by halves when it has to be; probe is the same
// statement without any row. What fails without a row is no row's fault (a column or a right that
// is missing, a server that is read-only, a trigger for each statement). It is returned, and the
// batch is tried again as it is.
func (l *lease) batched(ctx context.Context, what string, n int, write func(lo, hi int) error, probe func() error, refused func(lo, hi int, why error) error) error {
	err := write(0, n)
	if err == nil {
		l.streaks.reset(what)
		return nil
	}
	fault := func(err error) bool {
		level := blames(ctx, err)
		return level == blameRow || level == blameTransient && l.streaks.over(what, err)
	}
	if n == 0 || !fault(err) {
		return err
	}
	if l.restartSession(ctx, err) {
		if err = write(0, n); err == nil || !fault(err) {
			return err
		}
	}
	if probed := probe(); probed != nil {
		return fmt.Errorf("no row's fault, it fails without any: %w", probed)
	}
	h := halving{write: write, refused: refused, left: halvingWrites, until: time.Now().Add(halvingFor), fault: fault}
	if err := h.split(0, n, err); err != nil {
		return err
	}
	l.streaks.reset(what)
	return nil
}

// sessionEvery is how often a fault may end the marking session.
const sessionEvery = time.Minute

// restartSession ends the marking session when a trigger does not find what it names. Sessions keep
// the search_path that they were given only where triggers depend on it. That is looked at when
// they begin (package sessions), and this trigger may be younger.
func (l *lease) restartSession(ctx context.Context, err error) bool {
	c := causeOf(err)
	if !strings.HasPrefix(c.code, "42") || !c.raised || !l.left.mayEndSession() {
		return false
	}
	return l.with(ctx, func(_ context.Context, conn *pgx.Conn) error {
		closeConn(conn)
		return nil
	}) == nil
}

// mayEndSession reports whether the last time is long enough ago, and notes this one.
func (l *leftovers) mayEndSession() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.sessionEnded) < sessionEvery {
		return false
	}
	l.sessionEnded = time.Now()
	return true
}
