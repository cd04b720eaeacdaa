package traces

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/sagaz-relay/relay/internal/testbed/otlptest"
	"github.com/sagaz-relay/relay/relay"
)

// stuck is an exporter that takes nothing until it is released.
type stuck struct {
	gate chan struct{}
	kept
}

func (s *stuck) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	<-s.gate
	return s.kept.ExportSpans(ctx, spans)
}

// drops counts what is dropped, by reason.
type drops struct {
	mu sync.Mutex // guards by
	by map[string]int
}

func (d *drops) add(reason string, spans int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.by == nil {
		d.by = make(map[string]int)
	}
	d.by[reason] += spans
}

func (d *drops) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fmt.Sprint(d.by)
}

// What has no place in the queue is counted, every span of it, and logged once an episode.
func TestQueueFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, text := newLog()
		var lost drops
		about := about
		about.Dropped = lost.add
		to := &stuck{gate: make(chan struct{})}
		cfg := DefaultConfig()
		cfg.QueueSize, cfg.BatchSize = 100, 10
		tracer, err := newTracer(cfg, about, to, log)
		if err != nil {
			t.Fatal(err)
		}
		send := func(n int) {
			for range n {
				tracer.Sent(offer(kafka, nil, traced("OrderCreated", "1", parent(1, 1, "01"))))
				synctest.Wait() // the processor takes a batch out as soon as there is one
			}
		}
		send(110) // ten are with the exporter, a hundred wait
		if got := lost.String(); got != "map[]" {
			t.Errorf("dropped %s, want none", got)
		}
		// This one is not recorded, and needs no place.
		tracer.Sent(offer(kafka, nil, traced("OrderCreated", "1", parent(1, 1, "00"))))
		send(25)
		if got := lost.String(); got != "map[queue_full:25]" {
			t.Errorf("dropped %s, want 25", got)
		}
		if n := strings.Count(text.String(), "some are dropped"); n != 1 {
			t.Errorf("%d lines about it: %s", n, text)
		}
		close(to.gate)
		synctest.Wait()
		time.Sleep(2 * time.Minute)
		send(10)
		if got := text.String(); !strings.Contains(got, "spans are not dropped any more: spans_dropped=25") {
			t.Errorf("log: %s", got)
		}
		shut(tracer)
		if len(to.spans) != 120 {
			t.Errorf("%d spans were exported, want 120", len(to.spans))
		}
	})
}

// A collector that takes nothing costs spans, and they are counted too.
func TestExportInVainIsCounted(t *testing.T) {
	log, _ := newLog()
	var lost drops
	about := about
	about.Dropped = lost.add
	tracer, err := New(to("http://127.0.0.1:1", func(c *Config) { c.Timeout, c.ExportTimeout = 100, 100 }), about, log)
	if err != nil {
		t.Fatal(err)
	}
	tracer.Sent(offer(kafka, nil, traced("OrderCreated", "1", parent(1, 1, "01"))))
	shut(tracer)
	if got := lost.String(); got != "map[export:1]" {
		t.Errorf("dropped %s, want one", got)
	}
}

// A link carries the tracestate of what it links to, to the collector.
func TestLinksHaveTheirTracestate(t *testing.T) {
	collector := otlptest.New(t)
	tracer, _ := open(t, to(collector.HTTP()))
	with := func(n int, state string) *relay.Record {
		return record("OrderCreated", "1", relay.Header{Key: relay.TraceParent, Value: parent(n, n, "01")}, relay.Header{Key: "tracestate", Value: state})
	}
	tracer.Sent(offer(kafka, nil, with(1, "vendor=1,other=x"), traced("OrderCreated", "2", parent(2, 2, "01")), with(3, "vendor=3")))
	tracer.Sent(offer(kafka, nil, traced("OrderCreated", "2", parent(4, 4, "01"))))
	spans := collector.Wait(patience, "two spans", func(all []otlptest.Span) bool { return len(all) == 2 })
	var got []string
	for _, s := range spans {
		for _, l := range s.Links {
			got = append(got, l.TraceID[31:]+" "+l.State)
		}
	}
	if want := "1 vendor=1,other=x; 2 ; 3 vendor=3; 4 "; strings.Join(got, "; ") != want {
		t.Errorf("links %q, want %q", strings.Join(got, "; "), want)
	}
}
