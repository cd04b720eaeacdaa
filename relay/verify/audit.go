package verify

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// Status is what the database has of an event at one sink.
type Status uint8

// Statuses.
const (
	Sent    Status = iota // delivered, by the database
	Pending               // still to be delivered: nothing is wrong when it has not arrived
	Dead                  // given up, where a person can see it
)

// Row is an event as the table has it.
type Row struct {
	ID        relay.UUID
	Key       string // the partition key
	Topic     string // where sinks that have topics put it
	CreatedAt relay.Timestamp
	Status    Status
	Retried   bool // it failed at some time, and may have gone out behind later events of its key
}

// Audit compares the table with what sinks have, for sagaz-relay verify. Unlike a Checker it was
// not there when the events were committed, and the table does not have the order of commits. So it
// distinguishes two things:
//
//   - What two sinks show of one key in different orders is out of order in one of them, whatever
//     the commits were (Report.Disagreements). Sinks with topics have an order per key and topic
//     only, and are compared within these.
//   - created_at is the clock of an application, read before its commit. Where each event of a key
//     is made after the one before it is committed, by hosts with good clocks, its order is the
//     commit order. Otherwise it need not be. What arrives against it is reported as
//     EarlierArrivedLater, as something to look at.
//
// An event that was refused and retried (Row.Retried) may come late by right, and is left out of
// both.
//
// Rows come first, then ledger entries, then arrivals. It is not safe for use from several
// goroutines. It keeps about 50 bytes an event and 5 for each sink, and each key once with some 50
// bytes.
type Audit struct {
	sealed bool
	rows   []auditRow
	keys   names
	topics names
	sinks  []*auditSink
}

type auditRow struct {
	id      relay.UUID
	created relay.Timestamp
	key     int32
	topic   int32
	status  Status
	retried bool
	parked  bool // some sink has a ledger entry, so those without one have the event
}

type auditSink struct {
	name      string
	perTopic  bool
	first     []uint32 // by row: the number of the first arrival, from 1; 0 without one
	again     []uint8  // by row: further arrivals, up to 255
	status    []Status
	arrivals  uint32
	delivered int
	replayed  int
}

// names gives strings numbers.
type names struct {
	number map[string]int32
	list   []string
}

func (n *names) of(name string) int32 {
	i, ok := n.number[name]
	if !ok {
		if n.number == nil {
			n.number = map[string]int32{}
		}
		i = int32(len(n.list))
		n.list = append(n.list, name)
		n.number[name] = i
	}
	return i
}

// NewAudit returns an audit without sinks.
func NewAudit() *Audit { return &Audit{} }

// Row adds an event. One that comes twice, in the table and in the archive, counts once.
func (a *Audit) Row(r Row) {
	if a.sealed {
		panic("verify: row after an arrival")
	}
	a.rows = append(a.rows, auditRow{r.ID, r.CreatedAt, a.keys.of(r.Key), a.topics.of(r.Topic), r.Status, r.Retried, false})
}

// Topics are the topics of all rows.
func (a *Audit) Topics() []string { return slices.Clone(a.topics.list) }

// Sink adds a sink to look at, after all rows. perTopic: it has no order between topics.
func (a *Audit) Sink(name string, perTopic bool) {
	if !a.sealed {
		a.sealed = true
		slices.SortStableFunc(a.rows, func(x, y auditRow) int { return bytes.Compare(x.id[:], y.id[:]) })
		a.rows = slices.CompactFunc(a.rows, func(x, y auditRow) bool { return x.id == y.id })
	}
	a.sinks = append(a.sinks, &auditSink{
		name: name, perTopic: perTopic,
		first: make([]uint32, len(a.rows)), again: make([]uint8, len(a.rows)), status: make([]Status, len(a.rows)),
	})
}

func (a *Audit) sink(name string) *auditSink {
	for _, s := range a.sinks {
		if s.name == name {
			return s
		}
	}
	return nil
}

