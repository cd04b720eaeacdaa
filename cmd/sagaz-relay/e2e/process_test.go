package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/child"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/watch"
)

// process is one sagaz-relay that was started.
type process struct {
	t    testing.TB
	name string
	*child.Process

	stdout, stderr output
	secrets        []string
	addr           string // that answers HTTP, once known
	stopping       bool   // it got a SIGTERM; a second one would end it at once
	asked          bool   // somebody looked at its end
}

// output gathers what a process writes.
type output struct {
	mu    sync.Mutex
	bytes []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bytes = append(o.bytes, p...)
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.bytes)
}

// settings are variables of a process's environment.
type settings map[string]string

// with returns a copy with more variables, or others in their place. One with an empty value is not
// set.
func (s settings) with(more settings) settings {
	all := maps.Clone(s)
	maps.Copy(all, more)
	return all
}

// launch starts the binary with the variables and arguments. The process is killed at the test's
// end if it still runs, and what it wrote is searched for the secrets.
func launch(t testing.TB, path, name string, env settings, secrets []string, args ...string) *process {
	t.Helper()
	return launchWith(t, path, name, env, secrets, func(*exec.Cmd) {}, args...)
}

// launchWith is launch, and changes the command before it starts.
func launchWith(t testing.TB, path, name string, env settings, secrets []string, prepare func(*exec.Cmd), args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, secrets: secrets}
	cmd := exec.Command(path, args...)
	// Nothing of ours, so that a file in the home directory or a variable of the person who tests
	// changes nothing.
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent", "TMPDIR=" + os.TempDir(), "GORACE=halt_on_error=1 atexit_sleep_ms=50"}
	for name, value := range env {
		if value != "" {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Dir = t.TempDir()
	cmd.Stdout, cmd.Stderr = &p.stdout, &p.stderr
	prepare(cmd)
	var err error
	if p.Process, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.finish)
	return p
}

// finish ends the process if need be, and looks at what it wrote.
func (p *process) finish() {
	if p.Running() {
		if err := p.Kill(); err != nil {
			p.t.Error(err)
		}
	} else if !p.asked && p.exitCode() != 0 {
		p.t.Errorf("%s ended by itself: %v", p.name, p.Err())
	}
	for stream, text := range map[string]string{"stdout": p.stdout.String(), "stderr": p.stderr.String()} {
		for _, secret := range p.secrets {
			if stream == "stdout" && strings.HasPrefix(secret, payloadMarker) {
				continue // where the sink stdout puts payloads
			}
			if at := strings.Index(text, secret); at >= 0 {
				p.t.Errorf("%s wrote a secret or a payload (%.20s…) to %s: …%s…", p.name, secret, stream, text[max(0, at-200):at])
			}
		}
		for _, sign := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: ", "goroutine 1 ["} {
			if at := strings.Index(text, sign); at >= 0 {
				p.t.Errorf("%s: %s", p.name, text[at:min(len(text), at+4000)])
			}
		}
	}
	if p.t.Failed() {
		lines := strings.Split(strings.TrimSpace(p.stderr.String()), "\n")
		p.t.Logf("%s wrote %d lines, at last:\n%s", p.name, len(lines), strings.Join(lines[max(0, len(lines)-25):], "\n"))
	}
}

// exitCode is -1 when a signal ended the process.
func (p *process) exitCode() int {
	<-p.Done()
	var exit *exec.ExitError
	switch {
	case p.Err() == nil:
		return 0
	case errors.As(p.Err(), &exit):
		return exit.ExitCode()
	}
	p.t.Errorf("%s: %v", p.name, p.Err())
	return -1
}

// end waits for the process to end by itself and returns its exit code.
func (p *process) end(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.Done():
	case <-time.After(within):
		p.t.Fatalf("%s still runs after %s", p.name, within)
	}
	p.asked = true
	return p.exitCode()
}

