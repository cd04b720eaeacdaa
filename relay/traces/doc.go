// Package traces makes OpenTelemetry spans of what the relay does and exports them by OTLP, as the
// standard OTEL_* variables have it.
//
//	row with traceparent ──▶ the header travels unchanged ──▶ consumer
//	         ▲ link                                             ▲
//	"send OrderCreated" (CLIENT, one per batch and destination) │ parent or link
//	"mark saga_outbox"  (CLIENT, one per transaction)           │
//	row without one ──▶ "create OrderCreated" (PRODUCER, only with RELAY_TRACE_EVENTS),
//	                    whose context becomes the header
//
// The trace context in a row belongs to the application, so it is never changed. A batch has events
// of many traces: its span links to those that are recorded, at most 128 of them, and counts the
// rest. When all events of a batch are of one trace, as with a lone event, the span is part of that
// trace. Sweeps that found something and rounds of the ledger get a span too.
//
// Whether a span is recorded follows the events: with the parentbased_ samplers (the default) a
// batch is recorded when one of its events is. The root sampler decides when events have no
// context. Nothing is recorded when all were left out. Spans are made after the fact and queued;
// when the queue is full they are dropped. A collector that is slow or gone costs spans, never
// time.
//
// Names and attributes are those of OpenTelemetry's semantic conventions 1.43 (package
// semconv/v1.43.0), whose part on messaging is not stable yet. What they have no word for begins
// with "outbox.". No span has a payload in it.
package traces
