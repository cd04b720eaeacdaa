package relay

import "context"

// Router decides what one sink gets of each event: relay/route. What it decides depends on the event
// alone, however it comes to the sink. One serves all goroutines.
type Router interface {
	// Match returns the rule for an event, by its number, and whether the sink does not get the event
	// and is done with it. rec is the record that all sinks share, nil where none could be made.
	Match(rec *Record, ev *Event) (rule int, drop bool)
	// Changes reports whether a rule changes the record.
	Changes(rule int) bool
	// Apply changes a record as a rule has it. An error is why the event cannot go there, and its own
	// fault: it is refused, as one whose row cannot be made into a record is.
	Apply(rule int, rec *Record, ev *Event) *RefusedError
	// Rules are the names of the rules that Match counts, and last one that stands for no rule.
	Rules() []string
}

// Routed is what a Router makes of an event.
type Routed struct {
	Rule int32 // which rule it was
	Drop bool  // the sink does not get the event, and is done with it
	// Record is what the sink gets in place of the shared record, whose value and headers it shares;
	// nil: nothing else.
	Record *Record
	Unfit  *RefusedError // why it cannot go where the rule has it; nil: it can
}

// RouteOf asks a router about an event and the record that all sinks share, which it does not change.
func RouteOf(r Router, rec *Record, ev *Event) Routed {
	rule, drop := r.Match(rec, ev)
	out := Routed{Rule: int32(rule), Drop: drop}
	if rec == nil || drop || !r.Changes(rule) {
		return out
	}
	own := *rec
	if out.Unfit = r.Apply(rule, &own, ev); out.Unfit == nil {
		out.Record = &own
	}
	return out
}

// Checker is implemented by sinks that can find out whether their broker is reachable without
// publishing anything. The error names the address and what to check, never a credential.
type Checker interface {
	Check(ctx context.Context) error
}

// RouteChecker is implemented by sinks that can find out, without publishing anything, whether
// records with certain destinations would arrive: for sagaz-relay doctor.
type RouteChecker interface {
	// CheckRoutes returns what is wrong, nothing when all is well. The error means that it could
	// not be found out.
	CheckRoutes(ctx context.Context, routes []Route) ([]RouteProblem, error)
}

// Route is the destination of a record.
type Route struct{ EventType, Topic, RoutingKey string }

// RouteProblem is a destination that does not exist, or takes nothing, or has a Note.
type RouteProblem struct {
	Route   Route
	Problem string // what is wrong
	Fix     string // the command or setting that fixes it
	// Note is why it should be known though records arrive; empty: they do not.
	Note string
}
