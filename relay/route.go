package relay

import "context"

// Router decides what one sink gets of each event: relay/route. What it decides depends on the event
// alone, however it comes to the sink. One serves all goroutines.
type Router interface {
	// Route is about an event and the record that all sinks share, which is nil where none could be
	// made. It changes neither.
	Route(rec *Record, ev *Event) Routed
	// Rules are the names of the rules that Routed.Rule counts, and last one that stands for no
	// rule.
	Rules() []string
}

// Routed is what a Router decided.
type Routed struct {
	Rule int  // which rule it was
	Drop bool // the sink does not get the event, and is done with it
	// Record is what the sink gets in place of the shared record, whose value and headers it shares;
	// nil: nothing else.
	Record *Record
	// Unfit is why the event cannot go where the rule has it. It is refused then, as one whose row
	// cannot be made into a record is.
	Unfit *RefusedError
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
