package traces

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/sagaz-relay/relay/relay"
)

func only(t *testing.T, spans []sdktrace.ReadOnlySpan) sdktrace.ReadOnlySpan {
	t.Helper()
	if len(spans) != 1 {
		t.Fatalf("%d spans, want 1: %s", len(spans), names(spans))
	}
	return spans[0]
}

func wantAttributes(t *testing.T, s sdktrace.ReadOnlySpan, want map[string]string) {
	t.Helper()
	if got := attributesOf(s); !maps.Equal(got, want) {
		t.Errorf("%s: attributes\n%v, want\n%v", s.Name(), got, want)
	}
}

// A lone event's span is in the event's own trace, and describes the message.
func TestSendOne(t *testing.T) {
	rec := record("OrderCreated", "order-1", relay.Header{Key: "correlation_id", Value: "c0ffee"},
		relay.Header{Key: relay.TraceParent, Value: parent(1, 1, "01")}, relay.Header{Key: "tracestate", Value: "vendor=1"})
	before := slices.Clone(rec.Headers)
	s := only(t, spansOf(t, DefaultConfig(), about, func(tr *Tracer) { tr.Sent(offer(kafka, nil, rec)) }))
	if s.Name() != "send OrderCreated" || s.SpanKind() != trace.SpanKindClient || s.Status().Code != codes.Unset {
		t.Errorf("%s %s %v", s.SpanKind(), s.Name(), s.Status())
	}
	if !s.StartTime().Equal(began) || !s.EndTime().Equal(began.Add(5*time.Millisecond)) {
		t.Errorf("from %s to %s", s.StartTime(), s.EndTime())
	}
	if got := s.SpanContext().TraceID().String(); got != traceOf(1) || s.Parent().SpanID().String() != spanOf(1) || !s.Parent().IsRemote() {
		t.Errorf("trace %s, parent %s", got, s.Parent().SpanID())
	}
	if s.SpanContext().TraceState().String() != "vendor=1" {
		t.Errorf("tracestate %q", s.SpanContext().TraceState())
	}
	wantAttributes(t, s, map[string]string{
		"messaging.system": "kafka", "messaging.operation.name": "send", "messaging.operation.type": "send", "messaging.destination.name": "OrderCreated",
		"messaging.destination.partition.id": "3", "messaging.kafka.message.key": "order-1", "messaging.message.id": rec.EventID.String(),
		"messaging.message.conversation_id": "c0ffee", "server.address": "broker", "server.port": "9092", "outbox.slot": "sagaz_outbox", "outbox.sink": "kafka",
	})
	if l := s.Links(); len(l) != 1 || l[0].SpanContext.TraceID().String() != traceOf(1) || l[0].SpanContext.SpanID().String() != spanOf(1) || l[0].SpanContext.TraceState().String() != "vendor=1" {
		t.Errorf("links %v", l)
	}
	if !slices.Equal(rec.Headers, before) {
		t.Errorf("the record's headers are changed to %v", rec.Headers)
	}
}

// A batch has a trace of its own and links to the events' where they are recorded.
func TestSendBatch(t *testing.T) {
	batch := []*relay.Record{
		traced("A", "1", parent(1, 1, "01")), traced("A", "2", parent(2, 2, "00")), record("A", "3"), traced("A", "4", parent(4, 4, "03")),
		traced("A", "5", "00-abc-def-01"),
	}
	s := only(t, spansOf(t, DefaultConfig(), about, func(tr *Tracer) { tr.Sent(offer(sink{"file"}, nil, batch...)) }))
	if s.Parent().IsValid() || !s.SpanContext().IsSampled() {
		t.Errorf("parent %v, context %v", s.Parent(), s.SpanContext())
	}
	var linked []string
	for _, l := range s.Links() {
		linked = append(linked, l.SpanContext.SpanID().String())
		if len(l.Attributes) != 1 || l.Attributes[0].Key != "messaging.message.id" {
			t.Errorf("link with %v", l.Attributes)
		}
	}
	if got, want := strings.Join(linked, " "), spanOf(1)+" "+spanOf(4); got != want {
		t.Errorf("links to %s, want %s", got, want)
	}
	wantAttributes(t, s, map[string]string{
		"messaging.system": "file", "messaging.operation.name": "send", "messaging.operation.type": "send", "messaging.destination.name": "A",
		"messaging.batch.message_count": "5", "outbox.slot": "sagaz_outbox", "outbox.sink": "file",
	})
}

