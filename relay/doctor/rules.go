package doctor

import (
	"context"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

// sample is what the newest events show of one sink.
type sample struct {
	events  int
	routes  []relay.Route // the destinations of those that it gets, each once
	matched []int         // events by the sink's rules
}

// sample looks at the newest events of the last day.
func (ex *exam) sample(ctx context.Context, sink string) (s sample, err error) {
	router := ex.cfg.Routers[sink]
	if router != nil {
		s.matched = make([]int, len(router.Rules()))
	}
	seen := make(map[relay.Route]bool)
	var rec relay.Record
	err = store.ReadNewest(ctx, ex.conn, 24*time.Hour, sampleRows, func(ev *relay.Event) {
		s.events++
		own := &rec
		if ex.cfg.Encoder.Encode(&rec, ev) != nil {
			return // it is refused, and goes nowhere
		}
		if router != nil {
			routed := relay.RouteOf(router, &rec, ev)
			s.matched[routed.Rule]++
			if routed.Drop || routed.Unfit != nil {
				return
			}
			if routed.Record != nil {
				own = routed.Record
			}
		}
		route := relay.Route{EventType: ev.EventType, Topic: own.Topic, RoutingKey: own.RoutingKey}
		if !seen[route] && len(s.routes) < sampleRoutes {
			seen[route] = true
			s.routes = append(s.routes, route)
		}
	})
	return s, err
}

// checkRules reports rules of a sink that match no event.
func (ex *exam) checkRules(ctx context.Context, sink string) {
	router := ex.cfg.Routers[sink]
	check := "rules " + sink
	if ex.conn == nil || ex.table == 0 {
		ex.add(Finding{Check: check, Severity: Unknown, Summary: "not looked at: the events' types are not known without the table"})
		return
	}
	s, err := ex.sample(ctx, sink)
	if err != nil {
		ex.unknown(check, err)
		return
	}
	names := router.Rules()
	rules := names[:len(names)-1] // the last stands for no rule
	var never []string
	for i, name := range rules {
		if s.matched[i] == 0 {
			never = append(never, name)
		}
	}
	switch {
	case s.events == 0:
		ex.ok(check, "%s; no event within a day, so none to match", count(int64(len(rules)), "rule"))
	case len(never) == 0:
		ex.ok(check, "%s: each matches some of the last day's %s", count(int64(len(rules)), "rule"), count(int64(s.events), "event"))
	default:
		ex.add(Finding{
			Check: check, Severity: Note, Summary: strings.Join(never, ", ") + ": matches none of the last day's " + count(int64(s.events), "event"),
			Why: "A rule that never matches is most likely mistyped, and its events go where another rule, or none, has them.",
			Fix: []Step{do("compare it with the events' types and headers, and with the rules before it, in RELAY_ROUTES"), run("sagaz-relay routes --explain --last 10000")},
		})
	}
}
