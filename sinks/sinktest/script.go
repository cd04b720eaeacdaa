package sinktest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// Script is a relay.Sink in memory that fails on cue and remembers what it took. It keeps the
// contract: behind a record with a transient error the later ones of its key fail too, and behind a
// refused one they are not taken and get relay.ErrBehind. Without cues it takes everything at once.
//
//	sink := sinktest.NewScript("kafka")
//	sink.OnKey("order-7").Times(2).Fail(errors.New("leader moved"))
//	sink.OnEvent(id).Refuse(relay.ReasonTooLarge, errors.New("1 MB is the limit"))
//	gate := sink.OnCall(3).Block()
//	…
//	<-gate.Reached
//	gate.Release()
//
// Several cues may match. Of those about the whole call each delay and each gate applies, and the
// first whole-batch error wins. Of those about a record the first that was given wins. All methods
// may be called from any goroutine at any time. Waiting is on timers and channels only, so it works
// inside a testing/synctest bubble.
type Script struct {
	name string

	mu sync.Mutex
	// Guarded by mu.
	cues    []*Cue
	calls   int
	inside  int
	maxIn   int
	down    error
	offered []Offered
	taken   []*relay.Record
	changed chan struct{} // closed and replaced whenever taken, offered or closed changed
	closed  bool
	done    chan struct{} // closed by Close
}

var (
	_ relay.Sink    = (*Script)(nil)
	_ relay.Checker = (*Script)(nil)
)

// Offered is one record as one call of Publish offered it.
type Offered struct {
	Call   int // the number of the call, from 1
	Record *relay.Record
	Err    error // nil when it was acknowledged
}

// ErrScriptClosed is what Publish returns after and because of Close.
var ErrScriptClosed = errors.New("script: closed")

// NewScript makes a sink that takes everything until it has cues.
func NewScript(name string) *Script {
	return &Script{name: name, changed: make(chan struct{}), done: make(chan struct{})}
}

// Cue is when something happens; one of its methods sets what.
type Cue struct {
	script *Script
	// when; one of them
	call  int
	key   *string
	event *relay.UUID
	// Guarded by script.mu.
	left  int // how often it still applies; negative: always
	err   error
	whole bool // err is the whole call's, not the record's
	lost  bool // the record is taken although err is returned
	delay time.Duration
	gate  *Gate
}

// Gate makes calls of Publish wait.
type Gate struct {
	Reached chan struct{} // closed when the first call has come to the gate
	once    sync.Once
	open    chan struct{}
	release sync.Once
}

// Release lets every call through, now and later. It may be called more than once.
func (g *Gate) Release() { g.release.Do(func() { close(g.open) }) }

// OnCall matches the n-th call of Publish, from 1. With 0 it matches every call.
func (s *Script) OnCall(n int) *Cue { return s.cue(Cue{call: n}) }

// OnKey matches records with this key.
func (s *Script) OnKey(key string) *Cue { return s.cue(Cue{call: -1, key: &key}) }

// OnEvent matches the record with this event_id.
func (s *Script) OnEvent(id relay.UUID) *Cue { return s.cue(Cue{call: -1, event: &id}) }

func (s *Script) cue(c Cue) *Cue {
	c.script, c.left = s, -1
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cues = append(s.cues, &c)
	return &c
}

// Times limits the cue to its first n matches (calls for OnCall, offers of a matching record
// otherwise).
func (c *Cue) Times(n int) *Cue {
	c.script.mu.Lock()
	defer c.script.mu.Unlock()
	c.left = n
	return c
}

// Stop ends the cue.
func (c *Cue) Stop() { c.Times(0) }

// Fail gives the record a transient error. On a call it is that of every record in it.
func (c *Cue) Fail(err error) *Cue { return c.set(func() { c.err = err }) }

// Refuse gives the record a *relay.RefusedError.
func (c *Cue) Refuse(reason relay.Reason, err error) *Cue {
	return c.Fail(relay.Refuse(reason, err))
}

// FailBatch makes the call that the cue matches return err itself, not a *relay.BatchError. Nothing
// of that batch is taken.
func (c *Cue) FailBatch(err error) *Cue { return c.set(func() { c.err, c.whole = err, true }) }

// Lose takes the record and still gives it err: the acknowledgement got lost on the way.
func (c *Cue) Lose(err error) *Cue { return c.set(func() { c.err, c.lost = err, true }) }

// Delay makes the call that the cue matches take d longer, or until its context ends.
func (c *Cue) Delay(d time.Duration) *Cue { return c.set(func() { c.delay = d }) }

// Block makes the calls that the cue matches wait until the gate is released, their context ends or
// the sink is closed.
func (c *Cue) Block() *Gate {
	g := &Gate{Reached: make(chan struct{}), open: make(chan struct{})}
	c.set(func() { c.gate = g })
	return g
}

func (c *Cue) set(f func()) *Cue {
	c.script.mu.Lock()
	defer c.script.mu.Unlock()
	f()
	return c
}

// Down makes every Publish and Check fail with err, whatever the cues say, until Down(nil).
func (s *Script) Down(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = err
}

// Name returns the name given to NewScript.
func (s *Script) Name() string { return s.name }

// Check returns the error given to Down.
func (s *Script) Check(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrScriptClosed
	}
	return s.down
}

