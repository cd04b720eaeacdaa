package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// BringUp gets all parts at once. down takes down what came up, also when err is not nil.
func BringUp(parts []Part, signals <-chan os.Signal, log io.Writer) (env []string, down func(), err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	var (
		mu   sync.Mutex // guards the results below and keeps lines whole
		ups  []taken
		errs []error
		wg   sync.WaitGroup
	)
	lines := &lockedWriter{mu: &mu, w: log}
	for _, p := range parts {
		wg.Go(func() {
			start := time.Now()
			up, err := p.take(ctx, lines)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				cancel(err) // the rest need not go on
				return
			}
			ups = append(ups, up)
			fmt.Fprintf(log, "testenv: %-14s %s (%.1f s)\n", p.name, up.from, time.Since(start).Seconds())
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for waiting := true; waiting; {
		select {
		case <-done:
			waiting = false
		case sig := <-signals:
			cancel(Interrupted{sig})
		}
	}
	down = func() {
		var wg sync.WaitGroup
		for _, up := range ups {
			if up.close != nil {
				wg.Go(func() {
					if err := up.close(); err != nil {
						fmt.Fprintln(lines, "testenv: take down:", err)
					}
				})
			}
		}
		wg.Wait()
	}
	for _, up := range ups {
		env = append(env, up.env...)
	}
	if cause := (Interrupted{}); errors.As(context.Cause(ctx), &cause) {
		return nil, down, cause
	}
	if len(errs) > 0 {
		return nil, down, errs[0] // what follows was cut short by this one
	}
	return env, down, nil
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// List is what a flag that takes "none" names: a list with commas between, perhaps empty.
func List(flagValue string) string {
	if flagValue == "none" {
		return ""
	}
	return strings.ReplaceAll(flagValue, " ", "")
}

// Interrupted is the cause when a signal ended us.
type Interrupted struct{ Signal os.Signal }

func (i Interrupted) Error() string { return "interrupted by " + i.Signal.String() }

// ExitCode is a process's after err: as a shell has it after a signal, else 1.
func ExitCode(err error) int {
	var i Interrupted
	if errors.As(err, &i) {
		if sig, ok := i.Signal.(syscall.Signal); ok {
			return 128 + int(sig)
		}
	}
	return 1
}
