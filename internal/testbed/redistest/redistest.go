// Package redistest runs Redis servers for tests: the redis-server of the system's package, which
// cmd/testenv installs.
package redistest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/child"
	"github.com/sagaz-relay/relay/internal/testbed/debian"
)

const (
	program = "redis-server"
	// startTimeout is far above the tenth of a second that a server needs.
	startTimeout = time.Minute
)

// Ensure installs Redis where this is Debian and we are root. Otherwise the error is the line to run.
func Ensure(ctx context.Context, log io.Writer) error {
	if _, err := exec.LookPath(program); err != nil {
		return debian.Install(ctx, log, program)
	}
	return nil
}

// Server is a server that a test has for itself. What it has answered survives Kill.
type Server struct {
	URL  string // redis://127.0.0.1:PORT/0, no user
	Port int

	dir     string
	args    []string
	process *child.Process
}

// Start starts a server that ends with the test. args are further settings of redis.conf, each with
// its value behind it.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatal(debian.Missing(program, program))
	}
	ports, err := child.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{URL: fmt.Sprintf("redis://127.0.0.1:%d/0", ports[0]), Port: ports[0], dir: t.TempDir(), args: args}
	s.Restart(t)
	t.Cleanup(func() {
		if err := s.process.Kill(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Restart starts the server again, after Kill.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	args := append([]string{
		"--port", fmt.Sprint(s.Port), "--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--appendonly", "yes", "--appendfsync", "always",
		"--logfile", filepath.Join(s.dir, "log"), "--daemonize", "no",
	}, s.args...)
	var err error
	if s.process, err = child.Start(exec.Command(program, args...), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(startTimeout); !s.answers(); time.Sleep(5 * time.Millisecond) {
		if !s.process.Running() || time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			t.Fatalf("redis-server does not start\n%s", log)
		}
	}
}

// answers reports whether the server has an answer that is not that it is loading.
func (s *Server) answers() bool {
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", s.Port), time.Second)
	if err != nil {
		return strings.Contains(strings.Join(s.args, " "), "--port 0") && s.process.Running() // TLS only
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return false
	}
	if _, err := fmt.Fprint(conn, "PING\r\n"); err != nil {
		return false
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return err == nil && !strings.HasPrefix(line, "-LOADING")
}

// Kill ends the server by SIGKILL.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	if err := s.process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// Freeze stops the server's process, and returns when all of its threads stand still; thaw lets it
// go on.
func (s *Server) Freeze(t testing.TB) (thaw func()) {
	t.Helper()
	if err := s.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(startTimeout); !s.stopped(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("redis-server does not stop at SIGSTOP")
		}
	}
	return func() { _ = s.process.Signal(syscall.SIGCONT) }
}

// stopped reports whether no thread of the server runs, where the system shows that.
func (s *Server) stopped() bool {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.process.PID()))
	for _, file := range files {
		text, _ := os.ReadFile(file)
		if i := bytes.LastIndexByte(text, ')'); i >= 0 && !bytes.HasPrefix(text[i:], []byte(") T")) {
			return false
		}
	}
	return true
}
