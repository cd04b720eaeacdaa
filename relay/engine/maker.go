package engine

import (
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// maker makes the records of events, on every path that an event may take to a sink: the one that
// all sinks share, and those that the rules of a sink change for it.
type maker struct {
	enc     relay.Encoder
	tracer  relay.Tracer   // nil: none
	routers []relay.Router // by sink, nil for one without rules; nil: no sink has any
}

func newMaker(e *Engine) maker {
	m := maker{enc: e.enc, tracer: e.cfg.Tracer}
	for i, sink := range e.sinks {
		if r := e.cfg.Routers[sink.Name()]; r != nil {
			if m.routers == nil {
				m.routers = make([]relay.Router, len(e.sinks))
			}
			m.routers[i] = r
		}
	}
	return m
}

// everySink is for events that go to all sinks.
const everySink = -1

// make makes the record of an event, and of one sink or of everySink what its rules make of it.
// Where that is impossible the flight is Unfit: it takes its place on the lanes all the same, which
// know what is before and behind it. replayed is when a person asked for another delivery, or zero.
func (m *maker) make(f *flight, ev *relay.Event, sink int, replayed time.Time) {
	rec := &f.Record
	if err := m.enc.Encode(rec, ev); err != nil {
		f.Unfit, _ = relay.Refused(err)
		rec.EventID, rec.EventType, rec.Key, rec.Timestamp = ev.ID, ev.EventType, ev.AggregateID, ev.CreatedAt.Time()
		if m.routers != nil {
			m.route(f, nil, ev, sink)
		}
		return
	}
	// First: rules are about what the row makes, not about the headers that are added here.
	if m.routers != nil {
		m.route(f, rec, ev, sink)
	}
	m.trace(rec, ev)
	if !replayed.IsZero() {
		rec.Headers = append(rec.Headers, relay.Header{Key: relay.ReplayedHeader, Value: replayed.UTC().Format(time.RFC3339)})
	}
	if f.routed != nil {
		for _, r := range f.routed.to {
			if r.Record != nil {
				r.Record.Headers, r.Record.Trace = rec.Headers, rec.Trace
			}
		}
	}
}

// route asks the routers. rec is nil where none could be made.
func (m *maker) route(f *flight, rec *relay.Record, ev *relay.Event, sink int) {
	f.routed = new(routed)
	if f.routed.to = f.routed.few[:]; len(m.routers) > len(f.routed.few) {
		f.routed.to = make([]relay.Routed, len(m.routers))
	}
	for i, r := range m.routers {
		if r != nil && (sink == everySink || sink == i) {
			f.routed.to[i] = m.ask(r, rec, ev)
		}
	}
}

// ask asks one router. Where there is one sink alone, nobody shares the record, and it is changed
// itself: a copy would cost a fifth of what an event allocates.
func (m *maker) ask(r relay.Router, rec *relay.Record, ev *relay.Event) relay.Routed {
	if len(m.routers) > 1 || rec == nil {
		return relay.RouteOf(r, rec, ev)
	}
	rule, drop := r.Match(rec, ev)
	out := relay.Routed{Rule: int32(rule), Drop: drop}
	if !drop && r.Changes(rule) {
		out.Unfit = r.Apply(rule, rec, ev)
	}
	return out
}

// routed is what the sinks' rules have made of an event, by sink. Most relays have two sinks at most,
// and need one piece of memory.
type routed struct {
	to  []relay.Routed
	few [2]relay.Routed
}

// trace finds the record's trace context, or has one begun.
func (m *maker) trace(rec *relay.Record, ev *relay.Event) {
	if m.tracer == nil {
		return
	}
	for i := range rec.Headers {
		if rec.Headers[i].Key == relay.TraceParent {
			rec.Trace, _ = relay.ParseTraceParent(rec.Headers[i].Value)
			return
		}
	}
	m.tracer.Begin(rec, ev)
}

// record is what a sink, known by its number, gets of the event.
func (f *flight) record(sink int) *relay.Record {
	if f.routed != nil {
		if own := f.routed.to[sink].Record; own != nil {
			return own
		}
	}
	return &f.Record
}

// unfit is why a sink cannot get the event whatever it answers; nil: it can.
func (f *flight) unfit(sink int) *relay.RefusedError {
	if f.Unfit == nil && f.routed != nil {
		return f.routed.to[sink].Unfit
	}
	return f.Unfit
}

// dropped reports whether a rule keeps the event from a sink, which is done with it then. It still
// goes through the sink's lane, because events of a key are settled in their order: one behind which
// others are marked may not be marked before them.
func (f *flight) dropped(sink int) bool { return f.routed != nil && f.routed.to[sink].Drop }

// ruleCounter counts, for the observer, what one sink's rules have done.
type ruleCounter struct {
	sink    int
	sinkObs relay.SinkObserver
	counts  []relay.RuleCount // one for each rule; nil: there are none
	some    bool
}

func newRuleCounter(r relay.Router, sink int, obs relay.SinkObserver) ruleCounter {
	c := ruleCounter{sink: sink, sinkObs: obs}
	if r != nil {
		for _, name := range r.Rules() {
			c.counts = append(c.counts, relay.RuleCount{Rule: name})
		}
	}
	return c
}

// note counts an event that the sink has taken, or is done with by a rule.
func (c *ruleCounter) note(f *flight) {
	if c.counts == nil {
		return
	}
	by := &f.routed.to[c.sink]
	if c.some = true; by.Drop {
		c.counts[by.Rule].Dropped++
	} else {
		c.counts[by.Rule].Sent++
	}
}

// report reports what was counted, and begins again.
func (c *ruleCounter) report() {
	if !c.some {
		return
	}
	c.sinkObs.Routed(c.counts)
	for i := range c.counts {
		c.counts[i].Sent, c.counts[i].Dropped = 0, 0
	}
	c.some = false
}
