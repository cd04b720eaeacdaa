// Package pgserver runs real PostgreSQL servers for the demo, the bench and the tests, on a machine
// that has none.
//
// The binaries (initdb, pg_ctl, postgres; no psql) are downloaded once by
// fergusstrange/embedded-postgres and kept in a cache. Starting is our own. PostgreSQL refuses
// root, so when we are root it runs as the user nobody, who has to be able to reach the data
// directory and the binaries. And tests stop, crash and restart a server.
//
// A server listens on 127.0.0.1 only, has no Unix socket, has wal_level=logical, and ends with this
// process even if that is killed (on Linux).
//
//	Start -> running -- Stop, StopImmediate, Kill --> down -- Server.Start --> running
//	any state -- Close --> gone, with its data directory if Start chose that
package pgserver

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// Options of a server. The zero value will do.
type Options struct {
	// Version is a major version of Versions, for example "18". Default DefaultVersion.
	Version string

	// DataDir keeps the server's files; one with a database of this version is used as it is. When
	// we are root, PostgreSQL runs as the user nobody and must be able to reach it: not below
	// /root. Default a new temporary directory, which Close removes.
	DataDir string

	// Port on 127.0.0.1. Default a free one.
	Port int

	// CacheDir keeps the unpacked binaries. Default cache.DefaultRoot().
	CacheDir string

	// Settings for postgresql.conf, in addition to or instead of our own (wal_level=logical and
	// room for slots). ALTER SYSTEM overrides them.
	Settings map[string]string

	// Log gets progress lines for a person (downloading, starting). Default none.
	Log io.Writer
}

// Server is a PostgreSQL server. Its methods are for one goroutine at a time.
type Server struct {
	version  string
	binDir   string
	dataDir  string
	ownDir   bool
	port     int
	password string
	settings map[string]string
	process  *child.Process // the postmaster
}

// startTimeout is for crash recovery on a busy machine; a start takes 0.2 s otherwise.
const startTimeout = 2 * time.Minute

// Start brings up a server and waits until it takes connections. When it fails, nothing is left
// running.
func Start(ctx context.Context, opts Options) (*Server, error) {
	s := &Server{version: cmp.Or(opts.Version, DefaultVersion), dataDir: opts.DataDir, port: opts.Port, settings: map[string]string{
		"wal_level":             "logical",
		"max_replication_slots": "20",
		"max_wal_senders":       "20",
		"max_connections":       "200",
		// a path in a long temporary directory would be too long for a socket
		"unix_socket_directories": "",
		"log_timezone":            "UTC",
		"timezone":                "UTC",
	}}
	maps.Copy(s.settings, opts.Settings)
	var err error
	if s.binDir, err = binaries(ctx, s.version, opts.CacheDir, opts.Log); err != nil {
		return nil, err
	}
	if s.dataDir == "" {
		if s.dataDir, err = os.MkdirTemp("", "sagaz-postgres-"+s.version+"-"); err != nil {
			return nil, fmt.Errorf("create data directory: %w", err)
		}
		s.ownDir = true
	}
	if s.dataDir, err = filepath.Abs(s.dataDir); err != nil {
		return nil, fmt.Errorf("find data directory: %w", err)
	}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.startFirst(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// startFirst starts the server, on a free port unless it has one. Somebody else may take a port
// between the look for it and the server's.
func (s *Server) startFirst(ctx context.Context) error {
	if s.port != 0 {
		return s.Start(ctx)
	}
	for tries := 3; ; tries-- {
		ports, err := child.FreePorts(1)
		if err != nil {
			return err
		}
		s.port = ports[0]
		if err = s.Start(ctx); err == nil || tries == 0 || !strings.Contains(err.Error(), "Address already in use") {
			return err
		}
	}
}

// prepare makes the data directory, unless it has a database already, and writes our settings into
// it.
func (s *Server) prepare(ctx context.Context) error {
	if err := os.MkdirAll(s.dataDir, 0o700); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	entries, err := os.ReadDir(s.dataDir)
	if err != nil {
		return fmt.Errorf("look into data directory: %w", err)
	}
	ours := slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == "sagaz.password" })
	if len(entries) > 0 && !ours { // before we change its owner
		return fmt.Errorf("data directory %s is not empty, and was not made by sagaz-relay: choose another one", s.dataDir)
	}
	if err := giveTo(s.dataDir); err != nil {
		return fmt.Errorf("give the data directory to the user that PostgreSQL runs as: %w", err)
	}
	if err := reachable(s.dataDir); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if !ours {
		if err := s.initdb(ctx); err != nil {
			return err
		}
	} else if err := s.adopt(); err != nil {
		return err
	}

	return s.writeSettings()
}

func (s *Server) writeSettings() error {
	var conf strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.settings)) {
		fmt.Fprintf(&conf, "%s = '%s'\n", name, strings.ReplaceAll(s.settings[name], "'", "''"))
	}
	return s.write("sagaz.conf", conf.String())
}

// adopt takes over a data directory that an earlier Start made.
func (s *Server) adopt() error {
	password, err := os.ReadFile(s.in("sagaz.password"))
	if err != nil {
		return fmt.Errorf("read password of data directory: %w", err)
	}
	s.password = string(password)
	version, err := os.ReadFile(s.in("PG_VERSION"))
	if err != nil {
		return fmt.Errorf("read version of data directory: %w", err)
	}
	if found := strings.TrimSpace(string(version)); found != s.version {
		return fmt.Errorf("data directory %s is of PostgreSQL %s, not %s: choose another directory or version", s.dataDir, found, s.version)
	}
	return nil
}

