package watch

import (
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

func TestRecentUpdates(t *testing.T) {
	var r recentUpdates
	want := func(what string, want float64) {
		t.Helper()
		got := r.hotShare()
		if got == nil {
			got = new(float64)
			*got = -1
		}
		if *got != want {
			t.Errorf("%s: got %v, want %v", what, *got, want)
		}
	}
	want("never looked", -1)
	// What was before the first look does not count.
	r.add(relay.TableUpdates{All: 1_000_000, HOT: 0})
	want("one look", -1)
	r.add(relay.TableUpdates{All: 1_000_000, HOT: 0})
	want("no updates", -1)
	r.add(relay.TableUpdates{All: 1_000_100, HOT: 50})
	want("half of them", 0.5)
	for i := range recentLooks {
		r.add(relay.TableUpdates{All: 1_000_100 + int64(i), HOT: 50 + int64(i)})
	}
	want("what was cold is over", 1)
	for range recentLooks {
		r.add(relay.TableUpdates{All: 2_000_000, HOT: 1_500_000})
	}
	want("five quiet minutes", -1)
	r.add(relay.TableUpdates{All: 10, HOT: 10})
	want("reset", -1)
	r.add(relay.TableUpdates{All: 20, HOT: 15})
	want("after a reset", 0.5)
}
