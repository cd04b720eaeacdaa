package relay

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	observeInterval = time.Second
	slotEvery       = 5 // observations between two looks at the slot
)

// observe keeps the pipeline's gauges up to date until ctx ends, notes the watermark now and then, and sees to it that the slot does
// not hold back too much WAL.
func (p *pipeline) observe(ctx context.Context) error {
	var unread unreadEstimate
	var info SlotInfo
	nextCount, nextBacklog := time.Now(), time.Now()
	backlog := 0
	for n := 0; ; n++ {
		if n%slotEvery == 0 {
			looked, err := p.lease.Slot(ctx)
			if err != nil {
				p.log.Debug("looking at the slot", "error", err) // who needs the slot says it louder
			} else {
				info = looked
				p.metrics.slotInfo(p.slot, info)
				p.mindWAL(info)
			}
		}
		if now := time.Now(); !now.Before(nextCount) {
			if counts, err := p.lease.Counts(ctx); err == nil {
				p.metrics.ledgerCounts(counts)
			}
			nextCount = now.Add(max(slotEvery*observeInterval, lookShare*time.Since(now)))
		}
		if now := time.Now(); p.isPolling() && !now.Before(nextBacklog) {
			if n, err := p.lease.Backlog(ctx, backlogLimit); err == nil {
				backlog = n
			}
			nextBacklog = now.Add(max(slotEvery*observeInterval, lookShare*time.Since(now)/10))
		}
		if p.wantsConfirm() {
			if err := p.confirm(ctx); err != nil {
				p.log.Debug("noting the watermark", "error", err)
			}
		}
		var st SlotStatus
		p.status(&st)
		p.mu.Lock()
		read, admitted := max(p.read, info.ConfirmedFlush), p.counts.admitted
		p.mu.Unlock()
		waiting := float64(st.Inflight)
		for _, s := range p.shelves {
			entries, _, _ := s.state()
			waiting += float64(entries)
		}
		if st.Mode == ModePolling {
			waiting = max(waiting, float64(backlog)) // in flight, they are pending still
		} else if info.Exists {
			waiting += unread.events(info.WALEnd, read, admitted)
		}
		p.metrics.lag.WithLabelValues(p.slot).Set(st.LagSeconds)
		p.metrics.processing.Set(float64(st.Inflight))
		p.metrics.pending.Set(waiting)
		p.metrics.pendingName.Set(waiting)
		if !Sleep(ctx, observeInterval) {
			return nil
		}
	}
}

// backlogLimit is where the backlog's exact size does not matter any more.
const backlogLimit = 1_000_000

func (p *pipeline) isPolling() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.doing.mode == ModePolling
}

// mindWAL isolates the sinks for which the oldest event waits when the slot holds back more WAL than the budget, so that their events go to
// the ledger and the slot goes on; it ends that at half the budget. It sheds WAL, never events.
func (p *pipeline) mindWAL(info SlotInfo) {
	budget := int64(p.cfg.WALBudget)
	if budget == 0 {
		budget = info.KeepSize / 2
	}
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
			p.health[i].isolate()
			p.log.Error("the slot holds back more WAL than its budget because of a sink: its events go to the ledger", "sink", s.sink,
				"retained_bytes", retained, "budget_bytes", budget)
		case over && retained <= budget/2:
			if ended, after := s.up(true); ended {
				p.health[i].restore()
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

// unreadEstimate guesses how many events lie in WAL that the stream has not brought yet: its bytes, by the events that the bytes
// so far have held. Until some have been seen it takes a row of ordinary size.
type unreadEstimate struct {
	from     LSN
	admitted uint64
	perEvent float64 // WAL bytes
}

const (
	ordinaryWALPerEvent = 1500
	// caughtUpBytes is WAL that may be written between our look at the server and its next keepalive without meaning a backlog.
	caughtUpBytes = 1 << 20
)

func (u *unreadEstimate) events(walEnd, read LSN, admitted uint64) float64 {
	if u.from == 0 {
		u.from, u.admitted, u.perEvent = read, admitted, ordinaryWALPerEvent
	}
	if n := admitted - u.admitted; n >= 1000 && read > u.from {
		u.perEvent = max(100, float64(read-u.from)/float64(n))
		u.from, u.admitted = read, admitted
	}
	if walEnd < read+caughtUpBytes {
		return 0
	}
	return float64(int64(float64(walEnd-read) / u.perEvent))
}

// standby sets what only an owner reports to 0: a missing series would keep the autoscaler from scaling down.
func (m *Metrics) standby() {
	m.pending.Set(0)
	m.pendingName.Set(0)
	m.processing.Set(0)
	m.lag.Reset()
	for _, g := range []*prometheus.GaugeVec{m.slotLag, m.slotRetained, m.slotSafe, m.slotActive, m.slotStatus} {
		g.Reset()
	}
}
