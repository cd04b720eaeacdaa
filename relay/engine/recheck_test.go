package engine

import (
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// unchanging is a store whose table is not being divided in another way.
type unchanging struct{ relay.Store }

func (unchanging) Changing() *relay.SetChange { return nil }

// What a start would refuse makes a relay that runs not ready, in the same words, until it is over.
func TestFaultIsAProblem(t *testing.T) {
	e := &Engine{store: unchanging{}, log: hclog.NewNullLogger(), slots: map[string]*slotState{"slot": {role: relay.Owner}}}
	shown := watched().Watch
	shown.Begin(relay.About{Snapshot: e.Snapshot})
	fault := (&relay.SetupError{Problem: "row level security hides rows", Fix: "ALTER ROLE r BYPASSRLS;"}).Error()
	e.noteFault(fault)
	if got := strings.Join(shown.Status().Problems(), "; "); got != fault {
		t.Errorf("the problems are %q, want %q", got, fault)
	}
	e.noteFault("")
	if got := shown.Status().Problems(); len(got) != 0 {
		t.Errorf("fixed, the problems are %q", got)
	}
}