// stop sends SIGTERM, unless that was done, and wants exit code 0.
func (p *process) stop() {
	p.t.Helper()
	if !p.stopping {
		p.signal(syscall.SIGTERM)
	}
	if code := p.end(patience); code != 0 {
		p.t.Errorf("%s: exit code %d after SIGTERM, want 0", p.name, code)
	}
}

// crash sends SIGKILL and waits.
func (p *process) crash() {
	p.t.Helper()
	if !p.Running() {
		p.t.Fatalf("%s ended before it was killed: %v", p.name, p.Err())
	}
	if err := p.Kill(); err != nil {
		p.t.Fatal(err)
	}
	p.asked = true
}

func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	p.stopping = p.stopping || sig == syscall.SIGTERM
	if err := p.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// line is one line of the log.
type line map[string]any

func (l line) text(key string) string { return fmt.Sprint(l[key]) }

// log returns the lines so far. A line that is not JSON is an error, except the last message of a
// process that fails.
func (p *process) log() []line {
	p.t.Helper()
	var lines []line
	for text := range strings.Lines(p.stderr.String()) {
		if !strings.HasSuffix(text, "\n") || strings.HasPrefix(text, "sagaz-relay: ") {
			continue
		}
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			p.t.Errorf("%s logged a line that is no JSON: %q", p.name, text)
			continue
		}
		lines = append(lines, l)
	}
	return lines
}

// logged returns the lines with a message that begins so.
func (p *process) logged(message string) []line {
	p.t.Helper()
	var found []line
	for _, l := range p.log() {
		if strings.HasPrefix(l.text("message"), message) {
			found = append(found, l)
		}
	}
	return found
}

// waitLog waits for a line with a message that begins so, and returns the first.
func (p *process) waitLog(message string) line {
	p.t.Helper()
	var found []line
	eventually(p.t, patience, fmt.Sprintf("%s logs %q", p.name, message), func() string {
		if found = p.logged(message); len(found) > 0 {
			return ""
		}
		return p.mustRun("nothing of the kind yet")
	})
	return found[0]
}

// mustRun fails at once when the process has ended, and passes the text on otherwise.
func (p *process) mustRun(wrong string) string {
	p.t.Helper()
	if !p.Running() {
		p.t.Fatalf("%s ended: %v", p.name, p.Err())
	}
	return wrong
}

// get asks the process by HTTP.
func (p *process) get(path string) (code int, body []byte) {
	p.t.Helper()
	if p.addr == "" {
		p.addr = p.waitLog("serving metrics and health").text("address")
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + p.addr + path)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer res.Body.Close()
	body, err = io.ReadAll(res.Body)
	if err != nil {
		return 0, []byte(err.Error())
	}
	return res.StatusCode, body
}

// status is what the process serves at /status.json.
func (p *process) status() watch.Status {
	p.t.Helper()
	code, body := p.get("/status.json")
	var st watch.Status
	if code == http.StatusOK {
		if err := json.Unmarshal(body, &st); err != nil {
			p.t.Fatalf("%s: /status.json: %v", p.name, err)
		}
	}
	return st
}

// role is what the process is to its slot; empty when it does not answer.
func (p *process) role() relay.Role {
	p.t.Helper()
	if st := p.status(); len(st.Slots) == 1 {
		return st.Slots[0].Role
	}
	return ""
}

// streaming reports whether the process owns its slot and has a replication connection.
func (p *process) streaming() bool {
	st := p.status()
	return len(st.Slots) == 1 && st.Slots[0].Role == relay.Owner && st.Slots[0].Streaming
}

func (p *process) waitReady() {
	p.t.Helper()
	eventually(p.t, patience, p.name+" is ready", func() string {
		code, body := p.get("/health/ready")
		if code == http.StatusOK {
			return ""
		}
		return p.mustRun(fmt.Sprintf("%d %s", code, bytes.TrimSpace(body)))
	})
}

func (p *process) waitStreaming() {
	p.t.Helper()
	eventually(p.t, patience, p.name+" streams", func() string {
		if p.streaming() {
			return ""
		}
		return p.mustRun("role " + string(p.role()))
	})
}
