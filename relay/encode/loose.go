package encode

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/relay"
)

// checkLoose checks the texts of an event that nothing else has checked (Event.Loose), and returns
// its headers in a form in which no name occurs twice. The last value of a name counts, as in
// jsonb.
func (e *Encoder) checkLoose(ev *relay.Event) (headers string, err error) {
	for _, text := range [...]struct{ column, value string }{
		{"saga_id", ev.SagaID},
		{"aggregate_type", ev.AggregateType},
		{"aggregate_id", ev.AggregateID},
		{"event_type", ev.EventType},
		{"headers", ev.Headers},
		{"payload", ev.Payload},
	} {
		if text.column == "payload" && e.payload == PayloadBytes {
			continue
		}
		if !utf8.ValidString(text.value) {
			return "", fmt.Errorf("column %s: it has bytes that are not UTF-8", text.column)
		}
	}
	if e.payload == PayloadJSON && !ev.NoPayload && !json.Valid([]byte(ev.Payload)) {
		return "", errNoJSON
	}
	if ev.Headers == "" {
		return "", nil
	}
	if !json.Valid([]byte(ev.Headers)) {
		return "", fmt.Errorf("column headers: it is not a JSON document")
	}
	return lastOfEachName(ev.Headers), nil
}

// lastOfEachName rewrites a valid JSON object so that each name occurs once, with its last value;
// any other document it leaves as it is.
func lastOfEachName(object string) string {
	if !strings.HasPrefix(skipSpace(object), "{") {
		return object
	}
	type member struct {
		name  string
		value json.RawMessage
	}
	var (
		members []member
		at      = make(map[string]int)
		dec     = json.NewDecoder(strings.NewReader(object))
	)
	if _, err := dec.Token(); err != nil {
		return object
	}
	for dec.More() {
		token, err := dec.Token()
		name, ok := token.(string)
		var value json.RawMessage
		if err != nil || !ok || dec.Decode(&value) != nil {
			return object // it is valid, so this does not occur
		}
		if i, again := at[name]; again {
			members[i].value = value
			continue
		}
		at[name] = len(members)
		members = append(members, member{name, value})
	}
	var b bytes.Buffer
	for i, m := range members {
		b.WriteString(", "[:2*min(i, 1)])
		b.Write(relay.AppendJSONString(nil, m.name))
		b.WriteString(": ")
		b.Write(m.value)
	}
	return "{" + b.String() + "}"
}
