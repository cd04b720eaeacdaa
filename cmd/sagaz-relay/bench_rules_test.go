//go:build !nodemo

package main

import (
	"strings"
	"testing"
)

// The bench counts what its sinks get, so it does not begin where a rule drops events; other rules
// may be measured.
func TestBenchWithRules(t *testing.T) {
	for rules, refused := range map[string]bool{`[{name: a, event_type: A, drop: true}]`: true, `[{name: a, event_type: A, topic: b}]`: false} {
		s, err := named(t, map[string]string{"BROKER_TYPE": "stdout", "RELAY_ROUTES": rules}, "")
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.benched().Relay("postgresql://relay@127.0.0.1:1/shop")
		if got := err != nil && strings.Contains(err.Error(), "RELAY_ROUTES: a rule drops events"); got != refused || !refused && err != nil {
			t.Errorf("%s: got %v", rules, err)
		}
	}
}
