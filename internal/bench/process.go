package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// Variable is set for relays that bench starts.
const Variable = "SAGAZ_BENCH"

// relayProcess is this program, which relays in a process of its own.
type relayProcess struct {
	cmd    *exec.Cmd
	addr   string        // that answers HTTP
	log    string        // a file, which stays if anything goes wrong
	exited chan struct{} // closed when the process has ended
	err    error         // how, then
}

// startRelay starts one on the bench's database, by the program's command with these arguments.
func (b *database) startRelay(args []string, env ...string) (*relayProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	log, err := os.CreateTemp("", "sagaz-relay-bench-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // a log, which the process has open
	r := &relayProcess{cmd: exec.Command(self, args...), addr: "127.0.0.1:" + strconv.Itoa(port), log: log.Name(), exited: make(chan struct{})}
	r.cmd.Env = append(append(os.Environ(), "DATABASE_URL="+b.dsn, "RELAY_HTTP_ADDR="+r.addr, Variable+"=1"), env...)
	r.cmd.Stderr = log
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the relay: %w", err)
	}
	go func() {
		r.err = r.cmd.Wait()
		close(r.exited)
	}()
	return r, nil
}

// sleep waits, and fails when the process ends meanwhile, or ctx.
func (r *relayProcess) sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-r.exited:
		return fmt.Errorf("the relay ended early: %w; its log: %s", r.err, r.log)
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// stop ends it in order, and returns what it has used.
func (r *relayProcess) stop() (cpu float64, peak int64, err error) {
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, 0, err
	}
	<-r.exited
	if r.err != nil {
		return 0, 0, fmt.Errorf("the relay did not stop cleanly: %w; its log: %s", r.err, r.log)
	}
	cpu, peak = usage(r.cmd.ProcessState)
	return cpu, peak, os.Remove(r.log)
}

// kill ends it, unless that is done.
func (r *relayProcess) kill() {
	_ = r.cmd.Process.Kill() // it may have ended
	<-r.exited
}
