// Package child runs a server (postgres, a broker) as a child process that does not outlive us.
//
// It owns nothing but the process: no directory, no readiness check. It is for programs that bring
// up servers for a while: the demo, the bench, the tests.
package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Process is a started child. Its methods may be called from any goroutine.
type Process struct {
	name string
	proc *os.Process
	done chan struct{} // closed after Wait returned
	err  error         // written before done is closed
}

// Start starts cmd in a process group of its own, so that a Ctrl-C in the terminal reaches only us
// and we stop the servers in our own order. On Linux the kernel sends the child deathSignal when we
// die without stopping it.
//
// The signal on death belongs to the thread that started the child, not to our process. So one
// goroutine, locked to its thread, starts the child and stays with it to the end.
func Start(cmd *exec.Cmd, deathSignal syscall.Signal) (*Process, error) {
	prepare(cmd, deathSignal)
	p := &Process{name: cmd.Path, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// never unlocked: the thread ends with this goroutine, after the child
		runtime.LockOSThread()
		err := cmd.Start()
		p.proc = cmd.Process
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// PID is the child's process id.
func (p *Process) PID() int { return p.proc.Pid }

// Done is closed when the child has ended and was waited for.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the child ended; nil for exit code 0. Call it after Done.
func (p *Process) Err() error { return p.err }

// Running reports whether the child has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends sig; a child that has ended already is no error.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.proc.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s (pid %d): %w", p.name, p.PID(), err)
	}
	return nil
}

// Stop sends sig and waits for the end. When ctx ends first the child is killed and waited for, and
// the error reports that.
func (p *Process) Stop(ctx context.Context, sig os.Signal) error {
	if err := p.Signal(sig); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		if err := p.Kill(); err != nil {
			return err
		}
		return fmt.Errorf("%s (pid %d) did not end after %v and was killed: %w", p.name, p.PID(), sig, context.Cause(ctx))
	}
}

// Kill sends SIGKILL and waits for the end.
func (p *Process) Kill() error {
	if err := p.Signal(os.Kill); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(30 * time.Second):
		return fmt.Errorf("%s (pid %d) still there 30 s after SIGKILL", p.name, p.PID())
	}
}
