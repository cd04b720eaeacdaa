package product

import (
	"bytes"
	"sync"
	"testing"
	"time"
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
