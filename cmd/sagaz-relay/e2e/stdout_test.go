package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/program"
)

// Nobody reads the relay's standard output, so the sink hangs in a write. SIGTERM ends the process
// all the same, soon after its drain timeout, and nothing is lost: the next one delivers what this
// one could not.
func TestStopWhileNobodyReadsStdout(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const rows, drain = 300, 2 * time.Second
	env := settings{"BROKER_TYPE": "stdout", "RELAY_DRAIN_TIMEOUT": drain.String(), "RELAY_PUBLISH_TIMEOUT": "2s"}
	p := w.relay("stuck", env)
	p.waitReady()
	p.stdout.mu.Lock() // from now on the pipe fills
	reading := false
	read := func() {
		if !reading {
			p.stdout.mu.Unlock()
		}
		reading = true
	}
	defer read()
	for i := range rows {
		w.insert(row{key: fmt.Sprint("k", i%10), topic: "T", payload: fmt.Sprintf(`{"note": %q, "n": "%d", "pad": %q}`, w.marker, i, strings.Repeat("p", 2000))})
		if i == 4 { // what fits into the pipe; a larger batch would be written in part, and none of it sent
			w.db.Until(t, `SELECT count(*) > 0 FROM saga_outbox WHERE status = 'sent'`)
		}
	}
	eventually(t, patience, "a publish fails for want of a reader", func() string {
		for _, l := range p.log() {
			if strings.Contains(l.text("error"), "stdout") {
				return ""
			}
		}
		return "no such line"
	})
	start := time.Now()
	p.signal(syscall.SIGTERM)
	// its pipe stays open, so exec waits on
	eventually(t, patience, "the process ends", func() string {
		if err := syscall.Kill(p.PID(), 0); errors.Is(err, syscall.ESRCH) {
			return ""
		}
		return "it runs"
	})
	if took := time.Since(start); took > drain+15*time.Second {
		t.Errorf("ended %s after SIGTERM, with a drain timeout of %s", took, drain)
	}
	read()
	p.end(patience)

	next := w.relay("next", env)
	w.waitNonePending(next)
	next.stop()
	if n := w.statuses()["sent"]; n != rows {
		t.Errorf("%d rows sent, want %d", n, rows)
	}
	both := p.stdout.String() + next.stdout.String()
	for i := range rows {
		if !strings.Contains(both, fmt.Sprintf(`"n": "%d"`, i)) && !strings.Contains(both, fmt.Sprintf(`"n":"%d"`, i)) {
			t.Errorf("row %d was not written", i)
		}
	}
}

// The reader of our standard output goes away for good. That ends the sink stdout and nothing else:
// the file has every event, the log logs why, and SIGTERM drains as ever.
func TestReaderOfStdoutGoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const rows = 50
	path := filepath.Join(t.TempDir(), "events.jsonl")
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	env := w.env().with(settings{"BROKER_TYPE": "stdout,file", "RELAY_FILE_PATH": path, "RELAY_SINK_ISOLATION": "1s"})
	p := launchWith(t, program.Path(t), "broken-pipe", env, w.secrets(), func(cmd *exec.Cmd) { cmd.Stdout = writer }, "run")
	if err := errors.Join(writer.Close(), reader.Close()); err != nil {
		t.Fatal(err)
	}
	p.waitReady()
	for i := range rows {
		w.insert(row{key: fmt.Sprint("k", i%10), topic: "T"})
	}
	p.waitLog("sink isolated: its events go to the ledger until it is back")
	eventually(t, patience, "the file has every event", func() string {
		text, err := os.ReadFile(path)
		if n := strings.Count(string(text), "\n"); err != nil || n != rows {
			return p.mustRun(fmt.Sprintf("%d lines, %v", n, err))
		}
		return ""
	})
	if !strings.Contains(p.stderr.String(), "broken pipe") {
		t.Error("the log does not show why")
	}
	p.stop()
}

// Nobody reads the relay's log. It delivers all the same, answers, and ends on SIGTERM.
func TestNobodyReadsTheLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const rows = 300
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	env := w.env().with(settings{"BROKER_TYPE": "file", "LOG_LEVEL": "DEBUG"})
	p := launchWith(t, program.Path(t), "unread-log", env, w.secrets(), func(cmd *exec.Cmd) { cmd.Stderr = writer }, "run")
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	for range rows { // at DEBUG their lines are more than a pipe holds
		w.insert(row{key: "k", topic: "T"})
	}
	if n := w.waitNonePending(p)["sent"]; n != rows {
		t.Errorf("%d rows sent, want %d", n, rows)
	}
	p.stop()
}