// Publish does what the cues want.
func (s *Script) Publish(ctx context.Context, batch []*relay.Record) error {
	if len(batch) == 0 {
		return nil
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrScriptClosed
	}
	s.calls++
	s.inside++
	s.maxIn = max(s.maxIn, s.inside)
	call := s.calls
	matched := s.match(call, batch)
	s.mu.Unlock()

	var err error
	if !relay.Fence(ctx)() {
		err = relay.ErrFence
	} else {
		err = s.wait(ctx, matched)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.inside--
	switch {
	case err != nil:
	case s.closed:
		err = ErrScriptClosed
	case s.down != nil:
		err = s.down
	default:
		for _, c := range matched.calls {
			if c.whole && err == nil {
				err = c.err
			}
		}
	}
	errs, failed := make([]error, len(batch)), false
	held := map[string]error{} // key → what becomes of the records behind one of this batch
	for i, rec := range batch {
		errs[i] = err
		if err == nil {
			errs[i] = s.fate(rec, matched, i, held)
		}
		failed = failed || errs[i] != nil
		s.offered = append(s.offered, Offered{Call: call, Record: rec, Err: errs[i]})
	}
	close(s.changed)
	s.changed = make(chan struct{})
	switch {
	case err != nil:
		return err
	case failed:
		return &relay.BatchError{Errs: errs}
	}
	return nil
}

// fate decides about one record and takes it, or not. The caller holds mu.
func (s *Script) fate(rec *relay.Record, m matches, i int, held map[string]error) error {
	c := m.records[i]
	if c == nil || c.err == nil {
		for _, onCall := range m.calls {
			if onCall.err != nil {
				c = onCall
				break
			}
		}
	}
	var err error
	if c != nil {
		err = c.err
	}
	before := held[rec.Key]
	_, refused := relay.Refused(err)
	switch {
	case errors.Is(before, relay.ErrBehind):
		return before
	case refused && before != nil:
		held[rec.Key] = relay.ErrBehind // nothing passes it, whatever becomes of the call
		return before                   // its turn has not come
	case refused:
		held[rec.Key] = relay.ErrBehind
		return err
	}
	if err == nil || c.lost {
		s.taken = append(s.taken, rec)
	}
	if err == nil {
		return before
	}
	if before == nil {
		held[rec.Key] = err
	}
	return err
}

// matches are the cues that one call met.
type matches struct {
	// about the whole call, and those of records that delay, block or fail it as a whole
	calls   []*Cue
	records []*Cue // by index in the batch: the first with a fate for that record
}

// match finds the cues for a call and counts them down. The caller holds mu.
func (s *Script) match(call int, batch []*relay.Record) matches {
	m := matches{records: make([]*Cue, len(batch))}
	for _, c := range s.cues {
		if c.call == 0 || c.call == call {
			if c.left != 0 {
				c.left--
				m.calls = append(m.calls, c)
			}
			continue
		}
		ofCall := c.whole || c.delay > 0 || c.gate != nil
		for i, rec := range batch {
			hit := (c.key != nil && *c.key == rec.Key) || (c.event != nil && *c.event == rec.EventID)
			if !hit || c.left == 0 || (!ofCall && m.records[i] != nil) {
				continue
			}
			c.left--
			if ofCall {
				m.calls = append(m.calls, c)
				break // once a call
			}
			m.records[i] = c
		}
	}
	return m
}

// wait sits out the delays and gates of a call.
func (s *Script) wait(ctx context.Context, m matches) error {
	for _, c := range m.calls {
		s.mu.Lock()
		delay, gate := c.delay, c.gate
		s.mu.Unlock()
		var over <-chan time.Time
		var open chan struct{}
		switch {
		case gate != nil:
			gate.once.Do(func() { close(gate.Reached) })
			open = gate.open
		case delay > 0:
			timer := time.NewTimer(delay)
			defer timer.Stop()
			over = timer.C
		default:
			continue
		}
		select {
		case <-over:
		case <-open:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.done:
			return ErrScriptClosed
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// Close ends calls that wait; Publish returns ErrScriptClosed from then on.
func (s *Script) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("script: closed twice")
	}
	s.closed = true
	close(s.done)
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

// Taken returns the records that reached the sink, in order, repeats included.
func (s *Script) Taken() []*relay.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.taken)
}

// Offered returns what was offered in every finished call, with its fate, in the order of
// finishing.
func (s *Script) Offered() []Offered {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.offered)
}

// Calls returns how often Publish was called with records, and the largest number of calls under
// way at once.
func (s *Script) Calls() (calls, atOnce int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls, s.maxIn
}

// Closed reports whether Close was called.
func (s *Script) Closed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// WaitTaken waits until at least n records reached the sink, repeats included. It returns the
// context's cause when that ends first.
func (s *Script) WaitTaken(ctx context.Context, n int) error {
	return s.until(ctx, func() bool { return len(s.taken) >= n })
}

// WaitOffered waits until at least n offers of a record are finished.
func (s *Script) WaitOffered(ctx context.Context, n int) error {
	return s.until(ctx, func() bool { return len(s.offered) >= n })
}

func (s *Script) until(ctx context.Context, is func() bool) error {
	for {
		s.mu.Lock()
		ok, changed := is(), s.changed
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