// A destination may be as long as a row's texts: what spans keep of it is short, and there is one
// for each all the same.
func TestSendToLongDestinations(t *testing.T) {
	long := strings.Repeat("t", 1<<20)
	spans := spansOf(t, DefaultConfig(), about, func(tr *Tracer) {
		tr.Sent(offer(sink{"file"}, nil, record(long+"1", "1"), record(long+"2", "2"), record(long+"1", "3")))
	})
	if len(spans) != 2 {
		t.Fatalf("%d spans, want one for each destination", len(spans))
	}
	for _, s := range spans {
		if name := attributesOf(s)["messaging.destination.name"]; len(name) != relay.ShortBytes || s.Name() != "send "+name {
			t.Errorf("a name of %d bytes, a destination of %d", len(s.Name()), len(name))
		}
	}
}

// A batch of one trace lies in it.
func TestSendBatchOfOneTrace(t *testing.T) {
	s := only(t, spansOf(t, DefaultConfig(), about, func(tr *Tracer) {
		tr.Sent(offer(kafka, nil, traced("A", "1", parent(7, 1, "01")), traced("A", "1", parent(7, 2, "01"))))
	}))
	if s.SpanContext().TraceID().String() != traceOf(7) || s.Parent().SpanID().String() != spanOf(1) || len(s.Links()) != 2 {
		t.Errorf("trace %s, parent %s, %d links", s.SpanContext().TraceID(), s.Parent().SpanID(), len(s.Links()))
	}
}

// A span of several traces is in a trace of its own.
func TestSendBatchOfSeveralTraces(t *testing.T) {
	s := only(t, spansOf(t, DefaultConfig(), about, func(tr *Tracer) {
		tr.Sent(offer(kafka, nil, traced("A", "1", parent(7, 1, "01")), traced("A", "1", parent(8, 2, "01"))))
	}))
	if id := s.SpanContext().TraceID().String(); s.Parent().IsValid() || id == traceOf(7) || id == traceOf(8) || len(s.Links()) != 2 {
		t.Errorf("trace %s, parent %s, %d links", id, s.Parent().SpanID(), len(s.Links()))
	}
}

func TestLinksAreLimited(t *testing.T) {
	var batch []*relay.Record
	for i := range 300 {
		batch = append(batch, traced("A", "k", parent(i+1, i, "01")))
	}
	s := only(t, spansOf(t, DefaultConfig(), about, func(tr *Tracer) { tr.Sent(offer(kafka, nil, batch...)) }))
	if len(s.Links()) != 128 || attributesOf(s)["outbox.links_omitted"] != "172" || s.DroppedLinks() != 0 {
		t.Errorf("%d links, %d dropped, %v", len(s.Links()), s.DroppedLinks(), attributesOf(s))
	}
}

