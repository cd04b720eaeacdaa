package watch

import (
	"fmt"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// Status is one look at the relay, for health checks and the status page.
type Status struct {
	WorkerID string    `json:"worker_id"`
	Started  time.Time `json:"started"`
	Wanted   string    `json:"wanted_mode"` // RELAY_MODE
	// Set is how the table is divided; null until the database has answered.
	Set *SetStatus `json:"set"`
	// Slots are empty until the database has answered: it has how many there are.
	Slots []SlotStatus `json:"slots"`
	Sinks []SinkStatus `json:"sinks"`
	// StartError is why the database was not of use at the last try, as long as the relay has not
	// begun.
	StartError string `json:"start_error,omitempty"`
	// Fault is what the database lacks by now of what the relay needs, in the words with which a
	// start would refuse it.
	Fault string `json:"fault,omitempty"`
}

// SetStatus is how the table's events are divided among slots.
type SetStatus struct {
	Shards     int   `json:"shards"`     // slots
	Generation int64 `json:"generation"` // counts the changes of their number
	// Change is one that is under way; null without, or while the database does not answer.
	Change *SetChange `json:"change"`
}

// SetChange is a change of the number of slots that is under way.
type SetChange struct {
	Target  int     `json:"target"` // slots after it
	State   string  `json:"state"`  // making (the new slots), draining (the old ones)
	Seconds float64 `json:"seconds"`
	Changer string  `json:"changer,omitempty"` // which relay works on it
	// Switch is where the new slots take over, once they are made.
	Switch   string `json:"switch,omitempty"`
	WaitsFor string `json:"waits_for"` // in words
	// Old are the old slots, once the new ones are made.
	Old []OldSlot `json:"old_slots"`
}

// OldSlot is how far a slot of before the change is.
type OldSlot struct {
	Slot  string `json:"slot"`
	Owner string `json:"owner"` // empty: nobody
	// Left is WAL between what is delivered and the switch; null where that is not known.
	Left    *int64 `json:"left_bytes"`
	Stopped bool   `json:"stopped"` // it is through
}

// SlotStatus is one slot as this relay sees it. Positions and counts are of the current ownership.
type SlotStatus struct {
	Slot  string     `json:"slot"`
	Role  relay.Role `json:"role"`
	Since time.Time  `json:"since"`
	// GivesBack: it is draining for another relay to take the slot, and this one goes on.
	GivesBack  bool    `json:"gives_back,omitempty"`
	Epoch      int64   `json:"epoch,omitempty"`
	Inflight   int     `json:"inflight"`
	Bytes      int     `json:"inflight_bytes"`
	Admitted   uint64  `json:"admitted"`
	Marked     uint64  `json:"marked"`
	Skipped    uint64  `json:"skipped"` // delivered again by the stream and settled already
	Swept      uint64  `json:"swept"`   // found in the table
	Watermark  string  `json:"watermark,omitempty"`
	Read       string  `json:"read,omitempty"`
	LagSeconds float64 `json:"lag_seconds"`
	// Other is, on a standby, the slot of the same table through which somebody else delivers:
	// whose it is and since when. OtherFor is for how many seconds that has been so.
	Other    string  `json:"other_slot,omitempty"`
	OtherFor float64 `json:"other_slot_seconds,omitempty"`
	// Mode is how events are found now: cdc, polling, or recovering (the table is swept before the
	// slot is read). Why is the reason to poll or not to stream, if it should.
	Mode      string `json:"mode,omitempty"`
	Why       string `json:"why,omitempty"`
	Streaming bool   `json:"streaming"`
	// StreamSince is for how many seconds Streaming has been as it is.
	StreamSince float64 `json:"stream_since_seconds,omitempty"`
	// Away is for how many seconds a standby could not have taken the slot if it were free, and
	// AwayError why: the database is down.
	Away      float64 `json:"away_seconds,omitempty"`
	AwayError string  `json:"away_error,omitempty"`
	// LookError is why the last look at the table did not succeed, while polling or recovering.
	LookError string `json:"look_error,omitempty"`
	// Stalled is for how many seconds nothing has moved though there is work: events in flight, WAL
	// that was not read, a table to be looked at.
	Stalled float64 `json:"stalled_seconds,omitempty"`
	// WaitsFor is what it waits for without moving. With nothing in flight that is the "server", or
	// the "claims" of another worker on the rows that come next; otherwise a "sink" that is down
	// and has the oldest event; or "room" in the in-flight budget for an event larger than the
	// slot's share of it, while another slot has such a one in flight. Waits is for how many
	// seconds. Both are there from 5 s on.
	WaitsFor string  `json:"waits_for,omitempty"`
	Waits    float64 `json:"waits_seconds,omitempty"`
	// SlotWaitsFor are the transactions for whose end the server waits before it makes the slot.
	SlotWaitsFor string `json:"slot_waits_for,omitempty"`
	// Pending are the events to be delivered, as in outbox_pending_events: in flight, in the
	// ledger, and those not read yet, as counted last.
	Pending        float64 `json:"pending_events"`
	InflightLimit  int     `json:"inflight_limit,omitempty"`
	InflightBudget int     `json:"inflight_bytes_limit,omitempty"`
	// What the server says of the slot, at most some seconds ago; null on a standby, and where
	// there is no slot.
	LagBytes      *int64 `json:"lag_bytes"`      // WAL written and not confirmed
	RetainedBytes *int64 `json:"retained_bytes"` // WAL that the slot keeps on the database's disk
	// WAL that may be written before the slot can be lost; null without a limit.
	SafeBytes *int64 `json:"safe_bytes"`
	CapBytes  *int64 `json:"cap_bytes"` // max_slot_wal_keep_size; null without a limit
	WALStatus string `json:"wal_status,omitempty"`
	// Unmarked are rows whose events are done and whose marks the database does not take; null
	// without any.
	Unmarked *relay.Unmarked `json:"unmarked,omitempty"`
	// HOTShare is the share of the table's updates in the last five minutes that were HOT; null
	// without any, and where another relay, or the owner of the first slot, speaks for the table.
	HOTShare *float64 `json:"hot_share,omitempty"`
}

// SinkStatus is one sink's health.
type SinkStatus struct {
	Sink string `json:"sink"`
	// Kind is what the sink is: kafka, file … Of BROKER_TYPE it is its name.
	Kind string `json:"kind"`
	Up   bool   `json:"up"`
	// Of the last trouble, also when that is over; never a payload.
	LastError string `json:"last_error,omitempty"`
	// Since is when the sink last went up, down or into isolation; null when it never did.
	Since       *time.Time `json:"since"`
	LastErrorAt *time.Time `json:"last_error_at"`
	// Rate is events acknowledged a second, over 10 s; P99 how long an event's batch took, in
	// seconds, over a minute; null without any.
	Rate  float64  `json:"rate"`
	P99   *float64 `json:"p99_seconds"`
	Acked uint64   `json:"acknowledged"`
	// Ledger is how many entries of the ledger hold up later events of their keys. Isolated: all
	// events go there.
	Ledger   int  `json:"ledger"`
	Isolated bool `json:"isolated"`
}

// Status returns a consistent look at each slot; it is cheap and may be called at any time.
func (w *Watch) Status() Status {
	st := Status{WorkerID: w.about.WorkerID, Started: w.about.Started, Wanted: w.about.Mode, Slots: []SlotStatus{}}
	now := w.about.Snapshot()
	st.StartError, st.Fault = now.StartError, now.Fault
	if now.Set.Shards > 0 {
		st.Set = &SetStatus{Shards: now.Set.Shards, Generation: now.Set.Generation, Change: setChange(now.Change)}
	}
	for i := range now.Slots {
		st.Slots = append(st.Slots, w.slotStatus(&now.Slots[i]))
	}
	for i, name := range w.about.Sinks {
		out := w.sinks[name].status()
		out.Kind = w.kinds[name]
		for j := range now.Slots {
			if work := now.Slots[j].Work; work != nil {
				out.Ledger += work.Sinks[i].Entries
				out.Isolated = out.Isolated || work.Sinks[i].Isolated
			}
		}
		st.Sinks = append(st.Sinks, out)
	}
	return st
}

func setChange(c *relay.SetChange) *SetChange {
	if c == nil {
		return nil
	}
	out := &SetChange{Target: c.Target, State: c.State, Seconds: max(0, time.Since(c.Began).Seconds()), Changer: c.Changer, WaitsFor: c.Waits(), Old: []OldSlot{}}
	if c.Switch > 0 {
		out.Switch = c.Switch.String()
	}
	for _, o := range c.Old {
		out.Old = append(out.Old, OldSlot(o))
	}
	return out
}

func (w *Watch) slotStatus(s *relay.SlotSnapshot) SlotStatus {
	out := SlotStatus{Slot: s.Slot, Role: s.Role, Since: s.Since, GivesBack: s.GivesBack}
	if o := s.Occupied; o != nil {
		out.Other = fmt.Sprintf("%s, owned by %s since %s", o.Slot, o.Owner, o.Taken.UTC().Format(time.RFC3339))
		out.OtherFor = time.Since(o.Found).Seconds()
	}
	if !s.Away.IsZero() {
		out.Away, out.AwayError = time.Since(s.Away).Seconds(), s.AwayError
	}
	if s.Work == nil {
		return out
	}
	out.of(s.Work)
	if slot := w.slot(s.Slot); slot != nil {
		out.Pending, out.HOTShare = slot.waiting(s.Work), slot.hotShare()
	}
	if !s.Moved.IsZero() {
		out.Stalled = time.Since(s.Moved).Seconds()
	}
	if waits := time.Since(s.Waits); s.WaitsFor != "" && waits >= waitsShown {
		out.WaitsFor, out.Waits = s.WaitsFor, waits.Seconds()
	}
	return out
}

// of fills in what is known of the work under a lease.
func (s *SlotStatus) of(work *relay.WorkSnapshot) {
	s.Epoch = work.Epoch
	s.Mode, s.Why, s.SlotWaitsFor = work.Mode, work.Why, work.Holders
	s.LookError = work.LookError
	s.Streaming, s.StreamSince = work.Streaming, time.Since(work.ModeSince).Seconds()
	s.Inflight, s.Bytes = work.Inflight, work.Bytes
	s.InflightLimit, s.InflightBudget = work.MaxEvents, work.MaxBytes
	s.Admitted, s.Marked, s.Skipped, s.Swept = work.Admitted, work.Marked, work.Skipped, work.Swept
	s.Watermark, s.Read = work.Watermark.String(), work.Read.String()
	if u := work.Unmarked; u.Events > 0 {
		s.Unmarked = &u
	}
	s.seen(&work.Seen)
	if at := work.OldestCommit; at != 0 {
		s.LagSeconds = max(0, time.Since(at.Time()).Seconds())
	}
}

// seen shows a look at the slot.
func (s *SlotStatus) seen(i *relay.SlotInfo) {
	if !i.Exists {
		return
	}
	lag, retained := int64(i.Lag(i.ConfirmedFlush)), int64(i.Lag(i.Restart))
	s.LagBytes, s.RetainedBytes, s.SafeBytes, s.WALStatus = &lag, &retained, i.SafeWALSize, i.WALStatus
	if limit := i.KeepSize; limit > 0 {
		s.CapBytes = &limit
	}
}

// Problems says, in words for an operator, why the relay is not doing its part; nothing means that
// it is ready. A standby is ready if it could take over, and so is an owner whose broker is down:
// it moves as far as it can, and a restart would not help the broker.
func (s Status) Problems() []string {
	var problems []string
	for _, p := range s.problems() {
		problems = append(problems, p.text)
	}
	return problems
}

// problem is one of Problems. An owner's means that something is not delivered.
type problem struct {
	text  string
	owner bool
}

// problems are the problems. What is the same of several slots is one.
func (s Status) problems() (all []problem) {
	owns := false
	for i := range s.Slots {
		owns = owns || s.Slots[i].Role == relay.Owner
	}
	if s.Fault != "" {
		all = append(all, problem{s.Fault, owns})
	}
	if len(s.Slots) == 0 {
		all = append(all, problem{starting(s.StartError), false})
	}
	for i := 0; i < len(s.Slots); i++ {
		text := s.Slots[i].problem(s.StartError)
		if text == "" {
			continue
		}
		role, slots := s.Slots[i].Role, s.Slots[i].Slot
		for ; i+1 < len(s.Slots) && s.Slots[i+1].Role == role && s.Slots[i+1].problem(s.StartError) == text; i++ {
			slots += ", " + s.Slots[i+1].Slot
		}
		all = append(all, problem{fmt.Sprintf("slot %s: %s", slots, text), role == relay.Owner})
	}
	return all
}

// Streams reports whether the relay owns every slot that there is, and streams from it.
func (s Status) Streams() bool {
	for i := range s.Slots {
		if !s.Slots[i].Streaming {
			return false
		}
	}
	return len(s.Slots) > 0
}

// starting is the problem of a relay that has not begun.
func starting(startError string) string {
	if startError != "" {
		return "the database has not answered yet (DATABASE_URL): " + startError
	}
	return "the database has not answered yet"
}

// problem is what keeps the relay from doing its part for the slot.
func (s *SlotStatus) problem(startError string) string {
	switch s.Role {
	case relay.Starting:
		return starting(startError)
	case relay.Draining:
		if s.GivesBack {
			return "" // and goes on with its other slots, or as a standby
		}
		return "stopping"
	case relay.Standby:
		if s.Other != "" && s.OtherFor > occupiedAfter.Seconds() {
			return "the table's events are delivered through another slot: " + s.Other
		}
		if s.Away > stalledAfter.Seconds() {
			return fmt.Sprintf("it could not be taken over for %.0f s, were it free (DATABASE_URL): %s", s.Away, s.AwayError)
		}
	case relay.Owner:
		return s.standstill()
	}
	return ""
}

// standstill is what keeps an owner from moving.
func (s *SlotStatus) standstill() string {
	if s.Mode == relay.ModeCDC && !s.Streaming && s.StreamSince > stalledAfter.Seconds() {
		return fmt.Sprintf("owned, but no replication connection for %.0f s", s.StreamSince)
	}
	if s.Stalled <= standstillAfter.Seconds() {
		return ""
	}
	why := ""
	if s.LookError != "" {
		why = ": " + s.LookError
	}
	switch {
	case s.Mode == relay.ModePolling:
		return fmt.Sprintf("the table is polled and nothing has moved for %.0f s%s", s.Stalled, why)
	case s.Mode == relay.ModeRecovering && s.SlotWaitsFor != "":
		return fmt.Sprintf("nothing is delivered for %.0f s, until the slot is made, which waits for %s", s.Stalled, s.SlotWaitsFor)
	case s.Mode == relay.ModeRecovering:
		return fmt.Sprintf("it is being recovered and nothing has moved for %.0f s%s", s.Stalled, why)
	default:
		return fmt.Sprintf("WAL is written and nothing has moved for %.0f s", s.Stalled)
	}
}

const (
	// stalledAfter is how long an owner may be without a replication connection before it counts as
	// not ready.
	stalledAfter = 15 * time.Second
	// standstillAfter is how long an owner with a connection and work may stand still, and how long
	// waiting for others may take until it is something to look at.
	standstillAfter = 60 * time.Second
	// occupiedAfter is for how long a relay may be a standby next to another slot of the table and
	// be ready. A rolling update that changes RELAY_SLOT needs it: its new pods must be ready for
	// the old ones to be stopped.
	occupiedAfter = 5 * time.Minute
	// changeLong is for how long the number of slots may be changed until it is something to look
	// at.
	changeLong = 10 * time.Minute
	// waitsShown keeps the moments out in which the server is a little ahead of what it has sent.
	waitsShown = 5 * time.Second
)
