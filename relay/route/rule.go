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

// headerGlobs are a header's name and what its value has to match. An event without that header, or
// with null, does not match.
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
			return !headers[i].Null() && h.values.match(headers[i].Value)
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

// changes reports whether a sink gets a record of its own by this rule.
func (r *Rule) changes() bool { return r.topic != nil || r.routingKey != nil || r.key != nil }

// apply changes a record as the rule has it. An error is the event's own fault.
func (r *Rule) apply(rec *relay.Record, ev *relay.Event) (err error) {
	expand := func(field string, template *encode.Template) string {
		text, wrong := template.Expand(ev, rec.Headers)
		if wrong != nil && err == nil {
			err = fmt.Errorf("the %s of rule %s in RELAY_ROUTES: %w", field, r.Name, wrong)
		}
		return text
	}
	if r.topic != nil {
		rec.Topic = expand("topic", r.topic)
	}
	if r.routingKey != nil {
		rec.RoutingKey = expand("routing_key", r.routingKey)
	}
	if r.key != nil {
		key := expand("key", r.key)
		rec.OwnKey = &key
	}
	return err
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