// Each destination of an offer has a span, with what became of its own records.
func TestDestinations(t *testing.T) {
	refused := relay.Refuse(relay.ReasonTooLarge, errBroker)
	batch := []*relay.Record{record("A", "1"), record("B", "1"), record("A", "2"), record("C", "2"), record("B", "3")}
	err := fmt.Errorf("publish: %w", &relay.BatchError{Errs: []error{nil, refused, nil, errBroker, nil}})
	rabbit := placed{sink{"rabbitmq"}, relay.Place{System: "rabbitmq", Partition: -1, Host: "mq", Port: 5672}}
	spans := spansOf(t, DefaultConfig(), about, func(tr *Tracer) { tr.Sent(offer(rabbit, err, batch...)) })
	if got, want := names(spans), "send saga-events:A, send saga-events:B, send saga-events:C"; got != want {
		t.Fatalf("spans %s, want %s", got, want)
	}
	for i, want := range []map[string]string{
		{"messaging.batch.message_count": "2", "messaging.rabbitmq.destination.routing_key": "A", "error.type": "", "outbox.failed": ""},
		{"messaging.batch.message_count": "2", "messaging.rabbitmq.destination.routing_key": "B", "error.type": "too_large", "outbox.failed": "1"},
		{"messaging.message.id": batch[3].EventID.String(), "messaging.rabbitmq.destination.routing_key": "C", "error.type": "_OTHER", "outbox.failed": "1"},
	} {
		got := attributesOf(spans[i])
		for name, value := range want {
			if got[name] != value {
				t.Errorf("%s: %s is %q, want %q", spans[i].Name(), name, got[name], value)
			}
		}
		if failed := spans[i].Status().Code == codes.Error; failed != (want["outbox.failed"] != "") {
			t.Errorf("%s: status %v", spans[i].Name(), spans[i].Status())
		}
	}
	// An error that is not by record is an error of all of them.
	spans = spansOf(t, DefaultConfig(), about, func(tr *Tracer) { tr.Sent(offer(kafka, context.DeadlineExceeded, batch...)) })
	if len(spans) != 3 || attributesOf(spans[0])["error.type"] != "timeout" || attributesOf(spans[0])["outbox.failed"] != "2" {
		t.Errorf("%s: %v", names(spans), attributesOf(spans[0]))
	}
}

// However many destinations an offer has, its spans are few; names do not grow with aggregates.
func TestDestinationsAreLimited(t *testing.T) {
	var batch []*relay.Record
	for i := range 100 {
		batch = append(batch, record(fmt.Sprint("T", i%50), "k"))
	}
	spans := spansOf(t, DefaultConfig(), about, func(tr *Tracer) { tr.Sent(offer(kafka, nil, batch...)) })
	if len(spans) != maxParts+1 || spans[maxParts].Name() != "send" || attributesOf(spans[maxParts])["messaging.batch.message_count"] != "36" {
		t.Errorf("%d spans: %s: %v", len(spans), names(spans), attributesOf(spans[len(spans)-1]))
	}

	perKey := about
	perKey.Topic = "orders.{aggregate_id}"
	s := only(t, spansOf(t, DefaultConfig(), perKey, func(tr *Tracer) {
		tr.Sent(offer(kafka, nil, record("orders.1", "1"), record("orders.2", "2")))
	}))
	if got := attributesOf(s); s.Name() != "send orders.{aggregate_id}" || got["messaging.destination.template"] != "orders.{aggregate_id}" || got["messaging.destination.name"] != "" {
		t.Errorf("%s: %v", s.Name(), got)
	}
	s = only(t, spansOf(t, DefaultConfig(), perKey, func(tr *Tracer) { tr.Sent(offer(kafka, nil, record("orders.1", "1"))) }))
	if got := attributesOf(s); s.Name() != "send orders.{aggregate_id}" || got["messaging.destination.name"] != "orders.1" {
		t.Errorf("%s: %v", s.Name(), got)
	}
}

