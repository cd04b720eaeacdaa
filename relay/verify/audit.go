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
	// To is what the rules of sinks make of the event; a sink without rules is not in it.
	To      []To
	Status  Status
	Retried bool // it failed at some time, and may have gone out behind later events of its key
}

// To is what one sink's rules make of an event.
type To struct {
	Sink    string
	Topic   string
	Dropped bool // it is done with the event without getting it
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
	// What rules make of events, each once; rows have its number. The first stands for no rules.
	routes    [][]route
	routesNum map[string]int32 // by what it looks like
}

type route struct {
	sink    string
	topic   int32
	dropped bool
}

type auditRow struct {
	id      relay.UUID
	created relay.Timestamp
	key     int32
	topic   int32
	to      int32 // of routes
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
func NewAudit() *Audit {
	return &Audit{routes: make([][]route, 1), routesNum: map[string]int32{"": 0}}
}

// Row adds an event. One that comes twice, in the table and in the archive, counts once.
func (a *Audit) Row(r Row) {
	if a.sealed {
		panic("verify: row after an arrival")
	}
	a.rows = append(a.rows, auditRow{r.ID, r.CreatedAt, a.keys.of(r.Key), a.topics.of(r.Topic), a.route(r.To), r.Status, r.Retried, false})
}

// route gives what rules make of an event its number.
func (a *Audit) route(to []To) int32 {
	if len(to) == 0 {
		return 0
	}
	looks := ""
	for _, t := range to {
		looks += fmt.Sprintf("%q %q %t ", t.Sink, t.Topic, t.Dropped)
	}
	n, known := a.routesNum[looks]
	if !known {
		list := make([]route, len(to))
		for i, t := range to {
			list[i] = route{sink: t.Sink, dropped: t.Dropped}
			if !t.Dropped {
				list[i].topic = a.topics.of(t.Topic)
			}
		}
		n = int32(len(a.routes))
		a.routes = append(a.routes, list)
		a.routesNum[looks] = n
	}
	return n
}

// at is the topic of row i at a sink, and whether a rule keeps it from there.
func (a *Audit) at(s *auditSink, i int) (topic int32, dropped bool) {
	for _, r := range a.routes[a.rows[i].to] {
		if r.sink == s.name {
			return r.topic, r.dropped
		}
	}
	return a.rows[i].topic, false
}

// Topics are the topics in which a sink may have the rows: those where its rules put them, and, from
// before there were rules, those without.
func (a *Audit) Topics(sink string) []string {
	seen := make([]bool, len(a.topics.list))
	for i := range a.rows {
		seen[a.rows[i].topic] = true
		for _, r := range a.routes[a.rows[i].to] {
			if r.sink == sink && !r.dropped {
				seen[r.topic] = true
			}
		}
	}
	var topics []string
	for n, is := range seen {
		if is {
			topics = append(topics, a.topics.list[n])
		}
	}
	return topics
}

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
	Dropped             int              `json:"dropped"`  // not there, by a rule
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

func (a *Audit) finding(s *auditSink, i int) Finding {
	r := &a.rows[i]
	topic, _ := a.at(s, i)
	return Finding{ID: r.id.String(), Key: a.keys.list[r.key], Topic: a.topics.list[topic], CreatedAt: r.created.Time()}
}

func (a *Audit) judge(s *auditSink, limit int) AuditSink {
	out := AuditSink{Sink: s.name, Deliveries: s.delivered, Replayed: s.replayed}
	for i := range a.rows {
		_, dropped := a.at(s, i)
		switch status := a.status(s, i); {
		case s.first[i] > 0:
			out.Events++
			if s.again[i] > 0 {
				f := a.finding(s, i)
				f.Times = 1 + int(s.again[i])
				out.Duplicates.Add(limit, f)
			}
		case status == Dead:
			out.DeadLetters++
		case dropped:
			out.Dropped++
		case status == Pending:
			out.Pending++
		default:
			out.Missing.Add(limit, a.finding(s, i))
		}
	}
	// In the order of arrival, an event made before one that is there already came late.
	latest := int32(-1)
	for _, i := range a.arrived(s, s) {
		if latest >= 0 && a.line(int(latest), int(i), s) == 0 && a.rows[i].created < a.rows[latest].created {
			out.EarlierArrivedLater.Add(limit, Different{Event: a.finding(s, int(i)), After: a.finding(s, int(latest)), Sink: s.name})
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

// arrived lists the rows that arrived and were never retried by line at some sinks, in the order of
// their first arrival at s.
func (a *Audit) arrived(s *auditSink, at ...*auditSink) []int32 {
	var list []int32
	for i := range a.rows {
		if s.first[i] > 0 && !a.rows[i].retried {
			list = append(list, int32(i))
		}
	}
	slices.SortFunc(list, func(x, y int32) int {
		return cmp.Or(a.line(int(x), int(y), at...), cmp.Compare(s.first[x], s.first[y]))
	})
	return list
}

// line compares the lines of two rows, in each of which there is an order: those of a key, and of a
// topic at each of the sinks that has topics. It is 0 for the same.
func (a *Audit) line(i, j int, at ...*auditSink) int {
	c := cmp.Compare(a.rows[i].key, a.rows[j].key)
	for _, s := range at {
		if c == 0 && s.perTopic {
			x, _ := a.at(s, i)
			y, _ := a.at(s, j)
			c = cmp.Compare(x, y)
		}
	}
	return c
}

// compare finds events that came to one sink in another order than to the other.
func (a *Audit) compare(s, other *auditSink, limit int, out *Found[Different]) {
	latest := int32(-1) // of the line, in the other's order
	for _, i := range a.arrived(s, s, other) {
		if other.first[i] == 0 {
			continue
		}
		if latest >= 0 && a.line(int(latest), int(i), s, other) == 0 && other.first[i] < other.first[latest] {
			out.Add(limit, Different{Event: a.finding(s, int(i)), After: a.finding(s, int(latest)), Sink: s.name, Other: other.name})
			continue
		}
		latest = i
	}
}
