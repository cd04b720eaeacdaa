package relay

import "time"

// Change is one change of state of a relay, for people who look at the status page.
type Change struct {
	Time  time.Time  `json:"time"` // the last one, when Times is more than 1
	Kind  ChangeKind `json:"kind"`
	Level Level      `json:"level"`
	Slot  string     `json:"slot,omitempty"`
	Sink  string     `json:"sink,omitempty"`
	Text  string     `json:"text"`
	// How often it happened in a row, or how many events it was about.
	Times int `json:"times"`
}

// ChangeKind is what a change is about.
type ChangeKind string

// Kinds of changes.
const (
	ChangeStandby    ChangeKind = "standby"
	ChangeLeaseTaken ChangeKind = "lease_taken"
	ChangeLeaseLost  ChangeKind = "lease_lost"
	ChangeReleased   ChangeKind = "released"
	ChangeDraining   ChangeKind = "draining"
	ChangeStreaming  ChangeKind = "streaming"
	ChangeBroken     ChangeKind = "interrupted" // the replication connection
	ChangePolling    ChangeKind = "polling"
	ChangeRecovering ChangeKind = "recovering"
	ChangeSlotGone   ChangeKind = "slot_gone"
	ChangeSinkDown   ChangeKind = "sink_down"
	ChangeSinkUp     ChangeKind = "sink_up"
	ChangeIsolated   ChangeKind = "sink_isolated"
	ChangePartParked ChangeKind = "events_isolated" // a part of a sink, whose events are parked
	ChangeSinkAdded  ChangeKind = "sink_added"
	ChangeSinkGone   ChangeKind = "sink_removed"
	ChangeDeadLetter ChangeKind = "dead_letter"
	ChangeUnmarked   ChangeKind = "rows_unmarked"
	ChangeDivided    ChangeKind = "divided" // the number of slots
)

// Level is how much a state, or a change to it, asks for a person.
type Level string

// Levels.
const (
	LevelOK       Level = "ok"
	LevelInfo     Level = "info"     // a change that is neither good nor bad
	LevelDegraded Level = "degraded" // it goes on, slower or in part
	LevelBroken   Level = "broken"   // it does not go on
)
