package product

import (
	"bytes"
	"errors"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// Patience is for each thing that must come: it comes within seconds, and later on a machine that
// runs other tests, too.
const Patience = 2 * time.Minute

// Process is a program that runs until the test ends, with what it says.
type Process struct {
	*child.Process
	Output
	t    testing.TB
	name string
}

// Start starts a program, with the root as its folder unless cmd says otherwise. What it says is
// kept, and shown under the name if the test fails; of stdout only if cmd has none.
func Start(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{t: t, name: name}
	if cmd.Stderr = &p.Output; cmd.Stdout == nil {
		cmd.Stdout = &p.Output
	}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	var err error
	if p.Process, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.Running() {
			_ = p.Kill()
		}
		if text := p.String(); t.Failed() {
			t.Logf("%s said\n%s", name, text[max(0, len(text)-4000):])
		}
	})
	return p
}

// Exit waits for the end and returns the exit code.
func (p *Process) Exit() int {
	p.t.Helper()
	select {
	case <-p.Done():
	case <-time.After(Patience):
		p.t.Fatalf("%s still runs after %s", p.name, Patience)
	}
	var exit *exec.ExitError
	if errors.As(p.Err(), &exit) {
		return exit.ExitCode()
	}
	if p.Err() != nil {
		p.t.Fatal(p.Err())
	}
	return 0
}

// Stop sends SIGTERM and returns the exit code.
func (p *Process) Stop() int {
	p.t.Helper()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	return p.Exit()
}

// Output keeps what a process writes. It may be read while the process writes.
type Output struct {
	mu    sync.Mutex // guards bytes
	bytes bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes.Write(p)
}

// String is what has been written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes.String()
}

// Eventually calls look until it returns "", which means that all is well, and fails the test when
// it does not within Patience. What look says otherwise is how things are.
func Eventually(t testing.TB, what string, look func() (wrong string)) {
	t.Helper()
	for deadline := time.Now().Add(Patience); ; {
		wrong := look()
		if wrong == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %s", what, Patience, wrong)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatalf("%s: the test ended: %s", what, wrong)
		}
	}
}

// Until waits for something to become true.
func Until(t testing.TB, what string, is func() bool) {
	t.Helper()
	Eventually(t, what, func() string {
		if is() {
			return ""
		}
		return "not yet"
	})
}
