package engine

import (
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// sinkHealth is what the lanes of one sink know together of its broker: it is down while any lane
// has to offer again. Isolation is decided by it. It keeps the log quiet: the first trouble, then
// one line at intervals, then the recovery.
type sinkHealth struct {
	sink    string
	sinkObs relay.SinkObserver
	obs     relay.Observer

	mu        sync.Mutex // guards what follows
	failing   int        // lanes
	isolated  int        // slots whose events go to the ledger
	attempts  int        // since the sink was last up
	since     time.Time  // when the offer was made that began the trouble
	silent    time.Time  // since when no lane has got anything through
	logged    time.Time
	parted    time.Time // when it was last logged that it took only a part
	turns     []turn    // not yet reported to the observer, in order
	reporting bool      // somebody is reporting them
}

// turn is a change of the sink's state.
type turn struct {
	up, isolated bool
	change       relay.Change
}

// logInterval is how often the log repeats a trouble that goes on.
const logInterval = 30 * time.Second

// failed notes an offer that was not taken; first is that the lane's offer before it was taken.
func (h *sinkHealth) failed(log hclog.Logger, first bool, err error, offered time.Time, events int, wait time.Duration) {
	h.sinkObs.Trouble(err)
	h.mu.Lock()
	now := time.Now()
	if h.failing == 0 && h.isolated == 0 {
		h.since, h.logged, h.attempts = offered, time.Time{}, 0
	}
	began := h.failing == 0
	if began {
		h.silent = offered
	}
	if first {
		h.failing++
	}
	if began && h.isolated == 0 {
		h.became(relay.Change{Kind: relay.ChangeSinkDown, Level: relay.LevelDegraded, Text: err.Error()})
	}
	h.attempts++
	attempt := h.attempts
	due := now.Sub(h.logged) >= logInterval
	if due {
		h.logged = now
	}
	h.mu.Unlock()
	h.report()
	if due {
		log.Warn("publish did not succeed, offering again", "events", events, "attempt", attempt, "backoff", wait, "error", err)
	}
}

// partly notes a round of the ledger of which the sink took a part: it is up, and yet some entries
// wait for it, and may arrive again.
func (h *sinkHealth) partly(log hclog.Logger, err error, events int) {
	h.sinkObs.Trouble(err)
	h.mu.Lock()
	now := time.Now()
	due := now.Sub(h.parted) >= logInterval
	if due {
		h.parted = now
	}
	h.mu.Unlock()
	if due {
		log.Warn("the sink did not take a part of its ledger, offering that again", "events", events, "error", err)
	}
}

// acked notes that some lane has got events through.
func (h *sinkHealth) acked() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failing > 0 {
		h.silent = time.Now()
	}
}

// downFor is for how long no lane has got anything through, while one or more were trying.
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
	h.failing--
	up := h.failing == 0 && h.isolated == 0
	attempts, after := h.attempts, time.Since(h.since)
	if up {
		h.became(relay.Change{Kind: relay.ChangeSinkUp, Level: relay.LevelOK, Text: "it takes events again"})
	}
	h.mu.Unlock()
	if up {
		log.Info("sink recovered", "attempts", attempts, "after", after.Round(time.Millisecond))
	}
	h.report()
}

// left notes that a failing lane has ended, with its pipeline. Nothing is being offered again then,
// so the sink counts as up until it fails again. Nothing else would report that.
func (h *sinkHealth) left() {
	h.mu.Lock()
	h.failing--
	if h.failing == 0 && h.isolated == 0 {
		h.became(relay.Change{Kind: relay.ChangeSinkUp, Level: relay.LevelInfo, Text: "nothing is offered to it any more"})
	}
	h.mu.Unlock()
	h.report()
}

// Why a sink is isolated, and why no more.
const (
	isolatedDown  = "it was down for RELAY_SINK_ISOLATION: its events go to the ledger"
	isolatedWAL   = "the slot holds back more WAL than its budget because of it: its events go to the ledger"
	restoredUp    = "it takes events again, and its ledger is drained"
	restoredWAL   = "the slot is within its WAL budget again"
	restoredOwner = "nothing is offered to it any more"
)

// isolate notes that nothing but the ledger's drainer offers a slot's events to the sink. It is
// isolated as long as that is so for one slot or more.
func (h *sinkHealth) isolate(why string) {
	h.mu.Lock()
	if h.isolated++; h.isolated == 1 {
		h.became(relay.Change{Kind: relay.ChangeIsolated, Level: relay.LevelBroken, Text: why})
	}
	h.mu.Unlock()
	h.report()
}

// restore notes that this is over for a slot. The sink may be down all the same.
func (h *sinkHealth) restore(why string) {
	h.mu.Lock()
	h.isolated--
	if h.isolated > 0 {
		h.mu.Unlock()
		return
	}
	if h.failing > 0 {
		h.became(relay.Change{Kind: relay.ChangeSinkDown, Level: relay.LevelDegraded, Text: "not isolated any more, and still down: " + why})
	} else {
		h.became(relay.Change{Kind: relay.ChangeSinkUp, Level: relay.LevelOK, Text: why})
	}
	h.mu.Unlock()
	h.report()
}

// partParked notes that the sink takes events, but not all.
func (h *sinkHealth) partParked() {
	h.obs.Changed(relay.Change{Kind: relay.ChangePartParked, Level: relay.LevelDegraded, Sink: h.sink, Text: "it takes others and not these, which go to the ledger"})
}

// became notes a change of state, which report passes on. It is called with mu held.
func (h *sinkHealth) became(c relay.Change) {
	c.Sink = h.sink
	h.turns = append(h.turns, turn{up: h.failing == 0 && h.isolated == 0, isolated: h.isolated > 0, change: c})
}

// report passes the changes to the observer, without mu, and in their order. Whoever comes while
// another caller is reporting leaves its own changes to that one. Otherwise the first could be
// reported last, and stay.
func (h *sinkHealth) report() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for !h.reporting && len(h.turns) > 0 {
		turns := h.turns
		h.turns, h.reporting = nil, true
		h.mu.Unlock()
		for _, t := range turns {
			h.sinkObs.Turned(t.up, t.isolated, t.change)
		}
		h.mu.Lock()
		h.reporting = false
	}
}
