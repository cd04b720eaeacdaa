package traces

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/sagaz-relay/relay/relay"
)

// deciderKey is where a context has the span context that decides about a span which begins a trace
// of its own, and only links to others.
type deciderKey struct{}

// byEvents asks the configured sampler about such a span as if the decider were its parent. So a
// batch is recorded when one of its events is, which is what the parentbased_ samplers promise.
type byEvents struct{ sdktrace.Sampler }

// ShouldSample implements sdktrace.Sampler.
func (s byEvents) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	decider, ok := p.ParentContext.Value(deciderKey{}).(trace.SpanContext)
	if !ok {
		return s.Sampler.ShouldSample(p)
	}
	p.ParentContext = trace.ContextWithRemoteSpanContext(p.ParentContext, decider)
	result := s.Sampler.ShouldSample(p)
	result.Tracestate = trace.TraceState{} // that of another trace
	return result
}

// eventKey is where a context has the id of the event whose trace begins.
type eventKey struct{}

// ids makes trace and span ids. They are random, but for the trace of an event: its id follows from
// the event's, so that a redelivery is found in the same trace.
type ids struct{}

// NewIDs implements sdktrace.IDGenerator.
func (g ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	var id trace.TraceID
	if event, ok := ctx.Value(eventKey{}).(relay.UUID); ok {
		id = traceOfEvent(event)
	}
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:8], rand.Uint64())
		binary.NativeEndian.PutUint64(id[8:], rand.Uint64())
	}
	return id, g.NewSpanID(ctx, id)
}

// traceOfEvent is the id of the trace that begins with an event. It is hashed: samplers count on
// all bits being random, and those of a UUID's version are not.
func traceOfEvent(event relay.UUID) (id trace.TraceID) {
	sum := sha256.Sum256(event[:])
	copy(id[:], sum[:])
	return id
}

// NewSpanID implements sdktrace.IDGenerator.
func (ids) NewSpanID(context.Context, trace.TraceID) trace.SpanID {
	var id trace.SpanID
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:], rand.Uint64())
	}
	return id
}
