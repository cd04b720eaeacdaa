package relay

import "context"

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
