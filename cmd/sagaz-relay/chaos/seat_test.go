package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// settings are variables of a process's environment.
type settings map[string]string

// with returns a copy with more variables, or others in their place.
func (s settings) with(more settings) settings {
	all := maps.Clone(s)
	maps.Copy(all, more)
	return all
}

// seat is a place for a relay: a pod that is started again when its process has ended.
type seat struct {
	r     *round
	index int
	name  string

	mu     sync.Mutex // held by the fault that has the seat; guards what follows
	env    settings
	proc   *process // nil while it is stopped on purpose
	closed bool     // nothing is started any more
}

// process is one run of the binary.
type process struct {
	*child.Process
	name     string
	log      *os.File
	expected atomic.Bool // its end is asked for
}

// start starts the seat's relay. The caller holds mu.
func (s *seat) start() error {
	p, err := s.r.launch(s.name, s.env, "run")
	if err != nil {
		return err
	}
	s.proc = p
	s.r.watching.Go(func() { s.watch(p) })
	return nil
}

// watch waits for the end of a process. One that ends by itself is an error, and another is started
// as Kubernetes would.
func (s *seat) watch(p *process) {
	<-p.Done()
	if p.expected.Load() {
		return
	}
	s.r.errorf("%s ended by itself: %v: %s", p.name, p.Err(), p.lastLine())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == p && !s.closed {
		time.Sleep(200 * time.Millisecond) // not in a tight circle
		if err := s.start(); err != nil {
			s.r.errorf("start %s again: %v", s.name, err)
		}
	}
}

// kill ends the seat's relay without a word. The caller holds mu.
func (s *seat) kill() error {
	p := s.proc
	s.proc = nil
	p.expected.Store(true)
	return p.Kill()
}

// stop asks the seat's relay to end, and waits. The caller holds mu.
func (s *seat) stop() error {
	p := s.proc
	s.proc = nil
	return p.stop()
}

// close keeps anything more from being started.
func (s *seat) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

func (p *process) stop() error {
	p.expected.Store(true)
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-time.After(patience):
		_ = p.Kill()
		return fmt.Errorf("%s still ran %s after SIGTERM", p.name, patience)
	}
	if err := p.Err(); err != nil {
		if info, statErr := p.log.Stat(); statErr == nil && info.Size() == 0 {
			return nil // it had not come to where it asks for signals
		}
		return fmt.Errorf("%s after SIGTERM: %w: %s", p.name, err, p.lastLine())
	}
	return nil
}

func (p *process) lastLine() string {
	text, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// launch starts the binary with variables, and nothing else of our own environment. It is killed at
// the round's end at the latest.
func (r *round) launch(name string, env settings, args ...string) (*process, error) {
	n := r.launched.Add(1)
	log, err := os.Create(filepath.Join(r.dir, fmt.Sprintf("%02d-%s.log", n, name)))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(r.testbed.program, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent", "TMPDIR=" + os.TempDir(), "GORACE=halt_on_error=1 atexit_sleep_ms=50"}
	for name, value := range env {
		if value != "" {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.dir, log, log
	p := &process{name: fmt.Sprintf("%s (%d)", name, n), log: log}
	if p.Process, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.processes = append(r.processes, p)
	return p, nil
}

// endAll kills what still runs, and looks at what was logged.
func (r *round) endAll() {
	for _, seat := range r.seats {
		seat.close()
	}
	r.mu.Lock()
	all := r.processes
	r.mu.Unlock()
	for _, p := range all {
		p.expected.Store(true)
		if err := p.Kill(); err != nil {
			r.errorf("%s: %v", p.name, err)
		}
		_ = p.log.Close() // the child wrote it
		text, err := os.ReadFile(p.log.Name())
		if err != nil {
			r.errorf("%v", err)
		}
		for _, secret := range r.secrets {
			if bytes.Contains(text, []byte(secret)) {
				r.errorf("%s: a password or a payload is in its log %s", p.name, p.log.Name())
			}
		}
		for _, sign := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: ", "goroutine 1 ["} {
			if at := bytes.Index(text, []byte(sign)); at >= 0 {
				r.errorf("%s: %s", p.name, text[at:min(len(text), at+4000)])
			}
		}
	}
	r.watching.Wait()
	if r.t.Failed() {
		for _, p := range all {
			text, _ := os.ReadFile(p.log.Name()) // what can be shown
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			r.t.Logf("%s wrote %d lines, at last:\n%s", p.name, len(lines), strings.Join(lines[max(0, len(lines)-12):], "\n"))
		}
	}
}
