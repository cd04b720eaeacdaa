package relay

import (
	"fmt"
	"time"
)

// MarkSink is the sink of ledger entries that are about a row's mark: every sink has the event, or
// an entry of its own, and the table does not take what is to be written to the row. Such an entry
// keeps the row from being found and delivered again. It holds up no other event of its key, and is
// tried again at growing pauses until the row has its mark.
const MarkSink = "saga_outbox"

// Reasons of such entries.
const (
	ReasonUnmarked Reason = "unmarked" // a constraint, a trigger, a rule refuses the mark
	ReasonLocked   Reason = "locked"   // somebody holds the row's lock
	// As unmarked; a person has given the event up, so it becomes a dead letter.
	ReasonDiscarded Reason = "discarded"
)

// Unmarked are the rows whose events are done and whose status does not show it, because the
// database does not take their marks.
type Unmarked struct {
	Events int `json:"events"`
	// Memory are those of them that the ledger does not take either: they are known to this process
	// alone, and a restart delivers them again.
	Memory int       `json:"memory"`
	Oldest time.Time `json:"oldest"` // when the first of them was parked
	// Of that one: an SQLSTATE with names, or who holds the lock. No value of a row.
	Cause string `json:"cause"`
}

// String puts it in words, without a value of a row.
func (u *Unmarked) String() string {
	rows := "1 row is delivered and cannot be marked"
	if u.Events > 1 {
		rows = fmt.Sprintf("%d rows are delivered and cannot be marked", u.Events)
	}
	text := fmt.Sprintf("%s, the oldest for %s: %s", rows, time.Since(u.Oldest).Round(time.Second), u.Cause)
	if u.Memory > 0 {
		text += fmt.Sprintf("; the ledger does not take %d of them either, so a restart delivers them again", u.Memory)
	}
	return text
}
