// Package natstest runs NATS servers with JetStream for tests. The server is the real one, as a
// library, in a process of its own, which is this test binary once more: so it can be killed and
// frozen, leaves no goroutines in the test, and nothing has to be installed. It is in tests only;
// no program of ours has it (imports_test.go).
//
// Every package that starts one calls Main first of all in its TestMain.
package natstest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// configVariable names the server's configuration in the environment of the process that is one.
const configVariable = "SAGAZ_TEST_NATS_SERVER"

// startTimeout is far above the half second that a server needs, because tests of other packages
// run meanwhile.
const startTimeout = time.Minute

// Main runs a server and does not return, if this process is to be one.
func Main() {
	path := os.Getenv(configVariable)
	if path == "" {
		return
	}
	if err := serve(path); err != nil {
		fmt.Fprintln(os.Stderr, "nats server:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(path string) error {
	options, err := server.ProcessConfigFile(path)
	if err != nil {
		return err
	}
	options.NoSigs = true
	s, err := server.NewServer(options)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	s.Start()
	if !s.ReadyForConnections(startTimeout) {
		return errors.New("not ready for connections")
	}
	fmt.Println("ready")
	stop, hup := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	signal.Notify(hup, syscall.SIGHUP)
	for {
		select {
		case <-hup:
			if err := s.Reload(); err != nil {
				return err
			}
		case <-stop:
			s.Shutdown()
			s.WaitForShutdown()
			return nil
		}
	}
}

// Server is a server that a test has for itself. Its data survive Kill.
type Server struct {
	URL  string // nats://127.0.0.1:PORT, no user
	Port int

	dir     string
	process *child.Process
}

// Start starts a server that ends with the test. more are further lines of its configuration:
// accounts, TLS, limits.
func Start(t testing.TB, more string) *Server {
	t.Helper()
	ports, err := child.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{URL: fmt.Sprintf("nats://127.0.0.1:%d", ports[0]), Port: ports[0], dir: t.TempDir()}
	s.configure(t, more)
	s.Restart(t)
	t.Cleanup(func() {
		if s.process == nil {
			return
		}
		if err := s.process.Kill(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *Server) configure(t testing.TB, more string) {
	t.Helper()
	config := fmt.Sprintf("listen: \"127.0.0.1:%d\"\nserver_name: test\nlog_file: %q\njetstream { store_dir: %q, max_mem: 64MB, max_file: 512MB }\n%s\n",
		s.Port, filepath.Join(s.dir, "log"), filepath.Join(s.dir, "data"), more)
	if err := os.WriteFile(s.config(), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) config() string { return filepath.Join(s.dir, "nats.conf") }

// Reconfigure gives the running server other further lines. It has taken them when is returns true.
func (s *Server) Reconfigure(t testing.TB, more string) {
	t.Helper()
	s.configure(t, more)
	if err := s.process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// Restart starts the server again, after Kill or Stop.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = read.Close() }()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), configVariable+"="+s.config(), "GOMAXPROCS=2")
	cmd.Stdout, cmd.Stderr = write, os.Stderr
	if s.process, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = write.Close()
	if err := read.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(read).ReadString('\n'); line != "ready\n" {
		log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
		t.Fatalf("the NATS server does not start: %v\n%s", err, log)
	}
}

// Kill ends the server by SIGKILL.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	if err := s.process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// Stop ends the server as an operator does.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := s.process.Stop(ctx, syscall.SIGTERM); err != nil {
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
			t.Fatal("the NATS server does not stop at SIGSTOP")
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
