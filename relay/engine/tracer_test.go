package engine_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// tracer notes what is reported to it, and begins a trace where it is asked to.
type tracer struct {
	mu    sync.Mutex
	noted []string
}

func (r *tracer) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noted = append(r.noted, fmt.Sprintf(format, args...))
}

func (r *tracer) all() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.noted, "; ")
}

func (r *tracer) Begin(rec *relay.Record, ev *relay.Event) {
	r.note("begin %s", label(ev.ID))
	rec.Trace = relay.TraceContext{TraceID: [16]byte{1}, SpanID: [8]byte{2}, Flags: 1}
	rec.Headers = append(rec.Headers, relay.Header{Key: relay.TraceParent, Value: string(rec.Trace.AppendText(nil))})
}

func (r *tracer) Sent(o relay.Offer) {
	var sampled []bool
	for _, rec := range o.Batch {
		sampled = append(sampled, rec.Trace.Sampled())
	}
	r.note("sent %s %s sampled %v err %v took %s", o.Sink.Name(), labels(o.Batch), sampled, o.Err, o.Took)
}

func (r *tracer) Marked(m relay.Marking) {
	r.note("marked %d %s err %v", m.Events, labels(slices.Collect(m.Records)), m.Err)
}

func (r *tracer) Swept(s relay.Swept) { r.note("swept %d %s err %v", s.Rows, s.Cause, s.Err) }

func (r *tracer) Drained(d relay.Drained) {
	r.note("drained %s offered %d settled %d failing %d", d.Sink, d.Offered, d.Settled, d.Failing)
}

func headersOf(text string) func(*relay.Event) {
	return func(ev *relay.Event) { ev.Headers = text }
}

func traceParentOf(rec *relay.Record) string {
	for _, h := range rec.Headers {
		if h.Key == relay.TraceParent {
			return h.Value
		}
	}
	return ""
}

func TestTracer(t *testing.T) {
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	oneLane := func(tr relay.Tracer) func(*engine.Config) {
		return func(cfg *engine.Config) { cfg.Lanes, cfg.Tracer = 1, tr }
	}

	// Each offer and each mark is reported. A trace is begun only for the row without a
	// traceparent, once for all sinks, and a row's own is as it was.
	bubble(t, "WhatIsTold", func(t *testing.T) {
		w, a, b, tr := newWorld(t), sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq"), new(tracer)
		a.OnCall(1).Times(1).Fail(errConnection)
		r := start(t, w, oneLane(tr), a, b)
		w.commitRows(insert("a", headersOf(`{"traceparent": "`+parent+`", "tracestate": "x=1", "baggage": "k=v"}`)), insert("b"), insert("c", headersOf(`{"traceparent": "odd"}`)))
		w.untilStatus("sent", "a1", "b1", "c1")
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		reported := tr.all()
		for _, want := range []string{
			"begin b1", "sent kafka a1 b1 c1 sampled [true true false] err 3 of 3 records not acknowledged, first: connection reset", "sent kafka a1 b1 c1 sampled [true true false] err <nil>",
			"sent rabbitmq a1 b1 c1 sampled [true true false] err <nil>", "marked 3 a1 b1 c1 err <nil>",
		} {
			if strings.Count(reported, want) != 1 {
				t.Errorf("%q is not reported once: %s", want, reported)
			}
		}
		if strings.Count(reported, "begin") != 1 || strings.Count(reported, "sent") != 3 || strings.Count(reported, "marked") != 1 {
			t.Errorf("reported: %s", reported)
		}
		for _, sink := range []*sinktest.Script{a, b} {
			got := sink.Taken()
			for i, want := range []string{parent, "00-01000000000000000000000000000000-0200000000000000-01", "odd"} {
				if p := traceParentOf(got[i]); p != want {
					t.Errorf("%s: record %d travels with traceparent %q, want %q", sink.Name(), i, p, want)
				}
			}
			if h := got[0].Headers; !slices.Contains(h, relay.Header{Key: "tracestate", Value: "x=1"}) || !slices.Contains(h, relay.Header{Key: "baggage", Value: "k=v"}) {
				t.Errorf("%s: headers %v", sink.Name(), h)
			}
		}
	})

	// What comes from the ledger and the table is reported too.
	bubble(t, "LedgerAndSweep", func(t *testing.T) {
		w, sink, tr := newWorld(t), sinktest.NewScript("kafka"), new(tracer)
		sink.OnEvent(id("a1")).Times(1).Refuse(relay.ReasonUnroutable, errConnection)
		r := start(t, w, func(cfg *engine.Config) { oneLane(tr)(cfg); cfg.Mode = relay.ModePolling }, sink)
		w.commitRows(insert("a", headersOf(`{"traceparent": "`+parent+`"}`)))
		w.untilStatus("sent", "a1")
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		reported := tr.all()
		for _, want := range []string{"swept 1 polled err <nil>", "drained kafka offered 1 settled 1 failing 0", "sent kafka a1 sampled [true] err <nil>"} {
			if strings.Count(reported, want) != 1 {
				t.Errorf("%q is not reported once: %s", want, reported)
			}
		}
		if strings.Count(reported, "swept") != 1 {
			t.Errorf("looks that find nothing are reported: %s", reported)
		}
	})

	// Without a tracer nobody looks at the headers.
	bubble(t, "None", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		start(t, w, nil, sink)
		w.commitRows(insert("a", headersOf(`{"traceparent": "`+parent+`"}`)), insert("b"))
		w.untilStatus("sent", "a1", "b1")
		got := sink.Taken()
		if got[0].Trace.IsValid() || traceParentOf(got[0]) != parent || traceParentOf(got[1]) != "" {
			t.Errorf("records %+v", got)
		}
	})
}
