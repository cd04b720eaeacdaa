package traces

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/sagaz-relay/relay/relay"
)

// sinkWords is how a sink's spans name things.
type sinkWords struct {
	system      string
	placer      relay.Placer // nil: the sink has none
	destination func(*relay.Record) string
	// template is used in the place of destinations where each aggregate or saga has its own, which
	// is too many for spans' names; else empty.
	template string
}

func (t *Tracer) words(sink relay.Sink) *sinkWords {
	if w, ok := t.sinks.Load(sink.Name()); ok {
		return w.(*sinkWords)
	}
	w := &sinkWords{system: sink.Name(), destination: func(rec *relay.Record) string { return rec.Topic }}
	if placer, ok := sink.(relay.Placer); ok {
		w.placer, w.destination = placer, placer.Destination
	}
	hasID := func(topic, routingKey string) (name string, has bool) {
		name = w.destination(&relay.Record{Topic: topic, RoutingKey: routingKey})
		return name, strings.Contains(name, "{aggregate_id}") || strings.Contains(name, "{saga_id}")
	}
	if name, has := hasID(t.topic, t.routingKey); has {
		w.template = name
	}
	if t.rules != nil && slices.ContainsFunc(t.rules(sink.Name()), func(r relay.Route) bool { _, has := hasID(r.Topic, r.RoutingKey); return has }) {
		w.template = byRules
	}
	t.sinks.Store(sink.Name(), w)
	return w
}

// byRules stands for destinations where a rule makes one for each aggregate or saga.
const byRules = "(by rules)"

// part is what of an offer goes to one destination.
type part struct {
	destination string // empty: several
	batch       []*relay.Record
	at          []int // their places in the offer; nil: as they are
}

// maxParts bounds the spans of one offer. Where there are more destinations the rest share one.
const maxParts = 32

// parts takes an offer apart by destination.
func (w *sinkWords) parts(batch []*relay.Record) []part {
	if w.template != "" {
		return []part{{batch: batch}}
	}
	first := w.destination(batch[0])
	same := func(a, b *relay.Record) bool { return a.Topic == b.Topic && a.RoutingKey == b.RoutingKey }
	if !slices.ContainsFunc(batch, func(rec *relay.Record) bool { return !same(rec, batch[0]) && w.destination(rec) != first }) {
		return []part{{destination: first, batch: batch}}
	}
	var parts []part
	last := 0
	for i, rec := range batch {
		if len(parts) == 0 || !same(rec, parts[last].batch[0]) || parts[last].destination == "" {
			d := w.destination(rec)
			last = slices.IndexFunc(parts, func(p part) bool { return p.destination == d })
			if last < 0 && len(parts) >= maxParts {
				d = ""
				last = slices.IndexFunc(parts, func(p part) bool { return p.destination == "" })
			}
			if last < 0 {
				parts = append(parts, part{destination: d})
				last = len(parts) - 1
			}
		}
		parts[last].batch = append(parts[last].batch, rec)
		parts[last].at = append(parts[last].at, i)
	}
	return parts
}

// Sent implements relay.Tracer.
func (t *Tracer) Sent(o relay.Offer) {
	w := t.words(o.Sink)
	for _, p := range w.parts(o.Batch) {
		p.destination = relay.Short(p.destination)
		t.send(o, w, p)
	}
}

func (t *Tracer) send(o relay.Offer, w *sinkWords, p part) {
	name := "send"
	if d := w.template + p.destination; d != "" { // never both
		name += " " + d
	}
	l := tally(slices.Values(p.batch))
	span := t.start(name, trace.SpanKindClient, o.Started, &l)
	failed, err := p.outcome(o.Err)
	if span.IsRecording() {
		span.SetAttributes(w.attributes(p)...)
		span.SetAttributes(slot(o.Slot), attribute.String("outbox.sink", o.Sink.Name()))
		if failed > 0 {
			span.SetAttributes(attribute.Int("outbox.failed", failed))
		}
	}
	end(span, o.Started.Add(o.Took), err)
}

// outcome returns how many of the part's records have an error, and the first of those.
func (p *part) outcome(err error) (failed int, first error) {
	if err == nil {
		return 0, nil
	}
	var each *relay.BatchError
	if !errors.As(err, &each) {
		return len(p.batch), err
	}
	for i := range p.batch {
		at := i
		if p.at != nil {
			at = p.at[i]
		}
		if e := each.Errs[at]; e != nil {
			failed++
			if first == nil {
				first = e
			}
		}
	}
	return failed, first
}

// attributes are those of the messaging conventions.
func (w *sinkWords) attributes(p part) []attribute.KeyValue {
	place := relay.Place{System: w.system, Partition: -1}
	if w.placer != nil {
		place = w.placer.Place(p.batch)
	}
	attrs := []attribute.KeyValue{
		semconv.MessagingSystemKey.String(place.System), semconv.MessagingOperationName("send"), semconv.MessagingOperationTypeSend,
	}
	if w.template != "" {
		attrs = append(attrs, semconv.MessagingDestinationTemplate(w.template))
	}
	destination := p.destination
	if w.template != "" && len(p.batch) == 1 {
		destination = relay.Short(w.destination(p.batch[0]))
	}
	if destination != "" {
		attrs = append(attrs, semconv.MessagingDestinationName(destination))
		if place.RoutingKey != "" {
			attrs = append(attrs, semconv.MessagingRabbitMQDestinationRoutingKey(relay.Short(place.RoutingKey)))
		}
		if place.Partition >= 0 {
			attrs = append(attrs, semconv.MessagingDestinationPartitionID(strconv.Itoa(place.Partition)))
		}
	}
	if place.Host != "" {
		attrs = append(attrs, semconv.ServerAddress(place.Host), semconv.ServerPort(place.Port))
	}
	if len(p.batch) > 1 {
		return append(attrs, semconv.MessagingBatchMessageCount(len(p.batch)))
	}
	if place.System == "kafka" && p.batch[0].Key != "" {
		attrs = append(attrs, semconv.MessagingKafkaMessageKey(relay.Short(p.batch[0].Key)))
	}
	return append(attrs, message(p.batch[0])...)
}

// message are the attributes of a single message.
func message(rec *relay.Record) []attribute.KeyValue {
	attrs := []attribute.KeyValue{semconv.MessagingMessageID(rec.EventID.String())}
	if id := header(rec, "correlation_id"); id != "" {
		attrs = append(attrs, semconv.MessagingMessageConversationID(relay.Short(id)))
	}
	return attrs
}

// errorType sorts an error into one of few kinds.
func errorType(err error) string {
	if refusal, ok := relay.Refused(err); ok {
		return string(refusal.Reason)
	}
	var network net.Error
	switch {
	case errors.Is(err, relay.ErrLeaseLost), errors.Is(err, relay.ErrFence):
		return "lease_lost"
	case errors.Is(err, relay.ErrBehind):
		return "behind_refused"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.As(err, &network):
		return "connection"
	default:
		return semconv.ErrorTypeOther.Value.AsString()
	}
}

// shorten keeps an error's text to a size that a span can carry.
func shorten(text string) string {
	const most = 300
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
