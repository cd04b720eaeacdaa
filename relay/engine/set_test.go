package engine_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// A relay that is a standby to another slot of the table reports whose that is. It is ready for the
// time of a rolling update, and then not.
func TestStandbyBesideAnotherSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.taken = true
		r := start(t, w, nil, sinktest.NewScript("kafka"))
		synctest.Wait()
		w.change(func() {
			w.away = &relay.OccupiedError{Slot: "old_slot", Owner: "relay-7", Taken: time.Now().Add(-time.Hour), Found: time.Now()}
		})
		for _, c := range []struct {
			after time.Duration
			ready bool
		}{{0, true}, {4 * time.Minute, true}, {6 * time.Minute, false}} {
			time.Sleep(c.after)
			st := r.watch.Status()
			v := st.Verdict()
			if v.Level != relay.LevelDegraded || len(v.Reasons) != 1 || !strings.Contains(v.Reasons[0], "old_slot, owned by relay-7 since ") {
				t.Errorf("after %s: verdict %+v", c.after, v)
			}
			if problems := st.Problems(); (len(problems) == 0) != c.ready {
				t.Errorf("after %s: problems %q", c.after, problems)
			}
		}
		w.change(func() { w.away, w.taken = nil, false })
		w.lease()
		if st := r.watch.Status(); st.Slots[0].Other != "" {
			t.Errorf("as owner: %+v", st.Slots[0])
		}
	})
}