func (a *Audit) find(id relay.UUID) (int, bool) {
	return slices.BinarySearchFunc(a.rows, id, func(r auditRow, id relay.UUID) int { return bytes.Compare(r.id[:], id[:]) })
}

// Parked notes a ledger entry. Those of events and sinks that are not looked at count, too: a row
// with an entry for one sink waits for that sink alone.
func (a *Audit) Parked(id relay.UUID, sink string, status Status) {
	i, ok := a.find(id)
	if !ok {
		return
	}
	a.rows[i].parked = true
	a.rows[i].retried = true
	if s := a.sink(sink); s != nil {
		s.status[i] = status
	}
}

// Arrived notes that the sink has the event, once more or for the first time, in its order.
// replayed says that a person wanted that. It returns false when no row has that id.
func (a *Audit) Arrived(sink string, id relay.UUID, replayed bool) bool {
	i, ok := a.find(id)
	if !ok {
		return false
	}
	s := a.sink(sink)
	s.arrivals++
	s.delivered++
	switch {
	case s.first[i] == 0:
		s.first[i] = s.arrivals
	case replayed:
		s.replayed++
	case s.again[i] < 255:
		s.again[i]++
	}
	return true
}

// Waits reports whether the event is one of the rows and has not arrived at the sink.
func (a *Audit) Waits(sink string, id relay.UUID) bool {
	i, ok := a.find(id)
	return ok && a.sink(sink).first[i] == 0
}

// AuditReport is what an audit found. Lists have as many as were asked for; counts are of all.
type AuditReport struct {
	Events        int              `json:"events"` // rows
	Sinks         []AuditSink      `json:"sinks"`
	Disagreements Found[Different] `json:"disagreements"`
}

// AuditSink is about one sink.
type AuditSink struct {
	Sink string `json:"sink"`
	// Of the rows' events, repeats included.
	Deliveries int `json:"deliveries"`
	Events     int `json:"events"` // that arrived
	// Not there, and by the database still to come.
	Pending             int              `json:"pending"`
	DeadLetters         int              `json:"dead_letters"`
	Replayed            int              `json:"replayed"` // deliveries that a person asked for
	Missing             Found[Finding]   `json:"missing"`
	Duplicates          Found[Finding]   `json:"duplicates"`
	EarlierArrivedLater Found[Different] `json:"earlier_arrived_later"`
	// Unknown are ids of deliveries that no row has, and NoID deliveries without an id. The caller
	// fills them in, since only it can look an event up that is not among the rows.
	Unknown Found[string] `json:"unknown"`
	NoID    int           `json:"no_id"`
}

// Found is a count with the first few.
type Found[T any] struct {
	Count int `json:"count"`
	List  []T `json:"list"`
}

// Add counts one more and lists it, up to the limit; a negative one lists all.
func (f *Found[T]) Add(limit int, what T) {
	f.Count++
	if limit < 0 || len(f.List) < limit {
		f.List = append(f.List, what)
	}
}

// Finding is an event.
type Finding struct {
	ID        string    `json:"event_id"`
	Key       string    `json:"key"`
	Topic     string    `json:"topic"`
	CreatedAt time.Time `json:"created_at"`
	Times     int       `json:"times,omitempty"` // how often it arrived
}

func (f Finding) String() string {
	s := fmt.Sprintf("%s  key %q, topic %s, created %s", f.ID, f.Key, f.Topic, f.CreatedAt.Format(time.RFC3339Nano))
	if f.Times > 0 {
		s += fmt.Sprintf(", arrived %d times", f.Times)
	}
	return s
}

// Different is an event that arrived after another of its key at one sink, and should not have.
type Different struct {
	Event Finding `json:"event"`
	After Finding `json:"after"`
	Sink  string  `json:"sink"`            // where it arrived after
	Other string  `json:"other,omitempty"` // where it arrived before
}

