package encode

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/relay"
)

// Template names a topic, a routing key or a message's key from an event's columns and headers:
// "{aggregate_type}.{event_type}", "{header:tenant|shared}.orders". It does not change, so one
// serves all goroutines.
type Template struct {
	text  string
	parts []templatePart
	plain bool // just {event_type}, the default: no work at all
}

type templatePart struct {
	text     string
	field    string // one of templateFields, headerField, or empty for text
	header   string // the name, for headerField
	fallback string // in place of a header that is not there, or empty
}

var templateFields = []string{"event_type", "aggregate_type", "aggregate_id", "saga_id"}

const headerField = "header:NAME"

// ParseTemplate reads a template. Braces enclose one of event_type, aggregate_type, aggregate_id
// and saga_id, or header:NAME or header:NAME|FALLBACK; everything else is literal. An empty
// template, or one with other braces, is an error.
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
		part, err := parseField(name)
		if err != nil {
			return t, fmt.Errorf("%q: %w", s, err)
		}
		t.parts = append(t.parts, part)
		rest = tail
	}
	return t, nil
}

func parseField(name string) (templatePart, error) {
	if of, is := strings.CutPrefix(name, "header:"); is {
		part := templatePart{field: headerField}
		part.header, part.fallback, is = strings.Cut(of, "|")
		if part.header == "" || strings.Contains(of, "{") || is && part.fallback == "" {
			return part, fmt.Errorf("{%s}: want {header:NAME} or {header:NAME|FALLBACK}", name)
		}
		return part, nil
	}
	if !slices.Contains(templateFields, name) {
		return templatePart{}, fmt.Errorf("{%s} is not known, want one of {%s} {%s}", name, strings.Join(templateFields, "} {"), headerField)
	}
	return templatePart{field: name}, nil
}

// String is the template as it was written.
func (t *Template) String() string { return t.text }

// Literal reports whether the template has no fields: it names the same for every event.
func (t *Template) Literal() bool { return len(t.parts) == 1 && t.parts[0].field == "" }

// UsesHeaders reports whether the template has a header in it.
func (t *Template) UsesHeaders() bool {
	return slices.ContainsFunc(t.parts, func(p templatePart) bool { return p.field == headerField })
}

// Sample is the template with a letter for each field: what is wrong with it is wrong with any event.
func (t *Template) Sample() string {
	var b strings.Builder
	for i := range t.parts {
		if p := &t.parts[i]; p.field == "" {
			b.WriteString(p.text)
		} else {
			b.WriteByte('x')
		}
	}
	return b.String()
}

// Expand puts an event's columns, and headers of its record, into the template. The result may
// share their memory. A header that is not there, empty or null, and has no fallback is an error.
func (t *Template) Expand(ev *relay.Event, headers []relay.Header) (string, error) {
	switch {
	case t.plain || t.parts == nil:
		return ev.EventType, nil
	case t.Literal():
		return t.parts[0].text, nil
	}
	var b strings.Builder
	for i := range t.parts {
		switch p := &t.parts[i]; p.field {
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
		case headerField:
			value := p.value(headers)
			if value == "" {
				return "", fmt.Errorf("%s needs the header %s, and the event has none", t.text, p.header)
			}
			b.WriteString(value)
		}
	}
	return b.String(), nil
}

// value is the header's, or the fallback.
func (p *templatePart) value(headers []relay.Header) string {
	for i := range headers {
		if h := &headers[i]; h.Key == p.header && h.Value != "" && !h.Null() {
			return h.Value
		}
	}
	return p.fallback
}
