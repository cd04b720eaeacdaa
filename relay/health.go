package relay

import (
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// sinkHealth is what the lanes of one sink know together of its broker: it is down while any lane has to offer
// again. It keeps the log quiet: the first trouble, then one line at intervals, then the recovery.
type sinkHealth struct {
	sink    string
	metrics *sinkMetrics
	changes *changeLog

	mu        sync.Mutex // guards what follows
	failing   int        // lanes
	isolated  bool       // its events go to the ledger
	attempts  int        // since the sink was last up
	since     time.Time  // when the offer was made that began the trouble
	silent    time.Time  // since when no lane has got anything through
	logged    time.Time
	lastError string
	erred     time.Time // when
	parted    time.Time // when it was last logged that it took only a part
	changed   time.Time // when up or isolated last changed; zero: never
	pace      pace
}

const healthLogInterval = 30 * time.Second

// failed notes an offer that was not taken; first says that the lane's offer before it was.
func (h *sinkHealth) failed(log hclog.Logger, first bool, err error, offered time.Time, events int, wait time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if h.failing == 0 && !h.isolated {
		h.since, h.logged, h.attempts = offered, time.Time{}, 0
	}
	if h.failing == 0 {
		h.silent = offered
		h.metrics.up.Set(0)
		if !h.isolated {
			h.became(now, Change{Kind: ChangeSinkDown, Level: LevelDegraded, Text: err.Error()})
		}
	}
	if first {
		h.failing++
	}
	h.attempts++
	h.lastError, h.erred = shown(err.Error()), now
	if now.Sub(h.logged) >= healthLogInterval {
		h.logged = now
		log.Warn("publish did not succeed, offering again", "events", events, "attempt", h.attempts, "backoff", wait, "error", err)
	}
}

// partly notes a round of the ledger of which the sink took a part: it is up, and yet some wait for it, and may arrive again.
func (h *sinkHealth) partly(log hclog.Logger, err error, events int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	h.lastError, h.erred = shown(err.Error()), now
	if now.Sub(h.parted) >= healthLogInterval {
		h.parted = now
		log.Warn("the sink did not take a part of its ledger, offering that again", "events", events, "error", err)
	}
}

// acked notes that some lane has got events through, in one batch that took so long.
func (h *sinkHealth) acked(events int, took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	h.pace.add(now, events, took)
	if h.failing > 0 {
		h.silent = now
	}
}

// downFor tells for how long no lane has got anything through, while one or more were trying.
func (h *sinkHealth) downFor() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failing == 0 {
		return 0
	}
	return time.Since(h.silent)
}

// recovered notes that a lane which had failed got its batch through.
func (h *sinkHealth) recovered(log hclog.Logger) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failing--
	if h.failing == 0 && !h.isolated {
		log.Info("sink recovered", "attempts", h.attempts, "after", time.Since(h.since).Round(time.Millisecond))
		h.metrics.up.Set(1)
		h.became(time.Now(), Change{Kind: ChangeSinkUp, Level: LevelOK, Text: "it takes events again"})
	}
}

// left notes that a failing lane has ended, with its pipeline. Nothing is being offered again then, so the sink counts as up
// until the next trouble: nobody else would say so.
func (h *sinkHealth) left() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failing--
	if h.failing == 0 && !h.isolated {
		h.metrics.up.Set(1)
		h.became(time.Now(), Change{Kind: ChangeSinkUp, Level: LevelInfo, Text: "nothing is offered to it any more"})
	}
}

// Why a sink is isolated, and why no more.
const (
	isolatedDown  = "it was down for RELAY_SINK_ISOLATION: its events go to the ledger"
	isolatedWAL   = "the slot holds back more WAL than its budget because of it: its events go to the ledger"
	restoredUp    = "it takes events again, and its ledger is drained"
	restoredWAL   = "the slot is within its WAL budget again"
	restoredOwner = "nothing is offered to it any more"
)

// isolate notes that nothing but the ledger's drainer offers to the sink.
func (h *sinkHealth) isolate(why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.isolated = true
	h.metrics.up.Set(0)
	h.metrics.isolated.Set(1)
	h.became(time.Now(), Change{Kind: ChangeIsolated, Level: LevelBroken, Text: why})
}

// restore notes that this is over. The sink may be down all the same.
func (h *sinkHealth) restore(why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.isolated = false
	h.metrics.isolated.Set(0)
	if h.failing > 0 {
		h.became(time.Now(), Change{Kind: ChangeSinkDown, Level: LevelDegraded, Text: "not isolated any more, and still down: " + why})
		return
	}
	h.metrics.up.Set(1)
	h.became(time.Now(), Change{Kind: ChangeSinkUp, Level: LevelOK, Text: why})
}

// setAside notes that the sink takes events, but not all.
func (h *sinkHealth) setAside() {
	h.changes.add(Change{Kind: ChangeSetAside, Level: LevelDegraded, Sink: h.sink, Text: "it takes others and not these, which go to the ledger"})
}

// became notes a change of state. It is called with mu held.
func (h *sinkHealth) became(at time.Time, c Change) {
	h.changed, c.Sink = at, h.sink
	h.changes.add(c)
}

// status is for the status page.
func (h *sinkHealth) status() SinkStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	st := SinkStatus{Sink: h.sink, Up: h.failing == 0 && !h.isolated, LastError: shown(h.lastError), Acked: h.pace.total}
	if !h.erred.IsZero() {
		at := h.erred
		st.LastErrorAt = &at
	}
	if !h.changed.IsZero() {
		at := h.changed
		st.Since = &at
	}
	st.Rate, st.P99 = h.pace.read(time.Now())
	return st
}
