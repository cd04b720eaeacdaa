package relay

import (
	"encoding/hex"
	"iter"
	"time"
)

// TraceContext is a row's traceparent (W3C Trace Context, level 2): the span in which the event was
// made. The zero value stands for no traceparent.
type TraceContext struct {
	TraceID [16]byte
	SpanID  [8]byte
	Flags   byte
}

// IsValid reports whether there is one.
func (c *TraceContext) IsValid() bool { return c.TraceID != [16]byte{} && c.SpanID != [8]byte{} }

// Sampled reports whether there is one, and whoever made it records its trace.
func (c *TraceContext) Sampled() bool { return c.Flags&1 != 0 && c.IsValid() }

// TraceParent is the header in which a row's trace context is, and travels.
const TraceParent = "traceparent"

// ParseTraceParent reads a traceparent: "00-<trace id>-<span id>-<flags>" in lower-case
// hexadecimal. Of a version that is not known yet it reads the same fields and passes over what
// follows them. It returns false for anything else, which travels unchanged all the same.
func ParseTraceParent(s string) (c TraceContext, ok bool) {
	const size = len("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	if len(s) < size || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" {
		return TraceContext{}, false
	}
	if len(s) > size && (s[:2] == "00" || s[size] != '-') {
		return TraceContext{}, false
	}
	for i := range size {
		if c := s[i]; c >= 'A' && c <= 'F' {
			return TraceContext{}, false
		}
	}
	var version, flags [1]byte
	for _, f := range [...]struct {
		to   []byte
		text string
	}{{version[:], s[:2]}, {c.TraceID[:], s[3:35]}, {c.SpanID[:], s[36:52]}, {flags[:], s[53:55]}} {
		if _, err := hex.Decode(f.to, []byte(f.text)); err != nil {
			return TraceContext{}, false
		}
	}
	c.Flags = flags[0]
	if !c.IsValid() {
		return TraceContext{}, false
	}
	return c, true
}

// AppendText appends the context as a traceparent.
func (c *TraceContext) AppendText(b []byte) []byte {
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, c.TraceID[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, c.SpanID[:])
	b = append(b, '-')
	return hex.AppendEncode(b, []byte{c.Flags})
}

// Tracer gets what the engine has done, and makes spans of it. It gets it afterwards, with the
// times: nothing waits for it, and what is not to be recorded costs no span. A relay without a
// tracer pays nothing.
//
// Its methods are called from many goroutines, on the events' way. They must not block, they cannot
// fail, and they keep nothing of what they are given once they have returned.
type Tracer interface {
	// Begin is called with the record of a row that has no traceparent, before anybody else sees
	// it. It may begin a trace there: set rec.Trace, and add the header.
	Begin(rec *Record, ev *Event)
	// Sent gets one offer to a sink.
	Sent(o Offer)
	// Marked gets one try to write the outcomes of events.
	Marked(m Marking)
	// Swept gets a look at the table that found rows, or failed.
	Swept(s Swept)
	// Drained gets a round of ledger entries.
	Drained(d Drained)
}

// Why spans are dropped: the reasons of outbox_trace_spans_dropped_total.
const (
	SpansQueueFull = "queue_full" // as many as may wait do
	SpansExport    = "export"     // the collector did not take them
)

// Offer is one call of Publish.
type Offer struct {
	Slot    string
	Sink    Sink
	Batch   []*Record
	Started time.Time
	Took    time.Duration
	Err     error // what Publish returned
}

// Marking is one transaction that writes the outcomes of events, or the try.
type Marking struct {
	Slot    string
	Events  int
	Records iter.Seq[*Record] // of these events
	Started time.Time
	Took    time.Duration
	Err     error
}

// Swept is a look at the table for rows that the stream does not deliver.
type Swept struct {
	Slot    string
	Cause   string // as in outbox_recovered_events_total
	Rows    int
	Started time.Time
	Took    time.Duration // with the wait for room in the in-flight budget, and for the rows' marks
	Err     error
}

// Drained is a round of ledger entries of one sink.
type Drained struct {
	Slot, Sink       string
	Offered          int
	Settled, Failing int // entries with an outcome; those with a transient error, which stay
	Started          time.Time
	Took             time.Duration
}

// Placer is implemented by sinks that know, in the words of OpenTelemetry's conventions for
// messaging, where records go.
type Placer interface {
	// Destination names what a record is sent to: a topic, or an exchange with a routing key.
	Destination(rec *Record) string
	// Place returns what is common to records of one destination, as far as it is known without
	// asking the broker.
	Place(batch []*Record) Place
}

// Place is where records go.
type Place struct {
	System     string // kafka, rabbitmq
	RoutingKey string // AMQP
	Partition  int    // -1: none, several, or not known
	Host       string // empty: several, or not known
	Port       int
}
