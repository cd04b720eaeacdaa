package relay

import (
	"context"
	"time"
)

// Observer gets reports of what the engine does, and makes metrics, a status page, a history and
// the log's lines about single events of it (relay/watch). It decides nothing: what the engine has
// to know, it finds out by itself.
//
// Reports come afterwards, with the times, as a Tracer's do: nothing waits for them. They come in
// batches, so that an event costs the engine nothing more. Who gets which:
//
//	Observer       from the keeper, about slots and leases; from all, about changes of state
//	SlotObserver   from the work on one slot under one lease, about events in and marks out
//	SinkObserver   from the lanes of one sink and from its drainer
//
// What an observer has to know of the present besides, it finds in a Snapshot, for which it may ask
// at any time, and by asking the database itself (Facts).
//
// Methods are called from many goroutines, and never with a lock of the engine held. They must not
// block, cannot fail, change nothing of what they are given, and keep nothing of slices and flights
// once they have returned. SlotObserver.Sample alone may take its time.
type Observer interface {
	// Begin comes before every other report: what the engine is.
	Begin(about About)
	// Divided reports how the table is divided among slots: before any report about a slot, and
	// whenever that has changed.
	Divided(set Set)
	// Sink returns the observer of a sink. It is called once for each.
	Sink(name string) SinkObserver
	// Owned reports that a slot's lease was taken, and returns the observer of the work under it.
	Owned(shard Shard, epoch int64) SlotObserver
	// Became reports a slot's role, at each step of the keeper. working: there is work under a
	// lease.
	Became(slot string, role Role, working bool)
	// Changed reports a change of state.
	Changed(c Change)
	// Looked is called every second, when the engine has looked whether its slots move.
	Looked(at time.Time)
}

// About is what does not change while an engine lives.
type About struct {
	WorkerID       string
	Started        time.Time
	Mode           string // RELAY_MODE
	Hybrid         bool
	Sinks          []string
	InflightEvents int   // RELAY_INFLIGHT_EVENTS
	InflightBytes  int   // RELAY_INFLIGHT_BYTES
	WALBudget      int64 // RELAY_WAL_BUDGET
	Traced         bool  // there is a Tracer
	Encoder        Encoder
	// Snapshot is what the engine is like now. It is cheap.
	Snapshot func() Snapshot
}

// SlotObserver gets reports of the work on one slot under one lease.
type SlotObserver interface {
	// Sample looks at slot and table now and then, until ctx ends. The engine runs it in a
	// goroutine of its own.
	Sample(ctx context.Context, facts Facts)
	// Seen reports the engine's own look at the slot, every five seconds.
	Seen(info SlotInfo)

	// Received reports events that were taken, from the slot or from the table.
	Received(batch []*Flight)
	// Skipped reports events that the slot delivered again and that were settled already.
	Skipped(events int)
	// Found reports events that were found in the table, by cause.
	Found(cause string, events int)
	// LookedFor reports how long a look at the table took.
	LookedFor(kind SweepKind, took time.Duration)
	// Interrupted reports that the replication connection has to be made again.
	Interrupted()

	// MarkTried reports a try to write a batch of marks.
	MarkTried(took time.Duration, err error)
	// Marked reports events whose marks are committed.
	Marked(batch []*Flight)
	// Pruned reports how many old rows were removed.
	Pruned(rows int)

	// Parked reports events that go to a sink's ledger: parks has an entry for each of them, or
	// nil.
	Parked(sink string, batch []*Flight, parks []*Parked)
	// Retried reports ledger entries that are put on their lanes; again is how many of them were
	// refused before.
	Retried(sink string, batch []*Flight, again int)
	// Gone reports ledger entries whose rows somebody has deleted.
	Gone(sink string, entries []*Entry)
	// Resolved reports ledger entries whose outcomes are committed.
	Resolved(sink string, outcomes []Outcome)
}

// SinkObserver gets reports of what is offered to one sink.
type SinkObserver interface {
	// Refused reports records that the sink does not take for their own fault, or that could not be
	// made. offers is how often their batch has been offered.
	Refused(refusals []Refusal, offers int)
	// Answered reports what became of an offer.
	Answered(a Answer)
	// TailRead reports that what an owner before has sent was read back: records, whoever sent them,
	// and parts of topics that could not be read. Arrived reports events that were among them, and
	// are not sent again.
	TailRead(records, unread int)
	Arrived(batch []*Flight)
	// Routed reports how many events each of the sink's rules has brought to it, or kept from it: those
	// that the sink has taken, and those that it is done with. It is not called where there are no
	// rules.
	Routed(counts []RuleCount)
	// Again reports what is to be offered again, and why.
	Again(batch []*Flight, offers int, err error)
	// Trouble reports why the sink did not take all that it was offered.
	Trouble(err error)
	// Turned reports the sink's state after a change, in the order of the changes: whether it takes
	// events, and whether all of them go to the ledger.
	Turned(up, isolated bool, c Change)
}

// Refusal is a record that is refused.
type Refusal struct {
	Flight *Flight
	Err    error
	// Unoffered: the sink was not asked, because there is no record that it could get.
	Unoffered bool
}

// RuleCount is what one rule of a sink has done.
type RuleCount struct {
	Rule          string
	Sent, Dropped int // events
}

// Answer is what became of an offer to a sink.
type Answer struct {
	Events int // offered
	Offers int // of this batch, this one included
	Took   time.Duration
	Acked  []*Flight
	Failed []error // of what was not taken, and not refused
}
