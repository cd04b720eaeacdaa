package repair

import (
	"strings"
	"testing"
)

// show calls each state by the name by which it can be listed, and explains it.
func TestDescribeState(t *testing.T) {
	for _, state := range States() {
		if state == StateAll {
			continue
		}
		l := Letter{State: state, Discarded: state == StateDiscarded}
		if got := describeState(&l); !strings.HasPrefix(got, string(state)+": ") {
			t.Errorf("%s: %q", state, got)
		}
	}
}
