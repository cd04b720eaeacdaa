package route

import (
	"fmt"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/encode"
)

// Rule is one rule of RELAY_ROUTES.
type Rule struct {
	Name  string
	Sinks []string // nil: all

	eventType, aggregateType globs
	headers                  []headerGlobs

	// What the sink gets in place of what all get; nil: the same. key is the message's, and not
	// what the order goes by.
	topic, routingKey, key *encode.Template
	Drop                   bool // the sink does not get it
}

// headerGlobs are a header's name and what its value has to match. An event without that header does
// not match.
type headerGlobs struct {
	name   string
	values globs
}

// Default is what counts where no rule matches, and no rule's name.
const Default = "default"

// of reports whether the rule is one of a sink's.
func (r *Rule) of(sink string) bool {
	if r.Sinks == nil {
		return true
	}
	for _, name := range r.Sinks {
		if name == sink {
			return true
		}
	}
	return false
}

// matchTypes reports whether an event's types match.
func (r *Rule) matchTypes(eventType, aggregateType string) bool {
	return r.eventType.match(eventType) && r.aggregateType.match(aggregateType)
}

// matchHeaders reports whether a message's headers match.
func (r *Rule) matchHeaders(headers []relay.Header) bool {
	for i := range r.headers {
		if !r.headers[i].in(headers) {
			return false
		}
	}
	return true
}

func (h *headerGlobs) in(headers []relay.Header) bool {
	for i := range headers {
		if headers[i].Key == h.name {
			return h.values.match(headers[i].Value)
		}
	}
	return false
}

// takesHeaders reports whether the rule asks no more of headers than other does.
func (r *Rule) takesHeaders(other *Rule) bool {
	for i := range r.headers {
		h, covered := &r.headers[i], false
		for j := range other.headers {
			if o := &other.headers[j]; o.name == h.name {
				covered = true
				for _, q := range o.values.each() {
					covered = covered && h.values.covers(&q)
				}
			}
		}
		if !covered {
			return false
		}
	}
	return true
}

// apply makes the record that a sink gets of an event by this rule: the shared one (nil), or a copy
// that shares its value and headers. An error is the event's own fault.
func (r *Rule) apply(rec *relay.Record, ev *relay.Event) (*relay.Record, error) {
	if r.topic == nil && r.routingKey == nil && r.key == nil {
		return nil, nil
	}
	own := &struct {
		relay.Record
		key string
	}{Record: *rec}
	var err error
	for _, c := range [...]struct {
		field    string
		template *encode.Template
		to       *string
	}{{"topic", r.topic, &own.Topic}, {"routing_key", r.routingKey, &own.RoutingKey}, {"key", r.key, &own.key}} {
		if c.template == nil {
			continue
		}
		if *c.to, err = c.template.Expand(ev, rec.Headers); err != nil {
			return nil, fmt.Errorf("the %s of rule %s in RELAY_ROUTES: %w", c.field, r.Name, err)
		}
	}
	if r.key != nil {
		own.OwnKey = &own.key
	}
	return &own.Record, nil
}

// usesHeaders reports whether where an event goes depends on its headers.
func (r *Rule) usesHeaders() bool {
	for _, t := range []*encode.Template{r.topic, r.routingKey, r.key} {
		if t != nil && t.UsesHeaders() {
			return true
		}
	}
	return len(r.headers) > 0
}