// The parentbased_ samplers follow the events, and the others decide by themselves.
func TestSamplers(t *testing.T) {
	sampled, not := traced("A", "1", parent(1, 1, "01")), traced("A", "2", parent(2, 2, "00"))
	none := record("A", "3")
	for _, c := range []struct {
		sampler, arg string
		batch        []*relay.Record
		want         bool
	}{
		{"parentbased_always_on", "1", []*relay.Record{none}, true},
		{"parentbased_always_on", "1", []*relay.Record{not}, false},
		{"parentbased_always_on", "1", []*relay.Record{not, traced("A", "4", parent(4, 4, "00"))}, false},
		{"parentbased_always_on", "1", []*relay.Record{not, sampled}, true},
		{"parentbased_always_on", "1", []*relay.Record{not, none}, true},
		{"parentbased_always_off", "1", []*relay.Record{none}, false},
		{"parentbased_always_off", "1", []*relay.Record{none, not, sampled}, true},
		{"parentbased_always_off", "1", []*relay.Record{sampled}, true},
		{"parentbased_traceidratio", "0", []*relay.Record{none}, false},
		{"parentbased_traceidratio", "0", []*relay.Record{not, sampled}, true},
		{"parentbased_traceidratio", "1.0", []*relay.Record{none}, true},
		{"PARENTBASED_TRACEIDRATIO", "1", []*relay.Record{not}, false},
		{"always_on", "1", []*relay.Record{not}, true},
		{"always_off", "1", []*relay.Record{sampled}, false},
		{"traceidratio", "0", []*relay.Record{sampled, not}, false},
		{"traceidratio", "1", []*relay.Record{not}, true},
	} {
		cfg := DefaultConfig()
		cfg.Sampler, cfg.SamplerArg = c.sampler, c.arg
		var rows []string
		for _, rec := range c.batch {
			rows = append(rows, header(rec, relay.TraceParent))
		}
		spans := spansOf(t, cfg, about, func(tr *Tracer) {
			tr.Sent(offer(kafka, nil, c.batch...))
			tr.Marked(relay.Marking{Slot: "s", Events: len(c.batch), Records: seq(c.batch), Started: began})
		})
		if got := len(spans) == 2; got != c.want || len(spans) == 1 {
			t.Errorf("%s %s, rows %q: recorded %v (%d spans), want %v", c.sampler, c.arg, rows, got, len(spans), c.want)
		}
	}
}

func TestOtherSpans(t *testing.T) {
	batch := []*relay.Record{traced("A", "1", parent(1, 1, "01")), record("A", "2")}
	spans := spansOf(t, DefaultConfig(), about, func(tr *Tracer) {
		tr.Marked(relay.Marking{Slot: "s", Events: 2, Records: seq(batch), Started: began, Took: time.Second})
		tr.Marked(relay.Marking{Slot: "s", Events: 1, Records: seq(batch[:1]), Started: began, Took: time.Second, Err: relay.ErrFenced})
		tr.Swept(relay.Swept{Slot: "s", Cause: "polled", Rows: 5, Started: began, Took: time.Second})
		tr.Drained(relay.Drained{Slot: "s", Sink: "kafka", Offered: 4, Settled: 3, Failing: 1, Started: began, Took: time.Second})
	})
	if got, want := names(spans), "mark saga_outbox, mark saga_outbox, sweep saga_outbox, drain ledger"; got != want {
		t.Fatalf("spans %s, want %s", got, want)
	}
	wantAttributes(t, spans[0], map[string]string{"db.system.name": "postgresql", "db.collection.name": "saga_outbox", "outbox.slot": "s", "outbox.events": "2"})
	if len(spans[0].Links()) != 1 || spans[0].Parent().IsValid() {
		t.Errorf("mark: links %v, parent %v", spans[0].Links(), spans[0].Parent())
	}
	if got := attributesOf(spans[1]); got["error.type"] != "lease_lost" || spans[1].Parent().SpanID().String() != spanOf(1) {
		t.Errorf("mark that is fenced: %v", got)
	}
	wantAttributes(t, spans[2], map[string]string{"outbox.slot": "s", "outbox.events": "5", "outbox.cause": "polled"})
	wantAttributes(t, spans[3], map[string]string{"outbox.slot": "s", "outbox.sink": "kafka", "outbox.events": "4", "outbox.settled": "3", "outbox.failed": "1"})
}