func (d Different) String() string {
	s := fmt.Sprintf("%s  arrived at %s after %s (created %s)", d.Event, d.Sink, d.After.ID, d.After.CreatedAt.Format(time.RFC3339Nano))
	if d.Other != "" {
		s += ", at " + d.Other + " before it"
	}
	return s
}

// Report judges. limit is how many of each kind are listed, negative for all.
func (a *Audit) Report(limit int) *AuditReport {
	r := &AuditReport{Events: len(a.rows)}
	for _, s := range a.sinks {
		r.Sinks = append(r.Sinks, a.judge(s, limit))
	}
	for i, s := range a.sinks {
		for _, other := range a.sinks[i+1:] {
			a.compare(s, other, limit, &r.Disagreements)
		}
	}
	return r
}

func (a *Audit) finding(i int) Finding {
	r := &a.rows[i]
	return Finding{ID: r.id.String(), Key: a.keys.list[r.key], Topic: a.topics.list[r.topic], CreatedAt: r.created.Time()}
}

func (a *Audit) judge(s *auditSink, limit int) AuditSink {
	out := AuditSink{Sink: s.name, Deliveries: s.delivered, Replayed: s.replayed}
	for i := range a.rows {
		switch status := a.status(s, i); {
		case s.first[i] > 0:
			out.Events++
			if s.again[i] > 0 {
				f := a.finding(i)
				f.Times = 1 + int(s.again[i])
				out.Duplicates.Add(limit, f)
			}
		case status == Pending:
			out.Pending++
		case status == Dead:
			out.DeadLetters++
		default:
			out.Missing.Add(limit, a.finding(i))
		}
	}
	// In the order of arrival, an event made before one that is there already came late.
	latest := int32(-1)
	for _, i := range a.arrived(s, s.perTopic) {
		if latest >= 0 && a.sameLine(int(latest), int(i), s.perTopic) && a.rows[i].created < a.rows[latest].created {
			out.EarlierArrivedLater.Add(limit, Different{Event: a.finding(int(i)), After: a.finding(int(latest)), Sink: s.name})
			continue
		}
		latest = i
	}
	return out
}

// status is what the database has of row i at the sink.
func (a *Audit) status(s *auditSink, i int) Status {
	if s.status[i] != Sent {
		return s.status[i]
	}
	if a.rows[i].parked {
		return Sent // the entry is another sink's
	}
	return a.rows[i].status
}

// arrived lists the rows that arrived and were never retried by key (and topic), in the order of
// their first arrival.
func (a *Audit) arrived(s *auditSink, perTopic bool) []int32 {
	var list []int32
	for i := range a.rows {
		if s.first[i] > 0 && !a.rows[i].retried {
			list = append(list, int32(i))
		}
	}
	slices.SortFunc(list, func(x, y int32) int {
		rx, ry := &a.rows[x], &a.rows[y]
		c := cmp.Compare(rx.key, ry.key)
		if c == 0 && perTopic {
			c = cmp.Compare(rx.topic, ry.topic)
		}
		return cmp.Or(c, cmp.Compare(s.first[x], s.first[y]))
	})
	return list
}

func (a *Audit) sameLine(i, j int, perTopic bool) bool {
	return a.rows[i].key == a.rows[j].key && (!perTopic || a.rows[i].topic == a.rows[j].topic)
}

// compare finds events that came to one sink in another order than to the other.
func (a *Audit) compare(s, other *auditSink, limit int, out *Found[Different]) {
	perTopic := s.perTopic || other.perTopic
	latest := int32(-1) // of the line, in the other's order
	for _, i := range a.arrived(s, perTopic) {
		if other.first[i] == 0 {
			continue
		}
		if latest >= 0 && a.sameLine(int(latest), int(i), perTopic) && other.first[i] < other.first[latest] {
			out.Add(limit, Different{Event: a.finding(int(i)), After: a.finding(int(latest)), Sink: s.name, Other: other.name})
			continue
		}
		latest = i
	}
}
