package watch

import (
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

// The estimate of what was not read, at each step of an owner's way: it begins with a backlog, of
// one large transaction at last.
func TestUnreadEstimate(t *testing.T) {
	const mb = 1 << 20
	u := unreadEstimate{shards: 1}
	steps := []struct {
		what  string
		now   reading
		count int   // of rows, at now, before the estimate; -1: none
		came  int64 // rows that have been inserted; 0: as before
		want  float64
	}{
		{"nothing is known", reading{table: true}, -1, 0, 0},
		{"the rows were counted before the stream begins", reading{table: true}, 5000, 7000, 5000},
		{"it has begun, and nothing has come", reading{walEnd: 100 * mb, read: 100 * mb, filled: true}, -1, 0, 5000},
		{"what is admitted is taken off", reading{walEnd: 100 * mb, read: 100 * mb, admitted: 2000, inflight: 600, filled: true}, -1, 0, 3000},
		{"of rows that are counted, those in flight are not unread", reading{walEnd: 100 * mb, read: 100 * mb, admitted: 2000, inflight: 600, filled: true}, 4600, 7000, 4000},
		{"more rows are inserted", reading{walEnd: 100 * mb, read: 100 * mb, admitted: 2000, inflight: 600, filled: true}, -1, 7500, 4500},
		{"nothing more is to be read", reading{walEnd: 100 * mb, read: 100 * mb, admitted: 6500, inflight: 10}, -1, 7600, 0},
		{"it keeps up", reading{walEnd: 100 * mb, read: 100 * mb, admitted: 6600, inflight: 10}, 20, 7700, 0},
		{"WAL lies ahead that was not counted", reading{walEnd: 115 * mb, read: 100 * mb, admitted: 6600}, -1, 0, 10485},
		{"another table's, after a count", reading{walEnd: 900 * mb, read: 100 * mb, admitted: 6600, inflight: 10}, 10, 7700, 0},
		{"a restored database counts from elsewhere", reading{walEnd: 15_000_000 + mb, read: mb, admitted: 6600}, -1, 10, 0},
	}
	for _, s := range steps {
		if s.came != 0 {
			u.came = s.came
		}
		if s.count >= 0 {
			u.counted(waitingRows{rows: s.count, at: s.now, came: u.came}, false)
		}
		if got := u.events(s.now); got != s.want {
			t.Errorf("%s: got %g, want %g", s.what, got, s.want)
		}
	}
	// One of four slots has a fourth of the WAL's events.
	u = unreadEstimate{shards: 4}
	u.events(reading{walEnd: mb, read: mb})
	if got := u.events(reading{walEnd: mb + 60_000_000, read: mb}); got != 10_000 {
		t.Errorf("one of four slots: got %g, want 10,000", got)
	}
	u.counted(waitingRows{rows: 9000, at: reading{read: mb, filled: true}, came: 100}, false)
	if u.came = 500; u.events(reading{read: mb, filled: true}) != 9100 {
		t.Errorf("one of four slots: got %g, want 9,100: 400 rows were inserted", u.events(reading{read: mb, filled: true}))
	}
	u.counted(waitingRows{rows: 500, at: reading{inflight: 300}}, true)
	if u.rows != 500 {
		t.Errorf("in hybrid mode rows in flight are claimed, and not among those counted: got %d, want 500", u.rows)
	}
	// A count that ended at its limit is not taken for the number, unless there is no other.
	u.counted(waitingRows{rows: backlogLimit, at: reading{table: true}}, false)
	if got := u.events(reading{walEnd: mb + 60_000_000_000, read: mb}); got != 10_000_000 {
		t.Errorf("more than are counted: got %g, want 10,000,000 by the WAL", got)
	}
	if got := u.events(reading{walEnd: mb + 60_000_000_000, read: mb, table: true}); got != backlogLimit {
		t.Errorf("more than are counted, and no stream: got %g, want %d", got, backlogLimit)
	}
}

// What waits for a lease that is lost is not counted, nor twice what is in flight.
func TestWaiting(t *testing.T) {
	s := &slotWatch{unread: unreadEstimate{shards: 1}}
	work := &relay.WorkSnapshot{Mode: relay.ModeRecovering, Inflight: 10, MaxEvents: 100, MaxBytes: 100, Admitted: 10, Sinks: []relay.ShelfSnapshot{{InLedger: 3}, {InLedger: 4}}}
	if got := s.waiting(work); got != 17 {
		t.Errorf("before a count: got %g, want 17", got)
	}
	s.unread.counted(waitingRows{rows: 50, at: readingOf(work, &s.info)}, false)
	if got := s.waiting(work); got != 57 {
		t.Errorf("50 rows are pending, 7 events are in the ledger: got %g, want 57", got)
	}
	work.Admitted, work.Inflight = 30, 20
	if got := s.waiting(work); got != 47 {
		t.Errorf("10 more are marked: got %g, want 47", got)
	}
	if work.Lost = true; s.waiting(work) != 0 {
		t.Errorf("the lease is lost: got %g, want 0", s.waiting(work))
	}
}
