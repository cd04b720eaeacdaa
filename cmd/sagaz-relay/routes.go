package main

import (
	"slices"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/route"
)

// routeChecker is implemented by Configs of sinks that know, without the broker, what a topic or
// routing key may look like.
type routeChecker interface {
	// CheckRoute returns what is wrong with the one that is not empty.
	CheckRoute(r relay.Route) error
}

// routingKeyed is implemented by Configs of sinks whose destinations are routing keys; those of
// others are topics.
type routingKeyed interface{ RoutingKeys() bool }

// dropsSome reports whether some events are kept from a sink.
func (s *settings) dropsSome() bool {
	table, err := s.routes()
	if err != nil { // reported by settings.all
		return false
	}
	return table.Drops() || slices.ContainsFunc(s.used(), func(sink string) bool {
		return slices.ContainsFunc(table.Of(sink), func(rule route.Shown) bool { return rule.Drop })
	})
}

// routes reads the rules of RELAY_ROUTES for the sinks that events go to.
func (s *settings) routes() (*route.Table, error) {
	var sinks []route.Sink
	for _, name := range s.used() {
		if s.kindOf(name) == nil || slices.ContainsFunc(sinks, func(other route.Sink) bool { return other.Name == name }) {
			continue // which is reported elsewhere
		}
		sink := route.Sink{Name: name}
		if c, ok := s.sinks[name].(routeChecker); ok {
			sink.Check = c.CheckRoute
		}
		if c, ok := s.sinks[name].(routingKeyed); ok {
			sink.RoutingKeys = c.RoutingKeys()
		}
		sinks = append(sinks, sink)
	}
	return route.New(s.route, sinks)
}
