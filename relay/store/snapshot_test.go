package store

import "testing"

func TestSnapshotHides(t *testing.T) {
	const epoch = 1 << 32
	for _, tt := range []struct {
		name string
		snap snapshot
		xid  uint32
		want bool
	}{
		{"None", snapshot{xmax: 100}, 0, false},
		{"Ended", snapshot{xmax: 100}, 99, false},
		{"Running", snapshot{xmax: 100, running: []uint64{90, 95}}, 95, true},
		{"EndedAmongRunning", snapshot{xmax: 100, running: []uint64{90, 95}}, 94, false},
		// xmax is one past the newest that has ended.
		{"TheOnlyOneUnderWay", snapshot{xmax: 100}, 100, true},
		{"NotBegun", snapshot{xmax: 100}, 120, true},
		{"SecondEpochEnded", snapshot{xmax: epoch + 100}, 99, false},
		{"SecondEpochRunning", snapshot{xmax: epoch + 100, running: []uint64{epoch + 50}}, 50, true},
		{"EndedBeforeTheWrap", snapshot{xmax: epoch + 100}, 0xffff_fff0, false},
		{"RunningSinceBeforeTheWrap", snapshot{xmax: epoch + 100, running: []uint64{0xffff_fff0}}, 0xffff_fff0, true},
		{"SameLowHalfInAnotherEpoch", snapshot{xmax: epoch + 100, running: []uint64{50}}, 50, false},
		// The newest that has ended is just before the wrap.
		{"BeganBehindTheWrap", snapshot{xmax: epoch - 1}, 5, true},
		{"BeganBehindTheSecondWrap", snapshot{xmax: 2*epoch - 2}, 3, true},
		{"LongEnded", snapshot{xmax: epoch + 1<<31 - 7}, 8, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.snap.hides(tt.xid); got != tt.want {
				t.Errorf("xid %d under %+v: got %t, want %t", tt.xid, tt.snap, got, tt.want)
			}
		})
	}
}
