package route

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/relay"
)

// Table is all rules, for all sinks. It does not change.
type Table struct {
	rules   []*Rule
	drop    bool // what no rule matches
	routers map[string]*router
}

// Sink is a sink as far as rules are checked against it.
type Sink struct {
	Name string
	// Check returns what is wrong with a topic or a routing key, as far as that shows without the
	// broker; an empty one is not asked about. nil: nothing is known of it.
	Check func(relay.Route) error
	// RoutingKeys: its destinations are routing keys, and topics mean nothing to it. Otherwise they
	// are topics.
	RoutingKeys bool
}

// New reads the rules of a configuration for these sinks. Its error has everything that is wrong.
func New(cfg Config, sinks []Sink) (*Table, error) {
	rules, err := cfg.parse()
	if err != nil {
		return nil, err
	}
	t := &Table{rules: rules, drop: cfg.NoMatch == Drop, routers: make(map[string]*router)}
	var errs []error
	for i, r := range rules {
		if err := t.check(i, r, sinks); err != nil {
			errs = append(errs, fmt.Errorf("%s: rule %d (%s): %w", setting, i+1, r.Name, err))
		}
	}
	for _, s := range sinks {
		var own []*Rule
		for _, r := range rules {
			if r.of(s.Name) {
				own = append(own, r)
			}
		}
		switch {
		case len(own) > 0:
			t.routers[s.Name] = newRouter(own, t.drop)
		case t.drop:
			errs = append(errs, fmt.Errorf("RELAY_ROUTES_DEFAULT=%s: no rule is for the sink %s, which would get no event: want one, such as {name: all-%[2]s, sinks: [%[2]s]}", Drop, s.Name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return t, nil
}

// Router returns the router of a sink, nil where no rule is for it: it gets every event as it is.
func (t *Table) Router(sink string) relay.Router {
	if r := t.routers[sink]; r != nil {
		return r
	}
	return nil
}

// Routers are the routers of the sinks that have rules, by name.
func (t *Table) Routers() map[string]relay.Router {
	all := make(map[string]relay.Router, len(t.routers))
	for name, r := range t.routers {
		all[name] = r
	}
	return all
}

// Drops reports whether what no rule matches is dropped.
func (t *Table) Drops() bool { return t.drop }

// UsesHeaders reports whether where some events go depends on their headers.
func (t *Table) UsesHeaders() bool {
	return slices.ContainsFunc(t.rules, func(r *Rule) bool { return r.usesHeaders() })
}

// Templates are the destinations of a sink's rules as they were written: topics and routing keys,
// empty where a rule has none.
func (t *Table) Templates(sink string) (all []relay.Route) {
	if r := t.routers[sink]; r != nil {
		for _, rule := range r.rules {
			all = append(all, relay.Route{Topic: textOf(rule.topic), RoutingKey: textOf(rule.routingKey)})
		}
	}
	return all
}

// check returns what is wrong with a rule.
func (t *Table) check(i int, r *Rule, sinks []Sink) error {
	var errs []error
	var own []Sink
	for _, name := range r.Sinks {
		if !slices.ContainsFunc(sinks, func(s Sink) bool { return s.Name == name }) {
			errs = append(errs, fmt.Errorf("sinks: no sink is called %s: want some of %s", shown(name), strings.Join(names(sinks), ", ")))
		}
	}
	for _, s := range sinks {
		if r.of(s.Name) {
			own = append(own, s)
		}
	}
	if len(errs) > 0 || len(own) == 0 {
		return errors.Join(errs...)
	}
	if err := r.checkDestinations(own); err != nil {
		errs = append(errs, err)
	}
	if by := t.hidden(i, r, own); by != "" {
		errs = append(errs, fmt.Errorf("it never matches: %s before it takes all that it could: move it up, or remove it", by))
	}
	return errors.Join(errs...)
}

// checkDestinations finds topics and routing keys that a sink cannot have, whatever event they are
// of, and those that no sink of the rule has a use for.
func (r *Rule) checkDestinations(own []Sink) error {
	var errs []error
	keys := func(s Sink) bool { return s.RoutingKeys }
	if r.topic != nil && r.routingKey == nil && !slices.ContainsFunc(own, func(s Sink) bool { return !keys(s) }) {
		errs = append(errs, fmt.Errorf("topic: %s has routing keys and no topics: want routing_key", strings.Join(names(own), ", ")))
	}
	if r.routingKey != nil && r.topic == nil && !slices.ContainsFunc(own, keys) {
		errs = append(errs, fmt.Errorf("routing_key: %s has topics and no routing keys: want topic", strings.Join(names(own), ", ")))
	}
	for _, s := range own {
		if s.Check == nil {
			continue
		}
		if r.topic != nil && !s.RoutingKeys {
			if err := s.Check(relay.Route{Topic: r.topic.Sample()}); err != nil {
				errs = append(errs, fmt.Errorf("topic: %w (sink %s)", err, s.Name))
			}
		}
		if r.routingKey != nil && s.RoutingKeys {
			if err := s.Check(relay.Route{RoutingKey: r.routingKey.Sample()}); err != nil {
				errs = append(errs, fmt.Errorf("routing_key: %w (sink %s)", err, s.Name))
			}
		}
	}
	return errors.Join(errs...)
}

// hidden names the rules before it that take all that a rule could match, for every sink and every
// pair of patterns that it has; empty where something is left for it.
func (t *Table) hidden(i int, r *Rule, own []Sink) string {
	var by []string
	for _, s := range own {
		for _, eventType := range r.eventType.each() {
			for _, aggregateType := range r.aggregateType.each() {
				first := slices.IndexFunc(t.rules[:i], func(b *Rule) bool {
					return b.of(s.Name) && b.eventType.covers(&eventType) && b.aggregateType.covers(&aggregateType) && b.takesHeaders(r)
				})
				if first < 0 {
					return ""
				}
				if name := t.rules[first].Name; !slices.Contains(by, name) {
					by = append(by, name)
				}
			}
		}
	}
	return strings.Join(by, ", ")
}

func names(sinks []Sink) (all []string) {
	for _, s := range sinks {
		all = append(all, s.Name)
	}
	return all
}
