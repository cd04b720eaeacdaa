package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/child"
	"github.com/sagaz-relay/relay/internal/testbed/program"
)

// patience is how long anything may take that takes a second or two on an idle machine.
const patience = 90 * time.Second

// environment is ours without what would change the program's settings, and the given settings.
func environment(settings map[string]string) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "LANG"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	env = append(env, "PYTHONUNBUFFERED=1")
	for name, value := range settings {
		env = append(env, name+"="+value)
	}
	return env
}

// process is a relay or a worker of the library.
type process struct {
	*child.Process
	name string
	out  *syncBuffer
}

func start(t *testing.T, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{name: name, out: &syncBuffer{}}
	cmd.Stdout, cmd.Stderr = p.out, p.out
	started, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	p.Process = started
	t.Cleanup(func() {
		p.Kill() //nolint:errcheck // it may have ended
		if t.Failed() {
			t.Logf("%s printed:\n%s", name, p.out.tail(60))
		}
	})
	return p
}

// stop asks the process to end and wants exit code 0.
func (p *process) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.Stop(ctx, syscall.SIGTERM); err != nil {
		t.Fatalf("stop %s: %v", p.name, err)
	}
	if err := p.Err(); err != nil {
		t.Fatalf("%s ended: %v", p.name, err)
	}
}

// runRelay runs a subcommand to its end and returns what it printed.
func runRelay(t *testing.T, settings map[string]string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program.Plain(t), args...)
	cmd.Env = environment(settings)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("sagaz-relay %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// startRelay starts `sagaz-relay run`.
func startRelay(t *testing.T, settings map[string]string) *process {
	t.Helper()
	cmd := exec.Command(program.Plain(t), "run")
	cmd.Env = environment(settings)
	return start(t, "sagaz-relay", cmd)
}

// library runs the library in its interpreter.
type library struct{ python string }

// worker starts the library's own worker.
func (l library) worker(t *testing.T, settings map[string]string) *process {
	t.Helper()
	cmd := exec.Command(l.python, "-m", "sagaz.core.outbox.worker")
	cmd.Env = environment(settings)
	return start(t, "the library's worker", cmd)
}

func (l library) command(args ...string) *exec.Cmd {
	cmd := exec.Command(l.python, append([]string{filepath.Join("testdata", "sagaz_side.py")}, args...)...)
	cmd.Env = environment(nil)
	return cmd
}

// call runs a command of testdata/sagaz_side.py and returns its lines.
func call[line any](t *testing.T, l library, args ...string) []line {
	t.Helper()
	cmd := l.command(args...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		t.Fatalf("sagaz_side.py %s: %v\n%s", args[0], err, problem.String())
	}
	return decode[line](t, &out)
}

// decode reads JSON lines.
func decode[line any](t *testing.T, from io.Reader) []line {
	t.Helper()
	var lines []line
	for decoder := json.NewDecoder(from); ; {
		var one line
		if err := decoder.Decode(&one); err == io.EOF {
			return lines
		} else if err != nil {
			t.Fatalf("a line of sagaz_side.py: %v", err)
		}
		lines = append(lines, one)
	}
}

// delivery is one message as a consumer in Python saw it.
type delivery struct {
	Ready    bool     `json:"ready"`
	Source   string   `json:"source"` // topic, or routing key
	Body     string   `json:"body"`
	Handled  *bool    `json:"handled"` // the inbox took it for new
	Headers  [][2]any `json:"headers"`
	Key      *string  `json:"key"`
	Position int      `json:"partition"`

	Exchange        string  `json:"exchange"`
	ContentType     string  `json:"content_type"`
	ContentEncoding *string `json:"content_encoding"`
	DeliveryMode    int     `json:"delivery_mode"`
	Priority        *int    `json:"priority"`
	MessageID       *string `json:"message_id"`
	Type            *string `json:"type"`
	Timestamp       *string `json:"timestamp"`
	CorrelationID   *string `json:"correlation_id"`
	ReplyTo         *string `json:"reply_to"`
	Expiration      any     `json:"expiration"`
	AppID           *string `json:"app_id"`
	UserID          *string `json:"user_id"`

	eventID string // from the body
}

// consumer is a consumer in Python.
type consumer struct {
	name  string
	stdin io.Closer
	done  chan struct{}

	mu       sync.Mutex // guards what follows
	received []delivery
	more     chan struct{} // closed at the next delivery
}

// consume starts one of the consume_ commands and waits until it listens.
func (l library) consume(t *testing.T, args ...string) *consumer {
	t.Helper()
	cmd := l.command(args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	problem := &syncBuffer{}
	cmd.Stderr = problem
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", args[0], err)
	}
	c := &consumer{name: args[0], stdin: stdin, done: make(chan struct{}), more: make(chan struct{})}
	ready := make(chan struct{})
	go func() {
		defer close(c.done)
		for lines := bufio.NewReaderSize(stdout, 1<<20); ; {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				break
			}
			var d delivery
			var body struct {
				EventID string `json:"event_id"`
			}
			if err := json.Unmarshal(line, &d); err != nil {
				t.Errorf("%s: %v in %.200s", c.name, err, line)
				break
			}
			if d.Ready {
				close(ready)
				continue
			}
			// A CloudEvent's body is the payload, which need not be an object.
			if err := json.Unmarshal([]byte(d.Body), &body); err != nil && !json.Valid([]byte(d.Body)) {
				t.Errorf("%s: the body is no JSON: %v in %.200s", c.name, err, d.Body)
			}
			d.eventID = body.EventID
			c.mu.Lock()
			c.received = append(c.received, d)
			close(c.more)
			c.more = make(chan struct{})
			c.mu.Unlock()
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s ended: %v\n%s", c.name, err, problem.tail(30))
		}
	}()
	t.Cleanup(func() { c.close() })
	select {
	case <-ready:
	case <-c.done:
		t.Fatalf("%s ended before it was ready\n%s", c.name, problem.tail(30))
	case <-time.After(patience):
		t.Fatalf("%s is not ready after %s", c.name, patience)
	}
	return c
}

// close ends the consumer and returns all it received.
func (c *consumer) close() []delivery {
	c.stdin.Close() //nolint:errcheck // it may be closed already
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.received
}

// wait waits until enough holds for what was received.
func (c *consumer) wait(t *testing.T, what string, enough func(received []delivery) bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		c.mu.Lock()
		received, more := c.received, c.more
		c.mu.Unlock()
		if enough(received) {
			return
		}
		select {
		case <-more:
		case <-c.done:
			t.Fatalf("%s ended while we waited for %s", c.name, what)
		case <-deadline:
			t.Fatalf("%s: %s did not come in %s; %d messages came", c.name, what, patience, len(received))
		}
	}
}

// syncBuffer keeps a process's output.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *syncBuffer) tail(lines int) string {
	all := strings.Split(strings.TrimSpace(b.String()), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// logged reports whether the process has logged something.
func (p *process) logged(what string) bool { return strings.Contains(p.out.String(), what) }
