package watch

import (
	"testing"
)

// The estimate of what was not read, from a count on, at each step of a large transaction's way.
func TestUnreadEstimate(t *testing.T) {
	const mb = 1 << 20
	u := unreadEstimate{}
	steps := []struct {
		what  string
		now   reading
		count int // of rows, at now, before the estimate; 0: none
		want  float64
	}{
		{"nothing is known", reading{walEnd: 100 * mb, read: 100 * mb}, 0, 0},
		{"WAL lies ahead", reading{walEnd: 100*mb + 150_000_000, read: 100 * mb}, 0, 100_000},
		{"some of it was admitted", reading{walEnd: 100*mb + 150_000_000, read: 100 * mb, inside: 1000, admitted: 1000, inflight: 600}, 0, 99_000},
		{"the rows were counted", reading{walEnd: 100*mb + 150_000_000, read: 100 * mb, inside: 1000, admitted: 1000, marked: 400, inflight: 600}, 200_600, 200_000},
		{"what is admitted is taken off, and marks are no events", reading{walEnd: 400 * mb, read: 100 * mb, inside: 151_000, admitted: 151_000, marked: 500_400, inflight: 600}, 0, 50_000},
		{"it is never negative", reading{walEnd: 400 * mb, read: 100 * mb, inside: 301_000, admitted: 301_000, marked: 500_400}, 0, 0},
		{"another table's WAL, after a count", reading{walEnd: 900 * mb, read: 400 * mb, admitted: 301_000, marked: 500_400, inflight: 10}, 10, 0},
		{"the stream has told it all", reading{walEnd: 900 * mb, read: 900 * mb, admitted: 301_000, marked: 500_400}, 0, 0},
		{"a restored database counts from elsewhere", reading{walEnd: mb + 15_000_000, read: mb, admitted: 301_000, marked: 500_400}, 0, 10_000},
	}
	for _, s := range steps {
		if s.count > 0 {
			u.counted(waitingRows{rows: s.count, at: s.now}, false)
		}
		if got := u.events(s.now); got != s.want {
			t.Errorf("%s: got %g, want %g", s.what, got, s.want)
		}
	}
	u.counted(waitingRows{rows: 500, at: reading{inflight: 300}}, true)
	if u.rows != 500 {
		t.Errorf("in hybrid mode rows in flight are claimed, and not among those counted: got %d, want 500", u.rows)
	}
	if u.counted(waitingRows{rows: backlogLimit}, false); u.known {
		t.Error("a count that ended at its limit is taken for the number")
	}
}
