package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// Every decision that is no flow of events is made here:
//   - when the watermark is noted, so that the slot may move
//   - when WAL is shed
//   - when a batch, or all events of a sink, go to the ledger
//   - when an owner gives its lease up

const (
	controlInterval = time.Second
	slotEvery       = 5 // rounds of control between two looks at the slot
)

// control decides for one pipeline, in a goroutine of its own.
type control struct {
	cfg     *Config
	log     hclog.Logger
	slotObs relay.SlotObserver
	facts   relay.Facts
	window  *window
	confirm *confirmation
	doing   *doing
	doubts  inDoubt
	shelves []*shelf      // by sink
	health  []*sinkHealth // by sink

	stuck *flight // the oldest in flight at the last look at the slot; owned by run

	stalled chan error // capacity one: give the lease up

	mu   sync.Mutex // guards seen
	seen relay.SlotInfo
}

// run notes the watermark now and then until ctx ends, and sees to it that the slot does not hold
// back too much WAL.
func (c *control) run(ctx context.Context) error {
	for n := 0; ; n++ {
		if n%slotEvery == 0 {
			c.lookAtSlot(ctx)
		}
		c.doubts.mind(c.window.watermark())
		if c.confirm.due() {
			if err := c.confirm.confirm(ctx); err != nil {
				c.log.Debug("noting the watermark", "error", err)
			}
		}
		if !relay.Sleep(ctx, controlInterval) {
			return nil
		}
	}
}

// lookAtSlot asks the server about the slot.
func (c *control) lookAtSlot(ctx context.Context) {
	info, err := c.facts.Slot(ctx)
	if err != nil {
		c.log.Debug("looking at the slot", "error", err) // who needs the slot logs it louder
		return
	}
	c.mu.Lock()
	c.seen = info
	c.mu.Unlock()
	c.mindWAL(info)
	c.slotObs.Seen(info)
}

// mindWAL isolates the sinks that the oldest event waits for when the slot retains more WAL than
// the budget: their events go to the ledger, so that the slot can move. It ends that at half the
// budget. It sheds WAL, never events.
func (c *control) mindWAL(info relay.SlotInfo) {
	budget := info.WALBudget(int64(c.cfg.WALBudget))
	if budget == 0 || !info.Exists {
		return
	}
	retained := int64(info.WALEnd - min(info.WALEnd, info.Restart))
	waitsFor := c.waitsFor()
	for i, s := range c.shelves {
		_, _, over := s.state()
		switch {
		case !over && retained > budget && waitsFor&(1<<i) != 0:
			if s.isolate(true) {
				c.health[i].isolate(isolatedWAL)
			}
			c.log.Error("the slot holds back more WAL than its budget because of a sink: its events go to the ledger", "sink", s.sink,
				"retained_bytes", retained, "budget_bytes", budget)
		case over && retained <= budget/2:
			if ended, after := s.up(true); ended {
				c.health[i].restore(restoredWAL)
				c.log.Info("the slot is within its WAL budget again", "sink", s.sink, "isolated_for", after.Round(time.Second))
			}
		}
	}
}

// waitsFor returns a bit for each sink that the oldest event in flight is with, when it was the
// oldest at the last look already.
func (c *control) waitsFor() (sinks uint64) {
	f, open := c.window.oldest()
	if f != nil && f == c.stuck {
		sinks = open
	}
	c.stuck = f
	return sinks
}

// slotSeen returns the last look at the slot.
func (c *control) slotSeen() relay.SlotInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}

// errStalled is why an owner gives its lease up that has work and cannot do it.
var errStalled = errors.New("nothing has moved")

// maxStalls bounds how often the time until the next giving up doubles.
const maxStalls = 5

// stallLimit is how long nothing may move. It doubles each time that a lease was given up without a
// single mark in between. What this relay has published and not marked is published again by the
// next owner, in vain if that one cannot mark it either.
func (s *slotState) stallLimit(timeout time.Duration) time.Duration {
	return timeout << min(s.stalls, maxStalls)
}

// giveUp ends the pipeline, so that the lease is released and another relay may try. It does
// nothing while the server waits for open transactions before it makes the slot: any relay would
// wait.
func (c *control) giveUp(after time.Duration) {
	if c.doing.hasHolders() {
		return
	}
	select {
	case c.stalled <- fmt.Errorf("%w for %s", errStalled, after.Round(time.Second)):
	default: // it was reported already
	}
}

// leaving is what becomes of a batch that fails for a transient error.
type leaving int

const (
	offersAgain leaving = iota
	leavesAll           // to the ledger: its sink is isolated, or the relay is being stopped
	leavesAlone         // to the ledger: its sink takes others and not these
)

// leaving decides what becomes of a batch. It goes to the ledger when its sink is isolated or has
// to be, or when the relay is being stopped. It also goes there when it alone has failed for as
// long as an isolation takes, for instance because one partition has no leader.
func (l *lane) leaving(events int) leaving {
	switch {
	case l.shelf.isolated():
		return leavesAll
	case l.health.downFor() >= l.cfg.SinkIsolation:
		if l.shelf.isolate(false) {
			l.log.Error("sink isolated: its events go to the ledger until it is back", "failing_for", l.health.downFor().Round(time.Second))
			l.health.isolate(isolatedDown)
		}
		return leavesAll
	case time.Since(l.failingFrom) >= l.cfg.SinkIsolation && l.health.downFor() < l.cfg.SinkIsolation/2:
		// Or else the sink is on its way to the case above.
		l.log.Warn("events isolated: the sink takes others and not these, which go to the ledger", "events", events, "failing_for", time.Since(l.failingFrom).Round(time.Second))
		l.health.partParked()
		return leavesAlone
	case l.shelf.isStopping():
		return leavesAll
	}
	return offersAgain
}
