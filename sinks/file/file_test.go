package file

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestMain(m *testing.M) {
	switch os.Getenv("FILE_TEST_CHILD") {
	case "append for ever":
		appendForEver(os.Getenv("FILE_TEST_PATH"))
	case "small disk":
		smallDisk(os.Getenv("FILE_TEST_PATH"))
	default:
		goleak.VerifyTestMain(m)
	}
}

func newSink(t testing.TB, cfg Config) *Sink {
	t.Helper()
	s, err := New(cfg, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func config(t testing.TB) Config {
	cfg := DefaultConfig()
	cfg.Path = filepath.Join(t.TempDir(), "events.jsonl")
	return cfg
}

func readAll(t testing.TB, path string) (got []sinktest.Delivered) {
	t.Helper()
	err := Read(path, func(l Line) error {
		d := sinktest.Delivered{Topic: l.Topic, Key: l.Key, Value: l.Value}
		for k, v := range l.Headers {
			d.Headers = append(d.Headers, relay.Header{Key: k, Value: v})
		}
		got = append(got, d)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// flaky is a file whose writes and syncs can be made to fail.
type flaky struct {
	handle
	faults *faults
}

type faults struct {
	writes, syncs, cuts atomic.Int64 // how many more of them fail
	met                 atomic.Int64
	// not nil: the file that the next write finds removed
	removes atomic.Pointer[string]
	// not nil: a disk that stalls until it is closed
	gate atomic.Pointer[chan struct{}]
}

func (f *faults) pass() {
	if gate := f.gate.Load(); gate != nil {
		<-*gate
	}
}

// stall makes every write, sync and open hang until resume.
func (f *faults) stall(testing.TB) (resume func()) {
	gate := make(chan struct{})
	f.gate.Store(&gate)
	return sync.OnceFunc(func() { close(gate) })
}

func (f flaky) Write(b []byte) (int, error) {
	f.faults.pass()
	if f.faults.writes.Add(-1) >= 0 {
		f.faults.met.Add(1)
		n, err := f.handle.Write(b[:len(b)*2/3])
		return n, errors.Join(err, syscall.ENOSPC)
	}
	if path := f.faults.removes.Swap(nil); path != nil {
		if err := os.Remove(*path); err != nil {
			return 0, err
		}
	}
	return f.handle.Write(b)
}

func (f flaky) Sync() error {
	f.faults.pass()
	if f.faults.syncs.Add(-1) >= 0 {
		f.faults.met.Add(1)
		return syscall.EIO
	}
	return f.handle.Sync()
}

func (f flaky) Truncate(size int64) error {
	if f.faults.cuts.Add(-1) >= 0 {
		f.faults.met.Add(1)
		return syscall.EIO
	}
	return f.handle.Truncate(size)
}

func newFlaky(t testing.TB, cfg Config) (*Sink, *faults) {
	t.Helper()
	var f faults
	d := &disk{path: cfg.Path, fsync: cfg.Fsync, log: hclog.NewNullLogger(), open: func(path string) (handle, error) {
		f.pass()
		h, err := openFile(path)
		if err != nil {
			return nil, err
		}
		return flaky{h, &f}, nil
	}}
	return start("file", d), &f
}

func TestSinkContract(t *testing.T) {
	for _, fsync := range []bool{true, false} {
		t.Run(fmt.Sprintf("fsync=%v", fsync), func(t *testing.T) {
			sinktest.Run(t, sinktest.Harness{New: func(t testing.TB) *sinktest.Target {
				cfg := config(t)
				cfg.Fsync = fsync
				sink, f := newFlaky(t, cfg)
				fail := func(n *atomic.Int64) func(testing.TB) {
					return func(t testing.TB) {
						before := f.met.Load()
						n.Store(3)
						for f.met.Load() < before+3 {
							if err := sink.Check(t.Context()); err != nil {
								t.Fatal(err)
							}
						}
					}
				}
				target := &sinktest.Target{
					Sink: sink, Topic: "OrderCreated",
					Consume: func(t testing.TB) []sinktest.Delivered { return readAll(t, cfg.Path) },
					Stall:   f.stall,
					Faults:  map[string]func(testing.TB){"disk full": fail(&f.writes)},
				}
				if fsync {
					target.Faults["sync error"] = fail(&f.syncs)
				}
				return target
			}})
		})
	}
}

// gatedWriter acts as a pipe whose reader may stop reading.
type gatedWriter struct {
	mu   sync.Mutex
	open chan struct{} // guarded by mu; closed: writes pass

	entered atomic.Bool  // a write has begun
	out     bytes.Buffer // guarded by mu
}

func (w *gatedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	open := w.open
	w.mu.Unlock()
	w.entered.Store(true)
	<-open
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(b)
}

func TestWriterContract(t *testing.T) {
	sinktest.Run(t, sinktest.Harness{New: func(t testing.TB) *sinktest.Target {
		w := &gatedWriter{open: make(chan struct{})}
		close(w.open)
		return &sinktest.Target{
			Sink: NewWriter("stdout", w), Topic: "OrderCreated",
			Consume: func(t testing.TB) []sinktest.Delivered {
				w.mu.Lock()
				defer w.mu.Unlock()
				path := filepath.Join(t.TempDir(), "out.jsonl")
				if err := os.WriteFile(path, w.out.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
				return readAll(t, path)
			},
			Stall: func(testing.TB) func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				open := make(chan struct{})
				w.open = open
				return sync.OnceFunc(func() { close(open) })
			},
		}
	}})
}

// A line on standard output cannot be taken back, so the one after a torn one starts on a new line.
func TestWriterAfterTornLine(t *testing.T) {
	var out bytes.Buffer
	s := NewWriter("stdout", &tearing{w: &out, left: 1})
	defer func() { _ = s.Close() }()
	recs := sinktest.Records("t", "k", 0, 1)
	if err := s.Publish(t.Context(), recs); !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("got %v, want EAGAIN", err)
	}
	if err := s.Publish(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(out.String(), "\n")
	if len(lines) != 3 || lines[1] != string(AppendLine(nil, recs[0])) {
		t.Errorf("got lines %q, want a torn one and a whole one", lines)
	}
}

type tearing struct {
	w    *bytes.Buffer
	left int
}

func (w *tearing) Write(b []byte) (int, error) {
	if w.left--; w.left >= 0 {
		n, _ := w.w.Write(b[:len(b)/2])
		return n, syscall.EAGAIN
	}
	return w.w.Write(b)
}

func TestTornTail(t *testing.T) {
	whole := string(AppendLine(nil, sinktest.NewRecord("t", "k", 0, 50)))
	huge := string(AppendLine(nil, sinktest.NewRecord("t", "k", 1, 300_000)))
	second := string(AppendLine(nil, sinktest.NewRecord("t", "k", 1, 50)))
	for _, tc := range []struct {
		name, content string
		keep          int // bytes; -1: the file is not ours
	}{
		{"empty", "", 0},
		{"whole", whole, len(whole)},
		{"torn in the middle", whole + second[:60], len(whole)},
		{"only the newline missing", whole + second[:len(second)-1], len(whole)},
		{"one byte", whole + "{", len(whole)},
		{"only a torn line", second[:60], 0},
		{"torn line longer than what is read at once", whole + huge[:len(huge)-1], len(whole)},
		{"zeros after a power cut", whole + strings.Repeat("\x00", 5000), len(whole)},
		{"start and zeros", whole + second[:5] + strings.Repeat("\x00", 100), len(whole)},
		{"someone else's file", "dear diary", -1},
		{"someone else's last line", whole + "dear diary", -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := config(t)
			if err := os.WriteFile(cfg.Path, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			s := newSink(t, cfg)
			defer func() { _ = s.Close() }()
			rec := sinktest.NewRecord("t", "k", 1, 0)
			err := s.Publish(t.Context(), []*relay.Record{rec})
			want := tc.content
			if tc.keep >= 0 {
				want = tc.content[:tc.keep] + string(AppendLine(nil, rec))
			}
			if (err != nil) != (tc.keep < 0) {
				t.Errorf("publish: %v", err)
			}
			if got, _ := os.ReadFile(cfg.Path); string(got) != want {
				t.Errorf("file has %d bytes, want %d", len(got), len(want))
			}
		})
	}
}

// Whatever fails on the way, what was not acknowledged leaves no torn line, and the next batch goes
// through. That is also so when the half-written line could not be cut off at once.
func TestWriteErrors(t *testing.T) {
	for _, tc := range []struct {
		name                string
		writes, syncs, cuts int64
		want                error
		lines               int // in the file right after the failure
	}{
		{"disk full", 1, 0, 0, syscall.ENOSPC, 1},
		{"sync", 0, 1, 0, syscall.EIO, 1},
		{"disk full and the cut fails", 1, 0, 1, syscall.ENOSPC, -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := config(t)
			s, f := newFlaky(t, cfg)
			defer func() { _ = s.Close() }()
			if err := s.Publish(t.Context(), sinktest.Records("t", "k", 0, 1)); err != nil {
				t.Fatal(err)
			}
			f.writes.Store(tc.writes)
			f.syncs.Store(tc.syncs)
			f.cuts.Store(tc.cuts)
			batch := sinktest.Records("t", "k", 1, 3)
			err := s.Publish(t.Context(), batch)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if _, refused := relay.Refused(err); refused {
				t.Errorf("%v counts as the records' own fault", err)
			}
			text, _ := os.ReadFile(cfg.Path)
			if got := bytes.Count(text, []byte{'\n'}); tc.lines >= 0 && (got != tc.lines || text[len(text)-1] != '\n') {
				t.Errorf("file has %d lines and ends in %q, want %d whole ones", got, text[len(text)-1], tc.lines)
			}
			if err := s.Publish(t.Context(), batch); err != nil {
				t.Fatalf("publish again: %v", err)
			}
			sinktest.CheckOrder(t, readAll(t, cfg.Path), map[string]int{"k": 4}, true)
		})
	}
}

// child runs this test binary as another process.
func child(t *testing.T, what, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "FILE_TEST_CHILD="+what, "FILE_TEST_PATH="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

// smallDisk appends under a file size limit, so that the kernel itself cuts a write short.
func smallDisk(path string) {
	signal.Ignore(syscall.SIGXFSZ)
	limit := syscall.Rlimit{Cur: 10_000, Max: 10_000}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		panic(err)
	}
	s, err := New(Config{Path: path, Fsync: true}, hclog.NewNullLogger())
	if err != nil {
		panic(err)
	}
	for i := 0; ; i += 3 {
		err := s.Publish(context.Background(), sinktest.Records("t", "k", i, 3))
		if err != nil {
			fmt.Println(i, errors.Is(err, syscall.EFBIG))
			os.Exit(0)
		}
	}
}

func TestFileSizeLimit(t *testing.T) {
	cfg := config(t)
	out, err := child(t, "small disk", cfg.Path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var acked int
	var tooBig bool
	if _, err := fmt.Sscan(string(out), &acked, &tooBig); err != nil || !tooBig || acked == 0 {
		t.Fatalf("child wrote %q, want some acknowledged records and EFBIG", out)
	}
	text, _ := os.ReadFile(cfg.Path)
	if got := bytes.Count(text, []byte{'\n'}); got != acked || text[len(text)-1] != '\n' {
		t.Errorf("%d lines, want the %d acknowledged ones and nothing torn", got, acked)
	}
}

// appendForEver publishes from several lanes and prints "key count" after each acknowledgement.
func appendForEver(path string) {
	s, err := New(Config{Path: path, Fsync: true}, hclog.NewNullLogger())
	if err != nil {
		panic(err)
	}
	// Go on from what is there, as a relay does that looks up what was sent.
	next := map[string]int{}
	if err := Read(path, func(l Line) error { next[l.Key]++; return nil }); err != nil && !errors.Is(err, os.ErrNotExist) {
		panic(err)
	}
	var mu sync.Mutex
	var lanes sync.WaitGroup
	for lane := range 4 {
		lanes.Go(func() {
			key := "k" + strconv.Itoa(lane)
			for at := next[key]; ; at += 7 {
				if err := s.Publish(context.Background(), sinktest.Records("t", key, at, 7)); err != nil {
					panic(err)
				}
				mu.Lock()
				fmt.Println(key, at+7)
				mu.Unlock()
			}
		})
	}
	lanes.Wait()
}

func TestKill(t *testing.T) {
	cfg := config(t)
	acked := map[string]int{}
	for round := range 5 {
		cmd := child(t, "append for ever", cfg.Path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			var key string
			var count int
			// the last one may be torn
			if _, err := fmt.Sscan(lines.Text(), &key, &count); err == nil {
				acked[key] = max(acked[key], count)
			}
			if n == 20+13*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
		// A kill between two writes leaves nothing torn, so tear the file where a power cut might.
		f, err := os.OpenFile(cfg.Path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		torn := AppendLine(nil, sinktest.NewRecord("t", "k0", 1<<20, 100))
		if _, err := f.Write(torn[:30*(round+1)]); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := newSink(t, cfg)
	if err := s.Check(t.Context()); err != nil { // repairs
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if len(acked) != 4 {
		t.Errorf("acknowledgements for %d keys, want 4", len(acked))
	}
	sinktest.CheckOrder(t, readAll(t, cfg.Path), acked, false)
}

// memory is a file in memory whose syncs can be held up, for tests under synctest's clock.
type memory struct {
	handle
	writes, syncs int
	sync          func()
}

func (m *memory) Write(b []byte) (int, error)       { m.writes++; return len(b), nil }
func (m *memory) Sync() error                       { m.syncs++; m.sync(); return nil }
func (m *memory) Stat() (os.FileInfo, error)        { return memoryInfo{}, nil }
func (m *memory) ReadAt([]byte, int64) (int, error) { return 0, nil }
func (m *memory) Close() error                      { return nil }

type memoryInfo struct{ os.FileInfo }

func (memoryInfo) Size() int64       { return 0 }
func (memoryInfo) Mode() os.FileMode { return 0 }
func (memoryInfo) Sys() any          { return nil }

// While one sync is under way the batches of all other lanes gather, and the next sync serves them
// all.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{sync: func() { time.Sleep(time.Second) }} // a slow disk, on synctest's clock
		s := start("file", &disk{fsync: true, log: hclog.NewNullLogger(), open: func(string) (handle, error) { return m, nil }})
		begin := time.Now()
		var lanes sync.WaitGroup
		publish := func(key string) {
			lanes.Go(func() {
				if err := s.Publish(t.Context(), sinktest.Records("t", key, 0, 3)); err != nil {
					t.Error(err)
				}
			})
		}
		publish("first")
		synctest.Wait() // it is in its sync now
		for lane := range 16 {
			publish(strconv.Itoa(lane))
		}
		lanes.Wait()
		if got := time.Since(begin); m.writes != 2 || m.syncs != 2 || got != 2*time.Second {
			t.Errorf("%d writes, %d syncs in %s, want 2, 2 and 2s", m.writes, m.syncs, got)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The lines of a group wait for the group before it. The writer asks each fence right before it
// writes. So what belongs to somebody else by then is left out, and the others of the group are
// not.
func TestFenceOfAGroupThatWaited(t *testing.T) {
	w := &gatedWriter{open: make(chan struct{})}
	s := NewWriter("stdout", w)
	defer func() { _ = s.Close() }()
	var ours atomic.Bool
	ours.Store(true)
	publish := func(ctx context.Context, key string) <-chan error {
		result := make(chan error, 1)
		go func() { result <- s.Publish(ctx, sinktest.Records("t", key, 0, 3)) }()
		return result
	}
	joined := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			s.mu.Lock()
			waiting := 0
			if s.group != nil {
				waiting = len(s.group.members)
			}
			s.mu.Unlock()
			if waiting == n {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d batches wait, want %d", waiting, n)
			}
		}
	}
	first := publish(t.Context(), "first")
	for deadline := time.Now().Add(time.Minute); !w.entered.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the first group is not written")
		}
	}
	fenced := publish(relay.WithFence(t.Context(), ours.Load), "fenced")
	joined(1)
	ended, cancel := context.WithCancel(t.Context())
	givenUp := publish(ended, "given up")
	joined(2)
	free := publish(t.Context(), "free")
	joined(3)
	ours.Store(false) // the process freezes here, and thaws
	cancel()
	if err := <-givenUp; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	close(w.open)
	if err := <-first; err != nil {
		t.Errorf("first: %v", err)
	}
	if err := <-fenced; !errors.Is(err, relay.ErrFence) {
		t.Errorf("fenced: got %v, want ErrFence", err)
	}
	if err := <-free; err != nil {
		t.Errorf("free: %v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if out := w.out.String(); strings.Count(out, "\n") != 6 || strings.Contains(out, `"fenced"`) || strings.Contains(out, `"given up"`) {
		t.Errorf("got lines %s, want those of first and free", out)
	}
}

// What is written after the file has lost its name goes to the path: nobody would ever read the old
// one.
func TestFileLosesItsName(t *testing.T) {
	for _, tc := range []struct {
		name string
		lose func(t *testing.T, path string)
		away bool // nothing can be written before the directory is back
	}{
		{"removed", remove, false},
		{"renamed", func(t *testing.T, path string) { rename(t, path, path+".1") }, false},
		{"renamed, and another in its place", func(t *testing.T, path string) {
			rename(t, path, path+".1")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"cut short", func(t *testing.T, path string) {
			if err := os.Truncate(path, 0); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"its directory removed", func(t *testing.T, path string) {
			if err := os.RemoveAll(filepath.Dir(path)); err != nil {
				t.Fatal(err)
			}
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := config(t)
			cfg.Path = filepath.Join(filepath.Dir(cfg.Path), "sub", "events.jsonl")
			dir := filepath.Dir(cfg.Path)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			s := newSink(t, cfg)
			defer func() { _ = s.Close() }()
			if err := s.Publish(t.Context(), sinktest.Records("t", "k", 0, 3)); err != nil {
				t.Fatal(err)
			}
			tc.lose(t, cfg.Path)
			after := sinktest.Records("t", "k", 0, 2)
			if tc.away {
				if err := s.Check(t.Context()); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("check: %v, want that the file cannot be opened", err)
				}
				if err := s.Publish(t.Context(), after); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("publish: %v, want that the file cannot be opened", err)
				}
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Publish(t.Context(), after); err != nil {
				t.Fatal(err)
			}
			sinktest.CheckOrder(t, readAll(t, cfg.Path), map[string]int{"k": 2}, true)
			if strings.HasPrefix(tc.name, "renamed") {
				sinktest.CheckOrder(t, readAll(t, cfg.Path+".1"), map[string]int{"k": 3}, true)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// A file that is removed while it is written takes its lines with it: they are not acknowledged.
func TestFileRemovedUnderAWrite(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Log("links of an open file are counted on Linux only")
		return
	}
	cfg := config(t)
	s, f := newFlaky(t, cfg)
	defer func() { _ = s.Close() }()
	batch := sinktest.Records("t", "k", 0, 2)
	if err := s.Publish(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	f.removes.Store(&cfg.Path)
	if err := s.Publish(t.Context(), batch); !errors.Is(err, errRemoved) {
		t.Fatalf("got %v, want %v", err, errRemoved)
	}
	if err := s.Publish(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	sinktest.CheckOrder(t, readAll(t, cfg.Path), map[string]int{"k": 2}, true)
}

func TestFileMode(t *testing.T) {
	cfg := config(t)
	for _, want := range []os.FileMode{0o600, 0o644} { // made by us, and made by somebody else
		s := newSink(t, cfg)
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("mode %o, want %o", got, want)
		}
		if err := os.Chmod(cfg.Path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFsyncOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{sync: func() {}}
		s := start("file", &disk{log: hclog.NewNullLogger(), open: func(string) (handle, error) { return m, nil }})
		if err := s.Publish(t.Context(), sinktest.Records("t", "k", 0, 3)); err != nil {
			t.Error(err)
		}
		if m.writes != 1 || m.syncs != 0 {
			t.Errorf("%d writes, %d syncs, want 1 and 0", m.writes, m.syncs)
		}
		_ = s.Close()
	})
}

func TestConfig(t *testing.T) {
	if _, err := New(Config{}, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "RELAY_FILE_PATH") {
		t.Errorf("no path: got %v", err)
	}
	if _, err := New(Config{Path: t.TempDir()}, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "RELAY_FILE_PATH") {
		t.Errorf("a directory: got %v", err)
	}
	cfg := config(t)
	cfg.Path = filepath.Join(filepath.Dir(cfg.Path), "no such directory", "events.jsonl")
	s := newSink(t, cfg)
	defer func() { _ = s.Close() }()
	if err := s.Check(t.Context()); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "RELAY_FILE_PATH") {
		t.Errorf("no directory: got %v", err)
	}
}

func TestRead(t *testing.T) {
	cfg := config(t)
	good := string(AppendLine(nil, sinktest.NewRecord("t", "k", 0, 0)))
	stop := errors.New("stop")
	for _, tc := range []struct {
		name, content string
		lines         int
		err           string
	}{
		{"whole", good + good, 2, ""},
		{"torn end is left out", good + good[:20], 1, ""},
		{"broken line", good + "{}\n" + good, 1, "line 2"},
		{"not JSON", "x\n", 0, "line 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := os.WriteFile(cfg.Path, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			n := 0
			err := Read(cfg.Path, func(Line) error { n++; return nil })
			if n != tc.lines || (err == nil) != (tc.err == "") || (err != nil && !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("got %d lines and %v, want %d and %q", n, err, tc.lines, tc.err)
			}
		})
	}
	_ = os.WriteFile(cfg.Path, []byte(good+good), 0o600)
	if err := Read(cfg.Path, func(Line) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v, want what the callback returned", err)
	}
}

func FuzzAppendLine(f *testing.F) {
	f.Add("OrderCreated", "order-7", `{"a": 1}`, "h", "v")
	f.Add("", "\xff\x00\"\\", "\n", "ü\u2028", "\x7f\t")
	f.Add("t", "k", "{\"a\":\n1}", "", "")
	f.Add("t", "k", " 7 ", "", "")
	f.Fuzz(func(t *testing.T, topic, key, value, name, text string) {
		rec := sinktest.NewRecord(topic, key, 0, 0)
		rec.Value = []byte(value)
		rec.Headers = []relay.Header{{Key: name, Value: text}}
		line := AppendLine(nil, rec)
		if n := bytes.Count(line, []byte{'\n'}); n != 1 || line[len(line)-1] != '\n' || !json.Valid(line) {
			t.Fatalf("%q is not one line of JSON", line)
		}
		got, err := parseLine(line)
		if err != nil {
			t.Fatal(err)
		}
		// What is no UTF-8 has no form in JSON; encoding/json has the same substitute.
		clean := func(s string) string { return strings.ToValidUTF8(s, "") }
		valid := func(s string) bool { return clean(s) == s }
		if valid(topic) && got.Topic != topic || valid(key) && got.Key != key || valid(name) && valid(text) && got.Headers[name] != text {
			t.Errorf("got %q %q %q, want %q %q %q=%q", got.Topic, got.Key, got.Headers, topic, key, name, text)
		}
		if !bytes.Equal(bytes.TrimSpace(got.Value), bytes.TrimSpace(rec.Value)) || got.EventID != rec.EventID || !got.Timestamp.Equal(rec.Timestamp) {
			t.Errorf("got body %q, want %q", got.Value, rec.Value)
		}
	})
}

func BenchmarkAppendLine(b *testing.B) {
	rec := sinktest.NewRecord("OrderCreated", "order-7", 0, 500)
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	b.SetBytes(int64(rec.Size()))
	for b.Loop() {
		buf = AppendLine(buf[:0], rec)
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, lanes := range []int{1, 4, 16} {
		for _, fsync := range []bool{true, false} {
			b.Run(fmt.Sprintf("lanes=%d/fsync=%v", lanes, fsync), func(b *testing.B) {
				cfg := config(b)
				cfg.Fsync = fsync
				s := newSink(b, cfg)
				defer func() { _ = s.Close() }()
				batch := sinktest.Records("OrderCreated", "order-7", 0, 100)
				b.ReportAllocs()
				var next atomic.Int64
				var wg sync.WaitGroup
				for range lanes {
					wg.Go(func() {
						for next.Add(1) <= int64(b.N) {
							if err := s.Publish(b.Context(), batch); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.N*len(batch))/b.Elapsed().Seconds(), "records/s")
			})
		}
	}
}
