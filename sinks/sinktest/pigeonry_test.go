package sinktest_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// loft is the broker of the example.
type loft struct {
	listener net.Listener
	done     sync.WaitGroup

	mu    sync.Mutex // guards the rest
	taken []sinktest.Delivered
	conns map[net.Conn]bool // false: cut
	gate  sync.RWMutex      // held for writing: nothing is answered
}

func newLoft(t testing.TB) *loft {
	t.Helper()
	l := &loft{conns: make(map[net.Conn]bool)}
	var err error
	if l.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	l.done.Go(func() {
		for {
			conn, err := l.listener.Accept()
			if err != nil {
				return
			}
			l.mu.Lock()
			l.conns[conn] = true
			l.mu.Unlock()
			l.done.Go(func() { l.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.listener.Close()
		l.cut()
		l.done.Wait()
	})
	return l
}

func (l *loft) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	lines := bufio.NewReader(conn)
	if password, err := lines.ReadString('\n'); err != nil || password != "coo\n" {
		return
	}
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		l.gate.RLock()
		answer := l.take(conn, line)
		l.gate.RUnlock()
		if _, err := fmt.Fprintln(conn, answer); err != nil {
			return
		}
	}
}

func (l *loft) take(conn net.Conn, line []byte) (answer string) {
	var rec relay.Record
	if err := json.Unmarshal(line, &rec); err != nil {
		return "no letter"
	}
	if rec.Topic == "abroad" {
		return "too far"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.conns[conn] {
		return "cut"
	}
	l.taken = append(l.taken, sinktest.Delivered{Topic: rec.Topic, Key: rec.MessageKey(), Value: rec.Value, Headers: rec.Headers})
	return "ok"
}

func (l *loft) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn := range l.conns {
		l.conns[conn] = false
		_ = conn.Close()
	}
}

// The example keeps the contract.
func TestPigeon(t *testing.T) {
	sinktest.Run(t, sinktest.Harness{New: func(t testing.TB) *sinktest.Target {
		l := newLoft(t)
		cfg := DefaultConfig()
		cfg.Address, cfg.Password = l.listener.Addr().String(), "coo"
		s, err := New(cfg, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		return &sinktest.Target{
			Sink: s, Topic: "OrderCreated",
			Consume: func(testing.TB) []sinktest.Delivered {
				l.mu.Lock()
				defer l.mu.Unlock()
				return l.taken
			},
			Refused: func(key string) (*relay.Record, relay.Reason) {
				return sinktest.NewRecord("abroad", key, 0, 0), relay.ReasonRejected
			},
			Stall: func(t testing.TB) func() {
				l.gate.Lock()
				resume := sync.OnceFunc(l.gate.Unlock)
				t.Cleanup(resume)
				return resume
			},
			Faults: map[string]func(testing.TB){"connection cut": func(testing.TB) { l.cut() }},
		}
	}})
}

func TestPigeonSaysWhatToDo(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Address = "127.0.0.1:1"
	cfg.Call("audit", func(text string) string {
		return strings.ReplaceAll(text, "PIGEON_ADDRESS", "RELAY_SINK_AUDIT_ADDRESS")
	})
	s, err := New(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	var setup *relay.SetupError
	if err := s.Publish(t.Context(), sinktest.Records("x", "k", 0, 1)); !errors.As(err, &setup) || setup.Fix != "check RELAY_SINK_AUDIT_ADDRESS" {
		t.Errorf("got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	cfg.Address = "no port"
	if _, err := New(cfg, nil); err == nil {
		t.Error("a wrong address is taken")
	}
}

func TestPigeonIsInTheDocument(t *testing.T) {
	code, err := os.ReadFile("pigeon_test.go")
	if err != nil {
		t.Fatal(err)
	}
	document, err := os.ReadFile("../../docs/sinks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, ok := strings.Cut(string(code), "which TestPigeonIsInTheDocument compares.\n\n")
	if !ok || !strings.Contains(string(document), "```go\n"+example+"```\n") {
		t.Error("docs/sinks.md does not have the example as pigeon_test.go has it")
	}
}
