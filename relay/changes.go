package relay

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/internal/term"
)

// Change is one change of state of a relay, for people who look at the status page.
type Change struct {
	Time  time.Time  `json:"time"` // the last one, when Times says that there were several
	Kind  ChangeKind `json:"kind"`
	Level Level      `json:"level"`
	Slot  string     `json:"slot,omitempty"`
	Sink  string     `json:"sink,omitempty"`
	Text  string     `json:"text"`
	Times int        `json:"times"` // how often it happened in a row, or how many events it was about
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
	ChangeSetAside   ChangeKind = "events_isolated" // a part of a sink
	ChangeSinkAdded  ChangeKind = "sink_added"
	ChangeSinkGone   ChangeKind = "sink_removed"
	ChangeDeadLetter ChangeKind = "dead_letter"
	ChangeUnmarked   ChangeKind = "rows_unmarked"
)

// Level says how much a state, or a change to it, asks for a person.
type Level string

// Levels.
const (
	LevelOK       Level = "ok"
	LevelInfo     Level = "info"     // a change that is neither good nor bad
	LevelDegraded Level = "degraded" // it goes on, slower or in part
	LevelBroken   Level = "broken"   // it does not go on
)

const (
	// changesKept is how many changes are remembered.
	changesKept = 50
	// changeRepeats is within what time the same change is counted rather than listed again, so that what flaps does not push out the rest.
	changeRepeats = time.Minute
	// shownLength is how much of an error the status page shows, in characters.
	shownLength = 400
)

// changeLog remembers the last changes. Its methods may be called from any goroutine, also with locks of the relay held: it
// takes no other.
type changeLog struct {
	mu  sync.Mutex // guards all
	all []Change   // the oldest first
}

// add notes a change that happens now.
func (l *changeLog) add(c Change) {
	c.Time, c.Text, c.Times = time.Now(), shown(c.Text), max(1, c.Times)
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.all) - 1; i >= 0 && c.Time.Sub(l.all[i].Time) < changeRepeats; i-- {
		if was := l.all[i]; was.Kind == c.Kind && was.Slot == c.Slot && was.Sink == c.Sink && was.Text == c.Text {
			c.Times += was.Times
			l.all = slices.Delete(l.all, i, i+1)
			break
		}
	}
	if len(l.all) == changesKept {
		l.all = slices.Delete(l.all, 0, 1)
	}
	l.all = append(l.all, c)
}

// newest returns the changes, the newest first.
func (l *changeLog) newest() []Change {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.Clone(l.all)
	slices.Reverse(all)
	return all
}

// shown makes a text fit for the page: one line, of bounded length.
func shown(text string) string {
	return term.Cut(term.Text(strings.Join(strings.Fields(text), " ")), shownLength+1)
}

// Changes returns the last changes of state, at most 50, the newest first.
func (r *Relay) Changes() []Change { return r.changes.newest() }
