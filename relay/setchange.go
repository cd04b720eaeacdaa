package relay

import (
	"fmt"
	"slices"
	"time"
)

// States of a change of the number of slots.
const (
	SetMaking   = "making"   // the new slots
	SetDraining = "draining" // the old slots are read up to where all of the new ones begin, and stop
)

// SetChange is a change of the number of slots that is under way, as every relay sees it.
type SetChange struct {
	From, Target int    // slots
	State        string // SetMaking or SetDraining
	Switch       LSN    // where all of the new slots have begun; 0 while they are being made
	Began        time.Time
	Changer      string // who worked on it last; empty: nobody yet
	Trouble      string // why that did not succeed; empty: it did, or goes on
	// Old are the slots that there are, in their order, once it is known where they have to get to.
	Old []OldSlot
}

// OldSlot is how far a slot of the old set is.
type OldSlot struct {
	Slot  string
	Owner string // empty: nobody
	// Left is the WAL between what is noted as delivered and the switch; 0: it is past it. nil where
	// nothing is noted.
	Left    *int64
	Stopped bool // all are past the switch, and it is released: nobody takes it again
}

// Through reports whether all old slots have come to the switch. Then they stop.
func (c *SetChange) Through() bool {
	return c.Switch == 0 || !slices.ContainsFunc(c.Old, func(o OldSlot) bool { return o.Left == nil || *o.Left > 0 })
}

// Waits is for whom the change waits, in words. What holds it up most comes first.
func (c *SetChange) Waits() string {
	if c.Changer == "" {
		return "a relay: none works on it yet (if none of this version runs, start one)"
	}
	if c.State == SetMaking && c.Trouble != "" {
		return c.Changer + ", which makes the new slots, and did not succeed: " + c.Trouble
	}
	if c.State == SetMaking {
		return c.Changer + ", which makes the new slots: the server waits for the transactions under way"
	}
	var most *OldSlot
	going := 0
	for i := range c.Old {
		o := &c.Old[i]
		if o.Stopped {
			continue
		}
		going++
		if most == nil || o.left() > most.left() {
			most = o
		}
	}
	if most == nil {
		return c.Changer + ", which switches to the new slots: all old ones have stopped"
	}
	more := ""
	if going > 1 {
		more = fmt.Sprintf(", and for %d more", going-1)
	}
	return "the old slot " + most.waits() + more
}

// left is what it has to go; what is not known is the most.
func (o *OldSlot) left() int64 {
	if o.Left == nil {
		return 1<<63 - 1
	}
	return *o.Left
}

func (o *OldSlot) waits() string {
	switch {
	case o.Left == nil && o.Owner == "":
		return o.Slot + ", which nobody owns"
	case o.Left == nil:
		return fmt.Sprintf("%s, which %s has not begun to read", o.Slot, o.Owner)
	case *o.Left > 0 && o.Owner == "":
		return fmt.Sprintf("%s, which nobody owns: it has %s of WAL left to the switch", o.Slot, sizeText(*o.Left))
	case *o.Left > 0:
		return fmt.Sprintf("%s, owned by %s: it has %s of WAL left to the switch", o.Slot, o.Owner, sizeText(*o.Left))
	case o.Owner == "":
		return o.Slot + ", which its last owner has not released"
	default:
		return fmt.Sprintf("%s, which is past the switch: %s finishes what is in flight", o.Slot, o.Owner)
	}
}

func sizeText(bytes int64) string {
	switch {
	case bytes < 10<<10:
		return fmt.Sprintf("%d B", bytes)
	case bytes < 10<<20:
		return fmt.Sprintf("%d kB", bytes>>10)
	default:
		return fmt.Sprintf("%d MB", bytes>>20)
	}
}
