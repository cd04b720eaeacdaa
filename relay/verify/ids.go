package verify

import (
	"bytes"
	"slices"

	"github.com/sagaz-relay/relay/relay"
)

// EventIDs finds out which event a message that was read back is. A row's own headers may
// override the one that carries its event_id, so where there is something that they cannot override
// that counts: RabbitMQ's message_id, the body of the envelope sagaz. Elsewhere it is looked up
// which events were delivered under that name.
type EventIDs struct {
	names   []string                // of the header, the envelope's own first
	renamed map[string][]relay.UUID // by the header's value: the events whose rows set it to that
}

// NewEventIDs is for messages whose event_id is in one of these headers, the envelope's own first.
func NewEventIDs(headers []string) *EventIDs {
	return &EventIDs{names: headers, renamed: make(map[string][]relay.UUID)}
}

// Note looks whether the event's row renames it.
func (d *EventIDs) Note(id relay.UUID, headers []relay.Header) {
	for _, h := range headers {
		if h.Key == d.names[0] && h.Value != id.String() {
			d.renamed[h.Value] = append(d.renamed[h.Value], id)
		}
	}
}

// Of returns the event of a message. known reports whether an event is among those that are looked
// at and has not arrived yet.
func (d *EventIDs) Of(headers []relay.Header, messageID string, body []byte, known func(relay.UUID) bool) (id relay.UUID, found bool) {
	if id, err := relay.ParseUUID(messageID); err == nil {
		return id, true
	}
	if id, ok := bodysID(body); ok {
		return id, true
	}
	for _, name := range d.names {
		for _, h := range headers {
			if h.Key != name {
				continue
			}
			id, err := relay.ParseUUID(h.Value)
			renamed := d.renamed[h.Value]
			if err == nil && (len(renamed) == 0 || known(id)) {
				return id, true
			}
			if i := slices.IndexFunc(renamed, known); i >= 0 {
				return renamed[i], true
			}
			if len(renamed) > 0 { // once more
				return renamed[0], true
			}
		}
	}
	return id, false
}

// bodysID reads the event_id of a body as the envelope sagaz writes it.
func bodysID(body []byte) (id relay.UUID, ok bool) {
	const before, after, size = `{"event_id":"`, `","saga_id":"`, 36
	rest, ok := bytes.CutPrefix(body, []byte(before))
	if !ok || len(rest) < size || !bytes.HasPrefix(rest[size:], []byte(after)) {
		return id, false
	}
	id, err := relay.ParseUUID(string(rest[:size]))
	return id, err == nil
}
