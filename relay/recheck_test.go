package relay

import (
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

// What a start would refuse makes a relay that runs not ready, in the same words, until it is over.
func TestFaultIsAProblem(t *testing.T) {
	r := &Relay{log: hclog.NewNullLogger()}
	fault := (&SetupError{Problem: "row level security hides rows", Fix: "ALTER ROLE r BYPASSRLS;"}).Error()
	r.noteFault(fault)
	if got := strings.Join(r.Status().Problems(), "; "); got != fault {
		t.Errorf("the problems are %q, want %q", got, fault)
	}
	r.noteFault("")
	if got := r.Status().Problems(); len(got) != 0 {
		t.Errorf("mended, the problems are %q", got)
	}
}
