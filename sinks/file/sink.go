package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// ErrClosed is what Publish returns after and because of Close.
var ErrClosed = errors.New("sink closed")

// closePatience is how long Close waits for a write that the disk, or whoever reads our standard output,
// does not finish.
const closePatience = 3 * time.Second

// target is what a group of lines is committed to.
type target interface {
	// commit makes all of the lines durable or, as far as it can, none of them.
	commit(lines []byte) error
	check() error
	close() error
}

// Sink appends records as lines. Publish may be called from any number of goroutines.
type Sink struct {
	name   string
	target target // used by the writer goroutine, and by Check and Close when it has ended or not begun

	stop chan struct{} // closed by Close
	done chan struct{} // closed when the writer goroutine has ended
	wake chan struct{} // capacity one, coalesces: there is a group to commit

	mu sync.Mutex
	// Guarded by mu.
	closed bool
	group  *group // the one that new batches join; nil when there is none
	spare  []byte // the buffer of a committed group, for the next one

	targetMu sync.Mutex // held around every use of target
}

// group is the lines of all batches that share a commit.
type group struct {
	lines []byte
	done  chan struct{} // closed when err is set
	err   error
}

var (
	_ relay.Sink    = (*Sink)(nil)
	_ relay.Checker = (*Sink)(nil)
)

// New makes a sink for a file. The file is opened, and made if need be, with the first record.
func New(cfg Config, log hclog.Logger) (*Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return start("file", &disk{path: cfg.Path, fsync: cfg.Fsync, log: log, open: openFile}), nil
}

// NewWriter makes a sink that writes its lines to w, which it does not close. A record is acknowledged
// when w has taken it.
func NewWriter(name string, w io.Writer) *Sink {
	return start(name, &stream{name: name, w: w})
}

func start(name string, t target) *Sink {
	s := &Sink{name: name, target: t, stop: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1)}
	go s.run() // ends with Close, which waits for it
	return s
}

// Name returns "file" or what NewWriter was given.
func (s *Sink) Name() string { return s.name }

// Check opens the file, or finds out why that cannot be done.
func (s *Sink) Check(context.Context) error {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return ErrClosed
	}
	s.targetMu.Lock()
	defer s.targetMu.Unlock()
	return s.target.check()
}

// Publish appends the batch and returns when it is durable. A batch is acknowledged whole or not at all.
func (s *Sink) Publish(ctx context.Context, batch []*relay.Record) error {
	if len(batch) == 0 {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("append %d records: %w", len(batch), context.Cause(ctx))
	}
	buf := buffers.Get().(*[]byte)
	lines := (*buf)[:0]
	for _, rec := range batch {
		lines = AppendLine(lines, rec)
	}
	if !relay.Fence(ctx)() {
		return fmt.Errorf("append %d records: %w", len(batch), relay.ErrFence)
	}
	g, err := s.join(lines)
	if cap(lines) <= maxBuffer {
		*buf = lines
		buffers.Put(buf)
	}
	if err != nil {
		return err
	}
	select {
	case <-g.done:
		return g.err
	case <-ctx.Done():
		return fmt.Errorf("append %d records: %w", len(batch), context.Cause(ctx))
	case <-s.stop:
	}
	select { // the group may have been committed before the close
	case <-g.done:
		return g.err
	case <-s.done:
		return ErrClosed
	case <-time.After(closePatience):
		return ErrClosed
	}
}

// maxBuffer is the largest buffer kept for the next batch, so that one huge batch does not hold memory
// for good.
const maxBuffer = 4 << 20

// buffers holds the encoding buffers of Publish.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// join adds a batch's lines to the group that is to be committed next.
func (s *Sink) join(lines []byte) (*group, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if s.group == nil {
		s.group = &group{lines: s.spare[:0], done: make(chan struct{})}
		s.spare = nil
	}
	g := s.group
	g.lines = append(g.lines, lines...)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return g, nil
}

// run commits one group after the other; the next gathers in the meantime.
func (s *Sink) run() {
	defer close(s.done)
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		}
		s.mu.Lock()
		g := s.group
		s.group = nil
		s.mu.Unlock()
		if g == nil { // woken twice for one group
			continue
		}
		s.targetMu.Lock()
		g.err = s.target.commit(g.lines)
		s.targetMu.Unlock()
		close(g.done)
		s.mu.Lock()
		if cap(g.lines) <= maxBuffer {
			s.spare = g.lines
		}
		s.mu.Unlock()
	}
}

// Close ends the sink after the write under way, if that ends in time.
func (s *Sink) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	timer := time.NewTimer(closePatience)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
		return fmt.Errorf("close %s sink: a write is still under way after %s", s.name, closePatience)
	}
	s.targetMu.Lock()
	defer s.targetMu.Unlock()
	return s.target.close()
}

// stream is a target that cannot be cut back: standard output.
type stream struct {
	name string
	w    io.Writer
	torn bool // the last write ended within a line
}

func (s *stream) check() error { return nil }
func (s *stream) close() error { return nil }

func (s *stream) commit(lines []byte) error {
	if s.torn { // keep the rest of a broken line from swallowing the next one
		if _, err := s.w.Write([]byte{'\n'}); err != nil {
			return fmt.Errorf("write to %s: %w", s.name, err)
		}
		s.torn = false
	}
	n, err := s.w.Write(lines)
	if err == nil && n < len(lines) {
		err = io.ErrShortWrite
	}
	if err != nil {
		s.torn = n > 0 && lines[n-1] != '\n'
		return fmt.Errorf("write to %s: %w", s.name, err)
	}
	return nil
}
