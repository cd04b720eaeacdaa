// Package program builds sagaz-relay for the tests that run it as a process: once for all packages
// of a run.
package program

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/cache"
)

// patience is for a build with a cold cache, and for that of another package before it.
const patience = 10 * time.Minute

// built are the binaries that this process has asked for, without and with the race detector.
var built [2]struct {
	once sync.Once
	path string
	err  error
}

// Path returns the path of the binary, built from the tree around this file. It has the race
// detector when the tests have it, or when they alone do without: testenv -race sets
// SAGAZ_TEST_RACE=1.
func Path(t testing.TB) string { return path(t, raceEnabled || os.Getenv("SAGAZ_TEST_RACE") == "1") }

// Plain returns the path of the binary without the race detector, for what is measured, and for
// commands that run for a moment.
func Plain(t testing.TB) string { return path(t, false) }

func path(t testing.TB, race bool) string {
	t.Helper()
	b := &built[0]
	if race {
		b = &built[1]
	}
	b.once.Do(func() { b.path, b.err = build(race) })
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}

// build leaves the binary in bin/test, where `go build` finds it the next time and does not link it
// again.
func build(race bool) (string, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, fmt.Errorf("not built after %s", patience))
	defer cancel()
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..", "..")
	dir := filepath.Join(root, "bin", "test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("create directory for the program: %w", err)
	}
	path, args := filepath.Join(dir, "sagaz-relay"), []string{"build"}
	if race {
		path, args = path+"-race", append(args, "-race")
	}
	// Two packages that build at once would both link it.
	unlock, err := cache.Lock(ctx, path+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	args = append(args, "-o", path, "./cmd/sagaz-relay")
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	// On one file system a new binary takes the old one's place by a rename, also while a process
	// still runs the old one.
	cmd.Env = append(os.Environ(), "GOTMPDIR="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %v: %w\n%s", args, err, out)
	}
	return path, nil
}
