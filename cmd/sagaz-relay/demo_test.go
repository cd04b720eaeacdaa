//go:build unix && !nodemo

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/demo"
	"github.com/sagaz-relay/relay/relay"
)

// demoTempDir makes the demo's directories go to a place of its own, and fails the test if
// something stays there.
func demoTempDir(t *testing.T) string {
	t.Helper()
	// t.TempDir is closed to the user that PostgreSQL runs as
	dir, err := os.MkdirTemp("", "demo-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	return dir
}

// leftBehind lists what is still in the directory, and fails the test if the PostgreSQL of the
// output still listens.
func leftBehind(t *testing.T, dir, output string) []string {
	t.Helper()
	if found := regexp.MustCompile(`runs on (127\.0\.0\.1:\d+)`).FindStringSubmatch(output); found != nil {
		if conn, err := net.DialTimeout("tcp", found[1], time.Second); err == nil {
			conn.Close()
			t.Errorf("PostgreSQL still listens on %s", found[1])
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestDemo(t *testing.T) {
	dir := demoTempDir(t)
	for name, value := range map[string]string{ // of a user who works with real databases
		"DATABASE_URL": "postgresql://nobody@192.0.2.1/prod", "BROKER_TYPE": "kafka", "RELAY_SLOT": "other", "RELAY_TYPO": "1", "METRICS_PORT": "x",
		"PGHOST": "192.0.2.1", "PGSERVICE": "prod", "PGSSLMODE": "verify-full", "PGTARGETSESSIONATTRS": "standby", "PGOPTIONS": "-c search_path=none",
	} {
		t.Setenv(name, value)
	}
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs([]string{"demo", "--duration", "2s"})
	root.SetOut(&out)
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Log("\n" + out.String())
	for _, want := range []string{"committed ", "slot lag ", "cancelled with compensations", "All 6 promises held."} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in the output", want)
		}
	}
	if strings.Contains(out.String(), "\x1b") || strings.Contains(out.String(), "\r") {
		t.Error("terminal controls in the output, which is no terminal")
	}
	if left := leftBehind(t, dir, out.String()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// meddler does each of its faults to one batch, the first that it can do it to, and passes
// everything else on.
type meddler struct {
	relay.Sink
	mu     sync.Mutex // guards faults
	faults []func([]*relay.Record) (changed []*relay.Record, did bool)
	all    func() // called when none are left
}

func (m *meddler) Publish(ctx context.Context, batch []*relay.Record) error {
	m.mu.Lock()
	if len(m.faults) > 0 {
		if changed, did := m.faults[0](slices.Clone(batch)); did {
			if m.faults, batch = m.faults[1:], changed; len(m.faults) == 0 {
				m.all()
			}
		}
	}
	m.mu.Unlock()
	return m.Sink.Publish(ctx, batch)
}

func lose(batch []*relay.Record) ([]*relay.Record, bool) { return batch[1:], true }

func repeat(batch []*relay.Record) ([]*relay.Record, bool) {
	return append(batch, batch[len(batch)-1]), true
}

func invent(batch []*relay.Record) ([]*relay.Record, bool) {
	other := *batch[0]
	other.EventID[0]++
	return append(batch, &other), true
}

func swap(batch []*relay.Record) ([]*relay.Record, bool) {
	for i := range batch {
		for j := i + 1; j < len(batch); j++ {
			if batch[i].Key == batch[j].Key {
				batch[i], batch[j] = batch[j], batch[i]
				return batch, true
			}
		}
	}
	return batch, false
}

// deadSink takes nothing.
type deadSink struct {
	relay.Sink
	asked func()
}

func (s deadSink) Publish(context.Context, []*relay.Record) error {
	s.asked()
	return errors.New("no space left")
}

func TestDemoSeesFaults(t *testing.T) {
	for _, tc := range []struct {
		name     string
		patience time.Duration // until it catches up, which a dead sink never does
		wrap     func(sink relay.Sink, enough func()) relay.Sink
		want     []string
	}{
		{"OneOfEach", time.Minute, func(sink relay.Sink, enough func()) relay.Sink {
			return &meddler{Sink: sink, all: enough, faults: []func([]*relay.Record) ([]*relay.Record, bool){lose, repeat, invent, swap}}
		}, []string{
			"4 of 6 promises did not hold",
			"✗ every committed event delivered", "sink file: 1 missing: ",
			"✗ no event twice", "sink file: 1 delivered again, 0 allowed: ",
			"✗ nothing that was rolled back", "sink file: 1 delivered but never committed: ",
			"✗ commit order within each key", "sink file: 1 out of order: ",
			"✓ every row marked sent", "✓ slot lag 0",
		}},
		{"Dead", 3 * time.Second, func(sink relay.Sink, enough func()) relay.Sink { return deadSink{sink, enough} }, []string{
			"3 of 6 promises did not hold", "✗ every committed event delivered", "✗ every row marked sent", "✗ slot lag 0", " missing: ",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := demoTempDir(t)
			var out bytes.Buffer
			loading, enough := context.WithCancel(t.Context())
			defer enough()
			d := demo.New(demo.Options{Duration: time.Minute, Rate: 500, Writers: 4}, &out, demoRelay)
			d.Patience = tc.patience
			d.WrapSink = func(sink relay.Sink) relay.Sink { return tc.wrap(sink, enough) }
			err := d.RunUntil(loading, t.Context())
			if err == nil {
				t.Fatalf("got no error\n%s", out.String())
			}
			shown := out.String() + err.Error()
			for _, want := range tc.want {
				if !strings.Contains(shown, want) {
					t.Errorf("no %q in\n%s", want, shown)
				}
			}
			left := leftBehind(t, dir, out.String())
			if len(left) != 1 || !strings.HasSuffix(left[0], ".log") || !strings.Contains(err.Error(), left[0]) {
				t.Errorf("got left behind %v, want one log that the error names: %v", left, err)
			}
			t.Log("\n" + shown)
		})
	}
}

func TestDemoInterruptedEarly(t *testing.T) {
	dir := demoTempDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, cancel)
	var out bytes.Buffer
	d := demo.New(demo.Options{Duration: time.Hour, Rate: 100, Writers: 2}, &out, demoRelay)
	d.Patience = time.Second
	began := time.Now()
	err := d.RunUntil(ctx, ctx)
	if !errors.Is(err, demo.ErrInterrupted) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	if left := leftBehind(t, dir, out.String()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The test runs itself as the program, to send it signals.
func TestDemoSignals(t *testing.T) {
	if os.Getenv("DEMO_TEST_MAIN") != "" {
		os.Exit(run([]string{"demo", "--keep", "--rate", "300"}))
	}
	for _, tc := range []struct {
		name    string
		signals []os.Signal
		code    int
		want    string
	}{
		{"CtrlC", []os.Signal{os.Interrupt}, 0, "All 6 promises held."},
		{"TerminalClosed", []os.Signal{syscall.SIGHUP}, 0, "All 6 promises held."},
		{"CtrlCTwice", []os.Signal{os.Interrupt, os.Interrupt}, exitFailure, "interrupted, nothing was checked"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := demoTempDir(t)
			program := exec.Command(os.Args[0], "-test.run=^TestDemoSignals$")
			program.Env = append(os.Environ(), "DEMO_TEST_MAIN=1")
			stdout, err := program.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			program.Stderr = program.Stdout
			if err := program.Start(); err != nil {
				t.Fatal(err)
			}
			defer program.Process.Kill() // no harm when it has ended
			var out strings.Builder
			lines := bufio.NewScanner(stdout)
			for sent := false; lines.Scan(); {
				fmt.Fprintln(&out, lines.Text())
				if !sent && strings.Contains(lines.Text(), "events/s") { // the load runs
					sent = true
					for _, sig := range tc.signals {
						program.Process.Signal(sig)
						time.Sleep(20 * time.Millisecond) // two at once are one
					}
				}
			}
			program.Wait()
			if code := program.ProcessState.ExitCode(); code != tc.code {
				t.Errorf("got exit code %d, want %d", code, tc.code)
			}
			if !strings.Contains(out.String(), tc.want) {
				t.Errorf("no %q in the output", tc.want)
			}
			if left := leftBehind(t, dir, out.String()); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if t.Failed() {
				t.Log("\n" + out.String())
			}
		})
	}
}
