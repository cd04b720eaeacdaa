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

// closePatience is how long Close waits for a write that the disk, or whoever reads our standard
// output, does not finish.
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
	name string
	// owned by the writer goroutine, which may hang in it; everybody else asks and waits
	target target

	stop     chan struct{}   // closed by Close
	done     chan struct{}   // closed when the writer goroutine has ended
	wake     chan struct{}   // capacity one, coalesces: there is a group to commit
	checks   chan chan error // each has capacity one
	closeErr error           // the target's, set before done is closed

	mu sync.Mutex
	// Guarded by mu.
	closed bool
	group  *group // the one that new batches join, or nil
	spare  []byte // the buffer of a committed group, for the next one
}

// group is the lines of all batches that share a commit.
type group struct {
	lines   []byte
	members []*member     // in the order of their lines
	done    chan struct{} // closed when the members' errors are set
}

// member is one Publish in a group.
type member struct {
	ctx   context.Context
	fence func() bool
	end   int   // of its lines in the group
	err   error // set before the group's done is closed
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
	return start(cfg.Called("file"), &disk{setting: cfg.Said("RELAY_FILE_PATH"), path: cfg.Path, fsync: cfg.Fsync, log: log, open: openFile}), nil
}

// NewWriter makes a sink that writes its lines to w, which it does not close. A record is
// acknowledged when w has taken it.
func NewWriter(name string, w io.Writer) *Sink {
	return start(name, &stream{name: name, w: w})
}

func start(name string, t target) *Sink {
	s := &Sink{name: name, target: t, stop: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1), checks: make(chan chan error)}
	go s.run() // ends with Close, which waits for it
	return s
}

// Name returns "file", or the name that its Config has or that was given to NewWriter.
func (s *Sink) Name() string { return s.name }

// Check opens the file, or finds out why that cannot be done. It waits no longer than ctx for a
// disk that hangs.
func (s *Sink) Check(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case s.checks <- answer:
	case <-s.stop:
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("check %s: a write is still under way: %w", s.name, context.Cause(ctx))
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("check %s: no answer from the disk: %w", s.name, context.Cause(ctx))
	case <-s.stop:
		return ErrClosed
	}
}

// Publish appends the batch and returns when it is durable. A batch is acknowledged whole or not at
// all.
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
	m := &member{ctx: ctx, fence: relay.Fence(ctx)}
	g, err := s.join(m, lines)
	if cap(lines) <= maxBuffer {
		*buf = lines
		buffers.Put(buf)
	}
	if err != nil {
		return err
	}
	select {
	case <-g.done:
		return m.err
	case <-ctx.Done():
		return fmt.Errorf("append %d records to %s: %w", len(batch), s.name, context.Cause(ctx))
	case <-s.stop:
	}
	select { // the group may have been committed before the close
	case <-g.done:
		return m.err
	case <-s.done:
		return ErrClosed
	case <-time.After(closePatience):
		return ErrClosed
	}
}

// maxBuffer is the largest buffer kept for the next batch, so that one huge batch does not hold
// memory for good.
const maxBuffer = 4 << 20

// buffers holds the encoding buffers of Publish.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// join adds a batch's lines to the group that is to be committed next.
func (s *Sink) join(m *member, lines []byte) (*group, error) {
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
	m.end = len(g.lines)
	g.members = append(g.members, m)
	relay.Wake(s.wake)
	return g, nil
}

// run owns the target: it commits one group after the other, while the next gathers, and closes it
// at the end.
func (s *Sink) run() {
	defer close(s.done)
	defer func() { s.closeErr = s.target.close() }()
	for {
		select {
		case <-s.stop:
			return
		case answer := <-s.checks:
			answer <- s.target.check()
			continue
		case <-s.wake:
		}
		s.mu.Lock()
		g := s.group
		s.group = nil
		s.mu.Unlock()
		if g == nil { // woken twice for one group
			continue
		}
		s.commit(g)
		close(g.done)
		s.mu.Lock()
		if cap(g.lines) <= maxBuffer {
			s.spare = g.lines
		}
		s.mu.Unlock()
	}
}

// commit writes the lines of all members that may still be sent. The fences are asked here and not
// where the lines were made, because while a group waits for the one before it, the process may
// freeze and its slot go to somebody else. What its caller has given up meanwhile is left out too,
// since it is offered again.
func (s *Sink) commit(g *group) {
	lines, from := g.lines[:0], 0
	for _, m := range g.members {
		own := g.lines[from:m.end]
		from = m.end
		switch {
		case m.ctx.Err() != nil:
			m.err = fmt.Errorf("append to %s: %w", s.name, context.Cause(m.ctx))
		case !m.fence():
			m.err = fmt.Errorf("append to %s: %w", s.name, relay.ErrFence)
		default:
			// moves them to the front, if anything before was left out
			lines = append(lines, own...)
		}
	}
	if len(lines) == 0 {
		return
	}
	err := s.target.commit(lines)
	for _, m := range g.members {
		if m.err == nil {
			m.err = err
		}
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
		return s.closeErr
	case <-timer.C:
		return fmt.Errorf("close %s sink: a write is still under way after %s", s.name, closePatience)
	}
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
