package traces

import (
	"context"
	"slices"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	wire "go.opentelemetry.io/proto/otlp/trace/v1"
)

// linkStates is a client that adds to the spans' links the tracestate of what they link to.
// OpenTelemetry's exporter leaves it out, though the protocol has a field for it, and vendors
// sample and route by it.
type linkStates struct{ otlptrace.Client }

// spansKey is where a context has the spans that are being exported, as they were before they were
// translated.
type spansKey struct{}

// withStates returns a context in which linkStates finds the spans, if one of their links has a
// tracestate.
func withStates(ctx context.Context, spans []sdktrace.ReadOnlySpan) context.Context {
	hasState := func(l sdktrace.Link) bool { return l.SpanContext.TraceState().Len() > 0 }
	if !slices.ContainsFunc(spans, func(s sdktrace.ReadOnlySpan) bool { return slices.ContainsFunc(s.Links(), hasState) }) {
		return ctx
	}
	return context.WithValue(ctx, spansKey{}, spans)
}

// UploadTraces implements otlptrace.Client.
func (c linkStates) UploadTraces(ctx context.Context, batch []*wire.ResourceSpans) error {
	spans, _ := ctx.Value(spansKey{}).([]sdktrace.ReadOnlySpan)
	links := make(map[string][]sdktrace.Link, len(spans))
	for _, s := range spans {
		id := s.SpanContext().SpanID()
		links[string(id[:])] = s.Links()
	}
	for _, resource := range batch {
		for _, scope := range resource.ScopeSpans {
			for _, s := range scope.Spans {
				if from := links[string(s.SpanId)]; len(from) == len(s.Links) { // in the same order
					for i := range from {
						s.Links[i].TraceState = from[i].SpanContext.TraceState().String()
					}
				}
			}
		}
	}
	return c.Client.UploadTraces(ctx, batch)
}
