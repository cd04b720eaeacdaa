package traces

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/hashicorp/go-hclog"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/sagaz-relay/relay/relay"
)

// Tracer makes spans of what a relay does. Its methods may be called from any goroutine until
// Close.
type Tracer struct {
	cfg      Config
	log      hclog.Logger
	provider *sdktrace.TracerProvider
	queue    *queue
	sampler  sdktrace.Sampler   // as it is configured, for spans without a parent
	end      context.CancelFunc // of the time to export
	tracer   trace.Tracer

	topic, routingKey string // the templates
	rules             func(sink string) []relay.Route
	closing           sync.Once
	sinks             sync.Map // by name: *sinkWords
}

var _ relay.Tracer = (*Tracer)(nil)

// About is what spans have about the relay.
type About struct {
	WorkerID, Version string
	Topic, RoutingKey string // RELAY_TOPIC and RELAY_ROUTING_KEY
	// Rules are the templates that a sink's rules have in their place; nil: there are no rules.
	Rules func(sink string) []relay.Route
	// Dropped, if not nil, is called with the number of spans that no collector will get, and why;
	// see watch.Metrics.SpansDropped. It must not block.
	Dropped func(reason string, spans int)
}

// New returns the tracer, or nil where the configuration has no exporter. It does not connect.
func New(cfg Config, about About, log hclog.Logger) (*Tracer, error) {
	log = log.Named("traces")
	if !cfg.On() {
		if cfg.Events {
			log.Warn("RELAY_TRACE_EVENTS has no effect without OTEL_EXPORTER_OTLP_ENDPOINT")
		}
		return nil, nil
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	to, err := cfg.target()
	if err != nil {
		return nil, err
	}
	client, err := cfg.newClient(to)
	if err != nil {
		return nil, err
	}
	exporter, err := otlptrace.New(context.Background(), linkStates{client})
	if err != nil {
		return nil, fmt.Errorf("export traces to %s: %w", to, err)
	}
	silence(log)
	t, err := newTracer(cfg, about, exporter, log)
	if err != nil {
		return nil, err
	}
	log.Info("traces are exported", "endpoint", to, "protocol", to.protocol, "sampler", cfg.Sampler)
	return t, nil
}

// newTracer is New with an exporter.
func newTracer(cfg Config, about About, exporter sdktrace.SpanExporter, log hclog.Logger) (*Tracer, error) {
	headers, err := cfg.headers()
	if err != nil {
		return nil, err
	}
	sampler, err := cfg.sampler()
	if err != nil {
		return nil, err
	}
	attrs, err := cfg.resource(about)
	if err != nil {
		return nil, err
	}
	t := &Tracer{cfg: cfg, log: log, sampler: sampler, topic: about.Topic, routingKey: about.RoutingKey, rules: about.Rules}
	over, end := context.WithCancel(context.Background())
	t.end = end
	dropped := about.Dropped
	if dropped == nil {
		dropped = func(string, int) {}
	}
	t.queue = &queue{limit: int64(cfg.QueueSize), log: log, dropped: dropped}
	t.queue.SpanProcessor = sdktrace.NewBatchSpanProcessor(
		&quiet{SpanExporter: exporter, log: log, secrets: secretsOf(headers), over: over, dropped: dropped, took: t.queue.took},
		sdktrace.WithMaxQueueSize(cfg.QueueSize), sdktrace.WithMaxExportBatchSize(cfg.BatchSize),
		sdktrace.WithBatchTimeout(milliseconds(cfg.ScheduleDelay)), sdktrace.WithExportTimeout(milliseconds(cfg.ExportTimeout)))
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithSpanProcessor(t.queue),
		sdktrace.WithSampler(byEvents{sampler}),
		sdktrace.WithIDGenerator(ids{}),
		sdktrace.WithResource(attrs),
	)
	t.tracer = t.provider.Tracer(scope, trace.WithInstrumentationVersion(about.Version), trace.WithSchemaURL(semconv.SchemaURL))
	return t, nil
}

const scope = "github.com/sagaz-relay/relay"

// silence keeps OpenTelemetry's libraries from writing to standard error in their own format. They
// have one logger for the whole process.
func silence(log hclog.Logger) {
	otel.SetLogger(logr.Discard())
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Debug("opentelemetry", "error", err) }))
}

// resource is what the collector gets about this process.
func (c Config) resource(about About) (*resource.Resource, error) {
	given, err := c.resourceAttributes()
	if err != nil {
		return nil, err
	}
	attrs := []attribute.KeyValue{
		semconv.ServiceName(defaultService), semconv.ServiceVersion(about.Version), semconv.ServiceInstanceID(about.WorkerID),
		semconv.TelemetrySDKLanguageGo, semconv.TelemetrySDKName("opentelemetry"), semconv.TelemetrySDKVersion(otel.Version()),
	}
	attrs = append(attrs, given...) // of two with one name the later counts
	if c.ServiceName != defaultService {
		attrs = append(attrs, semconv.ServiceName(c.ServiceName))
	}
	return resource.NewWithAttributes(semconv.SchemaURL, attrs...), nil
}

