// Package beside runs programs beside a test. It is apart from package product because it needs the product's own code, which module browser does
// without.
package beside

import (
	"os/exec"
	"syscall"
	"testing"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// Start runs a program until the test ends, with the root as its folder unless cmd says otherwise. What it says is kept, and shown under the name
// if the test fails.
func Start(t testing.TB, name string, cmd *exec.Cmd) (*child.Process, *product.Output) {
	t.Helper()
	said := &product.Output{}
	cmd.Stdout, cmd.Stderr = said, said
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	p, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.Running() {
			_ = p.Kill()
			<-p.Done()
		}
		if text := said.String(); t.Failed() {
			t.Logf("%s said\n%s", name, text[max(0, len(text)-4000):])
		}
	})
	return p, said
}
