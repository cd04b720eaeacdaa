package product

import (
	"bytes"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/child"
)

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

// Start runs a program until the test ends, with the root as its folder unless cmd says otherwise. What it says is kept, and shown under the name
// if the test fails.
func Start(t testing.TB, name string, cmd *exec.Cmd) (*child.Process, *Output) {
	t.Helper()
	said := &Output{}
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

// Eventually calls look until it returns "", which means that all is well, and fails the test when it does not within the time. What look
// says otherwise is how things stand.
func Eventually(t testing.TB, within time.Duration, what string, look func() (wrong string)) {
	t.Helper()
	for deadline := time.Now().Add(within); ; {
		wrong := look()
		if wrong == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %s", what, within, wrong)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatalf("%s: the test ended: %s", what, wrong)
		}
	}
}