// Close exports what is queued, until ctx ends. It is called when the tracer is not used any more;
// a second call does nothing.
func (t *Tracer) Close(ctx context.Context) {
	t.closing.Do(func() {
		if err := t.provider.Shutdown(ctx); err != nil {
			t.log.Warn("some traces were not exported before the end", "error", err)
		}
		t.end()
		t.queue.ended()
	})
}

// start begins a span of what was done with events. It is recorded when one of them is, and lies in
// their trace when all are of the same.
func (t *Tracer) start(name string, kind trace.SpanKind, at time.Time, l *links) trace.Span {
	ctx := context.Background()
	switch {
	case l == nil:
	case l.oneTrace():
		ctx = trace.ContextWithRemoteSpanContext(ctx, spanContext(l.decider()))
	case l.decider() != nil:
		ctx = context.WithValue(ctx, deciderKey{}, spanContext(l.decider()))
	}
	_, span := t.tracer.Start(ctx, name, trace.WithTimestamp(at), trace.WithSpanKind(kind))
	if l != nil && span.IsRecording() {
		l.add(span)
	}
	return span
}

// end ends a span, with what went wrong.
func end(span trace.Span, at time.Time, err error) {
	if err != nil {
		span.SetAttributes(semconv.ErrorTypeKey.String(errorType(err)))
		span.SetStatus(codes.Error, shorten(err.Error()))
	}
	span.End(trace.WithTimestamp(at))
}

// Begin implements relay.Tracer.
func (t *Tracer) Begin(rec *relay.Record, ev *relay.Event) {
	if !t.cfg.Events {
		return
	}
	// Of a hundred traces, ninety-nine may not be recorded. To ask for such a span costs ten times
	// what follows.
	id := traceOfEvent(ev.ID)
	if t.sampler.ShouldSample(sdktrace.SamplingParameters{ParentContext: context.Background(), TraceID: id, Kind: trace.SpanKindProducer}).Decision == sdktrace.Drop {
		rec.Trace = relay.TraceContext{TraceID: id, SpanID: ids{}.NewSpanID(context.Background(), id)}
		// Those who read the header then do not record it either.
		rec.Headers = append(rec.Headers, relay.Header{Key: relay.TraceParent, Value: string(rec.Trace.AppendText(make([]byte, 0, 55)))})
		return
	}
	now := time.Now()
	began := now
	if committed := ev.CommittedAt.Time(); ev.CommittedAt != 0 && committed.Before(now) {
		began = committed
	}
	ctx := context.WithValue(context.Background(), eventKey{}, ev.ID)
	_, span := t.tracer.Start(ctx, "create "+relay.Short(ev.EventType), trace.WithTimestamp(began), trace.WithSpanKind(trace.SpanKindProducer))
	sc := span.SpanContext()
	rec.Trace = relay.TraceContext{TraceID: sc.TraceID(), SpanID: sc.SpanID(), Flags: byte(sc.TraceFlags())}
	rec.Headers = append(rec.Headers, relay.Header{Key: relay.TraceParent, Value: string(rec.Trace.AppendText(make([]byte, 0, 55)))})
	if span.IsRecording() {
		// The outbox is where the message is made; which brokers it goes to is for the spans that
		// send it.
		span.SetAttributes(semconv.MessagingSystemKey.String("outbox"), semconv.MessagingOperationName("create"), semconv.MessagingOperationTypeCreate,
			semconv.MessagingDestinationName(relay.Short(ev.EventType)))
		span.SetAttributes(message(rec)...)
	}
	span.End(trace.WithTimestamp(now))
}

// Marked implements relay.Tracer.
func (t *Tracer) Marked(m relay.Marking) {
	l := tally(m.Records)
	span := t.start("mark saga_outbox", trace.SpanKindClient, m.Started, &l)
	if span.IsRecording() {
		span.SetAttributes(semconv.DBSystemNamePostgreSQL, semconv.DBCollectionName("saga_outbox"), slot(m.Slot), eventCount(m.Events))
	}
	end(span, m.Started.Add(m.Took), m.Err)
}

// Swept implements relay.Tracer.
func (t *Tracer) Swept(s relay.Swept) {
	span := t.start("sweep saga_outbox", trace.SpanKindInternal, s.Started, nil)
	if span.IsRecording() {
		span.SetAttributes(slot(s.Slot), attribute.String("outbox.cause", s.Cause), eventCount(s.Rows))
	}
	end(span, s.Started.Add(s.Took), s.Err)
}

// Drained implements relay.Tracer.
func (t *Tracer) Drained(d relay.Drained) {
	span := t.start("drain ledger", trace.SpanKindInternal, d.Started, nil)
	if span.IsRecording() {
		span.SetAttributes(slot(d.Slot), attribute.String("outbox.sink", d.Sink), eventCount(d.Offered),
			attribute.Int("outbox.settled", d.Settled), attribute.Int("outbox.failed", d.Failing))
	}
	end(span, d.Started.Add(d.Took), nil)
}

func slot(name string) attribute.KeyValue { return attribute.String("outbox.slot", name) }

func eventCount(n int) attribute.KeyValue { return attribute.Int("outbox.events", n) }