func (s *Server) initdb(ctx context.Context) error {
	s.password = rand.Text()
	// Next to the data directory, which must be empty for initdb.
	pwfile, err := os.CreateTemp("", "sagaz-pw-")
	if err != nil {
		return fmt.Errorf("write password file: %w", err)
	}
	defer os.Remove(pwfile.Name())
	_, err = pwfile.WriteString(s.password)
	if err = errors.Join(err, pwfile.Close(), giveTo(pwfile.Name())); err != nil {
		return fmt.Errorf("write password file: %w", err)
	}
	cmd := s.command(ctx, "initdb", "-D", s.dataDir, "-U", "postgres", "--encoding=UTF8", "--locale=C",
		"--auth=scram-sha-256", "--pwfile="+pwfile.Name(), "--no-sync")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb %s: %w\n%s", s.dataDir, err, strings.TrimSpace(string(out)))
	}
	conf, err := os.ReadFile(s.in("postgresql.conf"))
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return errors.Join(
		s.write("postgresql.conf", string(conf)+"\ninclude = 'sagaz.conf'\n"),
		s.write("sagaz.password", s.password),
	)
}

// command prepares one of PostgreSQL's programs, as the user that it is to run as.
func (s *Server) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.binDir, program), args...)
	cmd.Dir = s.dataDir // ours may be closed to that user
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
	runAsUnprivileged(cmd)
	return cmd
}

func (s *Server) in(name string) string { return filepath.Join(s.dataDir, name) }

func (s *Server) write(name, content string) error {
	if err := os.WriteFile(s.in(name), []byte(content), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return giveTo(s.in(name))
}

// Start starts the server after Stop, StopImmediate or Kill, with the same data, port and password,
// and waits until it takes connections.
func (s *Server) Start(ctx context.Context) error {
	if s.process != nil && s.process.Running() {
		return fmt.Errorf("PostgreSQL in %s is running already (pid %d)", s.dataDir, s.process.PID())
	}
	log, err := os.OpenFile(s.in("server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open server log: %w", err)
	}
	defer log.Close() // the child has its own
	// The process does not end with ctx, which is for the start only.
	cmd := s.command(context.WithoutCancel(ctx), "postgres", "-D", s.dataDir, "-p", strconv.Itoa(s.port), "-h", "127.0.0.1")
	cmd.Stdout, cmd.Stderr = log, log
	if s.process, err = child.Start(cmd, syscall.SIGQUIT); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not ready after %v", startTimeout))
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		conn, err := pgx.Connect(ctx, s.DSN("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-poll.C:
		case <-s.process.Done():
			return fmt.Errorf("PostgreSQL %s ended while starting (%v); its log ends with\n%s", s.version, s.process.Err(), s.LogTail(20))
		case <-ctx.Done():
			cause := context.Cause(ctx)
			return errors.Join(fmt.Errorf("wait for PostgreSQL %s: %w (last answer: %w); its log ends with\n%s",
				s.version, cause, err, s.LogTail(20)), s.Kill())
		}
	}
}

// Restart stops the server if it runs, and starts it.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	return s.Start(ctx)
}

// Stop shuts down cleanly, without waiting for clients ("fast"): it rolls back what is open and
// writes a checkpoint. A walsender whose client reads nothing can delay this. When ctx ends first,
// the server is killed and the error reports that.
func (s *Server) Stop(ctx context.Context) error { return s.stop(ctx, syscall.SIGINT) }

// StopImmediate stops without a checkpoint; the next start recovers as from a crash.
func (s *Server) StopImmediate(ctx context.Context) error { return s.stop(ctx, syscall.SIGQUIT) }

func (s *Server) stop(ctx context.Context, sig os.Signal) error {
	if s.process == nil || !s.process.Running() {
		return nil
	}
	if err := s.process.Signal(sig); err != nil {
		return err
	}
	select {
	case <-s.process.Done():
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("stop PostgreSQL: %w; killed", context.Cause(ctx)), s.Kill())
	}
}

// Kill ends the postmaster and all its children with SIGKILL, as if the machine's power went, and
// returns when none is left. A child that still has the shared memory would keep the server from
// starting again.
func (s *Server) Kill() error {
	if s.process == nil || !s.process.Running() {
		return nil
	}
	s.process.Signal(sigStop) // no new children while we look
	children := childrenOf(s.process.PID())
	err := s.process.Kill()
	for _, c := range children {
		c.kill()
	}
	for _, c := range children {
		for end := time.Now().Add(30 * time.Second); c.alive(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				return errors.Join(err, fmt.Errorf("PostgreSQL process %d still there 30 s after SIGKILL", c.pid))
			}
		}
	}
	return err
}

// Close ends the server at once if it runs, and removes its data directory if Start chose that.
func (s *Server) Close() error {
	// Kill only if that fails: the orphans would wait for init to reap them, which in many
	// containers it never does.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := s.StopImmediate(ctx)
	if s.ownDir {
		err = errors.Join(err, os.RemoveAll(s.dataDir))
	}
	return err
}

// DSN is a URL to connect to database as the superuser postgres. The password is in it.
func (s *Server) DSN(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword("postgres", s.password), Host: fmt.Sprintf("127.0.0.1:%d", s.port),
		Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Version is the major version, for example "18".
func (s *Server) Version() string { return s.version }

// Port is the one the server listens on, or did before it was stopped.
func (s *Server) Port() int { return s.port }

// DataDir is the server's data directory. Its log is server.log in there.
func (s *Server) DataDir() string { return s.dataDir }

// PostmasterPID is the process id of the server, 0 when it does not run.
func (s *Server) PostmasterPID() int {
	if s.process == nil || !s.process.Running() {
		return 0
	}
	return s.process.PID()
}

// LogTail returns the last lines of the server's log.
func (s *Server) LogTail(lines int) string {
	log, err := os.ReadFile(s.in("server.log"))
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
