package relay

// Encoder makes records of events: relay/encode. One serves all goroutines.
type Encoder interface {
	// Encode fills rec from ev. The record may keep parts of the event's text alive. An error is
	// the event's own fault (see Refused); rec then holds nothing to publish.
	Encode(rec *Record, ev *Event) error
	// RowHeaders are the headers that the row itself has, for logs, and nothing when they cannot be
	// read.
	RowHeaders(ev *Event) []Header
}
