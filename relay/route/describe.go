package route

import (
	"slices"

	"github.com/sagaz-relay/relay/relay/encode"
)

// Shown is a rule as sagaz-relay routes prints it. Lists and texts are empty where the rule has
// nothing: any event, and no change.
type Shown struct {
	Name          string              `json:"name"`
	EventType     []string            `json:"event_type,omitempty"`
	AggregateType []string            `json:"aggregate_type,omitempty"`
	Headers       map[string][]string `json:"headers,omitempty"`
	Topic         string              `json:"topic,omitempty"`
	RoutingKey    string              `json:"routing_key,omitempty"`
	Key           string              `json:"key,omitempty"`
	Drop          bool                `json:"drop,omitempty"`
}

// Of are the rules of a sink, in the order in which they are asked.
func (t *Table) Of(sink string) []Shown {
	all := []Shown{}
	if r := t.routers[sink]; r != nil {
		for _, rule := range r.rules {
			all = append(all, rule.shown())
		}
	}
	return all
}

func (r *Rule) shown() Shown {
	s := Shown{
		Name: r.Name, EventType: r.eventType.texts(), AggregateType: r.aggregateType.texts(),
		Topic: textOf(r.topic), RoutingKey: textOf(r.routingKey), Key: textOf(r.key), Drop: r.Drop,
	}
	for _, h := range r.headers {
		if s.Headers == nil {
			s.Headers = make(map[string][]string)
		}
		s.Headers[h.name] = slices.Clone(h.values.texts())
	}
	return s
}

// textOf is a template as it was written, empty for none.
func textOf(t *encode.Template) string {
	if t == nil {
		return ""
	}
	return t.String()
}
