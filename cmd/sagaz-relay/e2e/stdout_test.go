package e2e

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Nobody reads the relay's standard output, so the sink hangs in a write. SIGTERM ends the process all the same, soon after its drain
// timeout, and nothing is lost: the next one delivers what this one could not.
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
	}
	w.db.Until(t, `SELECT count(*) > 0 FROM saga_outbox WHERE status = 'sent'`)
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
	eventually(t, patience, "the process ends", func() string { // its pipe stays open, so exec waits on
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
