package relay

import (
	"fmt"
	"time"
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
	// Waiting is why the database was not of use at the last try, as long as the relay has not begun.
	Waiting string `json:"waiting,omitempty"`
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
	Swept      uint64    `json:"swept"`   // found in the table
	Watermark  string    `json:"watermark,omitempty"`
	Read       string    `json:"read,omitempty"`
	LagSeconds float64   `json:"lag_seconds"`
	// Mode is how events are found now: cdc, polling, or recovering (the table is swept before the slot is read); Why says why it polls or does not stream, if it should.
	Mode      string `json:"mode,omitempty"`
	Why       string `json:"why,omitempty"`
	Streaming bool   `json:"streaming"`
	// StreamSince is for how many seconds the replication connection has been as Streaming says.
	StreamSince float64 `json:"stream_since_seconds,omitempty"`
}

// SinkStatus is one sink's health.
type SinkStatus struct {
	Sink      string `json:"sink"`
	Up        bool   `json:"up"`
	LastError string `json:"last_error,omitempty"`
	// Ledger is how many entries of the ledger hold up later events of their keys; Isolated says that all events go there.
	Ledger   int  `json:"ledger"`
	Isolated bool `json:"isolated"`
}

// Status returns a consistent look at each slot; it is cheap and may be called at any time.
func (r *Relay) Status() Status {
	st := Status{WorkerID: r.cfg.WorkerID, Started: r.started}
	r.mu.Lock()
	defer r.mu.Unlock()
	st.Waiting = r.waiting
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
		out := SinkStatus{Sink: sink.Name(), Up: up, LastError: lastError}
		for _, s := range r.slots {
			if s.pipeline != nil {
				entries, down, overWAL := s.pipeline.shelves[i].state()
				out.Ledger += entries
				out.Isolated = out.Isolated || down || overWAL
			}
		}
		st.Sinks = append(st.Sinks, out)
	}
	return st
}

func (p *pipeline) status(out *SlotStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out.Epoch = p.lease.Epoch()
	out.Mode, out.Why = p.doing.mode, p.doing.why
	out.Streaming, out.StreamSince = p.doing.streaming, time.Since(p.doing.since).Seconds()
	out.Inflight, out.Bytes = p.tracker.len(), p.tracker.bytes
	out.Admitted, out.Marked, out.Skipped = p.counts.admitted, p.counts.marked, p.counts.skipped
	out.Swept = p.counts.swept
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
			problem := fmt.Sprintf("slot %s: the database has not answered yet", slot.Slot)
			if s.Waiting != "" {
				problem += " (DATABASE_URL): " + s.Waiting
			}
			problems = append(problems, problem)
		case Draining:
			problems = append(problems, fmt.Sprintf("slot %s: stopping", slot.Slot))
		case Owner:
			if slot.Mode == ModeCDC && !slot.Streaming && slot.StreamSince > stalledAfter.Seconds() {
				problems = append(problems, fmt.Sprintf("slot %s: owned, but no replication connection for %.0f s", slot.Slot, slot.StreamSince))
			}
		}
	}
	return problems
}

// stalledAfter is how long an owner may be without a replication connection before it counts as not ready.
const stalledAfter = 15 * time.Second