// RELAY_TRACE_EVENTS begins a trace for a row, the same one at a redelivery, and sends it also when
// it is not recorded.
func TestBegin(t *testing.T) {
	cfg := DefaultConfig()
	ev := &relay.Event{ID: relay.UUID{1, 2, 3}, EventType: "OrderCreated", CommittedAt: relay.TimestampOf(time.Now().Add(-time.Second))}
	fresh := func() *relay.Record {
		return &relay.Record{EventID: ev.ID, EventType: ev.EventType, Topic: ev.EventType, Headers: []relay.Header{{Key: "event_id", Value: "x"}}}
	}

	rec := fresh()
	if spans := spansOf(t, cfg, about, func(tr *Tracer) { tr.Begin(rec, ev) }); len(spans) != 0 || len(rec.Headers) != 1 || rec.Trace.IsValid() {
		t.Errorf("it is off by default, and made %d spans and the headers %v", len(spans), rec.Headers)
	}

	cfg.Events = true
	first, second := fresh(), fresh()
	spans := spansOf(t, cfg, about, func(tr *Tracer) {
		tr.Begin(first, ev)
		tr.Begin(second, ev)
		tr.Sent(offer(kafka, nil, first))
	})
	if got, want := names(spans), "create OrderCreated, create OrderCreated, send OrderCreated"; got != want {
		t.Fatalf("spans %s, want %s", got, want)
	}
	s := spans[0]
	wantAttributes(t, s, map[string]string{
		"messaging.system": "outbox", "messaging.operation.name": "create", "messaging.operation.type": "create", "messaging.destination.name": "OrderCreated",
		"messaging.message.id": ev.ID.String(),
	})
	if d := s.EndTime().Sub(s.StartTime()); s.SpanKind() != trace.SpanKindProducer || d < time.Second || s.Parent().IsValid() {
		t.Errorf("%s, %s long, parent %v; want a producer's from the commit on, without a parent", s.SpanKind(), d, s.Parent())
	}
	if got, want := header(first, relay.TraceParent), "00-"+s.SpanContext().TraceID().String()+"-"+s.SpanContext().SpanID().String()+"-01"; got != want {
		t.Errorf("traceparent %s, want %s", got, want)
	}
	if spans[1].SpanContext().TraceID() != s.SpanContext().TraceID() || spans[1].SpanContext().SpanID() == s.SpanContext().SpanID() {
		t.Error("the redelivery is not in the same trace with a span of its own")
	}
	if spans[2].Parent().SpanID() != s.SpanContext().SpanID() {
		t.Errorf("the send span's parent is %s, want the create span", spans[2].Parent().SpanID())
	}

	cfg.Sampler = "parentbased_always_off"
	rec = fresh()
	if spans := spansOf(t, cfg, about, func(tr *Tracer) { tr.Begin(rec, ev); tr.Sent(offer(kafka, nil, rec)) }); len(spans) != 0 {
		t.Errorf("spans %s, want none", names(spans))
	}
	if got := header(rec, relay.TraceParent); !strings.HasSuffix(got, "-00") || len(got) != 55 {
		t.Errorf("traceparent %q, want one that is not sampled", got)
	}
}

// The ids of events' traces are good for samplers, though UUIDs are not all random.
func TestTraceIDRatio(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Events, cfg.Sampler, cfg.SamplerArg, cfg.QueueSize = true, "parentbased_traceidratio", "0.25", 10_000
	const rows = 4000
	spans := spansOf(t, cfg, about, func(tr *Tracer) {
		for i := range rows {
			// as UUIDs of version 4: two bits of the ninth byte are fixed
			ev := &relay.Event{ID: relay.UUID{byte(i), byte(i >> 8), 6: 0x40, 8: 0x80}}
			tr.Begin(&relay.Record{}, ev)
		}
	})
	if got := float64(len(spans)) / rows; got < 0.2 || got > 0.3 {
		t.Errorf("%.3f of the rows are recorded, want about 0.25", got)
	}
}

// No span has anything of a payload.
func TestNoPayload(t *testing.T) {
	rec := traced("A", "1", parent(1, 1, "01"))
	for _, s := range spansOf(t, DefaultConfig(), about, func(tr *Tracer) { tr.Sent(offer(kafka, errBroker, rec)) }) {
		if text := fmt.Sprint(attributesOf(s), s.Name(), s.Status(), s.Links()); strings.Contains(text, "swordfish") {
			t.Errorf("a span has the payload: %s", text)
		}
	}
}
