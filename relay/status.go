package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Role is what a relay is to a slot.
type Role string

// Roles.
const (
	Starting Role = "starting" // the database has not been checked yet
	Standby  Role = "standby"  // another relay owns the slot, or nobody yet
	Owner    Role = "owner"
	Draining Role = "draining" // finishing what is in flight, then releasing
)

// slotState is what the keeper knows of its slot. Owned by Relay.mu.
type slotState struct {
	name     string
	role     Role
	since    time.Time
	pipeline *pipeline // while owner, and while draining
}

// Status is one look at the relay, for health checks and the status page.
type Status struct {
	WorkerID string       `json:"worker_id"`
	Started  time.Time    `json:"started"`
	Slots    []SlotStatus `json:"slots"`
	Sinks    []SinkStatus `json:"sinks"`
}

// SlotStatus is one slot as this relay sees it. Positions and counts are of the current ownership.
type SlotStatus struct {
	Slot       string    `json:"slot"`
	Role       Role      `json:"role"`
	Since      time.Time `json:"since"`
	Epoch      int64     `json:"epoch,omitempty"`
	Inflight   int       `json:"inflight"`
	Bytes      int       `json:"inflight_bytes"`
	Admitted   uint64    `json:"admitted"`
	Marked     uint64    `json:"marked"`
	Skipped    uint64    `json:"skipped"` // told again by the stream and settled already
	Watermark  string    `json:"watermark,omitempty"`
	Read       string    `json:"read,omitempty"`
	LagSeconds float64   `json:"lag_seconds"`
	Streaming  bool      `json:"streaming"`
	// StreamSince is for how many seconds the replication connection has been as Streaming says.
	StreamSince float64 `json:"stream_since_seconds,omitempty"`
}

// SinkStatus is one sink's health.
type SinkStatus struct {
	Sink      string `json:"sink"`
	Up        bool   `json:"up"`
	LastError string `json:"last_error,omitempty"`
}

// Status returns a consistent look at each slot; it is cheap and may be called at any time.
func (r *Relay) Status() Status {
	st := Status{WorkerID: r.cfg.WorkerID, Started: r.started}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range r.cfg.Slots {
		s := r.slots[name]
		out := SlotStatus{Slot: s.name, Role: s.role, Since: s.since}
		if s.pipeline != nil {
			s.pipeline.status(&out)
		}
		st.Slots = append(st.Slots, out)
	}
	for i, sink := range r.sinks {
		up, lastError := r.health[i].state()
		st.Sinks = append(st.Sinks, SinkStatus{Sink: sink.Name(), Up: up, LastError: lastError})
	}
	return st
}

func (p *pipeline) status(out *SlotStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out.Epoch = p.lease.Epoch()
	out.Streaming, out.StreamSince = p.streaming, time.Since(p.streamChanged).Seconds()
	out.Inflight, out.Bytes = p.tracker.len(), p.tracker.bytes
	out.Admitted, out.Marked, out.Skipped = p.counts.admitted, p.counts.marked, p.counts.skipped
	out.Watermark, out.Read = p.tracker.watermark.String(), p.read.String()
	if f := p.tracker.oldest(); f != nil && f.committed != 0 {
		out.LagSeconds = max(0, time.Since(f.committed.Time()).Seconds())
	}
}

// Problems says, in words for an operator, why the relay is not doing its part; nothing means that it is ready. A standby is
// ready, and so is an owner whose broker is down: it moves as far as it can, and a restart would not mend the broker.
func (s Status) Problems() []string {
	var problems []string
	for _, slot := range s.Slots {
		switch slot.Role {
		case Starting:
			problems = append(problems, fmt.Sprintf("slot %s: the database has not answered yet", slot.Slot))
		case Draining:
			problems = append(problems, fmt.Sprintf("slot %s: stopping", slot.Slot))
		case Owner:
			if !slot.Streaming && slot.StreamSince > stalledAfter.Seconds() {
				problems = append(problems, fmt.Sprintf("slot %s: owned, but no replication connection for %.0f s", slot.Slot, slot.StreamSince))
			}
		}
	}
	return problems
}

// stalledAfter is how long an owner may be without a replication connection before it counts as not ready.
const stalledAfter = 15 * time.Second

const (
	observeInterval = time.Second
	slotEvery       = 5 // observations between two looks at the slot
)

// observe keeps the pipeline's gauges up to date until ctx ends.
func (p *pipeline) observe(ctx context.Context) error {
	var unread unreadEstimate
	var info SlotInfo
	for n := 0; ; n++ {
		if n%slotEvery == 0 {
			looked, err := p.lease.Slot(ctx)
			if err != nil {
				p.log.Debug("looking at the slot", "error", err) // who needs the slot says it louder
			} else {
				info = looked
				p.metrics.slotInfo(p.slot, info)
			}
		}
		var st SlotStatus
		p.status(&st)
		p.mu.Lock()
		read, admitted := max(p.read, info.ConfirmedFlush), p.counts.admitted
		p.mu.Unlock()
		waiting := float64(st.Inflight) + unread.events(info.WALEnd, read, admitted)
		p.metrics.lag.WithLabelValues(p.slot).Set(st.LagSeconds)
		p.metrics.processing.Set(float64(st.Inflight))
		p.metrics.pending.Set(waiting)
		p.metrics.pendingName.Set(waiting)
		if !Sleep(ctx, observeInterval) {
			return nil
		}
	}
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
