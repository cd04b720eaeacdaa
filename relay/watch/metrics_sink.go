package watch

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
)

// sinkMetrics are the series of one sink, resolved.
type sinkMetrics struct {
	m            *Metrics
	name         string
	up, isolated prometheus.Gauge
	attempts     prometheus.Counter
	acks         prometheus.Counter
	bytes        prometheus.Counter
	arrived      prometheus.Counter
	tailRead     prometheus.Counter
	tailUnread   prometheus.Counter
	errors       map[string]prometheus.Counter // by reason; read-only
	ack          *histogram
	batch        *histogram
	batchEvents  *histogram
}

// Reasons of transient errors, besides those for which a broker refuses a record.
const (
	failedTimeout    = "timeout"    // no answer in time
	failedConnection = "connection" // the broker could not be reached, or the connection broke
	failedOther      = "other"
)

// refusals are the reasons for which a record is refused.
var refusals = [...]relay.Reason{relay.ReasonUnroutable, relay.ReasonTooLarge, relay.ReasonNacked, relay.ReasonRejected, relay.ReasonEncode, relay.ReasonUnknownTopic}

func (m *Metrics) sink(name string) *sinkMetrics {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.sinks[name]; ok {
		return s
	}
	s := &sinkMetrics{
		m: m, name: name, up: m.sinkUp.WithLabelValues(name), isolated: m.sinkIsolated.WithLabelValues(name),
		attempts: m.attempts.WithLabelValues(name), acks: m.acks.WithLabelValues(name), bytes: m.bytes.WithLabelValues(name),
		arrived: m.arrived.WithLabelValues(name), tailRead: m.tailRead.WithLabelValues(name), tailUnread: m.tailUnread.WithLabelValues(name),
		errors: make(map[string]prometheus.Counter),
		ack:    m.ackSeconds.with(name), batch: m.batchSeconds.with(name), batchEvents: m.batchEvents.with(name),
	}
	for _, reason := range refusals {
		s.errors[string(reason)] = m.publishErrors.WithLabelValues(name, string(reason))
		m.parked.WithLabelValues(name, string(reason))
	}
	for _, reason := range []string{failedTimeout, failedConnection, failedOther} {
		s.errors[reason] = m.publishErrors.WithLabelValues(name, reason)
	}
	m.parked.WithLabelValues(name, string(relay.ReasonSinkDown))
	m.parked.WithLabelValues(name, parkedBehind)
	s.up.Set(1)
	m.sinks[name] = s
	return s
}

// offered counts a batch that was offered to the sink, whatever came of it.
func (s *sinkMetrics) offered(events int, took time.Duration) {
	s.attempts.Add(float64(events))
	s.batch.observe(took.Seconds(), 1)
	s.batchEvents.observe(float64(events), 1)
}

// acked counts a batch that the sink took within the given time.
func (s *sinkMetrics) acked(batch []*relay.Flight, took time.Duration) {
	if len(batch) == 0 {
		return
	}
	s.m.batches.Inc()
	s.m.batchSize.Set(float64(len(batch)))
	s.acks.Add(float64(len(batch)))
	now := relay.TimestampOf(time.Now())
	seconds := took.Seconds()

	// A batch is counted by runs: of one type, and of one commit. Where types take turns, the few
	// that do are kept at hand.
	var types typeCounts
	bytes := 0
	committed, run := relay.Timestamp(0), 0
	var traced *relay.TraceContext // of an event of the run whose trace is recorded
	s.ack.mu.Lock()
	for _, f := range batch {
		bytes += len(f.Record.Key) + len(f.Record.Value)
		types.count(s.m, f.Record.EventType, seconds)
		if f.CommittedAt != committed {
			s.ackRun(now, committed, run, traced)
			committed, run, traced = f.CommittedAt, 0, nil
		}
		if s.m.exemplars && f.Record.Trace.Sampled() {
			traced = &f.Record.Trace
			types.example(&f.Record)
		}
		run++
	}
	s.ackRun(now, committed, run, traced)
	s.ack.mu.Unlock()
	types.flush(seconds)
	s.bytes.Add(float64(bytes))
}

// ackRun counts events of one transaction. It is called with the histogram's lock held.
func (s *sinkMetrics) ackRun(now, committed relay.Timestamp, events int, traced *relay.TraceContext) {
	if events > 0 && committed != 0 {
		seconds := max(0, float64(now-committed)/1e6)
		s.ack.add(seconds, events)
		if traced != nil {
			s.ack.example(seconds, traced)
		}
	}
}

// typeCounts counts a batch's events by type.
type typeCounts struct {
	kept [8]struct {
		t      *eventTypeMetrics
		name   string
		n      int
		traced *relay.TraceContext // of an event whose trace is recorded
	}
	used, last int
}

func (c *typeCounts) count(m *Metrics, name string, seconds float64) {
	if c.used > 0 && c.kept[c.last].name == name {
		c.kept[c.last].n++
		return
	}
	for i := range c.used {
		if c.kept[i].name == name {
			c.kept[i].n++
			c.last = i
			return
		}
	}
	t := m.eventType(name)
	if c.used == len(c.kept) {
		t.acked(seconds, 1, nil)
		return
	}
	at := &c.kept[c.used]
	at.t, at.name, at.n = t, name, 1
	c.last = c.used
	c.used++
}

// example notes the trace of an event that was just counted.
func (c *typeCounts) example(rec *relay.Record) {
	if at := &c.kept[c.last]; at.traced == nil && at.name == rec.EventType {
		at.traced = &rec.Trace
	}
}

func (c *typeCounts) flush(seconds float64) {
	for i := range c.used {
		c.kept[i].t.acked(seconds, c.kept[i].n, c.kept[i].traced)
	}
}

// routed counts what the sink's rules have done. Rules are few, and their names the user's.
func (s *sinkMetrics) routed(counts []relay.RuleCount) {
	for _, c := range counts {
		if c.Sent > 0 {
			s.m.routed.WithLabelValues(s.name, c.Rule).Add(float64(c.Sent))
		}
		if c.Dropped > 0 {
			s.m.dropped.WithLabelValues(s.name, c.Rule).Add(float64(c.Dropped))
		}
	}
}

// refused counts an event that the sink refused for its own fault, or that could not be offered for
// that.
func (s *sinkMetrics) refused(r relay.Refusal) {
	s.m.eventType(r.Flight.Record.EventType).failed.Inc()
	if r.Unoffered {
		s.attempts.Inc() // what cannot be encoded has failed at its first step
	}
	s.failed(r.Err)
}

// failed counts an event that a sink did not take.
func (s *sinkMetrics) failed(err error) {
	if reason := failureOf(err); reason != "" {
		s.errors[reason].Inc()
	}
}

// failureOf sorts an event's error into one of a few words; an empty one for what is not about the
// sink.
func failureOf(err error) string {
	var network net.Error
	var op *net.OpError
	refusal, refused := relay.Refused(err)
	switch {
	case refused:
		for _, reason := range refusals {
			if refusal.Reason == reason {
				return string(reason)
			}
		}
		return failedOther
	case err == nil, errors.Is(err, relay.ErrBehind), errors.Is(err, relay.ErrFence), errors.Is(err, context.Canceled):
		return ""
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return failedTimeout
	case errors.As(err, &op), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPIPE):
		return failedConnection
	default:
		return failedOther
	}
}

func (s *sinkMetrics) retry(events int) { s.m.retries.Add(float64(events)) }
