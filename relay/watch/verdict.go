package watch

import (
	"fmt"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// Verdict is the state of a relay in one look.
type Verdict struct {
	Level   relay.Level `json:"level"`
	Summary string      `json:"summary"`
	Reasons []string    `json:"reasons"` // why it is not LevelOK; no error texts
}

// Verdict judges the status: broken is an owner that is not ready, degraded what a person should
// look at though it goes on.
func (s Status) Verdict() Verdict {
	v := Verdict{Level: relay.LevelOK, Summary: s.summary(), Reasons: []string{}}
	for _, p := range s.problems() {
		level := relay.LevelDegraded // starting and stopping pass
		if p.owner {
			level = relay.LevelBroken
		}
		v.add(level, p.text)
	}
	for i := range s.Slots {
		s.Slots[i].judge(&v)
	}
	if s.Set != nil && s.Set.Change != nil && s.Set.Change.Seconds > changeLong.Seconds() {
		c := s.Set.Change
		v.add(relay.LevelDegraded, fmt.Sprintf("the number of slots has been changing from %d to %d for %.0f min; it waits for: %s", s.Set.Shards, c.Target, c.Seconds/60, c.WaitsFor))
	}
	for _, sink := range s.Sinks {
		switch {
		case sink.Isolated:
			v.add(relay.LevelDegraded, fmt.Sprintf("sink %s is isolated: its events go to the ledger", sink.Sink))
		case !sink.Up:
			v.add(relay.LevelDegraded, fmt.Sprintf("sink %s is down: its events are offered again", sink.Sink))
		}
	}
	return v
}

// add notes a reason.
func (v *Verdict) add(level relay.Level, reason string) {
	v.Reasons = append(v.Reasons, reason)
	if v.Level != relay.LevelBroken {
		v.Level = level
	}
}

// Add notes a reason that is known to somebody else; it makes the relay degraded at least.
func (v *Verdict) Add(reason string) { v.add(relay.LevelDegraded, reason) }

func (s *SlotStatus) judge(v *Verdict) {
	if s.Role == relay.Standby && s.Other != "" && s.OtherFor <= occupiedAfter.Seconds() {
		v.add(relay.LevelDegraded, fmt.Sprintf("slot %s: the table's events are delivered through another slot: %s", s.Slot, s.Other))
	}
	if s.Role != relay.Owner {
		return
	}
	switch {
	case s.SlotWaitsFor != "":
		v.add(relay.LevelDegraded, fmt.Sprintf("slot %s: it is being made, which waits for %s", s.Slot, s.SlotWaitsFor))
	case s.Mode == relay.ModePolling && s.Why != "" && s.Why != relay.WantsPolling:
		v.add(relay.LevelDegraded, fmt.Sprintf("slot %s: streaming is impossible, the table is polled", s.Slot))
	case s.Mode == relay.ModeRecovering:
		v.add(relay.LevelDegraded, fmt.Sprintf("slot %s: what the slot does not deliver is being found in the table", s.Slot))
	case s.Mode == relay.ModeCDC && !s.Streaming && s.StreamSince <= stalledAfter.Seconds():
		v.add(relay.LevelDegraded, fmt.Sprintf("slot %s: the replication connection is being made", s.Slot))
	}
	if s.Waits > standstillAfter.Seconds() {
		switch s.WaitsFor {
		case relay.WaitsForServer:
			v.add(relay.LevelDegraded, fmt.Sprintf("slot %s: WAL is written, and PostgreSQL has sent nothing new for %.0f s: it decodes a large transaction, or waits for a standby", s.Slot, s.Waits))
		case relay.WaitsForSink:
			v.add(relay.LevelDegraded, fmt.Sprintf("slot %s: the oldest event waits for a sink that is down, for %.0f s", s.Slot, s.Waits))
		case relay.WaitsForRoom:
			v.add(relay.LevelDegraded, fmt.Sprintf("slot %s: an event larger than its share of RELAY_INFLIGHT_BYTES waits for one of another slot, for %.0f s", s.Slot, s.Waits))
		case relay.WaitsForClaims:
			v.add(relay.LevelDegraded, fmt.Sprintf("slot %s: the next rows have been claimed by another worker for %.0f s", s.Slot, s.Waits))
		}
	}
	if u := s.Unmarked; u != nil {
		v.add(relay.LevelDegraded, fmt.Sprintf("slot %s: %s", s.Slot, u))
	}
	switch s.WALStatus {
	case "extended":
		v.add(relay.LevelDegraded, fmt.Sprintf("slot %s: it holds back more WAL than max_wal_size", s.Slot))
	case "unreserved":
		v.add(relay.LevelDegraded, fmt.Sprintf("slot %s: it is about to lose WAL that it needs", s.Slot))
	case "lost":
		v.add(relay.LevelDegraded, fmt.Sprintf("slot %s: PostgreSQL has removed WAL that it needed", s.Slot))
	}
}

// summary is what the relay does, in a few words.
func (s Status) summary() string {
	roles := make(map[relay.Role]int)
	polling, recovering, away, stopping := 0, 0, false, false
	for i := range s.Slots {
		roles[s.Slots[i].Role]++
		stopping = stopping || s.Slots[i].Role == relay.Draining && !s.Slots[i].GivesBack
		away = away || s.Slots[i].Away > stalledAfter.Seconds()
		if s.Slots[i].Role == relay.Owner && s.Slots[i].Mode == relay.ModePolling {
			polling++
		}
		if s.Slots[i].Role == relay.Owner && s.Slots[i].Mode == relay.ModeRecovering {
			recovering++
		}
	}
	switch {
	case roles[relay.Owner] > 0 && recovering > 0:
		return "Recovering"
	case roles[relay.Owner] > 0 && polling > 0:
		return "Polling the table"
	case roles[relay.Owner] > 0 && len(s.Slots) > 1:
		return fmt.Sprintf("Relaying from %d of %d slots", roles[relay.Owner], len(s.Slots))
	case roles[relay.Owner] > 0:
		return "Relaying"
	case stopping:
		return "Stopping"
	case roles[relay.Draining] > 0:
		return "Giving slots back"
	case roles[relay.Standby] > 0 && away:
		return "Waiting for the database"
	case roles[relay.Standby] > 0:
		return "Standing by"
	default:
		return "Starting for " + time.Since(s.Started).Round(time.Second).String()
	}
}
