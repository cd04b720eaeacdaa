package traces

import (
	"iter"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/sagaz-relay/relay/relay"
)

// maxLinks is how many events a span links to; it is what OpenTelemetry's own limit is unless it
// was changed. The rest is counted.
const maxLinks = 128

// links is what a batch's events have of their traces.
type links struct {
	sampled int             // events whose trace is recorded
	list    []*relay.Record // the first of them
	other   *relay.Record   // the first whose trace is not
	without int             // events without a context
	several bool            // there is more than one trace
	trace   [16]byte        // the first
}

// tally looks at records once.
func tally(records iter.Seq[*relay.Record]) (l links) {
	for rec := range records {
		c := &rec.Trace
		if !c.IsValid() {
			l.without++
			continue
		}
		if l.trace == [16]byte{} {
			l.trace = c.TraceID
		}
		l.several = l.several || c.TraceID != l.trace
		if !c.Sampled() {
			if l.other == nil {
				l.other = rec
			}
			continue
		}
		l.sampled++
		if len(l.list) < maxLinks {
			l.list = append(l.list, rec)
		}
	}
	return l
}

// oneTrace reports whether all events are of the same trace.
func (l *links) oneTrace() bool { return l.trace != [16]byte{} && !l.several && l.without == 0 }

// decider is the event that decides whether the batch is recorded: one that is, if there is any. It
// is nil when the root sampler decides, because events without a context are among those that are
// not recorded.
func (l *links) decider() *relay.Record {
	switch {
	case l.sampled > 0:
		return l.list[0]
	case l.without > 0:
		return nil
	default:
		return l.other
	}
}

// add links a span to the events.
func (l *links) add(span trace.Span) {
	for _, rec := range l.list {
		span.AddLink(trace.Link{SpanContext: spanContext(rec), Attributes: []attribute.KeyValue{semconv.MessagingMessageID(rec.EventID.String())}})
	}
	if more := l.sampled - len(l.list); more > 0 {
		span.SetAttributes(attribute.Int("outbox.links_omitted", more))
	}
}

// spanContext is a record's trace context in OpenTelemetry's form, with the row's tracestate.
func spanContext(rec *relay.Record) trace.SpanContext {
	c := trace.SpanContextConfig{TraceID: rec.Trace.TraceID, SpanID: rec.Trace.SpanID, TraceFlags: trace.TraceFlags(rec.Trace.Flags), Remote: true}
	if text := header(rec, "tracestate"); text != "" {
		// A list that is not legal counts as empty (W3C Trace Context, 3.3.1.4).
		c.TraceState, _ = trace.ParseTraceState(text)
	}
	return trace.NewSpanContext(c)
}

func header(rec *relay.Record, name string) string {
	for i := range rec.Headers {
		if rec.Headers[i].Key == name {
			return rec.Headers[i].Value
		}
	}
	return ""
}
