package encode

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/relay"
)

// template names a topic or routing key from an event's columns: "{aggregate_type}.{event_type}".
type template struct {
	parts []templatePart
	plain bool // just {event_type}, the default: no work at all
}

type templatePart struct {
	text  string
	field string // one of templateFields, or empty for text
}

var templateFields = []string{"event_type", "aggregate_type", "aggregate_id", "saga_id"}

// parseTemplate reads a template. Braces enclose one of event_type, aggregate_type, aggregate_id
// and saga_id; everything else is literal. An empty template, or one with other braces, is an
// error.
func parseTemplate(s string) (template, error) {
	t := template{plain: s == "{event_type}"}
	if s == "" {
		return t, fmt.Errorf("want a name or a template such as {event_type}")
	}
	for rest := s; rest != ""; {
		text, after, found := strings.Cut(rest, "{")
		if strings.Contains(text, "}") {
			return t, fmt.Errorf("%q: } without {", s)
		}
		if text != "" {
			t.parts = append(t.parts, templatePart{text: text})
		}
		if !found {
			break
		}
		name, tail, closed := strings.Cut(after, "}")
		if !closed {
			return t, fmt.Errorf("%q: { without }", s)
		}
		if !slices.Contains(templateFields, name) {
			return t, fmt.Errorf("%q: {%s} is not known, want one of {%s}", s, name, strings.Join(templateFields, "} {"))
		}
		t.parts = append(t.parts, templatePart{field: name})
		rest = tail
	}
	return t, nil
}

func (t *template) expand(ev *relay.Event) string {
	if t.plain || t.parts == nil {
		return ev.EventType
	}
	var b strings.Builder
	for _, p := range t.parts {
		switch p.field {
		case "":
			b.WriteString(p.text)
		case "event_type":
			b.WriteString(ev.EventType)
		case "aggregate_type":
			b.WriteString(ev.AggregateType)
		case "aggregate_id":
			b.WriteString(ev.AggregateID)
		case "saga_id":
			b.WriteString(ev.SagaID)
		}
	}
	return b.String()
}
