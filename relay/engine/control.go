package engine

import (
	"context"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

const (
	controlInterval = time.Second
	slotEvery       = 5 // rounds of control between two looks at the slot
)

// control notes the watermark now and then until ctx ends, and sees to it that the slot does not hold back too much WAL.
func (p *pipeline) control(ctx context.Context) error {
	for n := 0; ; n++ {
		if n%slotEvery == 0 {
			p.lookAtSlot(ctx)
		}
		if p.wantsConfirm() {
			if err := p.confirm(ctx); err != nil {
				p.log.Debug("noting the watermark", "error", err)
			}
		}
		if !relay.Sleep(ctx, controlInterval) {
			return nil
		}
	}
}

// lookAtSlot asks the server about the slot.
func (p *pipeline) lookAtSlot(ctx context.Context) {
	info, err := p.lease.Slot(ctx)
	if err != nil {
		p.log.Debug("looking at the slot", "error", err) // who needs the slot says it louder
		return
	}
	p.mu.Lock()
	p.seen = info
	p.mu.Unlock()
	p.mindWAL(info)
	p.told.Seen(info)
}

// mindWAL isolates the sinks for which the oldest event waits when the slot holds back more WAL than the budget, so that their events go to
// the ledger and the slot goes on; it ends that at half the budget. It sheds WAL, never events.
func (p *pipeline) mindWAL(info relay.SlotInfo) {
	budget := info.WALBudget(int64(p.cfg.WALBudget))
	if budget == 0 || !info.Exists {
		return
	}
	retained := int64(info.WALEnd - min(info.WALEnd, info.Restart))
	waitsFor := p.waitsFor()
	for i, s := range p.shelves {
		_, _, over := s.state()
		switch {
		case !over && retained > budget && waitsFor&(1<<i) != 0:
			s.isolate(true)
			p.health[i].isolate(isolatedWAL)
			p.log.Error("the slot holds back more WAL than its budget because of a sink: its events go to the ledger", "sink", s.sink,
				"retained_bytes", retained, "budget_bytes", budget)
		case over && retained <= budget/2:
			if ended, after := s.up(true); ended {
				p.health[i].restore(restoredWAL)
				p.log.Info("the slot is within its WAL budget again", "sink", s.sink, "isolated_for", after.Round(time.Second))
			}
		}
	}
}

// waitsFor returns a bit for each sink that the oldest event in flight is with, when it was the oldest at the last look already.
func (p *pipeline) waitsFor() (sinks uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.tracker.oldest()
	if f != nil && f == p.stuck {
		sinks = f.open
	}
	p.stuck = f
	return sinks
}
