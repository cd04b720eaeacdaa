package main

import (
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay/repair"
)

// show calls each state by the name by which it can be listed, and explains it.
func TestDescribeState(t *testing.T) {
	for _, state := range repair.States() {
		if state == repair.StateAll {
			continue
		}
		l := repair.Letter{State: state, Discarded: state == repair.StateDiscarded}
		if got := describeState(&l); !strings.HasPrefix(got, string(state)+": ") {
			t.Errorf("%s: %q", state, got)
		}
	}
}
