package traces

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// book is a log to look at.
type book struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *book) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *book) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func newLog() (hclog.Logger, *book) {
	b := new(book)
	return hclog.New(&hclog.LoggerOptions{Output: b, Level: hclog.Debug}), b
}

var about = About{WorkerID: "relay-7", Version: "1.2.3", Topic: "{event_type}", RoutingKey: "{event_type}"}

// to is a configuration for a collector at an endpoint, quick enough for a test.
func to(endpoint string, change ...func(*Config)) Config {
	cfg := DefaultConfig()
	cfg.Endpoint, cfg.ScheduleDelay = endpoint, 20
	for _, c := range change {
		c(&cfg)
	}
	return cfg
}

// open makes a tracer that is closed at the end of the test.
func open(t testing.TB, cfg Config) (*Tracer, *book) {
	t.Helper()
	log, text := newLog()
	tracer, err := New(cfg, about, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(tracer) })
	return tracer, text
}

func shut(t *Tracer) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	t.Close(ctx)
}

// kept is an exporter that keeps spans.
type kept struct {
	mu    sync.Mutex
	spans []sdktrace.ReadOnlySpan
}

func (k *kept) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.spans = append(k.spans, spans...)
	return nil
}

func (k *kept) Shutdown(context.Context) error { return nil }

// spansOf makes a tracer, does f with it, and returns the spans that it would have exported.
func spansOf(t *testing.T, cfg Config, about About, f func(*Tracer)) []sdktrace.ReadOnlySpan {
	t.Helper()
	log, text := newLog()
	var to kept
	tracer, err := newTracer(cfg, about, &to, log)
	if err != nil {
		t.Fatal(err)
	}
	f(tracer)
	shut(tracer)
	if text.String() != "" {
		t.Errorf("it logs: %s", text)
	}
	return to.spans
}

// sink is one in name.
type sink struct{ name string }

func (s sink) Name() string                                   { return s.name }
func (s sink) Publish(context.Context, []*relay.Record) error { return nil }
func (s sink) Close() error                                   { return nil }

// placed is one that returns where records go.
type placed struct {
	sink
	place relay.Place
}

func (p placed) Destination(rec *relay.Record) string {
	if p.place.System == "rabbitmq" {
		return "saga-events:" + rec.RoutingKey
	}
	return rec.Topic
}

func (p placed) Place(batch []*relay.Record) relay.Place {
	place := p.place
	if place.System == "rabbitmq" {
		place.RoutingKey = batch[0].RoutingKey
	}
	return place
}

var kafka = placed{sink{"kafka"}, relay.Place{System: "kafka", Partition: 3, Host: "broker", Port: 9092}}

// traceOf is the n-th trace, and spanOf a span in it.
func traceOf(n int) string { return fmt.Sprintf("%032x", n) }
func spanOf(n int) string  { return fmt.Sprintf("%016x", 0xabc000+n) }

func parent(trace, span int, flags string) string {
	return "00-" + traceOf(trace) + "-" + spanOf(span) + "-" + flags
}

var nextEvent byte

// record is one with the headers, as the engine would hand it on.
func record(topic, key string, headers ...relay.Header) *relay.Record {
	nextEvent++
	rec := &relay.Record{EventID: relay.UUID{15: nextEvent}, EventType: topic, Topic: topic, RoutingKey: topic, Key: key, Value: []byte(`{"secret": "swordfish"}`), Headers: headers}
	if text := header(rec, relay.TraceParent); text != "" {
		rec.Trace, _ = relay.ParseTraceParent(text)
	}
	return rec
}

func traced(topic, key, traceparent string) *relay.Record {
	return record(topic, key, relay.Header{Key: relay.TraceParent, Value: traceparent})
}

func seq(batch []*relay.Record) iter.Seq[*relay.Record] { return slices.Values(batch) }

var began = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func offer(s relay.Sink, err error, batch ...*relay.Record) relay.Offer {
	return relay.Offer{Slot: "sagaz_outbox", Sink: s, Batch: batch, Started: began, Took: 5 * time.Millisecond, Err: err}
}

func attributesOf(s sdktrace.ReadOnlySpan) map[string]string {
	m := make(map[string]string)
	for _, kv := range s.Attributes() {
		m[string(kv.Key)] = kv.Value.String()
	}
	return m
}

var errBroker = errors.New("broker: no")

func names(spans []sdktrace.ReadOnlySpan) string {
	var all []string
	for _, s := range spans {
		all = append(all, s.Name())
	}
	return strings.Join(all, ", ")
}

func contextFor(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// nothing is an exporter that drops everything.
type nothing struct{}

func (*nothing) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return nil }
func (*nothing) Shutdown(context.Context) error                             { return nil }
