package encode

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/relay"
)

// Template names a topic, a routing key or a message's key from an event's columns:
// "{aggregate_type}.{event_type}". It does not change, so one serves all goroutines.
type Template struct {
	text  string
	parts []templatePart
	plain bool // just {event_type}, the default: no work at all
}

type templatePart struct {
	text  string
	field string // one of templateFields, or empty for text
}

var templateFields = []string{"event_type", "aggregate_type", "aggregate_id", "saga_id"}

// ParseTemplate reads a template. Braces enclose one of event_type, aggregate_type, aggregate_id
// and saga_id; everything else is literal. An empty template, or one with other braces, is an
// error.
func ParseTemplate(s string) (Template, error) {
	t := Template{text: s, plain: s == "{event_type}"}
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

// String is the template as it was written.
func (t *Template) String() string { return t.text }

// Literal reports whether the template has no fields: it names the same for every event.
func (t *Template) Literal() bool { return len(t.parts) == 1 && t.parts[0].field == "" }

// Expand puts an event's columns into the template. The result may share the event's memory.
func (t *Template) Expand(ev *relay.Event) string {
	switch {
	case t.plain || t.parts == nil:
		return ev.EventType
	case t.Literal():
		return t.parts[0].text
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
