package relay

import (
	"slices"
	"time"
)

// LookShare bounds looks at the table. One costs the database something each time, also when there
// is nothing to find, so one that took long is made less often: at most this share of the time is
// spent on looking.
const LookShare = 500

const untilKnown = 10 * time.Second

// Schedule spaces looks by what they cost. A look that took long may only have waited, for a busy
// machine or for a lock, so the quickest of the last three counts. Until there are three, the next
// is never further off than untilKnown: a first look pays for its connection, too.
type Schedule struct {
	next time.Time
	took [3]time.Duration
	n    int
}

// Due reports whether it is time.
func (s *Schedule) Due() bool { return !time.Now().Before(s.next) }

// After notes a look and sets the time of the next: at least pause away, and at most ceiling,
// whatever it cost.
func (s *Schedule) After(took, pause time.Duration, share int, ceiling time.Duration) {
	s.took[s.n%len(s.took)] = took
	if s.n++; s.n < len(s.took) {
		ceiling = min(ceiling, untilKnown)
	}
	least := slices.Min(s.took[:min(s.n, len(s.took))])
	s.At(time.Now().Add(min(max(pause, time.Duration(share)*least), ceiling)))
}

// At sets the time of the next look.
func (s *Schedule) At(at time.Time) { s.next = at }

// NotAfter brings the next look forward.
func (s *Schedule) NotAfter(at time.Time) {
	if at.Before(s.next) {
		s.next = at
	}
}
